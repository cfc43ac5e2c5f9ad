"""The journal is what the histories say, and the read models are what the journal folds to."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import col, delete, select
from temporalio.testing import WorkflowEnvironment

from activities.journal import JournalOnControl, Run, append, rebuild
from everloop import names, views
from everloop.errors import JournalConflict
from everloop.events import LifecycleFinished
from everloop.payloads import converter
from everloop.records import Verdict
from everloop.store import READ_MODELS, HistoryRow, JournalRow, LifecycleRow, RouteRow, Store
from tests import stores
from tests.fakes import at
from tests.temporal.conftest import Stack
from tests.temporal.test_drift import MONITOR, check, traffic
from tests.temporal.test_reset import reset, workflow_task_after
from workers import temporal


def rows(store: Store) -> dict[tuple[str, str], dict[str, object]]:
    with store.read() as session:
        return {
            (table.__name__, repr(sorted(views.plain(row).items(), key=lambda item: item[0]))[:400]): views.plain(row)
            for table in READ_MODELS
            for row in session.exec(select(table)).all()
        }


async def a_busy_day(stack: Stack) -> None:
    """A release, a reset, a rejection, a termination and a drift check."""
    first = await stack.submit("first", monitor=MONITOR)
    old = await stack.gate(first.id)
    await reset(stack, first.id, await workflow_task_after(stack, first.id, "everloop.data.validate"))
    await stack.gate(first.id, other_than=old.nonce)
    await stack.decide(first.id)
    await stack.status(first.id, "released")
    second, third = await stack.submit("second"), await stack.submit("third")
    await stack.decide(second.id, Verdict.REJECT, comment="no")
    await stack.gate(third.id)
    await third.terminate(reason="by hand")
    traffic(stack, stack.spec().model, at(2026, 1, 1), at(2026, 1, 2))
    await check(stack, stack.spec().model)


async def test_rebuild_makes_the_very_rows_that_were_made_live(stack: Stack) -> None:
    await a_busy_day(stack)
    assert (await stack.verified()).differences == []
    live = rows(stack.store)
    with stack.store.write() as session:
        for table in READ_MODELS:
            session.exec(delete(table))
        session.exec(delete(JournalRow).where(col(JournalRow.seq) > 2))

    await rebuild(stack.client, stack.store, stack.artifacts)

    assert rows(stack.store) == live
    assert {name for name, _ in live} == {"LifecycleRow", "StageRow", "ApprovalRow", "ReleaseRow", "DriftRow"}


async def test_what_temporal_has_forgotten_is_rebuilt_from_the_archive(stack: Stack) -> None:
    handle = await stack.submit()
    await stack.decide(handle.id)
    await handle.result()
    assert (await stack.verified()).differences == []
    live = rows(stack.store)

    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(temporal.binary()),
        data_converter=converter,
        search_attributes=names.SEARCH_ATTRIBUTES,
    ) as empty:  # a Temporal that knows nothing
        await rebuild(empty.client, stack.store, stack.artifacts)
        assert (await stack.verified_with(empty.client)).differences == []

    assert rows(stack.store) == live


async def test_verify_finds_what_was_changed_by_hand(stack: Stack) -> None:
    done = await stack.submit("done")
    await stack.decide(done.id)
    await stack.status(done.id, "released")
    handle = await stack.submit()
    await stack.status(handle.id, "waiting_approval")
    with stack.store.write() as session:
        route = session.exec(select(RouteRow)).one()
        route.release_seq = 5  # no rollout made it
        session.add(route)
        row = session.exec(select(JournalRow).where(JournalRow.workflow_id == handle.id, JournalRow.seq == 3)).one()
        session.delete(row)
        lifecycle = stack.row(handle.id)
        assert lifecycle is not None
        lifecycle.reason = "made up"
        session.merge(lifecycle)

    differences = (await stack.verified()).differences

    assert any(line.startswith(f"missing in the journal: {handle.id}") for line in differences)
    assert any("LifecycleRow" in line and "not what the journal folds to" in line for line in differences)
    assert (
        f"the route of default/{route.model}: version 1 answers (release 5), "
        "but by the histories version 1 answers (release 1)"
    ) in differences


async def test_another_event_under_the_same_key_is_an_alarm(stack: Stack) -> None:
    handle = await stack.submit()
    row = await stack.gate(handle.id)
    with stack.store.read() as session:
        known = session.exec(select(JournalRow).where(JournalRow.workflow_id == row.id)).first()
    assert known is not None
    other = LifecycleFinished(seq=known.seq, at=known.at, outcome="failed", reason="another fact")

    with pytest.raises(JournalConflict, match="holds another event"):
        append(stack.store, Run(known.workflow_id, known.run_id, known.run_started_at, (other,)))


async def test_every_closed_run_is_archived_once(stack: Stack) -> None:
    handle = await stack.submit()
    await stack.decide(handle.id)
    await handle.result()

    await stack.journal.sweep()
    again = await stack.journal.sweep()

    with stack.store.read() as session:
        archived = {row.workflow_id for row in session.exec(select(HistoryRow)).all()}
    assert {handle.id, names.approval_id(handle.id)} <= archived
    assert again == 0


@pytest.mark.parametrize("typed", [[{"garbage": 1}], []])
async def test_what_somebody_typed_in_temporals_ui_spoils_neither_sweep_nor_verify(
    stack: Stack, typed: list[object]
) -> None:
    by_hand = await stack.client.start_workflow(
        names.LIFECYCLE, args=typed, id=f"{stack.prefix}-typed", task_queue="nobody-polls-this-queue"
    )
    await by_hand.terminate()
    handle = await stack.submit()
    await stack.gate(handle.id)
    await handle.terminate(reason="by hand")

    await stack.journal.sweep()

    await stack.status(handle.id, "terminated")
    assert (await stack.verified()).differences == []


async def test_a_run_that_was_archived_as_it_ended_does_not_hide_those_that_ended_before(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.journal.control.OVERLAP", timedelta())
    one, two = await stack.submit("one"), await stack.submit("two")
    for handle in (one, two):
        await stack.gate(handle.id)
        await handle.terminate(reason="while control was away")
    kept = stores.migrated(f"sqlite:///{tmp_path / 'other.db'}")
    control = JournalOnControl(kept, stack.artifacts, stack.client)  # it starts again

    runs = [run async for run in stack.client.list_workflows(f"WorkflowId = '{two.id}'")]
    await control.archive(runs[0])  # noticed first, because it ended last
    await control.sweep()

    with kept.read() as session:
        assert session.get_one(LifecycleRow, one.id).status == "terminated"
    kept.close()
