"""The loop of a monitor over one table, without its processes, and what a frozen first version would have answered.

Each window is measured by the check's own job and decided by the trigger's own ledger, in a database of its own.
Nobody lifts a quarantine or closes a breaker.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROUNDS = 100
"""Of each version: early stopping would end the first model early and flatter the loop."""


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
    verdicts: Counter[str] = field(default_factory=Counter)
    retrainings: int = 0
    released: int = 0
    worse: Counter[str] = field(default_factory=Counter)
    """Challengers that answered the next window worse than the champion they were compared with, by what became of
    them: `released` or `not_better`."""

    logged: Any = None
    """The files of the log that hold the last window."""

    def run(self) -> "Loop":
        job = self.begin()
        ledger = Ledger(self.folder, self._spec())
        with quiet():
            champion = first = self.version(job, None, 1)
        assert champion is not None
        assert first is not None
        tried: tuple[str, dict[str, Any], dict[str, Any]] | None = None
        for part in self.parts[1:]:
            self.frozen.append(self.score(job, first, part))
            self.live.append(self.score(job, champion, part, log=True))
            if tried is not None:
                self._judge(job, part, *tried)
                tried = None
            with quiet():
                report = self.report(job, champion, part)
            self._deliver(part)
            verdict, reason = ledger.decide(champion, report)
            self.verdicts[verdict] += 1
            outcome = ""
            if verdict == "retrain":
                with quiet():
                    made = self.version(job, champion, champion["number"] + 1)
                outcome = "released" if made["better"] else "not_better"
                ledger.ended(outcome)
                tried = outcome, made, champion
                self.retrainings += 1
                self.released += outcome == "released"
                champion = made if made["better"] else champion
            came = f", {outcome}: {self.reason}" if outcome else ""
            print(f"  {part.name}: frozen {self.frozen[-1]:.4f}, live {self.live[-1]:.4f}, {verdict} ({reason}){came}",
                  flush=True)  # fmt: skip
        return self

    def _judge(self, job: Any, part: Part, outcome: str, made: dict[str, Any], before: dict[str, Any]) -> None:
        """Was the challenger worse than the champion it was compared with, on the window after?"""
        from everloop.specs import HIGHER_IS_BETTER

        now, then = self.score(job, made, part), self.score(job, before, part)
        worse = now < then if self.spec["metric"] in HIGHER_IS_BETTER else now > then
        self.worse[outcome] += worse
        print(f"  the challenger, {outcome}, answers {part.name} with {now:.4f}, the version before with {then:.4f}")

    def _spec(self) -> Any:  # loaded where it is needed
        from everloop.specs import LifecycleSpec

        return LifecycleSpec.model_validate(self.spec | {"source": {"path": str(self.folder / "source")}})

    @property
    def monitor(self) -> Any:
        return self._spec().monitor

    def begin(self) -> Any:
        """The job that everything runs in; the first part lies in the source."""
        from tests.job import FolderJob

        (self.folder / "source").mkdir(parents=True)
        self._deliver(self.parts[0])
        return FolderJob(self.folder)

    def _deliver(self, part: Part) -> None:
        (part.rows if part.outcomes is None else part.outcomes).to_csv(
            self.folder / "source" / f"{part.name}.csv", index=False
        )

    def version(self, job: Any, champion: dict[str, Any] | None, number: int) -> dict[str, Any]:
        """Train, and compare with *champion* by the spec's certainty. One that is not better is made all the same."""
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
        refitted = training.refit(
            contracts.RefitRequest(spec=spec, snapshot=snapshot, prepared=prepared, trained=trained, slot=slot), job
        )
        made = export.export(contracts.ExportRequest(spec=spec, snapshot=snapshot, refitted=refitted, slot=slot), job)
        signature = Signature.model_validate_json(job.artifacts.get(made.signature))
        return {
            "number": number,
            "better": record is None or judged.comparison.verdict == "better",
            "model": inference.Model(job.artifacts.get(made.model), signature),
            "signature": signature,
            "reference": made.reference.sha256,
            "evaluation": judged.report,
            "expected": judged.metrics,
            "tested": judged.rows,
            "record": Champion(
                version=number, model_digest=made.model.sha256, model=made.model, signature=made.signature,
                seen=refitted.seen, trained_until=refitted.trained_until, release_seq=number,
            ),
        }  # fmt: skip

    def score(self, job: Any, version: dict[str, Any], part: Part, *, log: bool = False) -> float:
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
        from everloop.predictions import PredictionLog, line_files, on_disk

        folder = job.predictions_dir / "default" / self.spec["model"]
        before = set(line_files(folder))
        written = PredictionLog(folder)
        for start in range(0, len(asked), 10_000):
            lines: list[dict[str, Any]] = [
                {"request_id": f"{part.name}-{place}", "row": 0, "event_time": moments[place].isoformat(),
                 "logged_at": moments[place].isoformat(), "version": number, "features": asked[place],
                 "prediction": answers[place]}
                for place in range(start, min(start + 10_000, len(asked)))
            ]  # fmt: skip
            written.append(lines)
        written.close()
        found = on_disk(folder)
        self.logged = found.model_copy(update={"parts": tuple(p for p in found.parts if p.name not in before)})

    def _asked(self, part: Part, signature: Any) -> tuple[list[dict[str, Any]], list[datetime]]:
        names = [entry.name for entry in signature.fields]
        rows = part.rows[names].astype(object).where(part.rows[names].notna(), None).to_dict("records")
        for entry in signature.fields:
            if entry.kind in ("category", "datetime"):
                for row in rows:
                    row[entry.name] = None if row[entry.name] is None else str(row[entry.name])
        moments = [moment.to_pydatetime() for moment in pd.to_datetime(part.rows[self.spec["time"]], utc=True)]
        return rows, moments

    def report(self, job: Any, version: dict[str, Any], part: Part) -> Any:
        from activities.compute import drift
        from everloop.contracts import DriftRequest
        from everloop.records import Slot, Window

        monitor = self.monitor
        return drift.measure(
            DriftRequest(
                project="default", model=self.spec["model"], champion=version["record"],
                reference_sha256=version["reference"], window=Window(start=part.start, end=part.end),
                minimum_rows=monitor.minimum_rows, seed=0, slot=Slot(device="cpu0", token=1, holder="bench/run"),
                evaluation=version["evaluation"], monitor=monitor, log=self.logged,
            ),
            job,
        )  # fmt: skip


