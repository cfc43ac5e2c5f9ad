"""What devices have given, and the append-only account of it (`lease_time`).

Each change writes what was until now: of a member when it ends or its lease is told something, of a device's free part
whenever that changes. So at each moment members and free part sum to all that the device has.
"""

from collections.abc import Iterable

from sqlmodel import Session

from activities.lease_ledger import rows
from activities.lease_policy import used_by
from activities.lease_policy.state import Amount, Counted, Held, Part, Request
from everloop.store import DeviceRow, LeaseMemberRow, LeaseRequestRow, LeaseRow, LeaseTimeRow, QueueRow
from everloop.store.lease import COUNTED

KINDS = {"offered": "held_idle", "active": "useful", "noticed": "notice", "killing": "quarantined"}
"""What a lease's time is called in each of its states."""


def take(session: Session, row: LeaseRow, parts: Iterable[Part], at_ms: int) -> None:
    """The members of a new lease. The database refuses (`IntegrityError`) what a device does not have."""
    for rank, part in enumerate(parts):
        device = session.get_one(DeviceRow, (row.pool, part.device), with_for_update=True)
        free_until(session, device, at_ms)
        _use(device, part.amount, 1)
        session.add(device)
        session.add(
            LeaseMemberRow(
                pool=row.pool, token=row.token, rank=rank, device=part.device, since_ms=at_ms, **part.amount._asdict()
            )
        )


def give_back(session: Session, row: LeaseRow, at_ms: int) -> None:
    """Whatever members of the lease are live are so no more."""
    members = rows.members(session, row, live=True)
    account(session, row, at_ms)
    counted = [0, 0]
    for member in members:
        device = session.get_one(DeviceRow, (row.pool, member.device), with_for_update=True)
        free_until(session, device, at_ms)
        _use(device, Amount(*(getattr(member, what) for what in COUNTED)), -1)
        member.live = False
        session.add_all((member, device))
        counted = [counted[0] + member.cores, counted[1] + member.milli_gpu] if not device.light else counted
    _charge(session, row, Counted(*counted), at_ms)


def account(
    session: Session, row: LeaseRow, at_ms: int, *, kind: str = "", charged_to: str = "", stage: str = ""
) -> None:
    """Write down what the lease has used until now, as what its state says. Call it before the state changes."""
    request = session.get(LeaseRequestRow, row.request_id)
    for member in rows.members(session, row, live=True):
        if 0 < member.since_ms < at_ms:
            session.add(
                LeaseTimeRow(
                    pool=row.pool,
                    token=row.token,
                    device=member.device,
                    queue=row.queue,
                    workflow_id=row.workflow_id,
                    model=request.model if request else "",
                    stage=stage or (request.stage if request else ""),
                    from_ms=member.since_ms,
                    to_ms=at_ms,
                    cores=member.cores,
                    milli_gpu=member.milli_gpu,
                    kind=kind or KINDS.get(row.state, "quarantined"),
                    charged_to=charged_to or row.queue,
                )
            )
        member.since_ms = at_ms
        session.add(member)


def lost(session: Session, row: LeaseRow, at_ms: int) -> None:
    """The lease is taken away: what it did since its last checkpoint is lost, and paid by whom it was taken for."""
    since = rows.ms(row.checkpoint_at)
    begun = [member.since_ms for member in rows.members(session, row, live=True) if member.since_ms]
    if row.state == "active" and begun and min(begun) < since < at_ms:
        account(session, row, since)
    taker = session.get(LeaseRequestRow, row.beneficiary) if row.beneficiary else None
    kind = "lost" if row.state in ("active", "noticed") else ""
    account(session, row, at_ms, kind=kind, charged_to=taker.queue if taker else "")


def free_until(session: Session, device: DeviceRow, at_ms: int) -> None:
    """Write down what nobody has used of *device* until now. Call it before that changes."""
    cores, milli_gpu = device.cores - device.used_cores, device.milli_gpu - device.used_milli_gpu
    if 0 < device.since_ms < at_ms and (cores or milli_gpu):
        session.add(
            LeaseTimeRow(
                pool=device.pool,
                device=device.name,
                from_ms=device.since_ms,
                to_ms=at_ms,
                cores=cores,
                milli_gpu=milli_gpu,
                kind="free" if device.present and device.state == "ready" else "away",
            )
        )
    device.since_ms = at_ms


def _use(device: DeviceRow, amount: Amount, sign: int) -> None:
    for what in COUNTED:
        used = f"used_{what}"
        setattr(device, used, getattr(device, used) + sign * getattr(amount, what))


def _charge(session: Session, row: LeaseRow, counted: Counted, at_ms: int) -> None:
    """What the lease has used counts against its queue from now on (lease_policy/usage.py)."""
    if counted == Counted():
        return
    queue = session.get(QueueRow, (row.pool, row.queue)) or QueueRow(
        pool=row.pool, id=row.queue, updated_at=rows.moment(at_ms)
    )
    part = Part(row.device, Amount(cores=counted.cores, milli_gpu=counted.milli_gpu))
    asked = Request(row.request_id, 0, 0, row.queue, part.amount)
    used = used_by(Held(row.token, asked, (part,), row.state, rows.ms(row.granted_at)), queue.usage_at_ms, at_ms)
    queue.usage_cores += used.cores
    queue.usage_milli_gpu += used.milli_gpu
    session.add(queue)
