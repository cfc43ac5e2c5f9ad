"""Sums over leased and free time that are exact: over all kinds, capacity times time. Pure and in integers (I22).

Core-milliseconds and milli-GPU-milliseconds. Leased time comes as rows; what is not leased is derived, from the
capacity and the moments at which a device was away or held back for a reservation.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

LEASED = ("useful", "redone", "checkpoint", "held_idle", "notice", "quarantined")
"""What a lease is busy with."""
UNLEASED = ("free", "reserved_idle", "lost")
KINDS = (*LEASED, *UNLEASED)


class Overcommitted(Exception):  # noqa: N818  # it names the state of the ledger
    """The ledger says that more of a device was leased than it has."""


class Capacity(NamedTuple):
    """What a device had to give, and when."""

    device: str
    from_ms: int
    to_ms: int
    cores: int
    milli_gpu: int


class Use(NamedTuple):
    """A part of a device that a lease had, of one kind."""

    device: str
    from_ms: int
    to_ms: int
    cores: int
    milli_gpu: int
    kind: str
    queue: str = ""
    charged_to: str = ""
    """The queue that pays: another one than `queue` where its request was the reason."""
    model: str = ""
    lifecycle: str = ""
    stage: str = ""


class Mark(NamedTuple):
    """What the free part of a device was, meanwhile: `lost` (the device was away) or `reserved_idle`."""

    device: str
    from_ms: int
    to_ms: int
    kind: str
    cores: int = 0
    """Reserved, as far as they are free. What is lost is lost whole."""
    milli_gpu: int = 0


class Spent(NamedTuple):
    """Amounts of time."""

    core_ms: int = 0
    gpu_ms: int = 0
    """In thousandths: milli-GPU times milliseconds."""

    def plus(self, core_ms: int, gpu_ms: int) -> "Spent":
        return Spent(self.core_ms + core_ms, self.gpu_ms + gpu_ms)


class Totals(NamedTuple):
    """Sums over a window of time."""

    capacity: Spent
    """What there was in all. The sum over `by_kind` is this, exactly."""
    by_kind: dict[str, Spent]
    """Of each of `KINDS`, also where it is nothing."""
    leased: dict[Use, Spent]
    """By what is equal of uses: kind, queue, charged_to, model, lifecycle, stage; device, times and amounts are left
    out (empty, 0)."""


def totals(
    capacity: Iterable[Capacity], uses: Iterable[Use], marks: Iterable[Mark], from_ms: int, to_ms: int
) -> Totals:
    """Sums over [from_ms, to_ms). Raises `Overcommitted` where uses are more than there is: nothing adds up then."""
    by_kind = dict.fromkeys(KINDS, Spent())
    leased: dict[Use, Spent] = defaultdict(Spent)
    whole = Spent()
    there = _by_device(capacity, from_ms, to_ms)
    used, marked = _by_device(uses, from_ms, to_ms), _by_device(marks, from_ms, to_ms)
    for name in sorted(used.keys() - there.keys()):
        raise Overcommitted(f"{name} is leased, and the ledger does not know that it was there")
    for device in sorted(there):
        for use in used.get(device, ()):
            key = use._replace(device="", from_ms=0, to_ms=0, cores=0, milli_gpu=0)
            length = use.to_ms - use.from_ms
            leased[key] = leased[key].plus(use.cores * length, use.milli_gpu * length)
            by_kind[use.kind] = by_kind[use.kind].plus(use.cores * length, use.milli_gpu * length)
        for moment in _moments(there[device], used.get(device, ()), marked.get(device, ())):
            whole = whole.plus(moment.cores * moment.length, moment.milli_gpu * moment.length)
            for kind, (cores, milli_gpu) in moment.unleased.items():
                by_kind[kind] = by_kind[kind].plus(cores * moment.length, milli_gpu * moment.length)
    return Totals(whole, by_kind, dict(leased))


Row = TypeVar("Row", Capacity, Use, Mark)


class _Moment(NamedTuple):
    """A stretch of a device's time in which nothing changes."""

    length: int
    cores: int
    milli_gpu: int
    unleased: dict[str, tuple[int, int]]
    """What nobody has, by kind."""


def _moments(there: Sequence[Capacity], uses: Sequence[Use], marks: Sequence[Mark]) -> Iterable[_Moment]:
    """The device's time between the edges of all its rows. One pass over the edges in order."""
    changes: dict[int, list[int]] = defaultdict(lambda: [0] * 7)
    for place, rows in ((0, there), (2, uses)):
        for row in rows:
            for at, sign in ((row.from_ms, 1), (row.to_ms, -1)):
                changes[at][place] += sign * row.cores
                changes[at][place + 1] += sign * row.milli_gpu
    for mark in marks:
        told = (1, 0, 0) if mark.kind == "lost" else (0, mark.cores, mark.milli_gpu)
        for at, sign in ((mark.from_ms, 1), (mark.to_ms, -1)):
            for place, value in enumerate(told, 4):
                changes[at][place] += sign * value
    now = [0] * 7
    edges = sorted(changes)
    for at, until in pairwise(edges):
        now = [before + change for before, change in zip(now, changes[at], strict=True)]
        cores, milli_gpu, used_cores, used_gpu, away, *reserved = now
        if used_cores > cores or used_gpu > milli_gpu:
            name = next(row.device for row in uses if row.from_ms <= at < row.to_ms)
            raise Overcommitted(
                f"{name} has {cores} cores and {milli_gpu} milli-GPU at {at}, "
                f"and leases have {used_cores} and {used_gpu}"
            )
        yield _Moment(
            until - at, cores, milli_gpu, _unleased((cores - used_cores, milli_gpu - used_gpu), reserved, away=away > 0)
        )


def _unleased(free: tuple[int, int], reserved: Sequence[int], *, away: bool) -> dict[str, tuple[int, int]]:
    if away:
        return {"lost": free}
    kept = min(free[0], reserved[0]), min(free[1], reserved[1])
    return {"reserved_idle": kept, "free": (free[0] - kept[0], free[1] - kept[1])}


def _by_device(rows: Iterable[Row], from_ms: int, to_ms: int) -> dict[str, list[Row]]:
    """The rows of each device, clipped to the window; those outside it are left out."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        clipped = row._replace(from_ms=max(row.from_ms, from_ms), to_ms=min(row.to_ms, to_ms))
        if clipped.to_ms > clipped.from_ms:
            found[row.device].append(clipped)
    return found
