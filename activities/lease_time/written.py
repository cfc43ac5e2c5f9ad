"""Leased time in SQL: what is written when a lease's members are free again, and what is read for a window of time.

A lease's rows are written once, in the transaction that makes its members free, from the ledger's own times; a kill
between leaves the lease live, and live leases are cut when somebody asks. So the sums are exact at any moment.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import or_
from sqlmodel import Session, col, select

from activities.lease_time.cutting import Job, Life, cut
from activities.lease_time.sums import Capacity, Mark, Totals, Use, totals
from everloop.store import DeviceTimeRow, JobTimeRow, LeaseTimeRow, LifecycleRow, ReservationRow

NEVER = 2**62
"""As an end: it has none yet."""
OTHERS_FAULT = ("redone", "notice")
"""What a lease that was taken back for another queue's request charges to that queue."""


class Part(NamedTuple):
    """A member of a lease."""

    device: str
    cores: int
    milli_gpu: int


class Leased(NamedTuple):
    """A lease, with what its time is told by."""

    token: int
    workflow_id: str
    run_id: str
    queue: str
    life: Life
    parts: tuple[Part, ...]
    model: str = ""
    """As its request says it; the lifecycle's own is believed before."""
    beneficiary_queue: str = ""
    """The queue of the request that it was taken back for; empty: for none."""


def freed(session: Session, pool: str, lease: Leased) -> None:
    """The members of *lease* are free: write what its time was for. Again, of a token and a device, changes nothing."""
    there = col(LeaseTimeRow.device).in_({part.device for part in lease.parts})
    known = select(LeaseTimeRow.id).where(LeaseTimeRow.pool == pool, LeaseTimeRow.token == lease.token, there).limit(1)
    if session.exec(known).first() is not None:
        return
    for use in _uses(session, lease):
        session.add(
            LeaseTimeRow(
                pool=pool,
                token=lease.token,
                device=use.device,
                queue=use.queue,
                workflow_id=use.lifecycle,
                model=use.model,
                stage=use.stage,
                from_ms=use.from_ms,
                to_ms=use.to_ms,
                cores=use.cores,
                milli_gpu=use.milli_gpu,
                kind=use.kind,
                charged_to=use.charged_to,
            )
        )


def until_now(session: Session, live: Iterable[Leased]) -> Iterable[tuple[int, Use]]:
    """What *live* leases have been busy with so far, with their tokens."""
    return ((lease.token, use) for lease in live for use in _uses(session, lease, live=True))


def _uses(session: Session, lease: Leased, *, live: bool = False) -> Iterable[Use]:
    model = session.exec(select(LifecycleRow.model).where(LifecycleRow.id == lease.workflow_id)).first() or ""
    spans = cut(lease.life, jobs_of(session, lease, live=live))
    for part in lease.parts:
        for span in spans:
            paid = lease.beneficiary_queue if span.kind in OTHERS_FAULT else ""
            yield Use(
                device=part.device,
                from_ms=span.from_ms,
                to_ms=span.to_ms,
                cores=part.cores,
                milli_gpu=part.milli_gpu,
                kind=span.kind,
                queue=lease.queue,
                charged_to=paid or lease.queue,
                model=model or lease.model,
                lifecycle=lease.workflow_id,
                stage=span.stage,
            )


def jobs_of(session: Session, lease: Leased, *, live: bool = False) -> list[Job]:
    """What compute has told of the jobs that ran under *lease*.

    Of a *live* lease the newest job may still run: its time is useful so far, nobody has lost it.
    """
    # Pools of older folders may each have given out the same token: the run tells them apart.
    mine = col(JobTimeRow.job).startswith(f"{lease.run_id}/", autoescape=True)
    rows = session.exec(select(JobTimeRow).where(JobTimeRow.token == lease.token, mine)).all()
    rows = sorted(rows, key=lambda row: (row.from_ms, row.job, row.attempt))
    jobs = [Job(row.stage, row.from_ms, row.to_ms, row.done, row.checkpointed_ms, row.writing_ms) for row in rows]
    if live and jobs and not rows[-1].ended:
        jobs[-1] = jobs[-1]._replace(done=True)
    return jobs


