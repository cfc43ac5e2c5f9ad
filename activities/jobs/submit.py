"""From an activity to the slot of its lease: submit, heartbeat, relay, cancel.

Temporal retries, Dask never: whatever is lost comes back as `ComputeLost`, and the next attempt finds a result
that an earlier one has left.
"""

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError
from temporalio import activity

from activities import lease_refused
from activities.jobs import home, lent, progress, ranks, results, rows
from activities.jobs.job_time import JobTime
from activities.jobs.order import Order, Outcome
from activities.jobs.orders import NEW_LEASE, Asked, Orders, part
from activities.jobs.roster import LOOK_SECONDS, Roster
from activities.jobs.security import security
from activities.jobs.slot import GRACE_SECONDS, is_dead
from activities.jobs.supervisor import AT_ONCE, allow, supervise
from everloop import disk, errors, names
from everloop import settings as configuration
from everloop.contracts import JobRequest, MemberOfLease
from everloop.records import Lease, Member, Result
from everloop.settings import Settings
from everloop.store import Store

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Result)

ROOT = "activities.compute"
FENCED = "the lease was taken away"
FENCE_BEATS = 3
"""Every so many beats a job looks whether its lease still holds."""
CONNECT_SECONDS = 10.0
BEAT_SECONDS = 1.0
GONE_SECONDS = GRACE_SECONDS + 3.0
PROVE_SECONDS = 20.0
LOST = (KilledWorker, NoValidWorkerError, CommClosedError, OSError, TimeoutError)


