"""Evict: for requests without room, in the order of turns, tell others to let go.

First reclaim from other queues (reclaim.py); else preempt within the queue, strictly lower priorities, or the surplus
of an elastic lease that is not above; else, for a request that starves, leases that are over their declared time. At
most so many requests are looked at in one decision, those for which others were told before among them.
"""

from activities.lease_policy.allocate import turn
from activities.lease_policy.pool import Line, Pool, Shape
from activities.lease_policy.promises import promise
from activities.lease_policy.reclaim import Reclaim, right_of
from activities.lease_policy.reserve import is_starving
from activities.lease_policy.state import Held, Notice, Request
from activities.lease_policy.tree import over_firm
from activities.lease_policy.victims import Candidates, choose, has_surplus, these

MOST = 64
"""Requests in one decision for which others are told to let go, or which nothing could be found for."""


def evict(pool: Pool) -> None:
    among = Candidates(pool)
    if not among.all:
        return
    left = MOST - len(pool.beneficiaries)
    for line in in_turn(pool):
        in_vain: set[tuple[int, int, bool]] = set()
        for request, shape in line.waiting[: line.asked]:
            if left <= 0:
                return
            if request.id in pool.beneficiaries or line.leaf is None:
                continue
            known = request.id not in pool.coming and request.id not in pool.reserved
            if known and (shape.alike, request.priority, True) in in_vain:
                continue
            starving = is_starving(pool, line, request, shape)
            if known and (shape.alike, request.priority, starving) in in_vain:
                continue
            victims, reason = _victims_besides_own(pool, line, request, shape, among, starving=starving)
            left -= 1 if reason else 0
            if not victims:
                in_vain.add((shape.alike, request.priority, starving))
                continue
            pool.asking[request.id] = (request, line, shape)
            _tell(pool, request, victims, reason)
            among.take_out(pool, victims)


def _victims_besides_own(
    pool: Pool, line: Line, request: Request, shape: Shape, among: Candidates, *, starving: bool
) -> tuple[list[Held], str]:
    """`_victims`; what is reserved for the request is no room for others, but is for itself."""
    own = pool.reserved.get(request.id)
    lifted = {name: pool.room.lift(name) for name in own.devices} if own else {}
    victims, reason = _victims(pool, line, request, shape, among, starving=starving)
    if not victims:
        for name, spare in lifted.items():
            pool.room.reserve(name, spare)
    return victims, reason


def in_turn(pool: Pool) -> list[Line]:
    """Lines with somebody left, in the order in which their turns come."""
    lines = [line for line in (pool.light_line, *pool.lines.values()) if line.waiting]
    return sorted(lines, key=lambda line: turn(line, line.waiting[0][1]))


def _victims(
    pool: Pool, line: Line, request: Request, shape: Shape, among: Candidates, *, starving: bool
) -> tuple[list[Held], str]:
    """Who is to let go and why. Nobody with a reason: looked for in vain; without: nobody comes into question."""
    leaf, looked = line.leaf, ""
    if leaf is None or (not shape.preemptible and over_firm(leaf, shape.need)):
        return [], ""
    if pool.room.spare and pool.room.fits_but_for_reservations(shape.member, shape.count):
        return [], ""  # it would take what is reserved for another, and who was told would be told for nothing
    coming = pool.coming.get(request.id, [])
    if right_of(leaf, shape.need):
        looked = "reclaim"
        rights = Reclaim(pool, leaf, shape)
        for held in coming:
            rights.leaves_anyway(held)
        victims = choose(pool, line, shape, among, rights, coming)
        if victims:
            return victims, "reclaim"
    below = [held for held in among.of_queue.get(leaf.id, ()) if _gives_way(held, request)]
    if below:
        looked = "preempt"
        victims = choose(pool, line, shape, among, these(below), coming)
        if victims:
            return victims, "preempt"
    over = among.overrun if starving else []
    if over:
        looked = "over_runtime"
        victims = choose(pool, line, shape, among, these(over), coming)
        if victims:
            return victims, "over_runtime"
    return [], looked


def _gives_way(held: Held, request: Request) -> bool:
    lower = held.request.priority < request.priority
    return lower or (has_surplus(held) and held.request.priority == request.priority)


def _tell(pool: Pool, request: Request, victims: list[Held], reason: str) -> None:
    deadline = pool.next_deadline()
    for held in victims:
        why = "shrink" if has_surplus(held) and reason != "over_runtime" else reason
        pool.notices.append(Notice(held.token, request.id, why, deadline))
    pool.reserved.pop(request.id, None)
    promise(pool, request.id, [*pool.coming.get(request.id, ()), *victims], deadline)
