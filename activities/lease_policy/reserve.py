"""Reserve, so that what is large is not passed for ever by what is small.

The first request of each top queue that has starved long enough (a minute within its queue's quota, hours beyond) and
finds no room gets a reservation: the devices on which it fits soonest. Others pass it only where that does not delay
it: on what is left beside it at its start, or if they end before (EASY backfill).

When a lease ends is known by its declared run time; of one that declares none a day is assumed, as batch schedulers do.
One that is over its time is not counted on, and where that leaves no room, nothing is reserved. What may be taken back
from a queue that has more than its quota and its share is counted on from its minimum run time and a grace on: what
comes free there meanwhile must not be given away again, or those leases would never all be old enough at once.
"""

from activities.lease_policy.pool import End, Line, Pool, Shape
from activities.lease_policy.room import MANY, NOTHING, Four, fit, minus, plus, tightness, times
from activities.lease_policy.state import NO_LIMIT, Held, Request, Reserve
from activities.lease_policy.tree import BOTH, Node, over_firm, over_limit, within_quota

UNDECLARED_MS = 24 * 3600 * 1000
"""A lease that declares no run time is assumed to run so long."""


def ends_before_reservations(pool: Pool, shape: Shape) -> bool:
    starts = [one.start_ms for one in pool.reserved.values()]
    return bool(starts) and 0 < shape.runtime_ms <= min(starts) - pool.now_ms


def is_starving(pool: Pool, line: Line, request: Request, shape: Shape, *, within: bool = False) -> bool:
    """*within*: it is known to stay within the quotas of its queues."""
    waited = pool.now_ms - request.submitted_ms
    if waited < pool.policy.reserve_after_s * 1000:
        return False
    return within or waited >= pool.policy.starving_s * 1000 or _is_entitled(line, shape)


def _is_entitled(line: Line, shape: Shape) -> bool:
    """Within the quotas of its queues; where none is set, within its queue's share."""
    leaf = line.leaf
    if leaf is None:
        return False
    if all(leaf.quota[r] == NO_LIMIT for r in BOTH if shape.need[r]):
        return all(leaf.allocated[r] + shape.need[r] <= leaf.share[r] for r in BOTH if shape.need[r])
    return within_quota(leaf, shape.need)


def is_refused(leaf: Node, shape: Shape) -> bool:
    """Whatever is free: a limit would be passed, or a quota by work that is not preemptible."""
    if over_limit(leaf, shape.need):
        return True
    return not shape.preemptible and over_firm(leaf, shape.need) is not None


def consider(pool: Pool, line: Line, request: Request, shape: Shape) -> None:
    """A reservation for a request without room, unless its top queue has one already."""
    leaf = line.leaf
    if leaf is None or leaf.top.id in pool.reserving or shape.unreserved:
        return
    if not is_starving(pool, line, request, shape):
        return
    if is_refused(leaf, shape):  # its shape was refused for room in another queue: nobody has asked in this one
        line.closed.add(shape.number)
        return
    start = _start(pool, shape)
    if start is None:
        shape.unreserved = True
        return
    pool.reserving.append(leaf.top.id)
    pool.asking[request.id] = (request, line, shape)
    at_ms, gained, ends = start
    devices = _set_aside(pool, shape, gained)
    there = {token for _, token, parts in ends if any(one.device in devices for one in parts)}
    before = tuple(sorted(held.token for held in pool.held if held.token in there and held.granted_ms < pool.now_ms))
    pool.reserved[request.id] = Reserve(request.id, devices, at_ms, before)


def _start(pool: Pool, shape: Shape) -> tuple[int, dict[str, Four], list[End]] | None:
    """When it fits on devices without another reservation; what will have come free there by then, and by what."""
    room = pool.room
    count = room.count(shape.member, MANY) - sum(fit(room.open_to_all(name), shape.member) for name in room.spare)
    gained: dict[str, Four] = {}
    ends = _ends(pool)
    for number, (end_ms, _, parts) in enumerate(ends, 1):
        for name, amount in parts:
            if name not in room.free or name in room.spare:
                continue
            before = gained.get(name, NOTHING)
            after = gained[name] = plus(before, amount)
            free = room.free[name]
            count += fit(plus(free, after), shape.member) - fit(plus(free, before), shape.member)
        if count >= shape.count:
            return end_ms, gained, ends[:number]
    return None


def _ends(pool: Pool) -> list[End]:
    """When leases end that nobody was told to give up for somebody, and the grants made just now."""
    so_far = len(pool.grants)
    if pool.ends is not None and pool.ends[0] == so_far:
        return pool.ends[1]
    noticed = {one.token for one in pool.notices}
    rich: dict[str, bool] = {}
    ends = [
        (_end(pool, held, rich), held.token, held.members)
        for held in pool.held
        if held.state in ("offered", "active") and held.token not in noticed
    ]
    for number, one in enumerate(pool.grants.values()):
        runtime = pool.asking[one.request_id][2].runtime_ms or UNDECLARED_MS
        ends.append((pool.now_ms + runtime, -number - 1, one.members))
    pool.ends = so_far, sorted(end for end in ends if end[0] > pool.now_ms)
    return pool.ends[1]


def _end(pool: Pool, held: Held, rich: dict[str, bool]) -> int:
    """*rich*: queues that have more than they have a right to, of those that were looked at."""
    request, policy = held.request, pool.policy
    end = held.granted_ms + (request.max_runtime_ms or UNDECLARED_MS)
    if not request.preemptible or request.preempted >= policy.most_preemptions_a_day:
        return end
    if request.queue not in rich:
        rich[request.queue] = _is_rich(pool.tree.leaf(request.queue))
    if not rich[request.queue]:
        return end
    taken_back = max(held.granted_ms + policy.min_runtime_s * 1000, pool.now_ms) + policy.grace_s * 1000
    return min(end, taken_back) if end > pool.now_ms else taken_back


def _is_rich(leaf: Node | None) -> bool:
    return leaf is not None and any(
        node.allocated[r] > max(node.quota[r], node.share[r]) for node in leaf.path for r in BOTH
    )


def _set_aside(pool: Pool, shape: Shape, gained: dict[str, Four]) -> tuple[str, ...]:
    """Choose its devices, the tightest first, and leave to others what is beside it at its start."""
    room = pool.room
    at_start = {name: plus(room.free[name], amount) for name, amount in gained.items()}
    at_start |= {name: room.free[name] for name in room.with_room_for(shape.member, shape.count) if name not in gained}
    left, names = shape.count, []
    for name in room.spare:
        at_start.pop(name, None)
    for name in sorted(at_start, key=lambda name: (tightness(at_start[name]), name)):
        number = min(fit(at_start[name], shape.member), left)
        if number:
            left -= number
            names.append(name)
            room.reserve(name, minus(at_start[name], times(shape.member, number)))
        if not left:
            break
    return tuple(names)
