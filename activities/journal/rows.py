"""The journal's rows, and the read models that they change."""

import logging
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func
from sqlalchemy.orm import Mapped
from sqlmodel import Session, SQLModel, col, select

from activities.execution import Execution
from everloop import names, views
from everloop.errors import Forbidden, JournalConflict
from everloop.events import Event
from everloop.records import RouteChange
from everloop.store import ApprovalRow, DriftRow, HistoryRow, JournalRow, LifecycleRow, ReleaseRow, StageRow, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run of a journaled workflow, and facts of it in order."""

    workflow_id: str
    run_id: str
    started_at: datetime
    events: tuple[Event, ...]
    routes: tuple[RouteChange, ...] = ()
    """What it did to a model's route."""


def must_go_on(store: Store, execution: Execution) -> None:
    """Raise `Forbidden` for a lifecycle that is started anew under the id of another one.

    The API never does that. What goes on with a lifecycle is a run that a Reset made of its first one.
    """
    if execution.workflow_type != names.LIFECYCLE:
        return
    with store.read() as session:
        query = select(JournalRow.run_id, JournalRow.run_started_at)
        rows = session.exec(query.where(JournalRow.workflow_id == execution.workflow_id).distinct()).all()
    known = dict(rows)
    if not known or known.keys() & {execution.run_id, execution.first_run_id}:
        return
    if execution.started_at > min(known.values()):  # an earlier run may come later: a sweep begins with the newest
        raise Forbidden(
            f"run {execution.run_id} of {execution.workflow_id} is another lifecycle under the same id: "
            "nothing of it is recorded",
            hint="submit with a new Idempotency-Key; a Reset in Temporal goes on with the old one",
        )


def append(store: Store, run: Run) -> bool:
    """Write the run's events and the read models they change, in one transaction.

    False, and nothing written, when earlier events of the run are missing. Raises `JournalConflict`.
    """
    if not run.events:
        return True
    with store.write() as session:
        known = _bodies(session, run)
        if run.events[0].seq > len(known):
            return False
        fresh = [event for event in run.events if _is_new(known, event, run)]
        session.add_all(row_of(run, event) for event in fresh)
        session.flush()
        if fresh:
            _refold(session, run.workflow_id)
    return True


def _bodies(session: Session, run: Run) -> dict[int, str]:
    found = session.exec(
        select(JournalRow.seq, JournalRow.body).where(
            JournalRow.workflow_id == run.workflow_id, JournalRow.run_id == run.run_id
        )
    )
    return dict(found.all())


def _is_new(known: dict[int, str], event: Event, run: Run) -> bool:
    if event.seq not in known:
        return True
    if not views.same(known[event.seq], event):
        log.critical("JOURNAL CONFLICT at %s %s number %s", run.workflow_id, run.run_id, event.seq)
        raise JournalConflict(
            f"the journal of {run.workflow_id} holds another event as number {event.seq} of run {run.run_id}",
            hint="`everloop journal verify` shows the difference; `everloop journal rebuild` makes the journal again",
        )
    return False


def row_of(run: Run, event: Event) -> JournalRow:
    return JournalRow(
        workflow_id=run.workflow_id,
        run_id=run.run_id,
        run_started_at=run.started_at,
        seq=event.seq,
        type=event.type,
        at=event.at,
        body=views.body(event),
    )


_WORKFLOW: dict[type[SQLModel], Mapped[str]] = {
    LifecycleRow: col(LifecycleRow.id),
    StageRow: col(StageRow.lifecycle),
    ApprovalRow: col(ApprovalRow.id),
    ReleaseRow: col(ReleaseRow.workflow_id),
    DriftRow: col(DriftRow.workflow_id),
}
"""Where each read model names its workflow."""


def _refold(session: Session, workflow_id: str) -> None:
    """Make the read-model rows of one workflow what its journal folds to. An event changes few of them."""
    rows = session.exec(select(JournalRow).where(JournalRow.workflow_id == workflow_id)).all()
    made = views.fold(rows)
    tables = {type(row) for row in made} | ({StageRow} if any(isinstance(row, LifecycleRow) for row in made) else set())
    kept: dict[tuple[object, ...], SQLModel] = {}
    for table in tables:
        found = session.exec(select(table).where(_WORKFLOW[table] == workflow_id)).all()
        kept |= {(table, *identity(row)): row for row in found}
    for row in made:
        before = kept.pop((type(row), *identity(row)), None)
        if before is None:
            session.add(row)
            continue
        for name, value in views.plain(row).items():
            if getattr(before, name) != value:
                setattr(before, name, value)
    for row in kept.values():
        session.delete(row)


def identity(row: SQLModel) -> tuple[object, ...]:
    """The values of its primary key."""
    return tuple(getattr(row, column.name) for column in type(row).__table__.primary_key)  # type: ignore[attr-defined]


def journaled(store: Store, workflow_id: str, run_id: str) -> bool:
    with store.read() as session:
        mine = select(JournalRow.id).where(JournalRow.workflow_id == workflow_id, JournalRow.run_id == run_id)
        return session.exec(mine.limit(1)).first() is not None


def unknown(store: Store, workflow_id: str, run_id: str) -> bool:
    """A run that has no event yet although an earlier run of the same workflow has: a Reset made it."""
    with store.read() as session:
        mine = select(func.count()).where(JournalRow.workflow_id == workflow_id, JournalRow.run_id == run_id)
        others = select(func.count()).where(JournalRow.workflow_id == workflow_id, JournalRow.run_id != run_id)
        return session.exec(mine).one() == 0 and session.exec(others).one() > 0


def archived(store: Store, workflow_id: str, run_id: str) -> bool:
    with store.read() as session:
        return session.get(HistoryRow, (workflow_id, run_id)) is not None


def merge(store: Store, row: SQLModel) -> None:
    with store.write() as session:
        session.merge(row)
