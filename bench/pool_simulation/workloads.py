"""What is asked of the pool: seeded jobs in the shape of published traces (gpu.md 3.1 and 3.2). No trace is shipped."""

import math
import random
from bisect import bisect
from itertools import pairwise
from typing import NamedTuple

WHOLE = 1000
SECOND = 1000
MINUTE, DAY = 60 * SECOND, 24 * 3600 * SECOND
NODES = (16, 8, 4, 16, 16, 4, 8, 4, 2, 2, 8)
QUOTAS = {f"t{i:02}": nodes * 8 for i, nodes in enumerate(NODES)}
"""GPUs of each tenant: those of Philly's, scaled to 704."""
PHILLY_SIZES = ((1, 687), (2, 30), (4, 134), (8, 126), (16, 17), (32, 6))
PHILLY_SECONDS = (
    *((0.0, 10), (0.05, 48), (0.25, 131), (0.5, 1_186), (0.75, 3_342)),
    *((0.9, 12_860), (0.95, 49_951), (0.99, 172_800), (1.0, 172_800)),
)
"""Quantiles of run times, cut at two days."""
OPENB_FRACTIONS = ((810, 35), (470, 24), (320, 14), (650, 14), (230, 13))


class Job(NamedTuple):
    """What somebody submits."""

    id: str
    at_ms: int
    tenant: str
    gpus: int
    """Members, one GPU (or a part of one) each."""
    milli: int
    """Of each member."""
    work_ms: int
    """With all its members and without a pause."""
    preemptible: bool = True
    declared_ms: int = 0
    """0: its owner does not say how long it takes."""

    @property
    def size(self) -> int:
        """In thousandths of a GPU."""
        return self.gpus * self.milli


def philly(seed: int, number: int, load: float, quotas: dict[str, int] = QUOTAS) -> list[Job]:
    """W1: demand is not like the quotas (log-normal, 0.5), jobs come in campaigns, more by day than by night."""
    numbers = random.Random(f"W1 {seed}")
    wants = {tenant: quota * numbers.lognormvariate(0, 0.5) for tenant, quota in quotas.items()}
    drawn: list[tuple[float, str, int, int]] = []
    while len(drawn) < number:
        tenant = numbers.choices(list(wants), list(wants.values()))[0]
        begins = numbers.random() * number * MINUTE
        size = min(_drawn(numbers, PHILLY_SIZES), quotas[tenant])
        campaign = range(min(int(numbers.paretovariate(1.1)), 200, number - len(drawn)))
        drawn += [(begins + place * MINUTE, tenant, size, _runtime(numbers)) for place in campaign]
    work = sum(size * runtime for _, _, size, runtime in drawn)
    span = work / (load * sum(quotas.values()))
    stretch = span / max(at for at, *_ in drawn)
    timed = sorted((_by_day(at * stretch), tenant, size, runtime) for at, tenant, size, runtime in drawn)
    return [
        Job(f"j{i:05}", max(int(at), 0), tenant, size, WHOLE, work_ms)
        for i, (at, tenant, size, work_ms) in enumerate(timed)
    ]


def openb(seed: int, number: int, load: float, *, whole: bool = False) -> list[Job]:
    """W3: 43.6 % ask for a part of a GPU, 57 % serve and are never preempted. *whole*: parts are rounded up."""
    numbers = random.Random(f"W3 {seed}")
    drawn = []
    for _ in range(number):
        milli = _drawn(numbers, OPENB_FRACTIONS) if numbers.random() < 0.436 else WHOLE
        gpus = 8 if milli == WHOLE and numbers.random() < 0.011 else 1
        runtime = int(min(math.exp(6.3 + 1.9 * numbers.gauss(0, 1)) * SECOND, 2 * DAY)) + SECOND
        drawn.append((numbers.choice(list(QUOTAS)), gpus, milli, runtime, numbers.random() < 0.43))
    span = sum(gpus * milli * runtime for _, gpus, milli, runtime, _ in drawn) / (load * sum(QUOTAS.values()) * WHOLE)
    times = sorted(int(numbers.random() * span) for _ in drawn)
    return [
        Job(f"j{i:05}", at, tenant, gpus, WHOLE if whole else milli, runtime, preemptible)
        for i, (at, (tenant, gpus, milli, runtime, preemptible)) in enumerate(zip(times, drawn, strict=True))
    ]


def burst(seed: int, number: int, *, quiet_only: bool = False) -> list[Job]:
    """W4: one tenant submits *number* trials within a minute, beside eight quiet tenants."""
    numbers = random.Random(f"W4 {seed}")
    jobs = []
    for i in range(160):
        at = numbers.randrange(4 * 3600 * SECOND)
        jobs.append((at, f"t{i % 8 + 1:02}", _drawn(numbers, ((1, 3), (2, 1), (4, 1))), numbers.randrange(300, 3600)))
    if not quiet_only:
        jobs += [(1800 * SECOND + numbers.randrange(MINUTE), "t00", 1, 600) for _ in range(number)]
    return [
        Job(f"j{i:05}", at, tenant, gpus, WHOLE, runtime * SECOND)
        for i, (at, tenant, gpus, runtime) in enumerate(sorted(jobs))
    ]


def gang(seed: int) -> list[Job]:
    """W6a: a gang of 512 GPUs against a stream of single ones that say how long they take."""
    numbers = random.Random(f"W6a {seed}")
    small = [
        Job(f"j{i:05}", i * 3 * SECOND, "t01", 1, WHOLE, runtime, True, runtime + MINUTE)
        for i in range(5_000)
        for runtime in [numbers.randrange(1_500, 2_700) * SECOND]
    ]
    return sorted([*small, Job("gang", 3600 * SECOND, "t00", 512, WHOLE, 1800 * SECOND)], key=lambda job: job.at_ms)


def rivals(seed: int, number: int) -> list[Job]:
    """W6b: two tenants who both want all of the pool, always."""
    numbers = random.Random(f"W6b {seed}")
    return [Job(f"j{i:05}", 0, f"t{i % 2:02}", 8, WHOLE, numbers.randrange(900, 5_400) * SECOND) for i in range(number)]


def _drawn(numbers: random.Random, parts: tuple[tuple[int, int], ...]) -> int:
    return numbers.choices([value for value, _ in parts], [weight for _, weight in parts])[0]


def _runtime(numbers: random.Random) -> int:
    """Between two quantiles evenly in the logarithm."""
    part = numbers.random()
    edges = list(pairwise(PHILLY_SECONDS))
    (low, least), (high, most) = edges[min(bisect([edge[1][0] for edge in edges], part), len(edges) - 1)]
    within = (part - low) / (high - low)
    return int(least * (most / least) ** within) * SECOND


def _by_day(at: float) -> float:
    return at - 0.4 * DAY / (2 * math.pi) * math.sin(2 * math.pi * at / DAY)
