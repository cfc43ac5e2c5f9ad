"""Allocate what is free, without taking anything from anybody.

Queues take turns: those that stay within their quotas first, then those below their shares, then the rest; among them
by queue priority, then those that starve, and the one with the least of its share first. In a queue by priority, then
in order of arrival. Who does not fit is passed by those behind; the same shape is not tried twice, since room only
shrinks meanwhile. Fuel is for trying alone: ten thousand alike in one queue do not keep another from being asked.
"""

from heapq import heapify, heappop, heappush

from activities.lease_policy.pool import Line, Pool, Shape
from activities.lease_policy.reserve import consider, ends_before_reservations, is_refused, is_starving
from activities.lease_policy.state import Amount, Grant, Part, Request
from activities.lease_policy.tree import BOTH, within_quota

Turn = tuple[int, tuple[int, ...], int, str]
NextTurn = tuple[int, tuple[int, ...], bool, int, str]


def allocate(pool: Pool) -> None:
    _serve(pool, pool.light_line, None)
    heap = [(next_turn(pool, line, 0), line.waiting[0][1], line) for line in pool.lines.values() if line.waiting]
    heapify(heap)  # no two turns are equal: the queue's id is in it
    while heap:
        _, shape, line = heappop(heap)
        following = _serve(pool, line, shape)
        if following is not None:
            heappush(heap, (next_turn(pool, line, line.asked), following, line))


def next_turn(pool: Pool, line: Line, place: int) -> NextTurn:
    """Of the request at this *place* of the line, from 0. Among queues of one rank those that starve are asked first.

    Else small work that ends before each decision, in a queue that has nothing then, would be given what is free for
    ever, and a reservation would come too late.
    """
    request, shape = line.waiting[place]
    first, rank, saturation, queue = turn(line, shape)
    return first, rank, not is_starving(pool, line, request, shape, within=first == 0), saturation, queue


def turn(line: Line, shape: Shape) -> Turn:
    """When the queue's turn comes with this shape at its head: the least first."""
    leaf = line.leaf
    if leaf is None:
        return (-1, (), 0, "")
    saturation, above, allocated, share = 0, False, leaf.allocated, leaf.share
    for r in BOTH:
        if shape.need[r]:
            saturation = max(saturation, allocated[r] * 10**6 // max(share[r], 1))
            above |= allocated[r] >= share[r]
    return (0 if within_quota(leaf, shape.need) else 2 if above else 1, leaf.rank, saturation, leaf.id)


def _serve(pool: Pool, line: Line, shape: Shape | None) -> Shape | None:
    """Ask the line until one of it is served, or one is next with which its turn may be another; which shape that has.

    *shape*: with which its turn has come; None: it has all turns.
    """
    waiting, closed = line.waiting, line.closed
    top = line.leaf.top.id if line.leaf is not None else None
    while line.asked < len(waiting):
        request, own = waiting[line.asked]
        known = own.refused or own.number in closed
        if not known and shape is not None and own is not shape:
            return own
        if not known and pool.fuel <= 0:
            return None
        if known and (top is None or top in pool.reserving) and line.all_refused():
            line.asked = len(waiting)
            return None
        if known and (top is None or top in pool.reserving):
            _pass_the_refused(line)
            continue
        line.asked += 1
        served = request.id in pool.beneficiaries or request.id in pool.grants
        if served or (known and (not own.refused or own.unreserved)):
            continue
        if not known and _try(pool, line, request, own):
            if shape is not None:
                return waiting[line.asked][1] if line.asked < len(waiting) else None
        elif own.refused and top is not None and top not in pool.reserving:
            consider(pool, line, request, own)
    return None


def _pass_the_refused(line: Line) -> None:
    """Those next in the line of whom it is known: one at least."""
    waiting, closed = line.waiting, line.closed
    asked = line.asked
    while asked < len(waiting) and ((shape := waiting[asked][1]).refused or shape.number in closed):
        asked += 1
    line.asked = asked


def _try(pool: Pool, line: Line, request: Request, shape: Shape) -> bool:
    pool.fuel -= 1
    leaf = line.leaf
    if leaf and is_refused(leaf, shape):
        line.closed.add(shape.number)
        return False
    if not grant(pool, line, request, shape):
        shape.refused = True
        return False
    return True


def grant(pool: Pool, line: Line, request: Request, shape: Shape) -> bool:
    """All of its fewest members, or nothing."""
    short = ends_before_reservations(pool, shape)
    devices = pool.place(line, shape, shape.count, short=short)
    if devices is None:
        return False
    pool.take(line, shape, devices, short=short)
    pool.asking[request.id] = (request, line, shape)
    pool.grants[request.id] = Grant(request.id, tuple(Part(name, Amount(*shape.member)) for name in devices))
    return True
