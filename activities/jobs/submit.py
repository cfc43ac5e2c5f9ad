"""From an activity to the slot of its lease: submit, heartbeat, relay, cancel.

Temporal retries, Dask never: whatever is lost comes back as `ComputeLost`, and the next attempt finds a result
that an earlier one has left.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import math
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError
from sqlmodel import col, select
from temporalio import activity

from activities.jobs import progress
from activities.jobs.job_time import JobTime
from activities.jobs.mark import MARK
from activities.jobs.scratch import chain
from activities.jobs.security import security
from activities.jobs.slot import GRACE_SECONDS, is_dead
from activities.jobs.supervisor import Order, Outcome, allow, supervise
from everloop import disk, errors
from everloop.contracts import JobRequest, MemberOfLease
from everloop.records import Lease, Ran, Result
from everloop.settings import DEFAULT_SLOTS, Settings
from everloop.store import LeaseMemberRow, LeaseRow, MetricRow, Store

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Result)

ROOT = "activities.compute"
WHOLE_GPU = 1000
FENCED, NEW_LEASE = "the lease was taken away", "the stage takes a new lease by itself"
FENCE_BEATS = 3
"""Every so many beats a job looks whether its lease still holds."""
CONNECT_SECONDS = 10.0
BEAT_SECONDS = 1.0
GONE_SECONDS = GRACE_SECONDS + 3.0
PROVE_SECONDS = 20.0
GIVE_BACK_SECONDS = 5.0
"""Of a notice's grace, for what is done after the job has ended."""
MOST_CRASHES = 3
"""Of one activity, over all its attempts and tokens."""
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
LOST = (KilledWorker, NoValidWorkerError, CommClosedError, OSError, TimeoutError)


@dataclass
class Watch:
    """What an activity knows of its running job."""

    device: str
    job: str
    """`<run id>/<activity id>`, the key of its metrics."""
    token: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    """The last line."""
    unwritten: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step to values, for the metric table."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    time: JobTime | None = None
    kept: datetime | None = None
    """When its newest checkpoint was heard of, until that is written down."""
    future: Future | None = None
    fenced: bool = False
    """Its lease was taken away while it ran."""

    def hear(self, event: dict[str, Any]) -> None:
        if "gone" in event:
            self.gone.set()
        for line in event.get("lines", ()):
            if progress.is_kept(line):
                self.kept = datetime.now(UTC)
                continue
            self.progress = line
            self.unwritten[line["step"]] = line["values"]


