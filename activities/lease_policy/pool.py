"""The state as the steps work on it: what is free, who waits in which order, and what has been decided so far."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter

from activities.lease_policy.room import NOTHING, Four, Room, fit, most, plus, times
from activities.lease_policy.state import (
    COUNTED,
    Amount,
    Device,
    Grant,
    Held,
    Kill,
    Notice,
    Part,
    Policy,
    PoolState,
    Request,
    Reserve,
    Resize,
    Usage,
    Withdraw,
)
from activities.lease_policy.tree import BOTH, ZERO, Node, Tree, Two, add

CORES, MILLI_GPU = (Amount._fields.index(name) for name in COUNTED)
LIVE = ("offered", "active", "noticed")
"""States in which the holder may work. `killing`: it is fenced, its parts are not free yet."""
End = tuple[int, int, tuple[Part, ...]]


class Shape:
    """What a request asks for, without its name: whoever asks for the same is answered the same in one decision."""

    def __init__(self, request: Request, number: int = 0) -> None:
        self.number = number
        self.member: Four = request.member
        self.count = request.members_min
        self.most = request.members_max
        self.need: Two = (self.member[CORES] * self.count, self.member[MILLI_GPU] * self.count)
        self.at_most: Two = (self.member[CORES] * self.most, self.member[MILLI_GPU] * self.most)
        self.preemptible = request.preemptible
        self.light = request.light
        self.runtime_ms = max(request.max_runtime_ms, 0)
        self.alike = 0
        """Those of one number wait for the same reason: it does not depend on what else is in the shape."""
        self.sound = min(self.member) >= 0 and 1 <= self.count <= self.most
        self.feasible = False
        """It would fit in the open devices, were they empty."""
        self.refused = False
        """There is no room for it: room only shrinks while decisions are made."""
        self.unreserved = False
        """Nobody knows when there will be room for it."""


class Line:
    """Those who wait in one queue, in the order in which they are asked."""

    def __init__(self, leaf: Node | None) -> None:
        self.leaf = leaf
        """None: the line of the light slot."""
        self.waiting: list[tuple[Request, Shape]] = []
        self.wanted = [0, 0]
        """All of it, with elastic work at its largest."""
        self.asked = 0
        """So many have been looked at."""
        self.closed: set[int] = set()
        """Numbers of shapes that a limit or a quota refuses."""
        self.shapes: list[Shape] = []
        """All that are in it, and perhaps some that were."""
        self._unknown: list[Shape] = []

    def fill(self, waiting: list[tuple[Request, Shape]], numbers: Mapping[Shape, int]) -> None:
        """With all who wait in it; *numbers*: of each shape. Its queue wants that beside what it has."""
        self.waiting, self.shapes = waiting, list(numbers)
        for shape, number in numbers.items():
            self.wanted[0] += shape.at_most[0] * number
            self.wanted[1] += shape.at_most[1] * number
        self.begin_again()

    def begin_again(self) -> None:
        """Nobody in it has been looked at."""
        self.asked, self.closed, self._unknown = 0, set(), list(self.shapes)
        if self.leaf is not None:
            add(self.leaf.asked, (self.wanted[0], self.wanted[1]))

    def all_refused(self) -> bool:
        """Would any of it be refused? Those once known to be are not looked at again."""
        unknown = self._unknown
        while unknown and (unknown[-1].refused or unknown[-1].number in self.closed):
            unknown.pop()
        return not unknown

    def waits_for_room(self) -> bool:
        """Is there one left that nothing but the want of room keeps, or that nobody has looked at?"""
        return any(shape.refused and shape.number not in self.closed for _, shape in self.waiting) or self.asked < len(
            self.waiting
        )


class Pool:
    """A state, sorted, with the sums that all steps need. Broken states are read as far as they make sense."""

    def __init__(
        self, state: PoolState, now_ms: int, policy: Policy, fuel: int, *, before: "Pool | None" = None
    ) -> None:
        """*before*: of the same decision, with what it did done to *state*; who waits is not sorted again."""
        self.now_ms, self.policy, self.fuel = now_ms, policy, fuel
        self.held = sorted({held.token: held for held in sorted(state.held, reverse=True)}.values())
        self.counted: dict[int, Two] = {}
        """Of each lease, what counts in its queue: the light slot is outside of all queues."""
        if before is None:
            self.devices: dict[str, Device] = _each_device(state.devices)
            self.drained = {one.name: one.drain_by_ms for one in self.devices.values() if one.drain_by_ms > 0}
            self.tree = Tree(state.queues)
            self._measure()
            self._line_up(state.waiting)
        else:
            self.devices, self.drained, self.tree = before.devices, before.drained, before.tree
            self.tree.begin_again()
            self._measure_again(before)
            self._line_up_again(before)

        self.usages: list[Usage] = []
        self.withdrawn: list[Withdraw] = []
        self.overdue: dict[int, Kill] = {}
        """Their time is up, unless their notices are withdrawn."""
        self.killed: list[Kill] = []
        self.notices: list[Notice] = []
        self.grants: dict[str, Grant] = {}
        self.resized: list[Resize] = []
        self.grown = False
        """A grant got more than its fewest members: its queue may have more than its share by now."""
        self.reserved: dict[str, Reserve] = {}
        self.held_back: dict[str, Four] = {}
        """Free on a device, but kept for somebody who waits for the rest to become free."""
        self.reserving: list[str] = []
        """Top queues that have their reservation."""
        self.ends: tuple[int, list[End]] | None = None
        """Declared ends of leases, when so many grants had been made: for reserve.py."""
        self.beneficiaries: dict[str, tuple[int, int]] = {}
        """For whom others were told to let go: how many, and by when."""
        self.costs: dict[int, tuple[int, int, int, int, int, int]] = before.costs if before else {}
        self.given: dict[int, Two] = before.given if before else {}
        self.left: dict[int, dict[str, Four]] = before.left if before else {}
        """What a lease would leave on open devices, once it has been asked for."""
        self.coming: dict[str, list[Held]] = {}
        """Being killed for a request which they are not enough for."""
        self._last_deadline: int | None = None
        self.unsettled = False
        """Without what was withdrawn, promises are to be kept in another order: nobody is told anything before."""

    # --- what there is and who has it

    def _measure(self) -> None:
        usual = [device for device in self.devices.values() if not device.light]
        light = [device for device in self.devices.values() if device.light and device.open]
        used: dict[str, Four] = {}
        for held in self.held:
            for part in held.members:
                used[part.device] = plus(used.get(part.device, NOTHING), part.amount)
        self.at_first = Room((device for device in usual if device.open), used)
        self.light_at_first = Room(light, used)
        self.room, self.light = self.at_first.copied(), self.light_at_first.copied()
        """What is free now; `at_first`: before anything was decided."""
        self.wholes: list[dict[Four, int]] = [_kinds(usual, open_only=which) for which in (False, True)]
        self.light_wholes: list[dict[Four, int]] = [_kinds(light, open_only=True)] * 2
        total = NOTHING
        for whole, number in self.wholes[True].items():
            total = plus(total, times(whole, number))
        self.capacity: Two = (total[CORES], total[MILLI_GPU])
        self.counted = {held.token: self._counts(held) for held in self.held}
        self.news = {node.id for node in self.tree.nodes}
        """Queues whose own usage is to be found: all, or those of which something has changed since the last round."""
        self._sum_up()

    def _measure_again(self, before: "Pool") -> None:
        """Nothing but leases has changed, and few of them."""
        self.at_first, self.light_at_first = before.at_first, before.light_at_first
        self.wholes, self.light_wholes, self.capacity = before.wholes, before.light_wholes, before.capacity
        now = {held.token for held in self.held}
        changed = [(held, 1) for held in self.held if held.token not in before.counted]
        changed += [(held, -1) for held in before.held if held.token not in now]
        for held, sign in changed:
            for part in held.members:
                for room in (self.at_first, self.light_at_first):
                    if part.device in room.free:
                        room.take(part.device, times(part.amount, sign))
        self.room, self.light = self.at_first.copied(), self.light_at_first.copied()
        self.news = {one.queue for one in before.usages} | {held.request.queue for held, sign in changed if sign < 0}
        known = before.counted
        self.counted = {
            held.token: known[held.token] if held.token in known else self._counts(held) for held in self.held
        }
        self._sum_up()

    def _counts(self, held: Held) -> Two:
        cores = milli_gpu = 0
        for name, amount in held.members:
            device = self.devices.get(name)
            if device is None or not device.light:
                cores, milli_gpu = cores + amount[CORES], milli_gpu + amount[MILLI_GPU]
        return cores, milli_gpu

    def _sum_up(self) -> None:
        """What each queue has and wants for it, with the queues below it."""
        for held in self.held:
            node = self.tree.by_id.get(held.request.queue)
            if node is None:
                continue
            counted = self.counted[held.token]
            add(node.allocated, counted)
            if not held.request.preemptible:
                add(node.firm, counted)
            add(node.asked, self._at_largest(held))
        for node in reversed(self.tree.nodes):
            for child in node.children:
                for r in BOTH:
                    node.allocated[r] += child.allocated[r]
                    node.firm[r] += child.firm[r]

    def _at_largest(self, held: Held) -> Two:
        """What its queue wants for it: an elastic lease all its members."""
        cores, milli_gpu = self.counted[held.token]
        more = held.request.members_max - len(held.members)
        if more <= 0 or (cores, milli_gpu) == ZERO or held.state == "killing":
            return cores, milli_gpu
        member = held.request.member
        return cores + more * max(member.cores, 0), milli_gpu + more * max(member.milli_gpu, 0)

    # --- who waits

    def _line_up(self, waiting: Iterable[Request]) -> None:
        self.odd: list[tuple[Request, str]] = []
        """Who cannot be served whatever is free, and the code of the reason."""
        self.lines: dict[str, Line] = {}
        self.asking: dict[str, tuple[Request, Line, Shape]] = {}
        """Of whom more is to be known: beneficiaries, and who is granted, promised or reserved something."""
        self.light_line = Line(None)
        self.shapes: list[Shape] = []
        live = {held.request.id for held in self.held if held.state in LIVE}
        beneficiaries = {held.beneficiary for held in self.held if held.beneficiary}
        known = _Shapes(self)
        light: list[tuple[Request, Shape]] = []
        for queue, requests in _in_order(waiting):
            leaf = self.tree.leaf(queue)
            shapes = known.of(requests)
            numbers: Mapping[Shape, int] = Counter(shapes)
            if leaf and not any(one.light or not one.feasible for one in numbers) and live.isdisjoint(_ids(requests)):
                fit_for_it = list(zip(requests, shapes, strict=True))
            else:
                fit_for_it = self._sorted_out(leaf, zip(requests, shapes, strict=True), live, light)
                numbers = Counter(shape for _, shape in fit_for_it)
            if leaf and fit_for_it:
                self.lines[queue] = Line(leaf)
                self.lines[queue].fill(fit_for_it, numbers)
        light.sort(key=lambda one: (-one[0].priority, one[0].arrival, one[0].id))
        self.light_line.fill(light, Counter(shape for _, shape in light))
        if beneficiaries:
            self.asking = {
                request.id: (request, line, shape)
                for line in (self.light_line, *self.lines.values())
                for request, shape in line.waiting
                if request.id in beneficiaries
            }

    def _sorted_out(
        self,
        leaf: Node | None,
        waiting: Iterable[tuple[Request, Shape]],
        live: AbstractSet[str],
        light: list[tuple[Request, Shape]],
    ) -> list[tuple[Request, Shape]]:
        """Those for the queue's line; the others are put with the *light* or the odd ones."""
        lane = bool(self.light.free)
        own: list[tuple[Request, Shape]] = []
        for request, shape in waiting:
            in_lane = shape.light and lane
            if not shape.feasible or request.id in live or not (leaf or in_lane):
                code = "has_lease" if request.id in live else "infeasible" if leaf or in_lane else "unknown_queue"
                self.odd.append((request, code))
            else:
                (light if in_lane else own).append((request, shape))
        return own

    def _line_up_again(self, before: "Pool") -> None:
        """Those who still wait: devices and queues are as before."""
        self.odd, self.shapes = before.odd, before.shapes
        for shape in self.shapes:
            shape.refused = shape.unreserved = False
        self.light_line, self.lines = before.light_line, before.lines
        for line in (self.light_line, *self.lines.values()):
            line.begin_again()
        self.asking = {name: one for name, one in before.asking.items() if name not in before.grants}

    def would_fit(self, shape: Shape, *, open_only: bool = True) -> bool:
        """Would it fit, were all devices empty?"""
        wholes = self.light_wholes if shape.light and self.light.free else self.wholes
        total = sum(fit(whole, shape.member) * number for whole, number in wholes[open_only].items())
        return total >= shape.count

    # --- what the steps do to it

    def leave_out_the_served(self) -> None:
        """Lines hold those who still wait; `asked`: so many of them have been looked at."""
        of_line: dict[str, Line] = {}
        for name in self.grants:
            _, line, shape = self.asking[name]
            add(line.wanted, shape.at_most, -1)
            of_line[line.leaf.id if line.leaf is not None else ""] = line
        for line in of_line.values():
            served = [request.id in self.grants for request, _ in line.waiting]
            line.asked -= sum(served[: line.asked])
            line.waiting = [one for one, gone in zip(line.waiting, served, strict=True) if not gone]

    def next_deadline(self) -> int:
        """A grace from now, and a millisecond after the last one: deadlines tell who was promised first."""
        soonest = self.now_ms + self.policy.grace_s * 1000
        if self._last_deadline is None:
            told = [held.deadline_ms for held in self.held if held.state == "noticed" and held.beneficiary]
            self._last_deadline = max((each for each in told if each < soonest + 1000), default=0)
        self._last_deadline = max(self._last_deadline + 1, soonest)
        return self._last_deadline

    def place(self, line: Line, shape: Shape, count: int, *, short: bool = False) -> list[str] | None:
        room = self.light if line.leaf is None else self.room
        return room.place(shape.member, count, short=short)

    def take(self, line: Line, shape: Shape, devices: Iterable[str], *, short: bool = False) -> None:
        """The members are on these devices from now on, and count in the queues above."""
        room = self.light if line.leaf is None else self.room
        number = 0
        for name in devices:
            room.take(name, shape.member, short=short)
            number += 1
        amount = (shape.member[CORES] * number, shape.member[MILLI_GPU] * number)
        for node in line.leaf.path if line.leaf else ():
            add(node.allocated, amount)
            if not shape.preemptible:
                add(node.firm, amount)


