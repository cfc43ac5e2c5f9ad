"""The journal made again from the histories, and compared with them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import delete, select
from temporalio.client import Client

from activities.journal.histories import runs
from activities.journal.rows import Run, identity, row_of
from everloop import views
from everloop.artifacts import Artifacts
from everloop.store import READ_MODELS, JournalRow, RouteRow, Store

REBUILDS = 5


@dataclass
class Findings:
    """What `verify` saw. Clean when `differences` is empty."""

    runs: int = 0
    events: int = 0
    rows: int = 0
    differences: list[str] = field(default_factory=list)


async def rebuild(client: Client, store: Store, artifacts: Artifacts) -> int:
    """Make the journal and all read models again from the histories. Returns the number of events.

    Each try is one transaction. Control may go on meanwhile: what it appended between the reading of the
    histories and the transaction is found missing afterwards, and the next try has it.
    """
    for _ in range(REBUILDS):
        events = await _rebuild(client, store, artifacts)
        if not (await _compare(client, store, artifacts)).differences:
            break
    return events


async def _rebuild(client: Client, store: Store, artifacts: Artifacts) -> int:
    found = [run async for run in runs(client, store, artifacts)]
    rows = [row_of(run, event) for run in found for event in run.events]
    rows.sort(key=lambda row: (row.at, row.workflow_id, row.run_id, row.seq))
    with store.write() as session:
        session.exec(delete(JournalRow))
        for table in READ_MODELS:
            session.exec(delete(table))
        session.add_all(rows)
        session.flush()
        for workflow_id in sorted({row.workflow_id for row in rows}):
            session.add_all(views.fold([row for row in rows if row.workflow_id == workflow_id]))
    return len(rows)


async def verify(
    client: Client, store: Store, artifacts: Artifacts, models: Callable[[str], bool] = lambda _model: True
) -> Findings:
    """Compare journal and routes with histories, and read models with what the journal folds to.

    A run that is writing right now may be ahead in its history by the append in flight; that is said only
    when it is still so a moment later. *models*: whose routes are compared, where several stores share a Temporal.
    """
    findings = await _compare(client, store, artifacts, models)
    for _ in range(10):
        if not findings.differences:
            break
        await asyncio.sleep(0.5)
        findings = await _compare(client, store, artifacts, models)
    return findings


async def _compare(
    client: Client, store: Store, artifacts: Artifacts, models: Callable[[str], bool] | None = None
) -> Findings:
    findings = Findings()
    found = [run async for run in runs(client, store, artifacts)]
    with store.read() as session:
        journal = session.exec(select(JournalRow)).all()
        routes = session.exec(select(RouteRow)).all()
        kept = {
            (table.__name__, identity(row)): views.plain(row)
            for table in READ_MODELS
            for row in session.exec(select(table)).all()
        }
    _compare_journal(findings, found, journal)
    _compare_rows(findings, journal, kept)
    if models is not None:
        _compare_routes(findings, found, routes, models)
    return findings


def _compare_journal(findings: Findings, found: list[Run], journal: Sequence[JournalRow]) -> None:
    rows = {(row.workflow_id, row.run_id, row.seq): row.body for row in journal}
    for run in found:
        findings.runs += 1
        for event in run.events:
            findings.events += 1
            key = (run.workflow_id, run.run_id, event.seq)
            body = rows.pop(key, None)
            if body is None:
                findings.differences.append(f"missing in the journal: {_name(key)} {event.type}")
            elif not views.same(body, event):
                findings.differences.append(f"the journal says otherwise: {_name(key)} {event.type}")
    findings.differences += [f"in the journal but in no history: {_name(key)}" for key in rows]


def _compare_routes(
    findings: Findings, found: list[Run], routes: Sequence[RouteRow], models: Callable[[str], bool]
) -> None:
    """A route is what the rollouts' histories made of it: whatever else changed it is an alarm."""
    ordered = sorted(found, key=lambda run: (run.started_at, run.run_id))
    said = views.routes_of(change for run in ordered for change in run.routes)
    every = said.keys() | {(row.project, row.model) for row in routes}
    for model in sorted(one for one in every if models(one[1])):
        change = said.get(model)
        row = next((row for row in routes if (row.project, row.model) == model), None)
        expected = _answers(change.version, change.release_seq) if change else _answers(0, 0)
        actual = _answers(row.version, row.release_seq) if row else _answers(0, 0)
        if (row.model_digest if row else "") != (change.model_digest if change else "") and expected == actual:
            actual += " with other bytes"
        if expected != actual:
            findings.differences.append(
                f"the route of {model[0]}/{model[1]}: {actual}, but by the histories {expected}"
            )


def _answers(version: int, release_seq: int) -> str:
    return f"version {version} answers (release {release_seq})" if version else "nothing answers"


def _compare_rows(
    findings: Findings, journal: Sequence[JournalRow], kept: dict[tuple[str, tuple[object, ...]], dict[str, Any]]
) -> None:
    by_workflow: dict[str, list[JournalRow]] = {}
    for row in journal:
        by_workflow.setdefault(row.workflow_id, []).append(row)
    for rows in by_workflow.values():
        for made in views.fold(rows):
            findings.rows += 1
            key = (type(made).__name__, identity(made))
            if kept.pop(key, None) != views.plain(made):
                findings.differences.append(f"read model {key[0]} {key[1]} is not what the journal folds to")
    findings.differences += [f"read model {name} {identity} has no event" for name, identity in kept]


def _name(key: tuple[str, str, int]) -> str:
    return f"{key[0]} run {key[1][:13]} number {key[2]}"
