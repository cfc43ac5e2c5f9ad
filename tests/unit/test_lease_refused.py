"""What is refused to a holder whose lease was taken away is not written, and is counted by what it was."""

from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlmodel import select

from activities import lease_ledger as ledger
from activities.jobs import rows
from activities.lease_ledger import check_token
from everloop import names
from everloop.errors import LeaseLost
from everloop.records import Slot
from everloop.store import LeaseRow, MetricRow, Store
from workers import metrics

POOL = names.DEFAULT_POOL
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def lease(store: Store, token: int, state: str) -> LeaseRow:
    row = LeaseRow(
        pool=POOL, token=token, request_id=f"r{token}", holder="one/run", workflow_id="one", run_id="run",
        device="cpu0", state=state, granted_at=NOW, queue="default",
    )  # fmt: skip
    with store.write() as session:
        session.add(row)
    return row


def counted(store: Store) -> dict[str, float]:
    text = metrics.Metrics(store).text().decode()
    samples = (each for family in text_string_to_metric_families(text) for each in family.samples)
    return {each.labels["store"]: each.value for each in samples if each.name == "everloop_fence_rejections_total"}


@pytest.mark.parametrize("state", ["killing", "fenced"])
def test_steps_and_checkpoints_of_a_lease_that_was_taken_away_are_refused_and_counted(store: Store, state: str) -> None:
    ledger.note_inventory(store, POOL, ("cpu0:cores=4",))
    lease(store, 1, state)
    lease(store, 2, "active")
    before = counted(store)

    for token in (1, 2):
        rows.write_steps(store, f"run/train.{token}", token, {1: {"loss": 0.5}, 2: {"loss": 0.4}})
        rows.note_kept(store, token, NOW)

    with store.read() as session:
        assert {row.job for row in session.exec(select(MetricRow)).all()} == {"run/train.2"}
        assert [session.get_one(LeaseRow, (POOL, token)).checkpoint_at for token in (1, 2)] == [None, NOW]
    after = counted(store)
    assert before.keys() == {"result", "version", "metric", "checkpoint", "job"}
    assert {what: after[what] - before[what] for what in after if after[what] != before[what]} == {
        "metric": 1,
        "checkpoint": 1,
    }


@pytest.mark.parametrize("what", ["result", "version"])
def test_a_pointer_of_a_lease_that_was_taken_away_is_refused_and_counted(store: Store, what: str) -> None:
    ledger.note_inventory(store, POOL, ("cpu0:cores=4",))
    lease(store, 1, "fenced")
    before = counted(store)

    with pytest.raises(LeaseLost), store.write() as session:
        check_token(session, Slot(device="cpu0", token=1, holder="one/run"), what)  # type: ignore[arg-type]

    after = counted(store)
    assert {each: after[each] - before[each] for each in after if after[each] != before[each]} == {what: 1}