@dataclass
class Watch:
    """What an activity knows of its running job."""

    device: str
    job: str
    """`<run id>/<activity id>`."""
    token: int = 0
    rank: int = 0
    log: Path | None = None
    """Where its log is kept when it comes from another host."""
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
    broken: bool = False
    """Another rank of its gang has ended: it is to end at once."""

    def hear(self, event: dict[str, Any]) -> None:
        if "gone" in event:
            self.gone.set()
        if self.log is not None and isinstance(piece := event.get("log"), bytes):
            home.keep_log(self.log, piece)
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
        self._orders = Orders(settings, store, root, self._topic)
        self._roster = Roster(settings.away_seconds)

    async def run(self, function: str, request: JobRequest, result_type: type[R], reads: Sequence[str] = ()) -> R:
        """Call `function` (`<module>.<name>` below the root) on the slot of *request*, from within an activity.

        *reads*: files below `predictions_dir` that it needs.

        Safe to run twice: an attempt that finds the result of an earlier one returns it (`ran.kept`).
        Raises what the function raised, `JobFailed` for other exceptions and for a job that keeps crashing,
        `ComputeLost` when the place that ran it went away.
        """
        info = activity.info()
        run_id, activity_id = part(info.workflow_run_id or "", "run id"), part(info.activity_id, "activity id")
        if request.slot.holder != f"{info.workflow_id}/{run_id}":  # a Reset replayed the lease of the run before
            raise errors.LeaseLost("the slot belongs to an earlier run", hint=NEW_LEASE)
        if await asyncio.to_thread(rows.fenced, self._store, request.slot.token):
            await asyncio.to_thread(lease_refused.note, self._store, "job")
            raise errors.LeaseLost(FENCED, hint=NEW_LEASE)
        asked = Asked(function, request, f"{run_id}/{activity_id}", info.attempt)
        lease = self._orders.lease(request)
        watches = [
            Watch(member.device, asked.job, lease.token, rank, log=self._log_of(asked, rank))
            for rank, member in enumerate(_by_rank(lease))
        ]
        async with (
            self._beating(watches),
            self._lent(asked, reads) as copies,
        ):  # it beats while Dask is away
            devices = [watch.device for watch in watches]
            orders = self._orders.of(asked, await self._hosts(devices) if len(devices) > 1 else {}, copies)
            kept = (Path(orders[0]["checkpoints"]), orders[0].get("depot", ""))
            time = watches[0].time = JobTime(asked.job, info.attempt, lease.token, *kept)
            outcome = await self._all(orders, watches, f"job-{info.attempt}-{asked.job}-{uuid.uuid4().hex[:8]}")
            time.done = "result" in outcome
            time.used = outcome.get("used", {})
        if outcome.get("error", {}).get("error") == errors.LeaseLost.__name__:  # by the fence of its checkpoints
            await asyncio.to_thread(lease_refused.note, self._store, "checkpoint")
        found = result_type.model_validate(results.result(outcome))
        return found.model_copy(update={"ran": results.ran(lease, outcome, info.attempt)})

    @contextlib.asynccontextmanager
    async def _lent(self, asked: Asked, reads: Sequence[str]) -> AsyncIterator[str]:
        """Where an attempt finds copies of files of this disk; nothing where all see it."""
        if not (reads and self._settings.has_store):
            yield ""
            return
        url = f"{self._settings.artifacts}/jobs/{asked.job}/lent/{asked.attempt}-{uuid.uuid4().hex[:12]}"
        try:
            await asyncio.to_thread(lent.lend, url, self._settings.predictions_dir, reads)
            yield url
        finally:
            await asyncio.to_thread(lent.take_back, url)

    def _log_of(self, asked: Asked, rank: int) -> Path:
        return self._settings.logs_dir / names.job_log(asked.job, asked.attempt, rank)

    async def prove(self, members: Sequence[MemberOfLease]) -> list[MemberOfLease]:
        """Those of *members* of which nothing runs any more, asked on their devices. What is left there is killed."""
        client = await self.client()
        asked = [
            client.submit(
                look_for_the_dead,
                member.device,
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

    async def _hosts(self, devices: Sequence[str]) -> dict[str, str]:
        """Of devices, as Dask sees them, once all of *devices* are there: ranks must be told where they meet.

        One whose Dask worker has just ended comes again. Raises `ComputeLost` where it does not in time.
        """
        deadline = time.monotonic() + self._settings.away_seconds
        while True:
            client = await self.client()
            told = await asyncio.wait_for(client.scheduler.identity(n_workers=-1), CONNECT_SECONDS)
            found = {str(each["name"]): str(each.get("host", "")) for each in told["workers"].values()}
            missing = [device for device in devices if not found.get(device)]
            if not missing:
                return found
            if time.monotonic() > deadline:
                raise errors.ComputeLost(f"{missing[0]}: no Dask worker is there")
            await asyncio.sleep(LOOK_SECONDS)

    async def _all(self, orders: Sequence[Order], watches: Sequence[Watch], key: str) -> Outcome:
        """Of the one process, or of the ranks together. Dask keeps statistics for each first word of its keys."""
        if len(orders) == 1:
            return await self._outcome(orders[0], key, watches[0])
        tasks = [
            asyncio.create_task(self._outcome(order, f"{key}-{watch.rank}", watch))
            for order, watch in zip(orders, watches, strict=True)
        ]

        async def end(ranks_left: Sequence[int]) -> None:
            for rank in ranks_left:
                watches[rank].broken = True
                tasks[rank].cancel()
            await asyncio.wait([tasks[rank] for rank in ranks_left])

        try:
            return await ranks.together(tasks, end, lambda rank: ranks.tell_in_the_first_log(orders, rank))
        finally:
            await asyncio.to_thread(ranks.leave, orders)

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
            outcome = await self._result(client, future, watch)
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

    async def _result(self, client: Client, future: Future, watch: Watch) -> Outcome:
        """Of a job; raises `ComputeLost` when its Dask worker is gone, where the scheduler might not."""
        if not self._settings.dask_address:
            return cast("Outcome", await future)
        result = asyncio.ensure_future(_of(future))
        lost = asyncio.ensure_future(self._roster.lost(client, watch.device))
        try:
            await asyncio.wait((result, lost), return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            with contextlib.suppress(*LOST, FutureCancelledError):
                await future.cancel(reason="its Dask worker is gone")
            raise errors.ComputeLost(f"{watch.device}: {lost.result()}")
        finally:
            result.cancel()
            lost.cancel()

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
        grace = AT_ONCE if watch.broken else await asyncio.to_thread(rows.grace, self._store, watch.token)
        if 0 <= grace <= GRACE_SECONDS:
            return 0.0
        told = client.submit(
            allow, future.key, grace, workers=[watch.device], allow_other_workers=False, pure=False, retries=0
        )
        with contextlib.suppress(*LOST, FutureCancelledError):
            await asyncio.wait_for(told, BEAT_SECONDS * 2)
            return max(grace, 0.0)
        return 0.0

    @contextlib.asynccontextmanager
    async def _beating(self, watches: Sequence[Watch]) -> AsyncIterator[None]:
        beating = asyncio.create_task(self._beat(watches))
        try:
            yield
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating
            for watch in watches:
                await self._write(watch)
            if watches[0].time is not None:
                await asyncio.shield(watches[0].time.note(self._store, ended=True))

    async def _beat(self, watches: Sequence[Watch]) -> None:
        first = watches[0]
        for number in itertools.count(1):
            activity.heartbeat({"device": first.device, "progress": first.progress})
            await asyncio.sleep(BEAT_SECONDS)
            for watch in watches:
                await self._write(watch)
            await self._note_checkpoint(first)
            if first.time is not None:
                await first.time.note_if_due(self._store)
            if number % FENCE_BEATS == 0:
                await self._end_if_fenced(watches)

    async def _end_if_fenced(self, watches: Sequence[Watch]) -> None:
        """A job whose lease was taken away is ended here, and not first by whoever waits for its device."""
        running = [(watch, watch.future) for watch in watches if watch.future is not None and not watch.fenced]
        try:
            fenced = bool(running) and await asyncio.to_thread(rows.fenced, self._store, watches[0].token)
        except Exception:
            log.warning("the fence of %s could not be looked at", watches[0].job, exc_info=True)
            return
        if not fenced:
            return
        log.warning("job %s is ended: its lease %s was taken away", watches[0].job, watches[0].token)
        for watch, _ in running:
            watch.fenced = True
        for _, future in running:
            with contextlib.suppress(*LOST, FutureCancelledError):
                await future.cancel(reason=FENCED)

    async def _note_checkpoint(self, watch: Watch) -> None:
        """Who loses least is asked first to let go for others: the ledger has to know. Never fails a job."""
        kept, watch.kept = watch.kept, None
        if kept is None:
            return
        try:
            await asyncio.to_thread(rows.note_kept, self._store, watch.token, kept)
        except Exception:
            log.warning("the checkpoint of %s is not written down", watch.job, exc_info=True)

    async def _write(self, watch: Watch) -> None:
        """Put the steps that came in since the last time into the metric table. Never fails a job."""
        steps, watch.unwritten = watch.unwritten, {}
        if not steps:
            return
        try:
            of_rank = names.metrics_of(watch.job, watch.rank)
            await asyncio.to_thread(rows.write_steps, self._store, of_rank, watch.token, steps)
        except Exception:
            log.warning("progress of %s is not written", watch.job, exc_info=True)


def _by_rank(lease: Lease) -> list[Member]:
    return sorted(lease.members, key=lambda member: member.rank)


async def _of(future: Future) -> Outcome:
    return cast("Outcome", await future)


def look_for_the_dead(device: str, token: int, rank: int) -> bool:
    """On a device: is nothing left of the part of a lease that has ended?"""
    scratch = configuration.load().scratch_dir
    return is_dead(scratch / "slots", f"{scratch}/{device}", token, rank)


async def _gone(watch: Watch, grace: float = 0.0) -> None:
    """Until its tree is gone, or could not be reached in time: then the next job there waits for its lock."""
    try:
        await asyncio.wait_for(watch.gone.wait(), GONE_SECONDS + grace)
    except TimeoutError:
        log.warning("job %s was cancelled, but its end was not heard of", watch.job)


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300] or type(error).__name__
