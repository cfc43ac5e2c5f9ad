"""Who is to let go so that a request fits: as little work lost as possible, and nobody in vain."""

from collections.abc import Callable, Iterable, Sequence

from activities.lease_policy.pool import CORES, MILLI_GPU, Line, Pool, Shape
from activities.lease_policy.room import NOTHING, Four, fit, plus
from activities.lease_policy.state import Held, Part
from activities.lease_policy.tree import Two, over_firm, over_limit

CORES_OF_A_GPU = 16
"""How many cores' work one GPU's counts for where work that would be lost is compared."""

Cost = tuple[int, int, int, int, int, int]
OptionCost = tuple[tuple[int, int, int], int, Cost]
NEVER: OptionCost = ((2, 0, 0), 0, (2, 0, 0, 0, 0, 0))
"""Above all that there are."""


def lost_work(pool: Pool, held: Held) -> Cost:
    """What it costs to end it: `_lost_work`, worked out once."""
    known = pool.costs.get(held.token)
    if known is None:
        known = pool.costs[held.token] = _lost_work(pool, held)
    return known


def _lost_work(pool: Pool, held: Held) -> Cost:
    """The order of victims: who is over its declared time, elastic surplus, low priority, little lost, late start."""
    since = max(held.checkpoint_ms, held.granted_ms)
    cores, milli_gpu = pool.counted[held.token]
    size = cores * 1000 + milli_gpu * CORES_OF_A_GPU
    return (
        0 if is_overrun(held, pool.now_ms) else 1,
        0 if has_surplus(held) else 1,
        held.request.priority,
        max(pool.now_ms - since, 0) * size,
        -held.granted_ms,
        held.token,
    )


def candidates(pool: Pool) -> list[Held]:
    """Leases that may be told to let go at all, in the order of victims.

    Not before their minimum run time, not more often than allowed in a day, and never what is not preemptible.
    """
    spared = {one.token for told in (pool.withdrawn, pool.notices, pool.killed) for one in told}
    return sorted(
        (held for held in pool.held if held.state == "active" and held.token not in spared and _may(pool, held)),
        key=lambda held: lost_work(pool, held),
    )


def _may(pool: Pool, held: Held) -> bool:
    policy, request = pool.policy, held.request
    return (
        request.preemptible
        and request.preempted < policy.most_preemptions_a_day
        and pool.now_ms - held.granted_ms >= policy.min_runtime_s * 1000
        and pool.tree.leaf(request.queue) is not None
        and any(part.device in pool.room.free for part in held.members)
    )


def is_overrun(held: Held, now_ms: int) -> bool:
    return 0 < held.request.max_runtime_ms < now_ms - held.granted_ms


def has_surplus(held: Held) -> bool:
    return len(held.members) > held.request.members_min > 0


def gives(held: Held) -> tuple[Part, ...]:
    """What it leaves to others: an elastic lease comes back with its fewest members, so it leaves the others."""
    return held.members[held.request.members_min :] if has_surplus(held) else held.members


def gives_counted(pool: Pool, held: Held) -> Two:
    """What counts in queues of that, worked out once."""
    known = pool.given.get(held.token)
    if known is None:
        known = pool.given[held.token] = _counted(held)
    return known


def _counted(held: Held) -> Two:
    cores = milli_gpu = 0
    for part in gives(held):
        cores, milli_gpu = cores + part.amount[CORES], milli_gpu + part.amount[MILLI_GPU]
    return cores, milli_gpu


def freed(pool: Pool, victims: Iterable[Held]) -> dict[str, Four]:
    """What they leave on open devices."""
    parts: dict[str, Four] = {}
    for held in victims:
        for part in gives(held):
            if part.device in pool.room.free:
                parts[part.device] = plus(parts.get(part.device, NOTHING), part.amount)
    return parts


# --- is it enough? --------------------------------------------------------------------------------


def stands(pool: Pool, line: Line, shape: Shape, victims: Sequence[Held]) -> bool:
    """Will it fit, and stay within limits and quota, once *victims* have let go?"""
    if line.leaf is None:
        return pool.light.count(shape.member, shape.count) >= shape.count
    if not shape.preemptible and over_firm(line.leaf, shape.need):
        return False
    return within_limits(pool, line, shape, victims) and _room_with(pool, shape, victims) >= shape.count


def within_limits(pool: Pool, line: Line, shape: Shape, victims: Sequence[Held]) -> bool:
    """Of *victims*, only those below the queue whose limit it is make way there."""
    if line.leaf is None or not over_limit(line.leaf, shape.need):
        return True
    for node in line.leaf.path:
        gone = [0, 0]
        for held in victims:
            other = pool.tree.by_id.get(held.request.queue)
            if other is not None and node in other.path:
                cores, milli_gpu = gives_counted(pool, held)
                gone = [gone[0] + cores, gone[1] + milli_gpu]
        for r, limit in enumerate(node.limit):
            if shape.need[r] and 0 <= limit < node.allocated[r] + node.promised[r] + shape.need[r] - gone[r]:
                return False
    return True


