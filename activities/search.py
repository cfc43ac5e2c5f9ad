"""Searches: trials as jobs in child processes (compute/search), and what control writes down of them.

SQL says at any time how a search stands. What a trial is asked from are the study's blobs: trials in order of their
numbers, in few files, of which small ones are joined, so that a study of n trials writes about n log n lines in all.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlmodel import Session, col, select
from temporalio import activity

from everloop.artifacts import Artifacts
from everloop.contracts import BeginRequest, SearchActivities, SearchJobActivities, TellRequest, TrialRequest
from everloop.records import Blob, Version
from everloop.search import Search
from everloop.specs import HIGHER_IS_BETTER
from everloop.store import Store, StudyRow, TrialRow, VersionRow
from everloop.trials import Kept, Plan, Point, Study, Trial, Trials

if TYPE_CHECKING:  # control uses this file too, and starts without Dask
    from activities.jobs.submit import Jobs


class SearchJobs(SearchJobActivities):
    """Runs on the compute worker."""

    def __init__(self, jobs: "Jobs") -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.search.try")
    async def attempt(self, request: TrialRequest) -> Trials:
        return await self._jobs.run("search.trials", request, Trials)


class SearchOnControl(SearchActivities):
    """Writes studies and trials."""

    def __init__(self, store: Store, artifacts: Artifacts) -> None:
        self._store = store
        self._artifacts = artifacts

    @activity.defn(name="everloop.search.begin")
    async def begin(self, request: BeginRequest) -> Study:
        """Write down what the search's trials have in common. The same again changes nothing."""
        return await asyncio.to_thread(self._begin, request)

    @activity.defn(name="everloop.search.tell")
    async def tell(self, request: TellRequest) -> Study:
        """Write down trials that have ended, and how the search stands. The same again changes nothing."""
        return await asyncio.to_thread(self._tell, request)

    def _begin(self, request: BeginRequest) -> Study:
        spec = request.spec
        search = spec.search or Search()
        families = search.families_of(spec.trainer)
        budget = search.budget.of(again=request.again)
        points = self._champions(request) if request.again else ()
        plan = Plan(
            spec=spec,
            snapshot=request.snapshot,
            prepared=request.prepared,
            families=families,
            seed=spec.training.seed,
            points=tuple(point for point in points if point.family in families),
        )
        blob = self._artifacts.put(plan.model_dump_json().encode(), "plan.json")
        now = datetime.now(UTC)
        with self._store.write() as session:
            if session.get(StudyRow, request.study) is None:
                session.add(
                    StudyRow(
                        id=request.study,
                        lifecycle=request.lifecycle,
                        state="running",
                        metric=search.metric or spec.objective,
                        sampler=search.sampler,
                        pruner=search.pruned_by,
                        families=list(families),
                        seconds=budget.seconds,
                        trials=budget.trials,
                        sentence="the search begins",
                        started_at=now,
                        updated_at=now,
                    )
                )
        return Study(id=request.study, plan=blob)

    def _champions(self, request: BeginRequest) -> tuple[Point, ...]:
        """What the version that answers now was learned with."""
        if request.champion is None:
            return ()
        key = (request.spec.project, request.spec.model, request.champion.version)
        with self._store.read() as session:
            row = session.get(VersionRow, key)
        if row is None:
            return ()
        refitted = Version.model_validate_json(row.record).refitted
        if refitted.family != "ensemble":
            return (Point(family=refitted.family, parameters=refitted.parameters, origin="champion"),)
        members = sorted(refitted.parameters.get("members", ()), key=lambda each: -each["weight"])
        return tuple(Point(family=each["family"], parameters=each["params"], origin="champion") for each in members)

    def _tell(self, request: TellRequest) -> Study:
        study, now = request.study, datetime.now(UTC)
        told = [*request.trials, *(trial for kept in request.kept for trial in kept_trials(self._artifacts, kept))]
        with self._store.write() as session:
            for trial in told:
                session.merge(_row(study.id, trial, now))
            session.flush()
            self._stands(session, request, now)
            fresh = _contiguous(session, study)
        if not fresh:
            return study
        blobs = joined(self._artifacts, study.blobs, fresh)
        return study.model_copy(update={"told": study.told + len(fresh), "blobs": blobs})

    def _stands(self, session: Session, request: TellRequest, now: datetime) -> None:
        row = session.get_one(StudyRow, request.study.id)
        values = select(TrialRow).where(TrialRow.study == row.id, TrialRow.state == "complete")
        order = col(TrialRow.value).desc() if row.metric in HIGHER_IS_BETTER else col(TrialRow.value)
        best = session.exec(values.order_by(order, col(TrialRow.number)).limit(1)).first()
        row.best = best.number if best else None
        row.told = len(session.exec(select(TrialRow.number).where(TrialRow.study == row.id)).all())
        row.spent_seconds, row.sentence, row.updated_at = request.spent, request.sentence, now
        row.state = request.ended or "running"
        session.add(row)


def _row(study: str, trial: Trial, now: datetime) -> TrialRow:
    return TrialRow(
        study=study,
        number=trial.number,
        family=trial.family,
        state=trial.state,
        value=trial.values[0] if trial.values else None,
        seconds=trial.seconds,
        at=now,
        record=trial.model_dump(mode="json"),
    )


def _contiguous(session: Session, study: Study) -> list[Trial]:
    """The trials that follow those in the study's blobs, without a gap."""
    query = select(TrialRow).where(TrialRow.study == study.id, TrialRow.number >= study.told)
    found: list[Trial] = []
    for row in session.exec(query.order_by(col(TrialRow.number))):
        if row.number != study.told + len(found):
            break
        found.append(Trial.model_validate(row.record))
    return found


def kept_trials(artifacts: Artifacts, kept: Kept) -> list[Trial]:
    """What a job has kept, with where that was."""
    found = [Trial.model_validate_json(line) for line in artifacts.get(kept.blob).splitlines()]
    return [trial.model_copy(update={"job": kept.job}) for trial in found]


def joined(artifacts: Artifacts, blobs: Sequence[Blob], fresh: Sequence[Trial]) -> tuple[Blob, ...]:
    """The blobs with *fresh* after them. A last one that is not larger than what follows it is joined to it."""
    kept, text = list(blobs), b"".join(trial.model_dump_json().encode() + b"\n" for trial in fresh)
    while kept and kept[-1].size_bytes <= 2 * len(text):
        text = artifacts.get(kept.pop()) + text
    return (*kept, artifacts.put(text, "trials.jsonl"))
