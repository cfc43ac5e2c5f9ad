"""What devices have given, and to which queues it counts. What it was for is told by `activities/lease_time/`."""

from collections.abc import Container, Iterable

from sqlmodel import Session

from activities import lease_time
from activities.lease_ledger import rows
from activities.lease_policy import used_by
from activities.lease_policy.state import Amount, Counted, Held, Part, Request
from everloop.amounts import AMOUNTS
from everloop.store import DEFAULT_QUEUE, DeviceRow, LeaseMemberRow, LeaseRow, QueueRow


def take(session: Session, row: LeaseRow, parts: Iterable[Part], at_ms: int) -> None:
    """The members of a new lease. The database refuses (`IntegrityError`) what a device does not have.

    None begins before what it takes was given back: the decision's time was read before the ledger was.
    """
    for rank, part in enumerate(parts):
        device = session.get_one(DeviceRow, (row.pool, part.device), with_for_update=True)
        _use(device, part.amount, 1)
        session.add(device)
        member = LeaseMemberRow(pool=row.pool, token=row.token, rank=rank, device=part.device, **part.amount._asdict())
        member.since_ms = max(at_ms, device.since_ms)
        session.add(member)


def give_back(
    session: Session, row: LeaseRow, at_ms: int, devices: Container[str] | None = None, *, charged: bool = True
) -> None:
    """Whatever members of the lease are live are so no more. *devices*: only those there; of a gang the others may
    still run.
    """
    members = [one for one in rows.members(session, row, live=True) if devices is None or one.device in devices]
    at_ms = max(at_ms, *(member.since_ms for member in members)) if members else at_ms
    counted = [0, 0]
    for member in members:
        device = session.get_one(DeviceRow, (row.pool, member.device), with_for_update=True)
        _use(device, Amount(*(getattr(member, what) for what in AMOUNTS)), -1)
        member.live, device.since_ms = False, max(at_ms, device.since_ms)
        session.add_all((member, device))
        counted = [counted[0] + member.cores, counted[1] + member.milli_gpu] if not device.light else counted
    freed = {member.device for member in members}
    lease_time.members_freed(session, row, rows.moment(at_ms), freed)
    if charged:
        _charge(session, row, Counted(*counted), at_ms)


def _use(device: DeviceRow, amount: Amount, sign: int) -> None:
    for what in AMOUNTS:
        used = f"used_{what}"
        setattr(device, used, getattr(device, used) + sign * getattr(amount, what))


def _charge(session: Session, row: LeaseRow, counted: Counted, at_ms: int) -> None:
    """What the lease has used counts against its queue from now on (lease_policy/usage.py).

    A queue that was left out of the tree meanwhile is not made again: nothing counts against it.
    """
    queue = session.get(QueueRow, (row.pool, row.queue))
    if queue is None and row.queue == DEFAULT_QUEUE:
        queue = QueueRow(pool=row.pool, id=row.queue, updated_at=rows.moment(at_ms))
    if queue is None or counted == Counted():
        return
    part = Part(row.device, Amount(cores=counted.cores, milli_gpu=counted.milli_gpu))
    asked = Request(row.request_id, 0, 0, row.queue, part.amount)
    used = used_by(Held(row.token, asked, (part,), row.state, rows.ms(row.granted_at)), queue.usage_at_ms, at_ms)
    queue.usage_cores += used.cores
    queue.usage_milli_gpu += used.milli_gpu
    session.add(queue)
