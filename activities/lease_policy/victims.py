"""Who is to let go so that a request fits: as little work lost as possible, and nobody in vain."""

from collections.abc import Callable, Iterable, Sequence

from activities.lease_policy.pool import CORES, MILLI_GPU, Line, Pool, Shape
from activities.lease_policy.room import NOTHING, Four, fit, plus
from activities.lease_policy.state import Held, Part
from activities.lease_policy.tree import Two, over_firm, over_limit

CORES_OF_A_GPU = 16
"""How many cores' work one GPU's counts for where work that would be lost is compared."""

Cost = tuple[int, int, int, int, int, int]


def lost_work(pool: Pool, held: Held) -> Cost:
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


def gives_counted(held: Held) -> Two:
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
                cores, milli_gpu = gives_counted(held)
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
    on_device: dict[str, list[Held]] = {}
    for held in among:
        for name in freed(pool, [held]):
            on_device.setdefault(name, []).append(held)
    while _room_with(pool, shape, chosen) < shape.count:
        came_free = freed(pool, chosen)
        options = [
            _one_more(
                shape,
                plus(pool.room.open_to_all(name), came_free.get(name, NOTHING)),
                [(held, freed(pool, [held])[name]) for held in here if held not in chosen],
                rights,
            )
            for name, here in on_device.items()
        ]
        best = min((option for option in options if option), default=None, key=lambda option: _cost(pool, option))
        if best is None:
            return []
        for held in best:
            rights.lose(held)
        chosen += best
    for held in among:
        if within_limits(pool, line, shape, chosen):
            break
        if held not in chosen and rights.may(held):
            rights.lose(held)
            chosen.append(held)
    if not stands(pool, line, shape, chosen):
        return []
    return [held for held in put_back(pool, line, shape, chosen) if held not in coming]


def _one_more(shape: Shape, free: Four, here: Sequence[tuple[Held, Four]], rights: Rights) -> list[Held]:
    """The first leases of a device, in the order of victims, that make way for one more member there; none: never."""
    enough = fit(free, shape.member) + 1
    taken: list[Held] = []
    for held, leaves in here:
        if not rights.may(held):
            continue
        rights.lose(held)
        taken.append(held)
        free = plus(free, leaves)
        if fit(free, shape.member) >= enough:
            break
    for held in taken:
        rights.undo(held)
    return taken if fit(free, shape.member) >= enough else []


def _cost(pool: Pool, option: Sequence[Held]) -> tuple[tuple[int, int, int], int, Cost]:
    costs = [lost_work(pool, held) for held in option]
    worst = max(costs)
    return worst[:3], sum(cost[3] for cost in costs), worst