def inventoried(
    session: Session, pool: str, devices: Mapping[str, tuple[int, int]], present: set[str], at_ms: int
) -> None:
    """From *at_ms* on the pool has *devices*: name to cores and milli-GPU. Those that are not *present* are away."""
    still = select(DeviceTimeRow).where(DeviceTimeRow.pool == pool, DeviceTimeRow.to_ms == 0)
    open_rows = session.exec(still).all()
    there = {row.device: row for row in open_rows if row.kind == "there"}
    lost = {row.device: row for row in open_rows if row.kind == "lost"}
    for name, (cores, milli_gpu) in sorted(devices.items()):
        known = there.get(name)
        if known is None or (known.cores, known.milli_gpu) != (cores, milli_gpu):
            if known is not None:
                _close(session, known, at_ms)
            made = DeviceTimeRow(pool=pool, device=name, kind="there", from_ms=at_ms)
            made.cores, made.milli_gpu = cores, milli_gpu
            session.add(made)
        if name in present and name in lost:
            _close(session, lost[name], at_ms)
        if name not in present and name not in lost:
            session.add(DeviceTimeRow(pool=pool, device=name, from_ms=at_ms, kind="lost"))
    for name in sorted(there.keys() - devices.keys()):
        _close(session, there[name], at_ms)
        if name in lost:
            _close(session, lost[name], at_ms)


def _close(session: Session, row: DeviceTimeRow, at_ms: int) -> None:
    row.to_ms = max(at_ms, row.from_ms + 1)
    session.add(row)


def spent(session: Session, pool: str, live: Sequence[Leased], from_ms: int, to_ms: int) -> Totals:
    """What the pool's time within [from_ms, to_ms) was for. *live*: leases whose members are not free yet, until now.

    Raises `Overcommitted` where the ledger says that more was leased than there was.
    """
    rows = session.exec(
        select(LeaseTimeRow).where(
            LeaseTimeRow.pool == pool,
            LeaseTimeRow.to_ms > from_ms,
            LeaseTimeRow.from_ms < to_ms,
            LeaseTimeRow.token > 0,
        )
    ).all()
    uses = [_use(row) for row in rows]
    uses += [use for _, use in until_now(session, live)]
    devices = _devices(session, pool, from_ms, to_ms)
    capacity = [
        Capacity(row.device, row.from_ms, row.to_ms or NEVER, row.cores, row.milli_gpu)
        for row in devices
        if row.kind == "there"
    ]
    first = first_ms(session, pool)  # a lease of before has nothing to be a part of
    from_ms = max(from_ms, to_ms if first is None else first)
    marks = [Mark(row.device, row.from_ms, row.to_ms or NEVER, row.kind) for row in devices if row.kind != "there"]
    marks += _reserved(session, pool, from_ms, to_ms)
    return totals(capacity, uses, marks, from_ms, to_ms)


def first_ms(session: Session, pool: str) -> int | None:
    """When the ledger began to keep what the pool's devices had; None: not yet."""
    query = select(DeviceTimeRow.from_ms).where(DeviceTimeRow.pool == pool, DeviceTimeRow.kind == "there")
    return session.exec(query.order_by(col(DeviceTimeRow.from_ms)).limit(1)).first()


def _devices(session: Session, pool: str, from_ms: int, to_ms: int) -> Sequence[DeviceTimeRow]:
    still = or_(col(DeviceTimeRow.to_ms) == 0, col(DeviceTimeRow.to_ms) > from_ms)
    return session.exec(
        select(DeviceTimeRow).where(DeviceTimeRow.pool == pool, still, DeviceTimeRow.from_ms < to_ms)
    ).all()


def _reserved(session: Session, pool: str, from_ms: int, to_ms: int) -> list[Mark]:
    still = or_(col(ReservationRow.to_ms) == 0, col(ReservationRow.to_ms) > from_ms)
    rows = session.exec(
        select(ReservationRow).where(ReservationRow.pool == pool, still, ReservationRow.from_ms < to_ms)
    ).all()
    return [
        Mark(row.device, row.from_ms, row.to_ms or NEVER, "reserved_idle", row.idle_cores, row.idle_milli_gpu)
        for row in rows
    ]


def _use(row: LeaseTimeRow) -> Use:
    return Use(
        device=row.device,
        from_ms=row.from_ms,
        to_ms=row.to_ms,
        cores=row.cores,
        milli_gpu=row.milli_gpu,
        kind=row.kind,
        queue=row.queue,
        charged_to=row.charged_to,
        model=row.model,
        lifecycle=row.workflow_id,
        stage=row.stage,
    )
