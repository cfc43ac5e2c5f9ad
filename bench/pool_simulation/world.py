"""The GPUs, who waits and who runs; time goes from event to event, and whoever decides is asked after each."""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from activities.lease_policy.room import Four, Room
from activities.lease_policy.state import Amount, Device
from bench.pool_simulation.workloads import MINUTE, SECOND, WHOLE, Job

STEP_MS = 30 * SECOND
"""All that happens meanwhile is decided about together."""
LOOK_MS = 5 * MINUTE
"""Who decides is asked this often while somebody waits, whatever happens."""
SAVE_MS = 30 * SECOND
"""From a notice to the checkpoint's end."""
RESTART_MS = MINUTE
MIN_RUNTIME_MS = 10 * MINUTE


class Run(NamedTuple):
    """A job on its GPUs."""

    token: int
    job: Job
    devices: tuple[str, ...]
    since_ms: int
    left_ms: int
    """Of its work, when it began here, with its restart."""


class Told(NamedTuple):
    """What is to be done now."""

    starts: Sequence[tuple[Job, tuple[str, ...]]] = ()
    notices: Sequence[int] = ()
    """Tokens of those who write a checkpoint and let go."""
    stops: Sequence[int] = ()
    """Tokens of those who let go at once."""


class Decider(Protocol):
    """A way to share the pool."""

    def told(self, world: "World") -> Told:
        """What to do in this state."""
        ...

    def began(self, run: Run) -> None:
        """A job is on its GPUs."""
        ...

    def ended(self, run: Run, world: "World", *, again: bool) -> None:
        """A run has let go. *again*: its job waits again."""
        ...


class World:
    """One simulation."""

    def __init__(self, jobs: Iterable[Job], quotas: dict[str, int], decider: Decider) -> None:
        self.quotas = quotas
        self.gpus = sum(quotas.values())
        self.devices = tuple(Device(f"g{i:04}", f"n{i // 8:03}", _whole()) for i in range(self.gpus))
        self.room = Room(self.devices, {})
        self.now = 0
        self.waiting: dict[str, Job] = {}
        """In order of arrival; a preempted job keeps its place by its id."""
        self.left: dict[str, int] = {}
        """Work left of each job that waits."""
        self.running: dict[int, Run] = {}
        self.used = dict.fromkeys(quotas, 0)
        """Thousandths of GPUs of each tenant."""
        self.finished: dict[str, int] = {}
        self.leaving: dict[int, int] = {}
        """When those who were told will have let go."""
        self.busy: list[tuple[int, int, int, str]] = []
        """From, to, thousandths, tenant."""
        self.wasted = 0
        """Thousandths times ms of checkpoints and restarts."""
        self.preemptions = 0
        self.starved: dict[str, int] = {}
        self.starved_most = 0
        """The longest that one within its quota waited while enough that may be taken back was with others."""
        self.kept_waiting_most = 0
        """The longest that one within its quota waited while others were over theirs, for whatever reason."""
        self._kept: dict[str, int] = {}
        self._decider = decider
        self._arrivals = sorted(jobs, key=lambda job: (job.at_ms, job.id), reverse=True)
        self.last_arrival = self._arrivals[0].at_ms if self._arrivals else 0
        self._ends: list[tuple[int, int]] = []
        self._token = 0

    def run(self) -> "World":
        while self._arrivals or self.waiting or self.running:
            before = self.now
            self.now = self._next()
            self._watch(before)
            self._happen()
            told = self._decider.told(self)
            self._do(told)
        return self

    def _next(self) -> int:
        times = [job.at_ms for job in self._arrivals[-1:]] + [at for at, _ in self._ends[:1]]
        if self.waiting:
            times.append(self.now + LOOK_MS)
        at = min(times)
        return max(-(-at // STEP_MS) * STEP_MS, self.now + STEP_MS)

    def _happen(self) -> None:
        while self._ends and self._ends[0][0] <= self.now:
            at, token = heapq.heappop(self._ends)
            run = self.running.get(token)
            if run is None or (token in self.leaving and self.leaving[token] != at):
                continue
            done = at - run.since_ms >= run.left_ms
            self._lets_go(run, at, again=not done)
        while self._arrivals and self._arrivals[-1].at_ms <= self.now:
            job = self._arrivals.pop()
            self.waiting[job.id], self.left[job.id] = job, job.work_ms

    def _lets_go(self, run: Run, at: int, *, again: bool) -> None:
        del self.running[run.token]
        told = self.leaving.pop(run.token, None)
        for name in run.devices:
            self.room.take(name, (0, 0, -run.job.milli, 0))
        self.used[run.job.tenant] -= run.job.size
        self.busy.append((run.since_ms, at, run.job.size, run.job.tenant))
        if not again:
            self.finished[run.job.id] = at
        else:
            self.preemptions += 1
            saved = at - (SAVE_MS if told is not None else 0)
            self.wasted += run.job.size * (RESTART_MS + at - saved)
            self.waiting[run.job.id] = run.job
            self.left[run.job.id] = max(run.left_ms - max(saved - run.since_ms, 0), SECOND) + RESTART_MS
        self._decider.ended(run, self, again=again)

    def _do(self, told: Told) -> None:
        for token in told.stops:
            self._lets_go(self.running[token], self.now, again=True)
        for token in told.notices:
            run = self.running[token]
            self.leaving[token] = min(self.now + SAVE_MS, run.since_ms + run.left_ms)
            heapq.heappush(self._ends, (self.leaving[token], token))
        for job, devices in told.starts:
            self._token += 1
            for name in devices:
                self.room.take(name, (0, 0, job.milli, 0))
            del self.waiting[job.id]
            self.starved.pop(job.id, None)
            self._kept.pop(job.id, None)
            run = Run(self._token, job, devices, self.now, self.left.pop(job.id))
            self.running[run.token] = run
            self._decider.began(run)
            self.used[job.tenant] += job.size
            heapq.heappush(self._ends, (self.now + run.left_ms, run.token))

    def _watch(self, since: int) -> None:
        """For how long are those kept waiting who stay within their quotas, while others are over theirs?"""
        over = {tenant: max(used - self.quotas[tenant] * WHOLE, 0) for tenant, used in self.used.items()}
        if not any(over.values()):
            self.starved.clear()
            self._kept.clear()
            return
        ripe = dict.fromkeys(over, 0)
        for run in self.running.values():
            if run.job.preemptible and self.now - run.since_ms >= MIN_RUNTIME_MS + SAVE_MS + STEP_MS:
                ripe[run.job.tenant] += run.job.size
        for job in self.waiting.values():
            others = [min(over[tenant], ripe[tenant]) for tenant in over if tenant != job.tenant]
            within = self.used[job.tenant] + job.size <= self.quotas[job.tenant] * WHOLE
            is_kept = within and any(over[tenant] for tenant in over if tenant != job.tenant)
            is_starved = within and sum(others) >= job.size and since - job.at_ms >= SAVE_MS + STEP_MS
            self._kept[job.id] = self._kept.get(job.id, 0) + self.now - since if is_kept else 0
            self.starved[job.id] = self.starved.get(job.id, 0) + self.now - since if is_starved else 0
            self.kept_waiting_most = max(self.kept_waiting_most, self._kept[job.id])
            self.starved_most = max(self.starved_most, self.starved[job.id])


def _whole() -> Amount:
    return Amount(milli_gpu=WHOLE)


def member(job: Job) -> Four:
    return (0, 0, job.milli, 0)
