"""Grow elastic leases with what is left when everybody has been asked.

A new grant gets more members at once. A running lease, which has to start again from its checkpoint for that, gets
them only while nobody waits for room, and not before its minimum run time.
"""

from activities.lease_policy.allocate import turn
from activities.lease_policy.pool import CORES, MILLI_GPU, Line, Pool, Shape
from activities.lease_policy.reserve import ends_before_reservations
from activities.lease_policy.state import Amount, Held, Part, Resize
from activities.lease_policy.tree import Node


def grow(pool: Pool) -> None:
    for given in tuple(pool.grants.values()):
        _, line, shape = pool.asking[given.request_id]
        more = _more(pool, line, shape, shape.most - len(given.members))
        pool.grants[given.request_id] = given._replace(members=given.members + more)
        pool.grown = pool.grown or bool(more)
    if pool.beneficiaries or any(line.waits_for_room() for line in pool.lines.values()):
        return
    elastic = [(held, line, shape) for held in pool.held if (found := _growing(pool, held)) for line, shape in [found]]
    elastic.sort(key=lambda one: (turn(one[1], one[2]), one[0].token))
    for held, line, shape in elastic:
        more = _more(pool, line, shape, shape.most - len(held.members))
        if more:
            pool.resized.append(Resize(held.token, held.members + more))


def _growing(pool: Pool, held: Held) -> tuple[Line, Shape] | None:
    request = held.request
    leaf = pool.tree.leaf(request.queue)
    told = any(one.token == held.token for one in pool.notices)
    if held.state != "active" or told or leaf is None or not 1 <= len(held.members) < request.members_max:
        return None
    if pool.now_ms - held.granted_ms < pool.policy.min_runtime_s * 1000:
        return None
    if any(part.device not in pool.room.free or part.amount != request.member for part in held.members):
        return None
    shape = Shape(request)
    return (Line(leaf), shape) if shape.sound else None


def _more(pool: Pool, line: Line, shape: Shape, wanted: int) -> tuple[Part, ...]:
    """As many members more as there is room for, within limits and quota."""
    room = pool.light if line.leaf is None else pool.room
    number = min(wanted, _allowed(line.leaf, shape, wanted), room.count(shape.member, max(wanted, 0)))
    if number <= 0:
        return ()
    short = ends_before_reservations(pool, shape)
    devices = room.place(shape.member, number) or ()
    pool.take(line, shape, devices, short=short)
    return tuple(Part(name, Amount(*shape.member)) for name in devices)


def _allowed(leaf: Node | None, shape: Shape, wanted: int) -> int:
    for node in leaf.path if leaf else ():
        for r, amount in enumerate((shape.member[CORES], shape.member[MILLI_GPU])):
            if amount and node.limit[r] >= 0:
                wanted = min(wanted, (node.limit[r] - node.allocated[r] - node.promised[r]) // amount)
            if amount and not shape.preemptible and node.queue.quota[r] >= 0:
                wanted = min(wanted, (node.queue.quota[r] - node.firm[r]) // amount)
    return wanted