def _each_device(devices: Iterable[Device]) -> dict[str, Device]:
    """One that is drained is not open. Of several with one name, which cannot be, the first."""
    ordered = sorted(devices, reverse=True)
    return {one.name: one._replace(open=False) if one.open and one.drain_by_ms > 0 else one for one in ordered}


def _kinds(devices: Iterable[Device], *, open_only: bool) -> dict[Four, int]:
    kinds: dict[Four, int] = {}
    for whole, number in Counter(device.whole for device in devices if device.open or not open_only).items():
        sound = most(whole, NOTHING)
        kinds[sound] = kinds.get(sound, 0) + number
    return kinds


_id, _arrival, _queue, _priority = (
    itemgetter(Request._fields.index(name)) for name in ("id", "arrival", "queue", "priority")
)
_asked = itemgetter(slice(Request._fields.index("member"), Request._fields.index("max_runtime_ms") + 1))
"""All that is in a shape, and the priority, which is in between."""


def _ids(requests: Iterable[Request]) -> Iterable[str]:
    return map(_id, requests)


def _in_order(waiting: Iterable[Request]) -> Iterator[tuple[str, list[Request]]]:
    """By queue, in each by priority (high first), arrival and id. Of several with one id the first: it cannot be."""
    requests = list(waiting)
    if len(set(_ids(requests))) < len(requests):
        first: dict[str, Request] = {}
        for request in sorted(requests):
            first.setdefault(request.id, request)
        requests = list(first.values())
    of_queue: defaultdict[str, list[Request]] = defaultdict(list)
    for queue, request in zip(map(_queue, requests), requests, strict=True):
        of_queue[queue].append(request)
    for queue in sorted(of_queue):
        ordered = of_queue[queue]
        ordered.sort(key=_id)  # by the least first, since sorting keeps an order
        ordered.sort(key=_arrival)
        ordered.sort(key=_priority, reverse=True)
        yield queue, ordered


class _Shapes:
    """The shape of each request: one for all that ask for the same."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._seen: dict[object, Shape] = {}
        self._known: dict[object, Shape] = {}
        self._alike: dict[object, int] = {}

    def of(self, requests: Sequence[Request]) -> list[Shape]:
        asked = list(map(_asked, requests))
        try:
            return list(map(self._seen.__getitem__, asked))
        except KeyError:  # one that asks for what nobody has asked for so far
            for one, request in zip(asked, requests, strict=True):
                if one not in self._seen:
                    self._fresh(one, request)
        return list(map(self._seen.__getitem__, asked))

    def _fresh(self, asked: object, request: Request) -> None:
        key = (request.member, request[6:11])
        shape = self._known.get(key)
        if shape is None:
            shape = self._known[key] = Shape(request, len(self._known))
            shape.feasible = shape.sound and self._pool.would_fit(shape)
            kind = (shape.member, shape.count, shape.preemptible, shape.light)
            shape.alike = self._alike.setdefault(kind, len(self._alike))
            self._pool.shapes.append(shape)
        self._seen[asked] = shape
