"""Leased time: whatever is told of jobs, every millisecond of every core is in one kind, and the sums are exact."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlmodel import select

from activities import lease_ledger as ledger
from activities.caller import Caller
from activities.jobs.checkpoints import Checkpoints
from activities.jobs.job_time import JobTime
from activities.lease_time import (
    KINDS,
    Capacity,
    Job,
    Leased,
    Life,
    Mark,
    Overcommitted,
    Part,
    Spent,
    Totals,
    Use,
    cut,
    freed,
    held_now,
    in_ms,
    inventoried,
    spent,
    totals,
    until_now,
)
from api.pool.reserved import reservations
from everloop import names
from everloop.contracts import AcceptRequest, LeaseRequest
from everloop.store import JobTimeRow, LeaseRequestRow, LeaseRow, LeaseTimeRow, ReservationRow, Store

POOL = names.DEFAULT_POOL
ADA = Caller("ada", "run-1", names.LIFECYCLE)

MOMENTS = some.integers(-50, 400)
JOBS = some.lists(
    some.builds(
        Job,
        stage=some.sampled_from(("train", "export")),
        from_ms=MOMENTS,
        to_ms=MOMENTS,
        done=some.booleans(),
        checkpointed_ms=MOMENTS,
        writing_ms=MOMENTS,
    ),
    max_size=5,
)
LIVES = some.builds(
    Life,
    granted_ms=some.integers(0, 200),
    ended_ms=some.integers(0, 300),
    noticed_ms=some.integers(0, 350),
    free_ms=some.integers(0, 350),
)


@given(life=LIVES, jobs=JOBS)
def test_whatever_is_told_of_jobs_the_spans_cover_the_life_without_gap_or_overlap(life: Life, jobs: list[Job]) -> None:
    spans = cut(life, jobs)

    at = life.granted_ms
    for span in spans:
        assert span.from_ms == at
        assert span.to_ms > span.from_ms
        assert span.kind in KINDS
        at = span.to_ms
    assert at == max(life.granted_ms, life.ended_ms, life.free_ms)


def test_a_killed_job_is_useful_until_its_checkpoint_and_the_rest_is_done_again() -> None:
    killed = Job("train", from_ms=110, to_ms=200, done=False, checkpointed_ms=160, writing_ms=5)

    spans = cut(Life(granted_ms=100, ended_ms=250, noticed_ms=230, free_ms=270), [killed])

    assert [(span.kind, span.to_ms - span.from_ms) for span in spans] == [
        ("held_idle", 10),
        ("useful", 45),
        ("checkpoint", 5),
        ("redone", 40),
        ("held_idle", 30),
        ("notice", 20),
        ("quarantined", 20),
    ]


def test_a_job_with_a_result_is_useful_and_one_without_checkpoint_is_done_again_whole() -> None:
    done, lost = Job("prepare", 0, 30, done=True), Job("train", 30, 90, done=False)

    spans = cut(Life(granted_ms=0, ended_ms=90), [lost, done])

    assert [(span.kind, span.stage, span.to_ms) for span in spans] == [
        ("useful", "prepare", 30),
        ("redone", "train", 90),
    ]


@some.composite
def ledgers(draw: some.DrawFn) -> tuple[list[Capacity], list[Use], list[Mark]]:
    """Devices that come, change their size and go; leases that fit in; marks that overlap as they like."""
    capacity: list[Capacity] = []
    uses: list[Use] = []
    marks: list[Mark] = []
    for device in draw(some.sampled_from((["cpu0"], ["cpu0", "gpu-1"], []))):
        at = draw(some.integers(0, 50))
        for _ in range(draw(some.integers(1, 3))):
            until = at + draw(some.integers(1, 120))
            cores, milli_gpu = draw(some.integers(0, 6)), draw(some.sampled_from((0, 1000)))
            capacity.append(Capacity(device, at, until, cores, milli_gpu))
            left_cores, left_gpu = cores, milli_gpu
            for _ in range(draw(some.integers(0, 4))):  # side by side: together they fit
                mine, gpu = draw(some.integers(0, left_cores)), draw(some.integers(0, left_gpu))
                left_cores, left_gpu = left_cores - mine, left_gpu - gpu
                begins = draw(some.integers(at, until - 1))
                ends = draw(some.integers(begins + 1, until))
                uses.append(Use(device, begins, ends, mine, gpu, draw(some.sampled_from(KINDS[:6])), queue="vision"))
            at = until + draw(some.integers(0, 20))
        for kind in ("lost", "reserved_idle", "reserved_idle"):
            begins = draw(some.integers(0, 100))
            amounts = () if kind == "lost" else (draw(some.integers(0, 6)), draw(some.sampled_from((0, 400, 1000))))
            marks.append(Mark(device, begins, begins + draw(some.integers(1, 100)), kind, *amounts))
    return capacity, uses, marks


def slowly(rows: tuple[list[Capacity], list[Use], list[Mark]], from_ms: int, to_ms: int) -> dict[str, Spent]:
    """The same sums, millisecond by millisecond: an independent checker."""
    capacity, uses, marks = rows
    found = dict.fromkeys(KINDS, Spent())
    for at in range(from_ms, to_ms):
        for there in (row for row in capacity if row.from_ms <= at < row.to_ms):
            mine = [use for use in uses if use.device == there.device and use.from_ms <= at < use.to_ms]
            for use in mine:
                found[use.kind] = found[use.kind].plus(use.cores, use.milli_gpu)
            cores = there.cores - sum(use.cores for use in mine)
            milli_gpu = there.milli_gpu - sum(use.milli_gpu for use in mine)
            told = [mark for mark in marks if mark.device == there.device and mark.from_ms <= at < mark.to_ms]
            if any(mark.kind == "lost" for mark in told):
                found["lost"] = found["lost"].plus(cores, milli_gpu)
                continue
            kept = min(cores, sum(mark.cores for mark in told)), min(milli_gpu, sum(mark.milli_gpu for mark in told))
            found["reserved_idle"] = found["reserved_idle"].plus(*kept)
            found["free"] = found["free"].plus(cores - kept[0], milli_gpu - kept[1])
    return found


@given(rows=ledgers(), from_ms=some.integers(0, 200), length=some.integers(0, 300))
def test_the_sums_over_all_kinds_are_capacity_times_time_exactly(
    rows: tuple[list[Capacity], list[Use], list[Mark]], from_ms: int, length: int
) -> None:
    found = totals(*rows, from_ms, from_ms + length)

    assert found.by_kind == slowly(rows, from_ms, from_ms + length)
    assert found.capacity == Spent(
        sum(spent.core_ms for spent in found.by_kind.values()), sum(spent.gpu_ms for spent in found.by_kind.values())
    )
    whole = [max(0, min(row.to_ms, from_ms + length) - max(row.from_ms, from_ms)) * row.cores for row in rows[0]]
    assert found.capacity.core_ms == sum(whole)
    leased = [found.by_kind[kind].core_ms for kind in KINDS[:6]]
    assert sum(spent.core_ms for spent in found.leased.values()) == sum(leased)


def test_more_leased_than_there_is_is_said_and_never_summed_away() -> None:
    there = [Capacity("cpu0", 0, 100, 2, 0)]
    uses = [Use("cpu0", 0, 60, 2, 0, "useful"), Use("cpu0", 50, 70, 1, 0, "useful")]

    with pytest.raises(Overcommitted, match="cpu0 has 2 cores and 0 milli-GPU at 50, and leases have 3 and 0"):
        totals(there, uses, [], 0, 100)
    with pytest.raises(Overcommitted, match="cpu9"):
        totals(there, [Use("cpu9", 0, 10, 1, 0, "useful")], [], 0, 100)


# --- in the ledger ---------------------------------------------------------------------------------


def test_a_lease_of_the_ledger_is_told_by_its_jobs_and_sums_up_with_what_was_free(store: Store) -> None:
    ledger.note_inventory(store, POOL, ("cpu0", "cpu1:light"))
    ledger.enqueue(store, LeaseRequest(id="one"), ADA)
    ledger.grant(store, POOL)
    token = rows_of(store, LeaseRow)[0].token
    ledger.accept(store, AcceptRequest(request_id="one", token=token), ADA)
    began = datetime.now(UTC)
    with store.write() as session:
        session.add(job_time(token, began, done=True))
    time.sleep(0.02)
    until = datetime.now(UTC)
    live = spent_until(store, until)
    ledger.end(store, POOL, token, "released")
    ended = spent_until(store, until)

    assert live == ended  # what is told of a live lease is what is written of it at its end
    assert live.by_kind["useful"].core_ms == 10
    assert sum(spent.core_ms for spent in live.by_kind.values()) == live.capacity.core_ms
    rows = rows_of(store, LeaseTimeRow)
    assert {(row.token, row.queue, row.workflow_id, row.device) for row in rows} == {(token, "default", "ada", "cpu0")}
    ledger.end(store, POOL, token, "released")
    assert len(rows_of(store, LeaseTimeRow)) == len(rows)


def test_what_still_runs_is_useful_so_far_and_done_again_once_it_ended_without_a_result(store: Store) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    life = Life(granted_ms=in_ms(at), ended_ms=in_ms(at) + 100)
    lease = Leased(7, "ada", "run-1", "vision", life, (Part("cpu0", 2, 0),), "credit")
    running = job_time(7, at, done=False, milliseconds=80)
    running.ended = False
    with store.write() as session:
        session.add(running)

    def kinds() -> dict[str, int]:
        with store.read() as session:
            return {use.kind: use.to_ms - use.from_ms for _, use in until_now(session, [lease])}

    assert kinds() == {"useful": 80, "held_idle": 20}
    with store.write() as session:
        row = session.exec(select(JobTimeRow)).one()
        row.ended = True
        session.add(row)
    assert kinds() == {"redone": 80, "held_idle": 20}


def test_while_a_device_is_away_its_free_time_is_lost(store: Store) -> None:
    ledger.note_inventory(store, POOL, ("cpu0",))
    time.sleep(0.01)
    ledger.note_inventory(store, POOL, ())
    time.sleep(0.02)
    ledger.note_inventory(store, POOL, ("cpu0",))
    time.sleep(0.01)

    found = spent_until(store, datetime.now(UTC))

    assert found.by_kind["lost"].core_ms >= 20
    assert found.by_kind["free"].core_ms >= 18
    assert found.by_kind["lost"].core_ms + found.by_kind["free"].core_ms == found.capacity.core_ms


def test_what_a_lease_lost_is_charged_to_the_queue_that_took_it_back(store: Store) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    life = Life(granted_ms=in_ms(at), ended_ms=in_ms(at) + 100, noticed_ms=in_ms(at) + 90)
    lease = Leased(7, "ada", "run-1", "vision", life, (Part("cpu0", 2, 0),), "credit", "text")
    with store.write() as session:
        inventoried(session, POOL, {"cpu0": (2, 0)}, {"cpu0"}, in_ms(at))
        session.add(job_time(7, at, done=False, milliseconds=80))
    with store.write() as session:
        freed(session, POOL, lease)

    with store.read() as session:
        found = spent(session, POOL, [], in_ms(at), in_ms(at) + 200)
    charged = {use.kind: use.charged_to for use in found.leased}
    assert charged == {"redone": "text", "held_idle": "vision", "notice": "text"}
    assert {use.model for use in found.leased} == {"credit"}
    assert found.by_kind["free"] == Spent(200, 0)


def test_what_is_reserved_is_kept_in_the_ledger_from_decision_to_decision_and_counted_while_it_is_idle(
    store: Store,
) -> None:
    ledger.note_inventory(store, POOL, ("cpu0:cores=2", "cpu1:cores=2"))
    bob, dora, emil = (Caller(name, f"run-of-{name}", names.LIFECYCLE) for name in ("bob", "dora", "emil"))
    ledger.enqueue(store, LeaseRequest(id="one", cores=1, max_runtime_s=3600), ADA)
    ledger.enqueue(store, LeaseRequest(id="other", cores=2), bob)
    ledger.grant(store, POOL)
    ledger.enqueue(store, LeaseRequest(id="large", cores=2), dora)
    with store.write() as session:
        request = session.get_one(LeaseRequestRow, "large")
        request.requested_at -= timedelta(hours=5)  # it has starved for long
    for token in (1, 2):
        row = rows_of(store, LeaseRow)[token - 1]
        ledger.accept(store, AcceptRequest(request_id=row.request_id, token=token), ADA if token == 1 else bob)
    ledger.grant(store, POOL)
    (kept,) = rows_of(store, ReservationRow)
    time.sleep(0.02)
    ledger.enqueue(store, LeaseRequest(id="small", cores=1), emil)
    ledger.grant(store, POOL)  # it does not pass, and nothing is another

    assert (kept.request_id, kept.device, kept.cores, kept.idle_cores, kept.waits_for) == ("large", "cpu0", 2, 1, [1])
    assert kept.start_ms == kept.first_start_ms == in_ms(rows_of(store, LeaseRow)[0].granted_at) + 3_600_000
    assert rows_of(store, ReservationRow) == [kept]
    until = datetime.now(UTC)
    found = spent_until(store, until)
    assert found.by_kind["reserved_idle"].core_ms == in_ms(until) - kept.from_ms >= 20
    assert sum(spent.core_ms for spent in found.by_kind.values()) == found.capacity.core_ms
    with store.read() as session:
        (view,) = reservations(session, POOL)
        assert view.sentence.startswith("dora has 2 cores of cpu0 reserved: it starts by ")
        assert view.sentence.endswith("when lease 1 of ada has ended or may be taken back")

    ledger.end(store, POOL, 1, "released")
    ledger.grant(store, POOL)

    (kept,) = rows_of(store, ReservationRow)
    (served,) = [row for row in rows_of(store, LeaseRow) if row.request_id == "large"]
    assert kept.to_ms == in_ms(served.granted_at)
    found = spent_until(store, datetime.now(UTC))
    assert found.by_kind["reserved_idle"].core_ms == kept.to_ms - kept.from_ms
    assert sum(spent.core_ms for spent in found.by_kind.values()) == found.capacity.core_ms


def job_time(token: int, began: datetime, *, done: bool, milliseconds: int = 10) -> JobTimeRow:
    from_ms = in_ms(began)
    return JobTimeRow(
        job="run-1/train.1",
        attempt=1,
        token=token,
        stage="train",
        from_ms=from_ms,
        to_ms=from_ms + milliseconds,
        done=done,
        ended=True,
    )


def rows_of(store: Store, kind: type[Any]) -> list[Any]:
    with store.read() as session:
        return list(session.exec(select(kind)).all())


def spent_until(store: Store, until: datetime) -> Totals:
    with store.read() as session:
        return spent(session, POOL, held_now(session, POOL, until), 0, in_ms(until))


# --- what compute tells ------------------------------------------------------------------------------


async def test_a_jobs_time_is_written_while_it_runs_with_its_newest_checkpoint_and_how_it_ended(
    store: Store, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, token=7)
    checkpoints.write(1, {"round": 1})  # of an attempt before
    await asyncio.sleep(0.02)
    job = JobTime("run-1/train.2", 1, 7, tmp_path)
    await job.note(store)
    (before,) = rows_of(store, JobTimeRow)
    checkpoints.write(2, {"round": 2})
    job.done = True
    await job.note_if_due(store)  # it has just been noted
    await job.note(store, ended=True)
    (after,) = rows_of(store, JobTimeRow)

    assert (before.stage, before.checkpointed_ms, before.writing_ms, before.ended) == ("train", 0, 0, False)
    assert before.from_ms == after.from_ms <= after.checkpointed_ms <= after.to_ms
    assert after.writing_ms > 0
    assert (after.done, after.ended) == (True, True)


async def test_a_job_is_not_failed_by_a_store_that_takes_nothing(tmp_path: Path) -> None:
    await JobTime("run-1/train.1", 1, 7, tmp_path).note(Store(f"sqlite:///{tmp_path}/no/such.db"), ended=True)
