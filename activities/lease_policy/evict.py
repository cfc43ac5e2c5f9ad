"""Evict: for requests without room, in the order of turns, tell others to let go.

First reclaim from other queues (reclaim.py); else preempt within the queue, strictly lower priorities, or the surplus
of an elastic lease that is not above; else, for a request that starves, leases that are over their declared time. At
most so many requests are served so in one decision, those for which others were told before among them. Looking in
vain is bounded as well, in each queue and in all; what lies beyond is looked at when time has passed.
"""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from activities.lease_policy.allocate import next_turn
from activities.lease_policy.pool import Line, Pool, Shape
from activities.lease_policy.promises import promise
from activities.lease_policy.reclaim import Reclaim, right_of
from activities.lease_policy.reserve import is_starving
from activities.lease_policy.state import Held, Notice, Request
from activities.lease_policy.tree import Node, Two, over_firm
from activities.lease_policy.victims import Candidates, These, choose, has_surplus, put_back

MOST = 64
"""Requests in one decision for which others are told to let go."""
MOST_IN_VAIN = 64
"""Requests in one decision for which nothing can be found; a queue beyond that gets a look or two."""
IN_VAIN = 8
"""The same of one queue: from the head of its line, and as many from a place that moves on."""
MOVES_MS = 5_000
"""How often that place moves: nobody is behind others that ask in vain for ever."""

Kind = tuple[int, int, bool]
"""Of requests in one line for which the same leases come into question: shape, priority, and whether it starves."""


def evict(pool: Pool) -> None:
    among = Candidates(pool)
    if not among.all:
        return
    own = pool.coming.keys() | pool.reserved.keys()
    of_lines = {pool.asking[name][1] for name in own}
    in_vain = MOST_IN_VAIN
    for line in in_turn(pool):
        if len(pool.beneficiaries) >= MOST:
            return
        if line.leaf is not None:
            looks = _Looks(IN_VAIN if in_vain > 0 else 1)
            _for_line(pool, line, line.leaf, among, own if line in of_lines else frozenset(), looks)
            in_vain -= looks.missed


class _Looks:
    """How often one line has been looked for in vain, and how often it may be."""

    def __init__(self, most: int) -> None:
        self.most, self.missed = most, 0

    def in_order(self, pool: Pool, asked: Sequence[tuple[Request, Shape]]) -> Iterator[tuple[Request, Shape]]:
        for one in asked:
            if self.missed >= self.most:
                break
            yield one
        else:
            return
        for one in asked[pool.now_ms // MOVES_MS * self.most % len(asked) :]:
            if self.missed >= 2 * self.most:
                return
            yield one


def _for_line(  # noqa: PLR0917
    pool: Pool, line: Line, leaf: Node, among: Candidates, own: AbstractSet[str], looks: _Looks
) -> None:
    """*own*: who has something coming or reserved."""
    shapes = {shape.alike: shape for shape in line.shapes}
    hopeless = _hopeless(pool, leaf, among, shapes)
    if len(hopeless) == len(shapes) and not own:
        return
    in_vain: set[Kind] = set()
    passed: list[tuple[Request, Shape]] = []
    for request, shape in looks.in_order(pool, line.waiting[: line.asked]):
        if len(pool.beneficiaries) >= MOST:
            return
        known = request.id not in own
        if known and shape.alike in hopeless:
            passed.append((request, shape))
            continue
        if request.id in pool.beneficiaries or (known and (shape.alike, request.priority, True) in in_vain):
            continue
        kind = _kind(pool, line, request, shape)
        if known and kind in in_vain:
            continue
        victims, reason = _victims_besides_own(pool, line, request, shape, among, starving=kind[2])
        if not victims:
            looks.missed += 1 if reason else 0
            in_vain.add(kind)
            continue
        in_vain |= {_kind(pool, line, *one) for one in passed if one[0].id not in pool.beneficiaries}
        passed.clear()
        pool.asking[request.id] = (request, line, shape)
        _tell(pool, request, victims, reason)
        among.take_out(pool, victims)
        hopeless = _hopeless(pool, leaf, among, shapes)


def _kind(pool: Pool, line: Line, request: Request, shape: Shape) -> Kind:
    return shape.alike, request.priority, is_starving(pool, line, request, shape)


def _hopeless(pool: Pool, leaf: Node, among: Candidates, shapes: Mapping[int, Shape]) -> set[int]:
    """Shapes for which nobody comes into question, unless something is coming or reserved for one."""
    rights: dict[Two, bool] = {}
    others = bool(among.overrun or among.of_queue.get(leaf.id))
    hopeless = set()
    for alike, shape in shapes.items():
        need = shape.need
        if not others and need not in rights:
            rights[need] = bool(right_of(leaf, need))
        if not (others or rights[need]) or not _may_ask(pool, leaf, shape):
            hopeless.add(alike)
    return hopeless


def _may_ask(pool: Pool, leaf: Node, shape: Shape) -> bool:
    """It could be given room, and is not only kept from it by what is reserved for others.

    Else it would take that, and who was told would be told for nothing.
    """
    if not shape.preemptible and over_firm(leaf, shape.need):
        return False
    room = pool.room
    return not (room.spare and room.fits_but_for_reservations(shape.member, shape.count))


def _victims_besides_own(
    pool: Pool, line: Line, request: Request, shape: Shape, among: Candidates, *, starving: bool
) -> tuple[list[Held], str]:
    """`_victims`; what is reserved for the request is no room for others, but is for itself."""
    own = pool.reserved.get(request.id)
    lifted = {name: pool.room.lift(name) for name in own.devices} if own else {}
    victims, reason = _victims(pool, line, request, shape, among, starving=starving)
    if victims and pool.room.spare and _fewer_would_do(pool, line, shape, [*pool.coming.get(request.id, ()), *victims]):
        victims = []
    if not victims:
        for name, spare in lifted.items():
            pool.room.reserve(name, spare)
    return victims, reason


def _fewer_would_do(pool: Pool, line: Line, shape: Shape, victims: Sequence[Held]) -> bool:
    """But for what is reserved for others. A promise is kept before anything is reserved, so some are told in vain."""
    return len(put_back(pool, line, shape, victims, wide=True)) < len(victims)


def in_turn(pool: Pool) -> list[Line]:
    """Lines with somebody left, in the order in which their turns come."""
    lines = [line for line in (pool.light_line, *pool.lines.values()) if line.waiting]
    return sorted(lines, key=lambda line: next_turn(pool, line, 0))


def _victims(
    pool: Pool, line: Line, request: Request, shape: Shape, among: Candidates, *, starving: bool
) -> tuple[list[Held], str]:
    """Who is to let go and why. Nobody with a reason: looked for in vain; without: nobody comes into question."""
    leaf, looked = line.leaf, ""
    if leaf is None or not _may_ask(pool, leaf, shape):
        return [], ""
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
        victims = choose(pool, line, shape, among, These(below), coming)
        if victims:
            return victims, "preempt"
    over = among.overrun if starving else []
    if over:
        looked = "over_runtime"
        victims = choose(pool, line, shape, among, These(over), coming)
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
