"""Leases: the pool that grants them, and how a workflow holds one.

The ledger in SQL is the only copy of the state. `GpuPool` holds none: it says when to look.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError
from temporalio.exceptions import TimeoutError as TimedOut

from everloop import names
from everloop.contracts import (
    AcceptRequest,
    LeaseActivities,
    LeaseNotice,
    LeaseRequest,
    MemberOfLease,
    Offer,
    PoolRun,
    PoolStepRequest,
    ProofActivities,
    ProveRequest,
    Wants,
)
from everloop.events import LeaseGranted, LeaseReturned
from everloop.records import Slot, Wait
from workflows.journal import Journal, until

Q = TypeVar("Q")
R = TypeVar("R")

STEP_TIMEOUT = timedelta(seconds=30)
PATIENT = RetryPolicy(maximum_interval=timedelta(seconds=10), non_retryable_error_types=["LeaseLost"])
QUIET_WAIT = timedelta(seconds=1)
"""A shorter wait for a slot is not worth a journal entry."""

PROOF_TIMEOUT, PROVE_AGAIN = timedelta(seconds=30), timedelta(seconds=5)

MOST_DEVICES, MOST_INVENTORY_CHARACTERS = 5_000, 500_000
"""Of a pool: what its step is given must fit into one payload."""

ASK_AGAIN, SELDOM = timedelta(seconds=15), timedelta(minutes=10)
"""A Reset may lose the request (it was the run's before) or the offer, and a person may end the pool."""

LARGEST_TOKEN = 2**63 - 1
LETS_GO, KEEPS_ITS_REQUEST = "lease lets go of what was lost", "lease keeps its request"
SAYS_THAT_IT_GOES_ON, HEARS_EARLY = "lease says that its wait is over", "lease hears of a notice before its grant"
ENDS_UNHEARD = "lease ends with a job of which nothing is heard"
"""Patches: what histories of before do not do."""


@workflow.defn(name=names.GPU_POOL)
class GpuPool:
    """The one decision maker of a device pool: woken by a coalesced signal or a due time, it takes a step."""

    def __init__(self) -> None:
        self._woken = True
        self._inventory: tuple[str, ...] | None = None
        self._proven: tuple[MemberOfLease, ...] = ()
        """Of leases that were taken away: compute has said that nothing of these runs any more."""
        self._proving: asyncio.Task[None] | None = None

    @workflow.run
    async def run(self, given: str | PoolRun) -> None:
        """Begins with the pool's name; goes on with what the run before was told and had not noted yet."""
        pool, before = (given, None) if isinstance(given, str) else (given.pool, given.inventory)
        if len(pool) > names.MOST_CHARACTERS:
            message = f"workflow {names.GPU_POOL} takes given: str of at most {names.MOST_CHARACTERS} characters"
            raise ApplicationError(message, type="InvalidSpec", non_retryable=True)
        if self._inventory is None:
            self._inventory = before
        next_wake: float | None = 0.0
        while not self._must_continue_as_new():
            await self._until_woken(next_wake)
            next_wake = await self._step(pool)
        if self._proving is not None:
            await self._proving
        # The next run begins with a look at the ledger, so a wake that has just come is not lost.
        workflow.continue_as_new(pool if self._inventory is None else PoolRun(pool=pool, inventory=self._inventory))

    @workflow.signal(name=names.POOL_WAKE, description="Look at the ledger now")
    def wake(self) -> None:
        self._woken = True

    @workflow.signal(name=names.POOL_INVENTORY, description="The Dask workers that are there now")
    def inventory(self, devices: list[str]) -> None:
        too_long = any(len(name) > names.MOST_CHARACTERS for name in devices)
        if len(devices) > MOST_DEVICES or too_long or sum(map(len, devices)) > MOST_INVENTORY_CHARACTERS:
            workflow.logger.warning("dropped: an inventory of %s devices, or of too long names", len(devices))
            return
        self._inventory = tuple(sorted(devices))
        self._woken = True

    def _must_continue_as_new(self) -> bool:
        """Whenever Temporal says so, also while it is woken all the time: a history without end is ended by force.

        Version 0.1.0-loop did so only when it was not woken. The id names the place in the history, so that a run
        of it that steps on when it replays asks anew at its next step.
        """
        if not workflow.info().is_continue_as_new_suggested():
            return False
        return not self._woken or workflow.patched(f"continue-as-new-{workflow.info().get_current_history_length()}")

    async def _until_woken(self, seconds: float | None) -> None:
        try:
            await workflow.wait_condition(
                lambda: self._woken,
                timeout=None if seconds is None else timedelta(seconds=seconds),
                timeout_summary="look whether the holders still live",
            )
        except TimeoutError:
            return

    async def _step(self, pool: str) -> float | None:
        inventory, self._inventory, self._woken = self._inventory, None, False
        proven, self._proven = self._proven, ()
        step = await workflow.execute_activity_method(
            LeaseActivities.pool_step,
            PoolStepRequest(pool=pool, inventory=inventory, proven=proven),
            start_to_close_timeout=STEP_TIMEOUT,
            retry_policy=PATIENT,
            summary="look at the ledger and decide",
        )
        workflow.set_current_details(f"{step.waiting} waiting; {step.granted} granted by the last step.")
        if step.unproven and self._proving is None:
            self._proving = asyncio.create_task(self._prove(step.unproven))
        return step.next_wake_seconds

    async def _prove(self, members: tuple[MemberOfLease, ...]) -> None:
        """Beside the steps: compute may be away, and others are served meanwhile. Then the pool looks again."""
        try:
            answer = await workflow.execute_activity_method(
                ProofActivities.prove,
                ProveRequest(members=members),
                task_queue=names.COMPUTE,
                schedule_to_close_timeout=PROOF_TIMEOUT,
                retry_policy=RetryPolicy(maximum_attempts=1),
                summary=f"does anything of {len(members)} ended leases still run?",
            )
            self._proven = answer.dead
            if not answer.dead:
                await workflow.sleep(PROVE_AGAIN)
        except ActivityError:
            await workflow.sleep(PROVE_AGAIN)
        self._proving, self._woken = None, True


class Lease:
    """One slot, taken when first needed and given back at the end, or when the holder parks."""

    def __init__(self, journal: Journal, kind: str = "batch") -> None:
        self._journal = journal
        self._kind = kind
        self._asked = ""
        """Id of the request that waits for an offer."""
        self._offers: list[Offer] = []
        """Made for it and not tried yet. Whoever reaches Temporal can signal one: the ledger says which is true."""
        self._seen: set[int] = set()
        self._held: AcceptRequest | None = None
        """How the held lease was taken, to give it back."""
        self._lost: AcceptRequest | None = None
        self._why = ""
        """Why the request had to be queued again, for the wait's sentence."""
        self.wants = Wants()
        """What the next `take` must give."""
        self._given = Wants()
        """What the held lease was asked for with."""
        self.notice: LeaseNotice | None = None
        """The held lease is to be given back soon: others need what it has."""
        self._early: LeaseNotice | None = None
        """Of a lease that is not known to be held yet: the ledger may give notice while its grant is on the way."""
        self._unheard = False
        """Its job was told to end, and nobody knows whether it has."""
        self._waited = False
        """Was the last grant waited for aloud?"""
        self._place = ""
        """Id of the request to ask with again, in its old place: its lease was taken for others."""
        self._taken = ""
        """Why it was."""
        self._asking = self._withdrawn = False
        self.slot: Slot | None = None
        self.last: Slot | None = None
        """Of the last grant, held or not: what a pointer written after the lease must carry."""

    def offered(self, offer: Offer) -> None:
        """Take note of the pool's offer (it signals again until the offer is accepted)."""
        fits = offer.request_id == self._asked and 0 < offer.token <= LARGEST_TOKEN
        if fits and offer.token not in self._seen:
            self._seen.add(offer.token)
            self._offers.append(offer)

    def noticed(self, notice: LeaseNotice) -> bool:
        """Take note that the held lease is to be given back, or no more. Is it to?"""
        if self._held is None or notice.token != self._held.token:
            self._early = notice
            return False
        self.notice = notice if notice.reason else None
        return self.notice is not None

    async def let_go(self) -> None:
        """Give back what others need, and stand in the old place for more of it."""
        notice, held = self.notice, self._held
        await self.give_back()
        if notice is not None and held is not None:
            self._place, self._taken = held.request_id, notice.reason

    @property
    def asks(self) -> bool:
        """Does a `take` wait for a slot?"""
        return self._asking

    def withdraw(self) -> None:
        """Take the request back: the `take` that waits raises `CancelledError`, unless its slot is on the way."""
        self._withdrawn = True

    async def take(self) -> Slot:
        """The slot of the held lease; waits for one when none is held, or none that will do."""
        await self._let_go_of_the_lost()
        if self.grows:
            await self.resize()
        if self.slot is not None and self.notice is not None:
            await self.let_go()
        if self.slot is not None and self._given.amounts != self.wants.amounts:
            await self.give_back()
        while self.slot is None:
            self.slot = await self._one_grant()
            if self.slot is not None and self._was_noticed_early(self.slot):
                await self.let_go()
        return self.slot

    async def adopt(self, held: AcceptRequest) -> bool:
        """Go on with the lease that the run before of this workflow held: the same members under a new token.

        False when it has ended: then `take` asks for another.
        """
        try:
            slot = await self._call(LeaseActivities.adopt, held, "go on with the lease of the run before")
        except ActivityError as error:
            if _kind_of(error) != "LeaseLost":
                raise
            return False
        self._taken_over(slot, held.request_id)
        return True

    def hand_on(self) -> AcceptRequest | None:
        """The lease for the next run of this workflow, which adopts it; it is no more ours."""
        held, self.slot, self._held = self._held, None, None
        return held

    @property
    def is_resized(self) -> bool:
        """Are other members offered instead of those that are held?"""
        return self.slot is not None and bool(self._offers)

    @property
    def grows(self) -> bool:
        """`is_resized`, of a lease that was asked for as elastic: no other is ever offered other members."""
        return self.is_resized and self._given.members_most > 0

    async def resize(self) -> None:
        """Take the other members. Nothing may run on those that are held."""
        offer = self._offers.pop()
        self._offers = []
        taken = AcceptRequest(request_id=offer.request_id, token=offer.token)
        try:
            slot = await self._call(LeaseActivities.accept, taken, f"other members ({offer.token})")
        except ActivityError as error:
            if _kind_of(error) != "LeaseLost":
                raise
            self.lost()
            return
        self._taken_over(slot, offer.request_id)

    def _taken_over(self, slot: Slot, request_id: str) -> None:
        self._asked, self._given = request_id, self.wants
        self.slot = self.last = slot
        self._held, self.notice = AcceptRequest(request_id=request_id, token=slot.token), None
        self._journal.record(LeaseGranted(device=slot.device, token=slot.token, waited_seconds=0.0))

    def _was_noticed_early(self, slot: Slot) -> bool:
        early, self._early = self._early, None
        if early is None or early.token != slot.token or not early.reason or not workflow.patched(HEARS_EARLY):
            return False
        self.notice = early
        return True

    async def give_back(self) -> None:
        """Return the slot, if one is held. Also when cancelled: a slot must not leak."""
        await self._let_go_of_the_lost()
        if self.slot is None:
            return
        slot, self.slot, self.notice = self.slot, None, None
        taken = self._held or AcceptRequest(request_id="", token=slot.token)
        self._held = None
        unheard, self._unheard = self._unheard and bool(taken.request_id), False
        self._journal.record(LeaseReturned(device=slot.device, token=slot.token))
        if unheard:  # fenced, and free when compute has proven its end
            cancel = self._call(LeaseActivities.cancel, taken.request_id, f"its job on {slot.device} is to be ended")
            await asyncio.shield(cancel)
            return
        await asyncio.shield(self._call(LeaseActivities.release, taken, f"give {slot.device} back"))

    def ends_unheard(self, cause: BaseException | None) -> bool:
        """Was its job told to end, and its worker does not answer? Temporal starts no other attempt after a cancel."""
        if self.slot is None or not isinstance(cause, TimedOut) or not workflow.patched(ENDS_UNHEARD):
            return False
        self._unheard = True
        return True

    def lost(self) -> None:
        """Forget a lease whose token is fenced; the next `take` asks for another."""
        if self.notice is not None and self._held is not None:
            self._place, self._taken = self._held.request_id, self.notice.reason
        self.notice = None
        self.slot, self._lost, self._held = None, self._held, None

    async def _let_go_of_the_lost(self) -> None:
        """Should a lost lease be live in the ledger all the same, nobody else would give it back."""
        lost, self._lost = self._lost, None
        if lost is not None and workflow.patched(LETS_GO):
            await asyncio.shield(self._call(LeaseActivities.release, lost, "let go of the lost lease"))

    async def _one_grant(self) -> Slot | None:
        # Never the run's id here: a Reset replays this under another one, and the offer must still fit.
        place, self._place = self._place, ""
        request = LeaseRequest(
            **dict(self.wants),
            id=place or str(workflow.uuid4()),
            kind="check" if self._kind == "check" else "batch",
            again=bool(place),
        )
        asked = workflow.now()
        self._asked, self._offers, self._seen, self._why = request.id, [], set(), self._taken
        self._taken = ""
        self._asking, self._withdrawn, self._waited, self._unheard = True, False, False, False
        try:
            await self._call(LeaseActivities.request, request, "ask for a slot")
            slot = await self._accepted_or_taken_back(request)
        finally:
            self._asking = False
        if slot is None:
            return None
        waited = (workflow.now() - asked).total_seconds()
        self._journal.record(LeaseGranted(device=slot.device, token=slot.token, waited_seconds=round(waited, 3)))
        self._given = self.wants
        self.last, self._held = slot, AcceptRequest(request_id=request.id, token=slot.token)
        if self._waited and workflow.patched(SAYS_THAT_IT_GOES_ON):
            self._journal.post()  # a job may run for hours before the next word
        return slot

    async def _accepted_or_taken_back(self, request: LeaseRequest) -> Slot | None:
        try:
            return await self._accepted(request)
        except (asyncio.CancelledError, CancelledError):
            await asyncio.shield(self._call(LeaseActivities.cancel, request.id, "take the request back"))
            raise

    async def _accepted(self, request: LeaseRequest) -> Slot | None:
        """The slot of the first offer that the ledger knows; a false one costs only the question.

        None, on histories of before, after an offer that the ledger does not know.
        """
        while True:
            offer = await self._offer_for(request)
            accepted = AcceptRequest(request_id=request.id, token=offer.token)
            try:
                return await self._call(LeaseActivities.accept, accepted, f"take the offered slot ({offer.token})")
            except ActivityError as error:
                if _kind_of(error) != "LeaseLost":
                    raise
            if not workflow.patched(KEEPS_ITS_REQUEST):
                return None
            await self._ask_again(request)

    async def _offer_for(self, request: LeaseRequest) -> Offer:
        def offered() -> bool:
            return bool(self._offers) or self._withdrawn

        if not await until(offered, QUIET_WAIT, "a free slot"):
            await self._wait_aloud(request, offered)
        if self._withdrawn:
            raise CancelledError("nobody wants the slot any more")
        return self._offers.pop(0)

    async def _wait_aloud(self, request: LeaseRequest, offered: Callable[[], bool]) -> None:
        since, self._waited = workflow.now(), True
        pause = ASK_AGAIN
        with self._journal.waiting(self._wait(since)):
            while not await until(offered, pause, "still no free slot"):
                if await self._ask_again(request):
                    self._journal.waits_on(self._wait(since))
                pause = min(pause * 2, SELDOM)

    def _wait(self, since: datetime) -> Wait:
        return Wait(
            what=names.A_FREE_SLOT + (f" ({self._why})" if self._why else ""),
            since=since,
            unblocks="it goes on by itself when a running job ends, in order of arrival",
        )

    async def _ask_again(self, request: LeaseRequest) -> bool:
        """Is the request still in the queue? True when it had left it, for a reason that is worth a word."""
        again = request.model_copy(update={"again": True})
        answer = await self._call(LeaseActivities.request, again, "is the request still in the queue?")
        if answer is None or not answer.reason:  # None: of an older worker
            return False
        self._why = answer.reason
        return True

    async def _call(self, method: Callable[[LeaseActivities, Q], Awaitable[R]], request: Q, summary: str) -> R:
        return await workflow.execute_activity_method(
            method,
            request,
            start_to_close_timeout=STEP_TIMEOUT,
            retry_policy=PATIENT,
            summary=summary,
        )


def _kind_of(error: ActivityError) -> str:
    return (error.cause.type or "") if isinstance(error.cause, ApplicationError) else ""
