"""Ways to share a pool: the product's, and those that it is compared with. All place jobs by the product's `Room`."""

from activities import lease_policy
from activities.lease_policy.room import Room
from activities.lease_policy.state import (
    Amount,
    Counted,
    Grant,
    Held,
    Kill,
    Notice,
    Part,
    Policy,
    PoolState,
    Queue,
    Request,
    Usage,
    Withdraw,
)
from bench.pool_simulation.workloads import DAY, WHOLE, Job
from bench.pool_simulation.world import MINUTE, Run, Told, World, member

EPOCH = 1_700_000_000_000
FUEL = 10_000
CLASS_MS = 8 * 3600 * 1000


class Leases:
    """`decide()`, with each tenant's GPUs as its queue's quota."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}
        self._held: dict[int, Held] = {}
        self._preempted: dict[str, list[int]] = {}
        self._arrival: dict[str, int] = {}
        self._asked: dict[str, Request] = {}

    def told(self, world: World) -> Told:
        now = EPOCH + world.now
        self._note_checkpoints(now)
        if not self._queues:
            self._queues = {
                tenant: Queue(tenant, quota=Counted(-1, quota * WHOLE)) for tenant, quota in world.quotas.items()
            }
        waiting = tuple(self._request(job, now) for job in world.waiting.values())
        state = PoolState(world.devices, tuple(self._queues.values()), waiting, tuple(self._held.values()))
        made = lease_policy.decide(state, now, Policy(), FUEL)
        starts: list[tuple[Job, tuple[str, ...]]] = []
        notices: list[int] = []
        for one in made:
            if isinstance(one, Grant):
                job = world.waiting[one.request_id]
                starts.append((job, tuple(part.device for part in one.members)))
            elif isinstance(one, Notice):
                notices.append(one.token)
                held = self._held[one.token]
                self._held[one.token] = held._replace(
                    state="noticed", beneficiary=one.beneficiary, deadline_ms=one.deadline_ms
                )
            elif isinstance(one, Usage):
                self._queues[one.queue] = self._queues[one.queue]._replace(usage=one.usage, usage_at_ms=one.at_ms)
            elif isinstance(one, Withdraw):
                # Who was told writes its checkpoint already, and lets go.
                self._held[one.token] = self._held[one.token]._replace(beneficiary="")
            assert not isinstance(one, Kill), "a holder that lets go in time is not killed"
        self._asked = {request.id: request for request in waiting}
        return Told(starts=starts, notices=[token for token in notices if token not in world.leaving])

    def _note_checkpoints(self, now: int) -> None:
        """Whoever runs writes one every ten minutes."""
        every = 10 * MINUTE
        for token, held in self._held.items():
            saved = held.granted_ms + (now - held.granted_ms) // every * every
            if saved != held.checkpoint_ms:
                self._held[token] = held._replace(checkpoint_ms=saved)

    def _request(self, job: Job, now: int) -> Request:
        times = [at for at in self._preempted.get(job.id, ()) if at > now - DAY]
        return Request(
            job.id,
            self._arrival.setdefault(job.id, len(self._arrival)),
            EPOCH + job.at_ms,
            job.tenant,
            Amount(milli_gpu=job.milli),
            preemptible=job.preemptible,
            members_min=job.gpus,
            members_max=job.gpus,
            max_runtime_ms=job.declared_ms,
            preempted=len(times),
        )

    def began(self, run: Run) -> None:
        parts = tuple(Part(name, Amount(milli_gpu=run.job.milli)) for name in run.devices)
        granted = EPOCH + run.since_ms
        self._held[run.token] = Held(run.token, self._asked[run.job.id], parts, "active", granted, granted)

    def ended(self, run: Run, world: World, *, again: bool) -> None:
        now = EPOCH + world.now
        held = self._held.pop(run.token)
        queue = self._queues[run.job.tenant]
        used = lease_policy.used_by(held, queue.usage_at_ms, now)
        total = Counted(queue.usage.cores + used.cores, queue.usage.milli_gpu + used.milli_gpu)
        self._queues[run.job.tenant] = queue._replace(usage=total)
        if again:
            self._preempted.setdefault(run.job.id, []).append(now)


class Fifo:
    """In order of arrival. *skipping*: who does not fit is passed."""

    def __init__(self, *, skipping: bool) -> None:
        self._skipping = skipping

    def told(self, world: World) -> Told:
        room, starts, refused = world.room.copied(), [], set()
        for job in sorted(world.waiting.values(), key=lambda job: job.id):
            shape = (job.gpus, job.milli)
            devices = None if shape in refused else room.place(member(job), job.gpus)
            if devices is not None:
                starts.append((job, _taken(room, job, devices)))
            elif not self._skipping:
                break
            else:
                refused.add(shape)
        return Told(starts)

    def began(self, run: Run) -> None:
        """Nothing is remembered."""

    def ended(self, run: Run, world: World, *, again: bool) -> None:
        """Nothing is remembered."""


class Static(Fifo):
    """Each tenant has its own GPUs, and serves its jobs in order of arrival."""

    def __init__(self) -> None:
        super().__init__(skipping=False)

    def told(self, world: World) -> Told:
        starts, first = [], 0
        for tenant, quota in world.quotas.items():
            own = {device.name for device in world.devices[first : first + quota]}
            first += quota
            room = Room([device for device in world.devices if device.name in own], {})
            for name in own:
                used = WHOLE - world.room.free[name][2]
                if used:
                    room.take(name, (0, 0, used, 0))
            for job in sorted((job for job in world.waiting.values() if job.tenant == tenant), key=lambda job: job.id):
                devices = room.place(member(job), job.gpus)
                if devices is None:
                    break
                starts.append((job, _taken(room, job, devices)))
        return Told(starts)


class Drf(Fifo):
    """The tenant with the least of its quota first (one resource: DRF and the share are the same); nothing is taken."""

    def __init__(self) -> None:
        super().__init__(skipping=True)

    def told(self, world: World) -> Told:
        room, starts, used = world.room.copied(), [], dict(world.used)
        lines: dict[str, list[Job]] = {}
        for job in sorted(world.waiting.values(), key=lambda job: job.id, reverse=True):
            lines.setdefault(job.tenant, []).append(job)
        refused: set[tuple[int, int]] = set()
        while lines:
            tenant = min(lines, key=lambda name: (used[name] / world.quotas[name], name))
            job = lines[tenant].pop()
            if not lines[tenant]:
                del lines[tenant]
            shape = (job.gpus, job.milli)
            devices = None if shape in refused else room.place(member(job), job.gpus)
            if devices is None:
                refused.add(shape)
                continue
            used[tenant] += job.size
            starts.append((job, _taken(room, job, devices)))
        return Told(starts)


class Preemptive(Fifo):
    """The first in some order run, whoever runs now. Whole GPUs."""

    def __init__(self) -> None:
        super().__init__(skipping=True)

    def key(self, job: Job, left_ms: int) -> tuple[int, ...]:
        raise NotImplementedError

    def told(self, world: World) -> Told:
        free = world.gpus
        wanted: list[tuple[tuple[int, ...], str, Job, Run | None]] = [
            (self.key(job, world.left[job.id]), job.id, job, None) for job in world.waiting.values()
        ]
        for run in world.running.values():
            left = run.left_ms - (world.now - run.since_ms)
            wanted.append((self.key(run.job, left), run.job.id, run.job, run))
        stops, fresh = [], []
        for _, _, job, run in sorted(wanted, key=lambda one: one[:2]):
            if job.gpus <= free:
                free -= job.gpus
                fresh += [job] if run is None else []
            elif run is not None:
                stops.append(run)
        room, starts = world.room.copied(), []
        for run in stops:
            for name in run.devices:
                room.take(name, (0, 0, -run.job.milli, 0))
        for job in fresh:
            devices = room.place(member(job), job.gpus)
            if devices is not None:
                starts.append((job, _taken(room, job, devices)))
        return Told(starts, stops=[run.token for run in stops])


class Las(Preemptive):
    """Least attained service, in two classes (Tiresias): below 8 GPU-hours first, then by arrival."""

    def __init__(self) -> None:
        super().__init__()
        self._second: set[str] = set()

    def key(self, job: Job, left_ms: int) -> tuple[int, ...]:
        if (job.work_ms - left_ms) * job.gpus >= CLASS_MS:
            self._second.add(job.id)  # for good: a restart adds work that is left
        return (int(job.id in self._second), job.at_ms)


class Srtf(Preemptive):
    """Shortest remaining time first, with perfect knowledge: a bound, nobody can do that."""

    def key(self, job: Job, left_ms: int) -> tuple[int, ...]:
        return (left_ms, job.at_ms)


def _taken(room: Room, job: Job, devices: list[str]) -> tuple[str, ...]:
    for name in devices:
        room.take(name, member(job))
    return tuple(devices)


ALL = {
    "static partition": Static,
    "FIFO": lambda: Fifo(skipping=False),
    "FIFO, skipping": lambda: Fifo(skipping=True),
    "DRF, nothing taken": Drf,
    "least attained service": Las,
    "SRTF (oracle)": Srtf,
    "Everloop": Leases,
}