class Jobs:
    """Runs compute functions on Dask workers, one child process each. One per process, on one event loop."""

    def __init__(self, settings: Settings, store: Store, *, root: str = ROOT) -> None:
        """*root*: the package whose functions may run. Anything else than the default is for tests."""
        self._settings = settings
        self._store = store
        self._root = root
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._topic = f"everloop-{uuid.uuid4().hex}"
        self._watches: dict[str, Watch] = {}

    async def run(self, function: str, request: JobRequest, result_type: type[R]) -> R:
        """Call `function` (`<module>.<name>` below the root) on the slot of *request*, from within an activity.

        Safe to run twice: an attempt that finds the result of an earlier one returns it (`ran.kept`).
        Raises what the function raised, `JobFailed` for other exceptions and for a job that keeps crashing,
        `ComputeLost` when the place that ran it went away.
        """
        info = activity.info()
        run_id, activity_id = _part(info.workflow_run_id or "", "run id"), _part(info.activity_id, "activity id")
        if request.slot.holder != f"{info.workflow_id}/{run_id}":  # a Reset replayed the lease of the run before
            raise errors.LeaseLost("the slot belongs to an earlier run", hint=NEW_LEASE)
        if await asyncio.to_thread(_fenced, self._store, request.slot.token):
            raise errors.LeaseLost(FENCED, hint=NEW_LEASE)
        watch = Watch(request.slot.device, f"{run_id}/{activity_id}", request.slot.token)
        order = self._order(function, request, watch.job, info.attempt)
        watch.time = JobTime(watch.job, info.attempt, watch.token, Path(order["checkpoints"]))
        async with self._beating(watch):  # first: it also beats while Dask is out of reach
            # Dask keeps statistics for each first word of its keys, for ever.
            key = f"job-{info.attempt}-{watch.job}-{uuid.uuid4().hex[:8]}"
            outcome = await self._outcome(order, key, watch)
            watch.time.done = "result" in outcome
            watch.time.used = outcome.get("used", {})
        result = result_type.model_validate(_result(outcome))
        return result.model_copy(update={"ran": _ran(request, outcome, info.attempt)})

    async def prove(self, members: Sequence[MemberOfLease]) -> list[MemberOfLease]:
        """Those of *members* of which nothing runs any more, asked on their devices. What is left there is killed."""
        client = await self.client()
        slots = str(self._settings.scratch_dir / "slots")
        asked = [
            client.submit(
                look_for_the_dead,
                slots,
                self._mark(member.device),
                member.token,
                member.rank,
                key=f"prove-{member.token}-{member.rank}-{uuid.uuid4().hex[:8]}",
                workers=[member.device],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
            for member in members
        ]
        try:
            found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), PROVE_SECONDS)
        except TimeoutError:
            found = [each.done() and each.status == "finished" and await each for each in asked]
        return [member for member, dead in zip(members, found, strict=True) if dead is True]

    async def client(self) -> Client:
        """The Dask client, made again when the last one is closed. Raises `Unavailable`."""
        async with self._connecting:
            if self._client is not None and self._client.status != "running":
                await self._drop(self._client)
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def close(self) -> None:
        """Let go of Dask: every job that still runs here ends."""
        if self._client is not None:
            await self._drop(self._client)

    async def _connect(self) -> Client:
        address = self._settings.dask
        try:
            client = await Client(
                address,
                asynchronous=True,
                security=security(self._settings),
                timeout=CONNECT_SECONDS,
                set_as_default=False,
                direct_to_workers=False,  # results are small: no second connection to learn about and lose
            )
        except (OSError, TimeoutError, CommClosedError) as error:
            raise errors.Unavailable(f"the Dask scheduler at {address} does not answer: {error}") from None
        client.subscribe_topic(self._topic, self._hear)
        return client

    async def _drop(self, client: Client) -> None:
        if self._client is client:
            self._client = None
        with contextlib.suppress(Exception):  # it is of no more use, however it ends
            await client.close(timeout=1)

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        watch = self._watches.get(event[1]["key"])
        if watch is not None:
            watch.hear(event[1])

    async def _outcome(self, order: Order, key: str, watch: Watch) -> Outcome:
        client = await self.client()
        self._watches[key] = watch
        try:
            future = client.submit(
                supervise,
                order,
                key=key,
                workers=[order["device"]],
                allow_other_workers=False,
                resources={"slot": 1},
                pure=False,
                retries=0,
            )
            watch.future = future
            return await self._awaited(client, future, watch)
        finally:
            watch.future = None
            del self._watches[key]

    async def _awaited(self, client: Client, future: Future, watch: Watch) -> Outcome:
        try:
            outcome: Outcome = await future
        except asyncio.CancelledError:
            await asyncio.shield(self._end(client, future, watch))
            raise
        except FutureCancelledError as error:
            if watch.fenced:
                await _gone(watch)
                raise errors.LeaseLost(FENCED, hint=NEW_LEASE) from None
            # The scheduler was lost, and with it our subscription.
            await self._drop(client)
            raise errors.ComputeLost(f"the Dask scheduler was lost: {error}") from None
        except LOST as error:
            if disk.is_full(error):
                raise disk.full(self._settings.scratch_dir, self._settings.disk_floor_bytes) from None
            raise errors.ComputeLost(f"{watch.device}: {_one_line(error)}") from None
        return outcome

    async def _end(self, client: Client, future: Future, watch: Watch) -> None:
        """End the job: when this returns, its tree is gone (or could not be reached in time)."""
        details = activity.cancellation_details()
        running = future.status == "pending"
        shuts_down = details is not None and details.worker_shutdown
        grace = 0.0
        with contextlib.suppress(*LOST, FutureCancelledError):
            if running and not shuts_down:
                grace = await self._given_time(client, future, watch)
            await future.cancel(reason="the activity was cancelled")
        if not running or shuts_down:
            return  # this process ends: its keys go with it, and every attempt waits for the slot's lock
        await _gone(watch, grace)

    async def _given_time(self, client: Client, future: Future, watch: Watch) -> float:
        """Seconds that a job has to keep its work when its lease is to be given back: not more than its notice says."""
        grace = await asyncio.to_thread(_grace, self._store, watch.token)
        if grace <= GRACE_SECONDS:
            return 0.0
        told = client.submit(
            allow, future.key, grace, workers=[watch.device], allow_other_workers=False, pure=False, retries=0
        )
        with contextlib.suppress(*LOST, FutureCancelledError):
            await asyncio.wait_for(told, BEAT_SECONDS * 2)
            return grace
        return 0.0

    @contextlib.asynccontextmanager
    async def _beating(self, watch: Watch) -> AsyncIterator[None]:
        beating = asyncio.create_task(self._beat(watch))
        try:
            yield
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating
            await self._write(watch)
            if watch.time is not None:
                await asyncio.shield(watch.time.note(self._store, ended=True))

    async def _beat(self, watch: Watch) -> None:
        for number in itertools.count(1):
            activity.heartbeat({"device": watch.device, "progress": watch.progress})
            await asyncio.sleep(BEAT_SECONDS)
            await self._write(watch)
            await self._note_checkpoint(watch)
            if watch.time is not None:
                await watch.time.note_if_due(self._store)
            if number % FENCE_BEATS == 0:
                await self._end_if_fenced(watch)

    async def _end_if_fenced(self, watch: Watch) -> None:
        """A job whose lease was taken away is ended here, and not first by whoever waits for its device."""
        future = watch.future
        if future is None or watch.fenced:
            return
        try:
            watch.fenced = await asyncio.to_thread(_fenced, self._store, watch.token)
        except Exception:
            log.warning("the fence of %s could not be looked at", watch.job, exc_info=True)
        if watch.fenced:
            log.warning("job %s is ended: its lease %s was taken away", watch.job, watch.token)
            with contextlib.suppress(*LOST, FutureCancelledError):
                await future.cancel(reason=FENCED)

    async def _note_checkpoint(self, watch: Watch) -> None:
        """Who loses least is asked first to let go for others: the ledger has to know. Never fails a job."""
        kept, watch.kept = watch.kept, None
        if kept is None:
            return
        try:
            await asyncio.to_thread(_note_kept, self._store, watch.token, kept)
        except Exception:
            log.warning("the checkpoint of %s is not written down", watch.job, exc_info=True)

    async def _write(self, watch: Watch) -> None:
        """Put the steps that came in since the last time into the metric table. Never fails a job."""
        steps, watch.unwritten = watch.unwritten, {}
        if not steps:
            return
        try:
            await asyncio.to_thread(_write_steps, self._store, watch, steps)
        except Exception:
            log.warning("progress of %s is not written", watch.job, exc_info=True)

    def _order(self, function: str, request: JobRequest, job: str, attempt: int) -> Order:
        settings = self._settings
        body = request.model_dump(mode="json")
        question = {name: value for name, value in body.items() if name not in ("slot", "lease")}
        lease = self._lease(request)
        member = lease.members[0]
        return {
            "topic": self._topic,
            "function": function,
            "root": self._root,
            "request": body,
            "digest": self._digest(function, question),
            "token": request.slot.token,
            "rank": member.rank,
            "device": _part(request.slot.device, "slot.device"),
            "live": _live(self._store, request.slot.device),
            "whole": member.milli_gpu >= WHOLE_GPU,
            "folder": str(settings.scratch_dir / "jobs" / job),
            "log": f"jobs/{job}/{attempt}.log",
            "logs_dir": str(settings.logs_dir),
            "slots_dir": str(settings.scratch_dir / "slots"),
            "environment": self._environment(request.slot.device),
            "checkpoints": str(self._checkpoints(function, question)),
            "checkpoint_seconds": settings.checkpoint_seconds,
            "lease": lease.model_dump(mode="json"),
            "artifacts": settings.artifacts,
            "predictions_dir": str(settings.predictions_dir),
            "grace_seconds": GRACE_SECONDS,
            "floor_bytes": settings.disk_floor_bytes,
            "memory_bytes": (member.memory_mib or settings.job_memory_mib) << 20,
            "slots": settings.slots or DEFAULT_SLOTS,
        }

    def _lease(self, request: JobRequest) -> Lease:
        """What the job may use: a slot alone says nothing of it, the settings do."""
        of_slot = Lease.model_validate(request.slot)
        if request.lease is not None:
            if _fence(request.lease) != _fence(of_slot):
                raise errors.LeaseLost("the lease is not the slot's", hint=NEW_LEASE)
            return request.lease
        if request.slot.members:
            return of_slot
        members = [member.model_copy(update={"cores": self._settings.slot_cores}) for member in of_slot.members]
        return of_slot.model_copy(update={"members": tuple(members)})

    def _digest(self, function: str, question: Any) -> str:  # noqa: ANN401
        canonical = json.dumps([self._root, function, question], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _checkpoints(self, function: str, question: dict[str, Any]) -> Path:
        """Where the stage's checkpoints lie: the same for every attempt and token, and after a Reset."""
        folder = self._settings.checkpoints_dir / chain(activity.info().workflow_id or "")
        return folder / function / self._digest(function, _without_ran(question))[:16]

    def _environment(self, device: str) -> dict[str, str]:
        """What a job on *device* sees beside what its slot passes on. No credentials."""
        return {
            "EVERLOOP_DATA_DIR": str(self._settings.data_dir),
            "EVERLOOP_ARTIFACTS_URL": self._settings.artifacts,
            "EVERLOOP_SESSION": self._settings.session,  # a launcher knows its own processes by it
            MARK: self._mark(device),
        }

    def _mark(self, device: str) -> str:
        return f"{self._settings.scratch_dir}/{device}"


def look_for_the_dead(slots: str, device_mark: str, token: int, rank: int) -> bool:
    """On a device: is nothing left of the part of a lease that has ended?"""
    return is_dead(Path(slots), device_mark, token, rank)


def _fence(lease: Lease) -> tuple[int, str, str]:
    return lease.token, lease.holder, lease.members[0].device


def _without_ran(value: Any) -> Any:  # noqa: ANN401
    """*value* without how the jobs before have run: after a Reset they may have run again, to the same end."""
    if isinstance(value, dict):
        return {name: _without_ran(each) for name, each in value.items() if name != "ran"}
    return [_without_ran(each) for each in value] if isinstance(value, list) else value


def _part(name: str, what: str) -> str:
    if not SAFE.fullmatch(name):
        raise errors.Invalid(
            f"{what} {name!r} cannot be a folder's name",
            field=what,
            hint="use letters, digits, dot, dash and underscore, at most 128",
        )
    return name


def _grace(store: Store, token: int) -> float:
    """Seconds that the notice of a lease leaves to its job; 0 without one."""
    with store.read() as session:
        row = session.exec(select(LeaseRow).where(LeaseRow.token == token)).first()
    if row is None or row.state != "noticed" or row.deadline_at is None:
        return 0.0
    return max(0.0, (row.deadline_at - datetime.now(UTC)).total_seconds() - GIVE_BACK_SECONDS)


async def _gone(watch: Watch, grace: float = 0.0) -> None:
    """Until its tree is gone, or could not be reached in time: then the next job there waits for its lock."""
    try:
        await asyncio.wait_for(watch.gone.wait(), GONE_SECONDS + grace)
    except TimeoutError:
        log.warning("job %s was cancelled, but its end was not heard of", watch.job)


def _note_kept(store: Store, token: int, at: datetime) -> None:
    with store.write() as session:
        row = session.exec(select(LeaseRow).where(LeaseRow.token == token)).first()
        if row is not None and row.state in ("active", "noticed"):
            row.checkpoint_at = at
            session.add(row)


def _result(outcome: Outcome) -> dict[str, Any]:
    if "result" in outcome:
        return outcome["result"]
    if "error" in outcome:
        raise _error(**outcome["error"], kept=outcome.get("artifacts", []))
    if "crash" not in outcome:
        raise errors.ComputeLost("the job was ended because nobody waited for it any more")
    if outcome["crashes"] >= MOST_CRASHES:
        raise errors.JobFailed(
            f"the job crashed {outcome['crashes']} times, the last time by {outcome['crash']}",
            hint="its log shows how far it came",
        )
    raise errors.ComputeLost(f"the job was ended by {outcome['crash']}")


def _error(error: str, message: str, field: str, hint: str, kept: list[dict[str, Any]]) -> errors.EverloopError:
    kind = errors.family().get(error, errors.JobFailed)
    made = kind(message, field=field, hint=hint)
    made.kept = kept
    return made


def _ran(request: JobRequest, outcome: Outcome, attempt: int) -> Ran:
    return Ran(
        device=request.slot.device,
        token=request.slot.token,
        attempt=attempt,
        seconds=round(outcome["seconds"], 3),
        kept=outcome.get("kept", False),
        log=outcome["log"],
        resumed=outcome.get("resumed"),
        artifacts=outcome.get("artifacts", ()),
    )


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300] or type(error).__name__


