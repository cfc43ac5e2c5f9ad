"""Who held what, as a drawing: one band for each device, in it a bar for each stretch of a lease. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

WIDTH, LANE, GAP, LEFT, TOP = 960, 16, 10, 110, 22
"""Of the drawing, in its own units: a lane is one core, or a lease that has less."""
MOST_LANES = 24
"""Of one device: more cores than that share lanes."""
TICKS = 6
STEPS_MS = tuple(
    each * 1000 for each in (10, 30, 60, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 86400, 7 * 86400)
)


class Stretch(NamedTuple):
    """A part of a lease's time on one device."""

    device: str
    token: int
    from_ms: int
    to_ms: int
    kind: str
    cores: int
    lifecycle: str
    queue: str
    stage: str


class Bar(NamedTuple):
    """A rectangle, and what it stands for."""

    x: float
    y: float
    width: float
    height: float
    stretch: Stretch


class Band(NamedTuple):
    """A device: its label stands beside its lanes."""

    device: str
    y: int
    height: int


class Tick(NamedTuple):
    x: float
    at_ms: int


@dataclass
class Drawing:
    """All of it, in a box of `width` by `height`."""

    from_ms: int
    to_ms: int
    width: int = WIDTH
    height: int = 0
    bands: list[Band] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)

    def x(self, at_ms: int) -> float:
        part = (min(max(at_ms, self.from_ms), self.to_ms) - self.from_ms) / max(1, self.to_ms - self.from_ms)
        return round(LEFT + part * (self.width - LEFT), 2)


def drawn(stretches: Iterable[Stretch], devices: dict[str, int], from_ms: int, to_ms: int) -> Drawing:
    """The stretches within [from_ms, to_ms), each on its device. *devices*: name to cores, in order from the top."""
    drawing = Drawing(from_ms, to_ms)
    by_device: dict[str, list[Stretch]] = {name: [] for name in devices}
    for stretch in stretches:
        if stretch.to_ms > from_ms and stretch.from_ms < to_ms:
            by_device.setdefault(stretch.device, []).append(stretch)
    y = TOP
    for name, mine in by_device.items():
        lanes = _lanes(mine)
        cores = max(1, devices.get(name, 1), *(lane + _wide(stretch) for stretch, lane in lanes), 1)
        count = min(cores, MOST_LANES)
        unit = LANE * count / cores
        drawing.bands.append(Band(name, y, LANE * count))
        for stretch, lane in lanes:
            x = drawing.x(stretch.from_ms)
            width = max(0.75, drawing.x(stretch.to_ms) - x)
            bar = Bar(x, round(y + lane * unit, 2), round(width, 2), round(_wide(stretch) * unit, 2), stretch)
            drawing.bars.append(bar)
        y += LANE * count + GAP
    drawing.height = y
    drawing.ticks = _ticks(drawing)
    return drawing


def _wide(stretch: Stretch) -> int:
    return max(1, stretch.cores)


def _lanes(stretches: list[Stretch]) -> list[tuple[Stretch, int]]:
    """Each stretch with its first lane. All stretches of a member lie in the same lanes, as long as those are free."""
    members: dict[tuple[int, int, int], list[Stretch]] = {}
    beside: Counter[tuple[int, int, int]] = Counter()
    for stretch in sorted(stretches, key=lambda one: (one.from_ms, one.token, one.cores)):
        begins_with = (stretch.token, stretch.cores, stretch.from_ms)
        members.setdefault((stretch.token, stretch.cores, beside[begins_with]), []).append(stretch)
        beside[begins_with] += 1  # another member of the lease on this device
    taken: list[tuple[int, int, int]] = []  # until, first lane, lanes
    found: list[tuple[Stretch, int]] = []
    for mine in members.values():
        begins, wide = mine[0].from_ms, _wide(mine[0])
        taken = [each for each in taken if each[0] > begins]
        lane = 0
        for _, first, count in sorted(taken, key=lambda each: each[1]):
            if lane + wide <= first:
                break
            lane = max(lane, first + count)
        taken.append((max(stretch.to_ms for stretch in mine), lane, wide))
        found += [(stretch, lane) for stretch in mine]
    return found


def _ticks(drawing: Drawing) -> list[Tick]:
    length = drawing.to_ms - drawing.from_ms
    step = next((each for each in STEPS_MS if length <= each * TICKS), STEPS_MS[-1] * max(1, length // STEPS_MS[-1]))
    first = -(-drawing.from_ms // step) * step
    return [Tick(drawing.x(at), at) for at in range(first, drawing.to_ms + 1, step)]
