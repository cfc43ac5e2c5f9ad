"""A search whose whole stack is killed in its middle, beside one that nothing happens to."""

import dataclasses
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from activities.compute.search import plan_of
from activities.compute.search.asking import Asking
from everloop.artifacts import Artifacts
from everloop.client import Client
from everloop.settings import Settings
from everloop.store import LifecycleRow, Store, StudyRow, TrialRow
from everloop.trials import Study, Trial
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher

STILL_SECONDS = 600
"""Nothing at all is written down for so long: it stands still. However slow the machine is, a trial takes less."""
ROWS = 400
PASSES = ("is taken by another program", "the Temporal server does not answer")
"""What a start may say that goes well later."""


TRIED = re.compile(r"^trial (\d+): ", re.MULTILINE)
"""How a job's log says that a trial has ended."""


@dataclass(frozen=True)
class Found:
    """What a search has left that was killed, and the same without a kill, where that was asked for."""

    killed: list[Trial]
    whole: list[Trial]
    told: int
    """Trials that were written down when everything was killed."""
    tried: int
    """That had ended by then, as their jobs' logs have it."""
    jobs_again: int
    """Jobs of the killed one that ran more than once."""
    trials_again: list[int]
    """Trials that ended more than once."""
    told_again: list[int]
    """Those of them that had been written down before."""


def table(folder: Path) -> Path:
    numbers = random.Random(0)
    rows = ["age,plan,left"]
    for _ in range(ROWS):
        age, plan = numbers.randint(18, 80), numbers.choice(["basic", "gold"])
        rows.append(f"{age},{plan},{int(age + (20 if plan == 'basic' else 0) + numbers.gauss(0, 10) > 60)}")
    path = folder / "churn.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def spec_of(path: Path, model: str, trials: int, parallel: int, seed: int) -> dict[str, Any]:
    return {
        "model": model,
        "task": "binary",
        "target": "left",
        "source": {"path": str(path)},
        "monitor": None,
        "until": "train",
        "training": {"seed": seed, "rounds": 30},
        "validation": {"method": "folds", "folds": 3, "repeats": 1},
        "search": {"budget": {"trials": trials}, "families": ["lightgbm", "linear"], "parallel": parallel},
    }


def trials_of(store: Store, lifecycle: str) -> list[Trial]:
    """Those that are written down."""
    with store.read() as session:
        study = session.exec(select(StudyRow.id).where(StudyRow.lifecycle == lifecycle)).first()
        rows = session.exec(select(TrialRow).where(TrialRow.study == study).order_by(col(TrialRow.number))).all()
    return [Trial.model_validate(row.record) for row in rows]


def run(here: Settings, *, trials: int, kill_at: int, parallel: int, seed: int = 0, whole: bool = True) -> Found:
    """One search to its end through kill -9 of everything when *kill_at* trials have ended; the same without a kill."""
    path, numbers = table(here.data_dir.parent), random.Random(seed)
    launcher = ready(here)
    store = Store(here.database)
    with Client(data_dir=here.data_dir) as client:
        client.submit(spec_of(path, "killed", trials, parallel, seed), "killed")
        moved(store, "killed", lambda told: max(told, len(tried(here))) >= kill_at)
        time.sleep(numbers.random() * 0.1)
    launcher.kill_everything()
    before, ended = trials_of(store, "killed"), len(tried(here))
    ready(here)
    with Client(data_dir=here.data_dir) as client:
        moved(store, "killed")
        again = sorted(number for number, times in tried(here).items() if times > 1)
        jobs = len({log.parent for log in here.logs_dir.glob("jobs/*/trials.*/2.log")})
        if whole:
            client.submit(spec_of(path, "whole", trials, parallel, seed), "whole")
            moved(store, "whole")
    known = {trial.number for trial in before}
    killed, other = trials_of(store, "killed"), trials_of(store, "whole") if whole else []
    store.close()
    return Found(killed, other, len(before), ended, jobs, again, [number for number in again if number in known])


def tried(here: Settings) -> Counter[int]:
    """How often each trial has ended, by the logs of all jobs."""
    logs = [path.read_text(errors="replace") for path in here.logs_dir.glob("jobs/*/trials.*/*.log")]
    return Counter(int(number) for log in logs for number in TRIED.findall(log))


def ready(here: Settings) -> Launcher:
    """A stack on that data folder; begun again where the machine was too busy, or somebody has taken its ports."""
    while True:
        launcher = Launcher(here)
        try:
            launcher.ready()
        except AssertionError:
            said = launcher.output.read_text()
            if launcher.process.poll() is None or not any(each in said for each in PASSES):
                raise
            here = dataclasses.replace(here, port_base=free_port_base())
        else:
            return launcher


def moved(store: Store, lifecycle: str, far: Callable[[int], bool] | None = None) -> None:
    """Until it is *far* enough, by the trials that are written down, or done. Fails where it ends otherwise, or stands.

    Read from the database: an API on a machine without time may not answer in time.
    """
    seen, since = "", time.monotonic()
    while True:
        with store.read() as session:
            row = session.get(LifecycleRow, lifecycle)
        told = len(trials_of(store, lifecycle))
        if row and (row.status == "done" or (far is not None and far(told))):
            return
        stands = f"{row.status} at {row.stage}, {told} trials" if row else "not written down"
        assert row is None or row.status == "running", f"{lifecycle}: {stands}: {row.error}"
        if stands != seen:
            seen, since = stands, time.monotonic()
        assert time.monotonic() - since < STILL_SECONDS, f"{lifecycle} stands still: {stands}"
        time.sleep(0.05)


def suggestions(trials: Sequence[Trial]) -> list[tuple[str, str, tuple[float, ...], str]]:
    """What was asked, and what came of it."""
    return [(trial.family, str(sorted(trial.parameters.items())), trial.values, trial.state) for trial in trials]


def wrong_with(trials: Sequence[Trial], here: Settings, most: int) -> list[str]:
    """What a search must not leave: gaps and doubles, and suggestions that do not follow from what they knew."""
    numbers = [trial.number for trial in trials]
    found = [f"trial {number} is lost" for number in range(most) if number not in numbers]
    found += [f"trial {number} is there twice" for number in sorted({n for n in numbers if numbers.count(n) > 1})]
    store = Store(here.database)
    with store.read() as session:
        study = session.exec(select(StudyRow).where(StudyRow.lifecycle == "killed")).one()
    store.close()
    plan = next(blob for blob in plans(here) if blob.spec.model == study.lifecycle)
    asking, by_number = Asking(plan, ROWS // 2), {trial.number: trial for trial in trials}
    for trial in trials:
        known = [by_number[number] for number in (*range(trial.knew), *trial.beside) if number in by_number]
        asked = asking.ask(trial.number, known, trial.left)
        if (asked.family, asked.drawn) != (trial.family, trial.drawn):
            found.append(f"trial {trial.number} does not follow from what it knew")
    return found


def plans(here: Settings) -> list[Any]:
    """The plans of searches that are in the artifact store."""
    artifacts, found = Artifacts(here.artifacts), []
    for path in Path(here.artifacts.removeprefix("file://")).glob("sha256/*/*"):
        if path.stat().st_size < 200_000 and b'"families"' in (data := path.read_bytes()) and b'"prepared"' in data:
            blob = {"sha256": path.name, "size_bytes": len(data)}
            found.append(plan_of(artifacts, Study.model_validate({"id": "", "plan": blob})))
    return found