def _room_with(pool: Pool, shape: Shape, victims: Sequence[Held]) -> int:
    """How many members fit in what is free and what comes free."""
    total = pool.room.count(shape.member, shape.count)
    if total >= shape.count:
        return total
    for name, amount in freed(pool, victims).items():
        now = pool.room.open_to_all(name)
        total += fit(plus(now, amount), shape.member) - fit(now, shape.member)
    return total


def put_back(pool: Pool, line: Line, shape: Shape, victims: Sequence[Held]) -> list[Held]:
    """Those without whom it would not stand: the most costly that are not needed are left alone."""
    needed = list(victims)
    for held in sorted(victims, key=lambda held: lost_work(pool, held), reverse=True):
        if held.state == "killing":
            continue
        rest = [one for one in needed if one is not held]
        if stands(pool, line, shape, rest):
            needed = rest
    return needed


# --- the choice -----------------------------------------------------------------------------------


class Rights:
    """Whose leases may be taken for one request, all of one kind; `reclaim.py` has the one that counts."""

    def __init__(self, allowed: Callable[[Held], bool]) -> None:
        self.may = allowed

    def lose(self, held: Held) -> None:
        """It is taken: what may be taken after it."""

    def undo(self, held: Held) -> None:
        """It is not taken after all."""


def choose(  # noqa: PLR0917
    pool: Pool, line: Line, shape: Shape, among: Sequence[Held], rights: Rights, coming: Sequence[Held]
) -> list[Held]:
    """The victims for a request, besides those that are *coming*, or none where they do not suffice.

    Device by device, the cheapest first, each with just the leases that make way for one more member: half a place on
    ten devices helps nobody. Then whoever is not needed is put back.
    """
    chosen = list(coming)
    if _room_with(pool, shape, [*chosen, *among]) < shape.count:
        return []
    options = _Options(pool, shape, among, rights, chosen)
    while _room_with(pool, shape, options.chosen) < shape.count:
        best = options.best()
        if not best:
            return []
        options.take(best)
    chosen = options.chosen
    for held in among:
        if within_limits(pool, line, shape, chosen):
            break
        if held not in chosen and rights.may(held):
            rights.lose(held)
            chosen.append(held)
    if not stands(pool, line, shape, chosen):
        return []
    return [held for held in put_back(pool, line, shape, chosen) if held not in coming]


class _Options:
    """Per device, the cheapest leases that make way for one more member there."""

    def __init__(self, pool: Pool, shape: Shape, among: Sequence[Held], rights: Rights, chosen: Sequence[Held]) -> None:
        self._pool, self._shape, self._rights = pool, shape, rights
        self.chosen = list(chosen)
        self._leaves = {held.token: freed(pool, [held]) for held in (*among, *chosen)}
        self._came_free = freed(pool, chosen)
        self._here: dict[str, list[Held]] = {}
        for held in among:
            for name in self._leaves[held.token]:
                self._here.setdefault(name, []).append(held)
        self._known = {name: self._one_more(name) for name in self._here}

    def best(self) -> list[Held]:
        """None left: an empty list. What was right before others were taken is looked at again."""
        while self._known:
            _, name = min((cost, name) for name, (cost, _) in self._known.items())
            cost, option = self._one_more(name)
            if not option:
                del self._known[name]
            elif cost == self._known[name][0]:
                return option
            else:
                self._known[name] = cost, option
        return []

    def take(self, option: Sequence[Held]) -> None:
        self.chosen += option
        for held in option:
            self._rights.lose(held)
            for name, amount in self._leaves[held.token].items():
                self._came_free[name] = plus(self._came_free.get(name, NOTHING), amount)
        for name in sorted({name for held in option for name in self._leaves[held.token]}):
            self._known[name] = self._one_more(name)

    def _one_more(self, name: str) -> tuple[OptionCost, list[Held]]:
        """The first leases there, in the order of victims; none: they do not suffice."""
        member = self._shape.member
        free = plus(self._pool.room.open_to_all(name), self._came_free.get(name, NOTHING))
        enough = fit(free, member) + 1
        taken: list[Held] = []
        for held in self._here[name]:
            if held in self.chosen or not self._rights.may(held):
                continue
            self._rights.lose(held)
            taken.append(held)
            free = plus(free, self._leaves[held.token][name])
            if fit(free, member) >= enough:
                break
        for held in taken:
            self._rights.undo(held)
        if not taken or fit(free, member) < enough:
            return NEVER, []
        return _cost(self._pool, taken), taken


def _cost(pool: Pool, option: Sequence[Held]) -> OptionCost:
    costs = [lost_work(pool, held) for held in option]
    worst = max(costs)
    return worst[:3], sum(cost[3] for cost in costs), worst
