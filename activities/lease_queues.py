"""A pool's queue tree in SQL: read, and replaced as a whole in one transaction."""

from datetime import UTC, datetime

from sqlmodel import Session, col, delete, select

from everloop.amounts import Counted
from everloop.errors import Conflict
from everloop.queues import DEFAULT, Queue, in_order
from everloop.store import DeviceRow, LeaseRequestRow, QueueRow


def tree(session: Session, pool: str) -> tuple[Queue, ...]:
    """The queues of *pool* as people set them, parents first."""
    return in_order(queue._replace(usage=Counted(), usage_at_ms=0) for queue in used(session, pool))


def used(session: Session, pool: str) -> tuple[Queue, ...]:
    """The queues of *pool* with what they have used, by name."""
    found = {row.id: _queue(row) for row in session.exec(select(QueueRow).where(QueueRow.pool == pool)).all()}
    found.setdefault(DEFAULT, Queue(DEFAULT))
    return tuple(found[name] for name in sorted(found))


def whole(session: Session, pool: str) -> Counted:
    """What the devices of *pool* have together, without those for checks: what queues share."""
    rows = session.exec(select(DeviceRow).where(DeviceRow.pool == pool, col(DeviceRow.light).is_(False))).all()
    return Counted(sum(row.cores for row in rows), sum(row.milli_gpu for row in rows))


def replace(session: Session, pool: str, queues: tuple[Queue, ...], person: str) -> None:
    """Make *queues* the tree. Raises `Conflict` where somebody waits in a queue that is no leaf any more, or gone."""
    parents = {queue.parent for queue in queues}
    leaves = {queue.id for queue in queues if queue.id not in parents}
    waiting = select(LeaseRequestRow.queue).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
    for name in sorted(set(session.exec(waiting).all()) - leaves):
        raise Conflict(
            f"lifecycles wait in queue {name}, which {'has queues below it' if name in parents else 'is left out'}",
            field=f"queues.{name}",
            hint="keep it as a leaf with quota 0 until they have ended",
        )
    known = {row.id: row for row in session.exec(select(QueueRow).where(QueueRow.pool == pool)).all()}
    gone = known.keys() - {queue.id for queue in queues}
    session.exec(delete(QueueRow).where(col(QueueRow.pool) == pool, col(QueueRow.id).in_(gone)))
    for queue in queues:
        row = known.get(queue.id) or QueueRow(pool=pool, id=queue.id)  # its usage stays
        row.parent, row.weight, row.priority = queue.parent, queue.weight, queue.priority
        row.quota_cores, row.quota_milli_gpu = queue.quota
        row.limit_cores, row.limit_milli_gpu = queue.limit
        row.person, row.updated_at = person, datetime.now(UTC)
        session.add(row)


def _queue(row: QueueRow) -> Queue:
    return Queue(
        id=row.id,
        parent=row.parent,
        quota=Counted(row.quota_cores, row.quota_milli_gpu),
        limit=Counted(row.limit_cores, row.limit_milli_gpu),
        weight=row.weight,
        priority=row.priority,
        usage=Counted(row.usage_cores, row.usage_milli_gpu),
        usage_at_ms=row.usage_at_ms,
    )