def _write_steps(store: Store, watch: Watch, steps: dict[int, dict[str, float]]) -> None:
    """Unless the lease was taken away: then the steps are those of whoever has it now."""
    now, job = datetime.now(UTC), watch.job
    with store.write() as session:
        row = session.exec(select(LeaseRow).where(LeaseRow.token == watch.token)).first()
        if row is not None and row.state in ("killing", "fenced"):
            return
        for step, values in steps.items():
            finite = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN
            session.merge(MetricRow(job=job, step=step, values=finite, at=now))


def _fenced(store: Store, token: int) -> bool:
    """The pool took the lease away: its holder or its device was gone, or others needed what it had."""
    with store.read() as session:
        row = session.exec(select(LeaseRow).where(LeaseRow.token == token)).first()
        return row is not None and row.state in ("killing", "fenced")


def _live(store: Store, device: str) -> tuple[int, ...]:
    """Tokens whose parts of *device* are not free. A part that holds a lock there and is of none is an orphan."""
    query = select(LeaseMemberRow.token).join(LeaseRow, col(LeaseRow.token) == LeaseMemberRow.token)
    query = query.where(LeaseMemberRow.device == device, col(LeaseMemberRow.live))
    with store.read() as session:
        return tuple(sorted(session.exec(query.where(col(LeaseRow.state).not_in(("killing", "fenced"))))))
