"""A pool's queue tree in SQL: read, and replaced as a whole in one transaction."""

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlmodel import Session, col, delete, select

from everloop.amounts import Counted
from everloop.errors import Conflict
from everloop.queues import DEFAULT, Queue, in_order
from everloop.store import BudgetRow, DeviceRow, LeaseRequestRow, LeaseRow, QueueRow

WORKING = ("offered", "active", "noticed")
"""States of a lease whose holder may work."""
MOST_NAMED = 3


def tree(session: Session, pool: str) -> tuple[Queue, ...]:
    """The queues of *pool* as people set them, parents first."""
    return in_order(queue._replace(usage=Counted(), usage_at_ms=0) for queue in used(session, pool))


def used(session: Session, pool: str) -> tuple[Queue, ...]:
    """The queues of *pool* with what they have used, by name."""
    found = {row.id: _queue(row) for row in session.exec(select(QueueRow).where(QueueRow.pool == pool)).all()}
    found.setdefault(DEFAULT, Queue(DEFAULT))
    return tuple(found[name] for name in sorted(found))


def leaves(queues: Iterable[Queue]) -> set[str]:
    """Those without others below them: requests are in these alone."""
    queues = tuple(queues)
    parents = {queue.parent for queue in queues}
    return {queue.id for queue in queues if queue.id not in parents}


def below(queues: Iterable[Queue], name: str) -> set[str]:
    """The queue and all below it. *queues*: parents first."""
    found = {name}
    for queue in queues:
        if queue.parent in found:
            found.add(queue.id)
    return found


def whole(session: Session, pool: str) -> Counted:
    """What the devices of *pool* have together, without those for checks: what queues share."""
    rows = session.exec(select(DeviceRow).where(DeviceRow.pool == pool, col(DeviceRow.light).is_(False))).all()
    return Counted(sum(row.cores for row in rows), sum(row.milli_gpu for row in rows))


def must_keep_those_in_use(session: Session, pool: str, queues: tuple[Queue, ...]) -> None:
    """Raise `Conflict` where somebody waits in, or holds a lease of, a queue that is gone with *queues*, or no leaf.

    Who runs there would wait for ever at its next stage, and nobody could take its lease back meanwhile.
    """
    parents, open_to_all = {queue.parent for queue in queues}, leaves(queues)
    waiting = select(LeaseRequestRow.queue, LeaseRequestRow.workflow_id).where(
        LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued"
    )
    holding = select(LeaseRow.queue, LeaseRow.workflow_id).where(
        LeaseRow.pool == pool, col(LeaseRow.state).in_(WORKING)
    )
    of_waiting = {(queue, who) for queue, who in session.exec(waiting).all() if queue not in open_to_all}
    of_holding = {(queue, who) for queue, who in session.exec(holding).all() if queue not in open_to_all}
    for name, _ in sorted(of_waiting | of_holding):
        told = [_who(of_waiting, name, "waits", "wait"), _who(of_holding, name, "runs", "run")]
        raise Conflict(
            f"{' and '.join(one for one in told if one)} in queue {name}, "
            f"which {'would have queues below it' if name in parents else 'would be gone'}",
            field=f"queues.{name}",
            hint="keep it as a leaf with quota 0 until they have ended: others may then take back what they hold",
        )


def _who(found: set[tuple[str, str]], queue: str, one: str, many: str) -> str:
    """`ada, bob and 3 more wait`."""
    names = sorted(who for of, who in found if of == queue)
    if not names:
        return ""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more} {many if len(names) > 1 else one}"


def replace(session: Session, pool: str, queues: tuple[Queue, ...], person: str) -> None:
    """Make *queues* the tree. Raises `Conflict` as `must_keep_those_in_use` does."""
    must_keep_those_in_use(session, pool, queues)
    known = {row.id: row for row in session.exec(select(QueueRow).where(QueueRow.pool == pool)).all()}
    gone = known.keys() - {queue.id for queue in queues}
    session.exec(delete(QueueRow).where(col(QueueRow.pool) == pool, col(QueueRow.id).in_(gone)))
    theirs = (col(BudgetRow.pool) == pool, col(BudgetRow.scope) == "queue", col(BudgetRow.name).in_(gone))
    session.exec(delete(BudgetRow).where(*theirs))
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
