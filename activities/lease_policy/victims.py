"""Who is to let go so that a request fits: as little work lost as possible, and nobody in vain."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from activities.lease_policy.pool import CORES, MILLI_GPU, Line, Pool, Shape
from activities.lease_policy.room import NOTHING, Four, fit, minus, plus
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
        for name, amount in leaves(pool, held).items():
            parts[name] = plus(parts.get(name, NOTHING), amount)
    return parts


def leaves(pool: Pool, held: Held) -> dict[str, Four]:
    """What it alone leaves on open devices, worked out once."""
    known = pool.left.get(held.token)
    if known is None:
        known = pool.left[held.token] = {}
        for part in gives(held):
            if part.device in pool.room.free:
                known[part.device] = plus(known.get(part.device, NOTHING), part.amount)
    return known


# --- is it enough? --------------------------------------------------------------------------------


def stands(pool: Pool, line: Line, shape: Shape, victims: Sequence[Held]) -> bool:
    """Will it fit, and stay within limits and quota, once *victims* have let go?"""
    if line.leaf is None:
        return pool.light.count(shape.member, shape.count) >= shape.count
    if not shape.preemptible and over_firm(line.leaf, shape.need):
        return False
    return within_limits(pool, line, shape, victims) and _has_room_with(pool, shape, victims)


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


def _has_room_with(pool: Pool, shape: Shape, victims: Iterable[Held]) -> bool:
    """Do all members fit in what is free and what comes free?"""
    fits = _Fits(pool, shape)
    for held in victims:
        if fits.all():
            break
        fits.add(held)
    return fits.all()


class _Fits:
    """How many members fit in what is free and what comes free. *wide*: and in what is reserved for others."""

    def __init__(self, pool: Pool, shape: Shape, *, wide: bool = False) -> None:
        self._pool, self._member, self._count = pool, shape.member, shape.count
        room = pool.room
        self._open = room.free.__getitem__ if wide else room.open_to_all
        self._total = (room.count_wide if wide else room.count)(shape.member, shape.count)
        self._capped = self._total >= shape.count
        """Counted no further than that: they fit whatever comes free."""
        self._free: dict[str, Four] = {}

    def all(self) -> bool:
        return self._total >= self._count

    def add(self, held: Held) -> None:
        for name, amount in leaves(self._pool, held).items():
            before = self._free.get(name) or self._open(name)
            after = self._free[name] = plus(before, amount)
            self._total += fit(after, self._member) - fit(before, self._member)

    def all_without(self, held: Held) -> bool:
        """Of one that was added."""
        total = self._total
        for name, amount in leaves(self._pool, held).items():
            before = self._free[name]
            total += fit(minus(before, amount), self._member) - fit(before, self._member)
        return self._capped or total >= self._count

    def take_out(self, held: Held) -> None:
        for name, amount in leaves(self._pool, held).items():
            before = self._free[name]
            after = self._free[name] = minus(before, amount)
            self._total += fit(after, self._member) - fit(before, self._member)


def put_back(pool: Pool, line: Line, shape: Shape, victims: Sequence[Held], *, wide: bool = False) -> list[Held]:
    """Those without whom it would not stand: the most costly that are not needed are left alone.

    *wide*: were nothing reserved.
    """
    if line.leaf is None or (not shape.preemptible and over_firm(line.leaf, shape.need)):
        return list(victims) if not stands(pool, line, shape, ()) else _killed(victims)
    needed, fits = list(victims), _Fits(pool, shape, wide=wide)
    for held in needed:
        fits.add(held)
    for held in sorted(victims, key=lambda held: lost_work(pool, held), reverse=True):
        if held.state == "killing" or not fits.all_without(held):
            continue
        rest = [one for one in needed if one is not held]
        if within_limits(pool, line, shape, rest):
            needed = rest
            fits.take_out(held)
    return needed


def _killed(victims: Iterable[Held]) -> list[Held]:
    return [held for held in victims if held.state == "killing"]


# --- the choice -----------------------------------------------------------------------------------


class Rights:
    """Whose leases may be taken for one request, all of one kind; `reclaim.py` has the one that counts."""

    def may(self, held: Held) -> bool:
        """Now, with what was taken before."""
        raise NotImplementedError

    def lose(self, held: Held) -> None:
        """It is taken: what may be taken after it."""

    def undo(self, held: Held) -> None:
        """It is not taken after all."""

    def all_of(self, among: "Candidates") -> Iterable[Held]:
        """All that may be taken now, in any order."""
        return filter(self.may, among.all)

    def in_order(self, among: "Candidates") -> Iterator[Held]:
        """All that may be taken when they are asked for, in the order of victims."""
        return filter(self.may, among.all)


class These(Rights):
    """Just these, whatever else is taken; in the order of victims."""

    def __init__(self, allowed: Sequence[Held]) -> None:
        self._allowed = allowed
        self._tokens = {held.token for held in allowed}

    def may(self, held: Held) -> bool:
        return held.token in self._tokens

    def all_of(self, among: "Candidates") -> Iterable[Held]:  # noqa: ARG002
        return self._allowed

    def in_order(self, among: "Candidates") -> Iterator[Held]:  # noqa: ARG002
        return iter(self._allowed)


class Candidates:
    """Leases that may be told to let go, in the order of victims: all, by queue, and by what they would leave where."""

    def __init__(self, pool: Pool) -> None:
        self.all = candidates(pool)
        self.overrun = [held for held in self.all if is_overrun(held, pool.now_ms)]
        self.of_queue: dict[str, list[Held]] = {}
        self.on: dict[str, list[Held]] = {}
        for held in self.all:
            self.of_queue.setdefault(held.request.queue, []).append(held)
            for name in leaves(pool, held):
                self.on.setdefault(name, []).append(held)

    def take_out(self, pool: Pool, victims: Iterable[Held]) -> None:
        """They have been told."""
        for held in victims:
            places = [self.all, self.of_queue[held.request.queue], *(self.on[name] for name in leaves(pool, held))]
            for place in places:
                place.remove(held)
            if held in self.overrun:
                self.overrun.remove(held)


def choose(  # noqa: PLR0917
    pool: Pool, line: Line, shape: Shape, among: Candidates, rights: Rights, coming: Sequence[Held]
) -> list[Held]:
    """The victims for a request, besides those that are *coming*, or none where they do not suffice.

    Device by device, the cheapest first, each with just the leases that make way for one more member: half a place on
    ten devices helps nobody. Then whoever is not needed is put back.
    """
    chosen = list(coming)
    if not _has_room_with(pool, shape, chain(chosen, rights.all_of(among))):
        return []
    options = _Options(pool, shape, among, rights, chosen)
    while not options.suffice():
        best = options.best()
        if not best:
            return []
        options.take(best)
    chosen = options.chosen
    for held in among.all:
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

    def __init__(self, pool: Pool, shape: Shape, among: Candidates, rights: Rights, chosen: Sequence[Held]) -> None:
        self._pool, self._shape, self._rights, self._among = pool, shape, rights, among
        self.chosen = list(chosen)
        self._tokens = {held.token for held in chosen}
        self._came_free = freed(pool, chosen)
        self._fits = _Fits(pool, shape)
        for held in chosen:
            self._fits.add(held)
        self._known: dict[str, tuple[OptionCost, list[Held]]] = {}
        self._closed: set[str] = set()
        """Nothing more can be had there."""
        self._others = rights.in_order(among)
        """Where the first of these is, nothing is looked up before all that is known costs more than it alone."""
        self._next = next(self._others, None)

    def best(self) -> list[Held]:
        """None left: an empty list. What was right before others were taken is looked at again."""
        while True:
            least = min(((cost, name) for name, (cost, _) in self._known.items()), default=None)
            if self._next is not None and (least is None or _cost(self._pool, [self._next]) <= least[0]):
                self._look_up(self._next)
                self._next = next(self._others, None)
                continue
            if least is None:
                return []
            name = least[1]
            cost, option = self._one_more(name)
            if not option:
                del self._known[name]
                self._closed.add(name)
            elif cost == least[0]:
                return option
            else:
                self._known[name] = cost, option

    def suffice(self) -> bool:
        return self._fits.all()

    def take(self, option: Sequence[Held]) -> None:
        self.chosen += option
        for held in option:
            self._fits.add(held)
        self._tokens.update(held.token for held in option)
        for held in option:
            self._rights.lose(held)
            for name, amount in leaves(self._pool, held).items():
                self._came_free[name] = plus(self._came_free.get(name, NOTHING), amount)
        for name in sorted({name for held in option for name in leaves(self._pool, held)}):
            self._known[name] = self._one_more(name)

    def _look_up(self, held: Held) -> None:
        for name in leaves(self._pool, held):
            if name not in self._known and name not in self._closed:
                self._known[name] = self._one_more(name)

    def _one_more(self, name: str) -> tuple[OptionCost, list[Held]]:
        """The first leases there, in the order of victims; none: they do not suffice."""
        member = self._shape.member
        free = plus(self._pool.room.open_to_all(name), self._came_free.get(name, NOTHING))
        enough = fit(free, member) + 1
        taken: list[Held] = []
        for held in self._among.on.get(name, ()):
            if held.token in self._tokens or not self._rights.may(held):
                continue
            self._rights.lose(held)
            taken.append(held)
            free = plus(free, leaves(self._pool, held)[name])
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
