"""What is free on which device, and where members fit: by kinds of device, since most look the same."""

from bisect import bisect_left, insort
from collections.abc import Container, Iterable, Mapping

from activities.lease_policy.state import Device

Four = tuple[int, int, int, int]
"""cores, memory_mib, milli_gpu, gpu_mib: an `Amount`."""
NOTHING: Four = (0, 0, 0, 0)
MANY = 1 << 40


def plus(one: Four, other: Four) -> Four:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3])


def minus(one: Four, other: Four) -> Four:
    return (one[0] - other[0], one[1] - other[1], one[2] - other[2], one[3] - other[3])


def times(one: Four, count: int) -> Four:
    return (one[0] * count, one[1] * count, one[2] * count, one[3] * count)


def least(one: Four, other: Four) -> Four:
    return (min(one[0], other[0]), min(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))


def most(one: Four, other: Four) -> Four:
    return (max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))


def fit(free: Four, member: Four) -> int:
    """How many members fit in what is free of one device."""
    cores, memory, milli_gpu, gpu_mib = member  # no min() and max(): this is asked a hundred thousand times
    count = free[0] // cores if cores else MANY
    if milli_gpu and (here := free[2] // milli_gpu) < count:
        count = here
    if memory and (here := free[1] // memory) < count:
        count = here
    if gpu_mib and (here := free[3] // gpu_mib) < count:
        count = here
    return count if count > 0 else 0  # noqa: FURB136


def _counted(kinds: Iterable[tuple[Four, int]], member: Four, enough: int) -> int:
    """How many members fit in so many devices of each kind, counted up to *enough*."""
    total = 0
    for free, number in kinds:
        total += fit(free, member) * number
        if total >= enough:
            return enough
    return total


def tightness(free: Four) -> Four:
    """Best fit: the device with the least left, GPUs first, so that work without one leaves them alone."""
    return (free[2], free[0], free[3], free[1])


class Room:
    """Open devices of one kind (the light slot, or all others) and what is free of each.

    *spare*: on devices of a reservation, what may be used for longer than until its start.
    """

    def __init__(self, devices: Iterable[Device], used: Mapping[str, Four]) -> None:
        self.free: dict[str, Four] = {}
        self.spare: dict[str, Four] = {}
        self._shown: dict[str, Four] = {}
        self._alike: dict[Four, list[str]] = {}
        self._wide: dict[Four, int] = {}
        """How many devices have so much free, whatever is reserved."""
        self._members: dict[Four, int] = {}
        """How many of such members fit in all, of those that were asked for."""
        sound: dict[Four, Four] = {}
        for device in devices:
            name, whole = device.name, device.whole
            free = sound.get(whole) or sound.setdefault(whole, most(whole, NOTHING))
            if name in used:
                free = minus(free, used[name])
            self.free[name] = self._shown[name] = free
            self._alike.setdefault(free, []).append(name)
        for free, names in self._alike.items():
            names.sort()
            self._wide[free] = len(names)

    def copied(self) -> "Room":
        other = Room((), {})
        other.free, other.spare, other._shown = self.free.copy(), self.spare.copy(), self._shown.copy()
        other._alike = {free: names.copy() for free, names in self._alike.items()}
        other._wide, other._members = self._wide.copy(), self._members.copy()
        return other

    def count(self, member: Four, enough: int) -> int:
        """How many members fit, counted up to *enough*."""
        total = self._members.get(member)
        if total is None:
            total = sum(fit(free, member) * len(names) for free, names in self._alike.items())
            self._members[member] = total
        return min(total, enough)

    def count_wide(self, member: Four, enough: int) -> int:
        """`count`, were nothing reserved."""
        return _counted(self._wide.items(), member, enough)

    def fits_but_for_reservations(self, member: Four, count: int) -> bool:
        """Is there room for all of it, or would be if nothing were reserved?"""
        return self.count_wide(member, count) >= count

    def with_room_for(self, member: Four, count: int) -> list[str]:
        """At least *count* devices that hold a member, where there are so many; those with a reservation left out."""
        names: list[str] = []
        for free in sorted(self._alike, key=tightness):
            if len(names) < count and fit(free, member):
                names += [name for name in self._alike[free] if name not in self.spare]
        return names

    def place(self, member: Four, count: int, *, short: bool = False, besides: Container[str] = ()) -> list[str] | None:
        """The device of each member, or None when not all fit. *short*: it ends before any reservation starts."""
        if not short and besides == () and self.count(member, count) < count:
            return None
        options = []
        total = 0
        for free, names in self._kinds(short=short, besides=besides):
            each = fit(free, member)
            if each:
                options.append((tightness(free), names[0], each, names))
                total += each * len(names)
        if total < count:
            return None
        options.sort()
        placed: list[str] = []
        for _, _, each, names in options:
            for name in names:
                placed += [name] * min(each, count - len(placed))
                if len(placed) == count:
                    return placed
        return placed

    def _kinds(self, *, short: bool, besides: Container[str]) -> Iterable[tuple[Four, list[str]]]:
        lent = self.spare if short else {}
        if not lent and besides == ():
            return self._alike.items()
        kinds = [
            (free, [name for name in names if name not in lent and name not in besides])
            for free, names in self._alike.items()
        ]
        kinds += [(self.free[name], [name]) for name in lent if name not in besides]
        return [(free, names) for free, names in kinds if names]

    def open_to_all(self, name: str) -> Four:
        """What of the device is free and not reserved."""
        return self._shown[name]

    def most_on_one(self) -> Four:
        """Per resource, the most that is free on a single device."""
        top = NOTHING
        for free in self._alike:
            top = most(top, free)
        return top

    def take(self, name: str, amount: Four, *, short: bool = False) -> None:
        """Nothing else may be placed there. A *short* one does not count against a reservation."""
        before = self.free[name]
        after = self.free[name] = minus(before, amount)
        if self._wide[before] == 1:
            del self._wide[before]
        else:
            self._wide[before] -= 1
        self._wide[after] = self._wide.get(after, 0) + 1
        if name in self.spare and not short:
            self.spare[name] = minus(self.spare[name], amount)
        self._show(name)

    def reserve(self, name: str, spare: Four) -> None:
        """From now on only *spare* of the device may be used by what does not end before the reservation starts."""
        self.spare[name] = spare
        self._show(name)

    def lift(self, name: str) -> Four:
        """The reservation there does not count. Returns what was spare beside it."""
        spare = self.spare.pop(name)
        self._show(name)
        return spare

    def _show(self, name: str) -> None:
        before = self._shown[name]
        after = least(self.free[name], self.spare[name]) if name in self.spare else self.free[name]
        if after == before:
            return
        names = self._alike[before]
        if len(names) == 1:
            del self._alike[before]
        else:
            del names[bisect_left(names, name)]
        self._shown[name] = after
        insort(self._alike.setdefault(after, []), name)
        for member in self._members:
            self._members[member] += fit(after, member) - fit(before, member)
