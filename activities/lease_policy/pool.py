"""The state as the steps work on it: what is free, who waits in which order, and what has been decided so far."""

from collections.abc import Iterable
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
    Policy,
    PoolState,
    Request,
    Reserve,
    Resize,
    Usage,
    Withdraw,
)
from activities.lease_policy.tree import ZERO, Node, Tree, Two, add

CORES, MILLI_GPU = (Amount._fields.index(name) for name in COUNTED)
LIVE = ("offered", "active", "noticed")
"""States in which the holder may work. `killing`: it is fenced, its parts are not free yet."""


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
        self.shapes: dict[int, Shape] = {}
        """All that are in it, and perhaps some that were, by number."""
        self._unknown: list[Shape] | None = None

    def all_refused(self) -> bool:
        """Would any of it be refused? Those once known to be are not looked at again."""
        if self._unknown is None:
            self._unknown = list(self.shapes.values())
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
        self.devices: dict[str, Device] = _each_device(state.devices) if before is None else before.devices
        self.held = sorted({held.token: held for held in sorted(state.held, reverse=True)}.values())
        self.tree = Tree(state.queues)
        self._measure(before)
        if before is None:
            self._line_up(state.waiting)
        else:
            self._line_up_again(before)

        self.usages: list[Usage] = []
        self.withdrawn: list[Withdraw] = []
        self.overdue: dict[int, Kill] = {}
        """Their time is up, unless their notices are withdrawn."""
        self.killed: list[Kill] = []
        self.notices: list[Notice] = []
        self.grants: dict[str, Grant] = {}
        self.resized: list[Resize] = []
        self.reserved: dict[str, Reserve] = {}
        self.held_back: dict[str, Four] = {}
        """Free on a device, but kept for somebody who waits for the rest to become free."""
        self.reserving: list[str] = []
        """Top queues that have their reservation."""
        self.beneficiaries: dict[str, tuple[int, int]] = {}
        """For whom others were told to let go: how many, and by when."""
        self.costs: dict[int, tuple[int, int, int, int, int, int]] = {}
        self.given: dict[int, Two] = {}
        self.left: dict[int, dict[str, Four]] = {}
        """What a lease would leave on open devices, once it has been asked for."""
        self.coming: dict[str, list[Held]] = {}
        """Being killed for a request which they are not enough for."""
        self.unsettled = False
        """Without what was withdrawn, promises are to be kept in another order: nobody is told anything before."""

    # --- what there is and who has it

    def _measure(self, before: "Pool | None") -> None:
        usual = [device for device in self.devices.values() if not device.light]
        light = [device for device in self.devices.values() if device.light and device.open]
        used: dict[str, Four] = {}
        self.counted: dict[int, Two] = {}
        """Of each lease, what counts in its queue: the light slot is outside of all queues."""
        for held in self.held:
            own = NOTHING
            for part in held.members:
                amount = part.amount
                used[part.device] = plus(used.get(part.device, NOTHING), amount)
                device = self.devices.get(part.device)
                if device is None or not device.light:
                    own = plus(own, amount)
            self.counted[held.token] = (own[CORES], own[MILLI_GPU])
            node = self.tree.by_id.get(held.request.queue)
            for each in node.path if node else ():
                add(each.allocated, self.counted[held.token])
                if not held.request.preemptible:
                    add(each.firm, self.counted[held.token])
            if node is not None:
                add(node.asked, self._at_largest(held))
        self.used = used
        self.room = Room((device for device in usual if device.open), used)
        self.light = Room(light, used)
        self.wholes: list[dict[Four, int]] = (
            before.wholes if before else [_kinds(usual, open_only=which) for which in (False, True)]
        )
        self.light_wholes: list[dict[Four, int]] = (
            before.light_wholes if before else [_kinds(light, open_only=True)] * 2
        )
        total = NOTHING
        for whole, number in self.wholes[True].items():
            total = plus(total, times(whole, number))
        self.capacity: Two = (total[CORES], total[MILLI_GPU])

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
        live = {held.request.id for held in self.held if held.state in LIVE}
        self.odd: list[tuple[Request, str]] = []
        """Who cannot be served whatever is free, and the code of the reason."""
        self.lines: dict[str, Line] = {}
        self.asking: dict[str, tuple[Request, Line, Shape]] = {}
        """Of whom more is to be known: beneficiaries, and who is granted, promised or reserved something."""
        beneficiaries = {held.beneficiary for held in self.held if held.beneficiary}
        self.light_line = Line(None)
        self.shapes: list[Shape] = []
        shapes: dict[tuple[Amount, tuple[object, ...]], Shape] = {}
        alike: dict[tuple[object, ...], int] = {}
        for request in _each_once(waiting):
            key = (request.member, request[6:11])
            shape = shapes.get(key)
            if shape is None:
                shape = shapes[key] = Shape(request, len(shapes))
                shape.feasible = shape.sound and self.would_fit(shape)
                kind = (shape.member, shape.count, shape.preemptible, shape.light)
                shape.alike = alike.setdefault(kind, len(alike))
                self.shapes.append(shape)
            line = None if shape.light else self.lines.get(request.queue)
            if line is None:
                line = self._line(request)
            if line is None or not shape.feasible or request.id in live:
                code = "has_lease" if request.id in live else "unknown_queue" if line is None else "infeasible"
                self.odd.append((request, code))
                continue
            line.waiting.append((request, shape))
            line.shapes[shape.number] = shape
            if request.id in beneficiaries:
                self.asking[request.id] = (request, line, shape)
            if line.leaf is not None:
                line.wanted[0] += shape.at_most[0]
                line.wanted[1] += shape.at_most[1]
        for line in self.lines.values():
            if line.leaf is not None:
                add(line.leaf.asked, (line.wanted[0], line.wanted[1]))
        self.light_line.waiting.sort(key=lambda one: (-one[0].priority, one[0].arrival, one[0].id))

    def _line_up_again(self, before: "Pool") -> None:
        """Those who still wait: devices and queues are as before."""
        self.odd, self.shapes = before.odd, before.shapes
        for shape in self.shapes:
            shape.refused = shape.unreserved = False
        self.light_line = Line(None)
        self.light_line.waiting, self.light_line.shapes = before.light_line.waiting, before.light_line.shapes
        self.lines = {}
        for name, earlier in before.lines.items():
            line = self.lines[name] = Line(self.tree.leaf(name))
            line.waiting, line.wanted, line.shapes = earlier.waiting, earlier.wanted, earlier.shapes
            if line.leaf is not None:
                add(line.leaf.asked, (line.wanted[0], line.wanted[1]))
        self.asking = {
            name: (request, self.light_line if line.leaf is None else self.lines[line.leaf.id], shape)
            for name, (request, line, shape) in before.asking.items()
            if name not in before.grants
        }

    def _line(self, request: Request) -> Line | None:
        if request.light and self.light.free:
            return self.light_line
        line = self.lines.get(request.queue)
        if line is None:
            leaf = self.tree.leaf(request.queue)
            if leaf is None:
                return None
            line = self.lines[request.queue] = Line(leaf)
        return line

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
        told = [held.deadline_ms for held in self.held if held.state == "noticed" and held.beneficiary]
        told += [one.deadline_ms for one in self.notices if one.beneficiary]
        return max(soonest, *(each + 1 for each in told if each < soonest + 1000), soonest)

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
    for device in devices:
        if device.open or not open_only:
            whole = most(device.whole, NOTHING)
            kinds[whole] = kinds.get(whole, 0) + 1
    return kinds


ID, ARRIVAL, QUEUE, PRIORITY = (Request._fields.index(name) for name in ("id", "arrival", "queue", "priority"))


def _in_order(requests: Iterable[Request]) -> list[Request]:
    """By queue, priority (high first), arrival and id; sorted by the least first, since sorting keeps an order."""
    ordered = sorted(requests, key=itemgetter(ARRIVAL, ID))
    ordered.sort(key=itemgetter(PRIORITY), reverse=True)
    ordered.sort(key=itemgetter(QUEUE))
    return ordered


def _each_once(waiting: Iterable[Request]) -> list[Request]:
    """In the order in which a queue asks them. Of several with one id, which cannot be, the first."""
    ordered = _in_order(waiting)
    if len({request.id for request in ordered}) == len(ordered):
        return ordered
    first: dict[str, Request] = {}
    for request in sorted(ordered):
        first.setdefault(request.id, request)
    return _in_order(first.values())