class Ledger:
    """The product's own decisions about the windows of one model."""

    def __init__(self, folder: Path, spec: Any) -> None:
        from everloop.store import MonitorRow, Store

        self.store, self.spec = Store(f"sqlite:///{folder / 'everloop.db'}"), spec
        self.store.migrate()
        self.lifecycle = ""
        row = MonitorRow(
            project=spec.project, model=spec.model, spec=spec.model_dump_json(), updated_at=datetime.now(UTC)
        )
        with self.store.write() as session:
            session.add(row)

    def decide(self, champion: dict[str, Any], report: Any) -> tuple[str, str]:
        """Verdict and reason; each retraining has ended before the next window."""
        from activities.drift import ledger
        from everloop.contracts import TriggerRequest

        request = TriggerRequest(
            project=self.spec.project, model=self.spec.model, version=champion["number"], window=report.window,
            share=None if report.insufficient else report.share, threshold=self.spec.monitor.share,
            insufficient=report.insufficient, spec=self.spec, measures=report.measures, broken=report.broken,
        )  # fmt: skip
        self.lifecycle = f"retrain-{report.window.start:%Y%m%d}"
        answer = ledger.decide(self.store, request, "", self.lifecycle)
        return answer.verdict, answer.reason

    def ended(self, outcome: str) -> None:
        from everloop.store import LifecycleRow

        now = datetime.now(UTC)
        row = LifecycleRow(
            id=self.lifecycle, run_id="", project=self.spec.project, model=self.spec.model, task=self.spec.task,
            trigger="drift", submitted_by="monitor", submitted_at=now, updated_at=now, body_digest="",
            spec=self.spec.model_dump_json(), status=outcome,
        )  # fmt: skip
        with self.store.write() as session:
            session.add(row)


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
    monitor = {"window": "month", "share": 0.5} | more.pop("monitor", {})
    training = {"rounds": ROUNDS, "early_stopping": 1000, "seed": more.pop("seed", 0)}
    return {
        "model": model, "task": task, "target": target, "time": time_, "metric": metric, "training": training,
        "monitor": monitor, **more,
    }  # fmt: skip
