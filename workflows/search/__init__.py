"""A search: trials under a budget, one job each, on the members of one elastic lease.

A trial's job asks for its parameters itself, from the study: what has been told, and the few trials that have ended
since. What comes back is all that a study is. This workflow hands out numbers, keeps the budget, and ends.
"""

import asyncio
import contextlib
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

from everloop import names
from everloop.contracts import (
    BeginRequest,
    LeaseNotice,
    Offer,
    SearchActivities,
    SearchAnswer,
    SearchJobActivities,
    SearchOrder,
    SearchRequest,
    SearchState,
    TrialRequest,
    Wants,
)
from everloop.families import FILES
from everloop.records import Member, Slot
from everloop.search import Search as Asked
from everloop.trials import Kept, Searched, Study, Trial, Trials
from workflows.disk import Room
from workflows.journal import Journal
from workflows.lease import Lease
from workflows.search.ledger import Ledger, numbers_of
from workflows.search.standing import AT_LENGTH_MOST, Standing
from workflows.stage import LIGHT_TIMEOUT, RETRY, start_job

A_RUN = 300
"""Trials of one run of the workflow: then it continues as new, so that its history stays short."""
SLACK = timedelta(seconds=2)
"""How much longer than a job itself its activity takes, at most: what is more was a wait, and no work."""
OVERTIME, LEAST_OVERTIME = 0.05, timedelta(seconds=2)
"""Share of the budget after whose end a trial is ended that does not look at the clock."""
GIVES_BACK, TOGETHER = "search-gives-back-when-it-fails", "search-asks-more-together"
BY_REFERENCE = "search-is-told-by-reference"
"""Versions of this workflow's commands."""


@workflow.defn(name=names.SEARCH)
class Search:
    """Tries families and parameters for one lifecycle."""

    _request: SearchRequest
    _asked: Asked

    def __init__(self) -> None:
        self._journal = Journal()
        self._lease = Lease(self._journal)
        self._room = Room(self._journal, self._lease)
        self._standing: Standing | None = None
        self._ledger = Ledger(self._journal, lambda: self._stands)
        self._again: list[TrialRequest] = []
        """Asked of jobs that were ended before they had: the same is asked once more."""
        self._members: list[asyncio.Task[None]] = []
        """One for each member of the lease: it runs job after job."""
        self._jobs: dict[int, asyncio.Task[Trials]] = {}
        self._running: dict[int, TrialRequest] = {}
        self._started = 0
        """Jobs of this run."""
        self._mark: datetime | None = None
        """Until when the budget is counted."""
        self._first = 0
        """Trials that there were when this run began."""
        self._told_to_end = False
        """The jobs are: others need the lease, or it has other members."""
        self._low: ApplicationError | None = None
        self._lost = False
        self._order: SearchOrder | None = None

    @workflow.run
    async def run(self, request: SearchRequest) -> SearchAnswer:
        """The best that was found, or, when it is cancelled, where it stands: a pause, and the next run goes on."""
        self._request, self._asked = request, request.spec.search or Asked()
        try:
            self._standing = Standing(request, request.state or SearchState(study=await self._begun()))
            self._first = self._stands.state.ended
            self._heed_the_order()
            return await self._searched()
        except (asyncio.CancelledError, CancelledError):
            if workflow.cancellation_reason() is None:
                raise
            return await self._paused()
        except (ActivityError, ApplicationError):
            if workflow.patched(GIVES_BACK):
                await self._given_up()
            raise

    @workflow.signal(name=names.LEASE_OFFERED, description="The pool's offer of members")
    def lease_offered(self, offer: Offer) -> None:
        self._lease.offered(offer)
        if self._lease.grows:
            self._end_jobs()

    @workflow.signal(name=names.LEASE_NOTICED, description="Others need what the lease has: let go")
    def lease_noticed(self, notice: LeaseNotice) -> None:
        if self._lease.noticed(notice):
            self._end_jobs()

    @workflow.signal(name=names.SEARCH_ORDER, description="Take the best so far")
    def order(self, order: SearchOrder) -> None:
        self._order = order
        if self._standing is not None:
            self._heed_the_order()

    def _heed_the_order(self) -> None:
        """End the jobs, where there is something to take; else with the first trial that comes to its end."""
        order = self._order
        if order is None:
            return
        why = f"{order.person} took the best so far" + (f": {order.reason}" if order.reason else "")
        self._stands.ordered(why)
        if self._stands.state.best is not None:
            self._cancel_jobs()

    # --- the table of contents ------------------------------------------------------------------

    async def _begun(self) -> Study:
        request = self._request
        return await workflow.execute_activity_method(
            SearchActivities.begin,
            BeginRequest(
                study=str(workflow.uuid4()),
                lifecycle=request.lifecycle,
                spec=request.spec,
                snapshot=request.snapshot,
                prepared=request.prepared,
                champion=request.champion,
                again=request.again,
            ),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="what all trials share",
        )

    async def _searched(self) -> SearchAnswer:
        self._lease.wants = self._wants()
        held = self._stands.state.lease
        if held is not None:
            await self._lease.adopt(held)
            self._stands.leased(None)
        while not self._ended():
            slot = await self._lease.take()
            await self._tried_on(slot)
            await self._go_on_otherwise()
            if self._must_continue_as_new():
                await self._continue_as_new()
        await self._closed(self._ended())
        state = self._stands.state
        if state.best is None:
            why = f": {state.error}" if state.error else ""
            message = f"none of {state.ended} trials came to its end{why}"
            raise ApplicationError(message, "search", "its jobs' logs say why", type="JobFailed", non_retryable=True)
        ended = self._ended()
        sentence = self._stands.conclusion(ended)
        self._journal.say(f"**{sentence}**")
        await self._journal.settle()
        return SearchAnswer(
            outcome="found",
            searched=Searched.model_validate(
                {"study": state.study, "trials": state.ended, "best": state.best, "sentence": sentence, "ended": ended}
            ),
        )

    async def _paused(self) -> SearchAnswer:
        """All that has ended is kept; what ran is asked again."""
        await self._lease.give_back()
        if self._standing is None:
            return SearchAnswer(outcome="paused")
        self._give_numbers_back()
        await self._ledger.settle("paused")
        await self._journal.settle()
        return SearchAnswer(outcome="paused", state=self._stands.state)

    async def _given_up(self) -> None:
        """It has failed: what runs is ended, and its lease given back now, not when the pool finds it gone."""
        self._cancel_jobs()
        await asyncio.gather(*self._members, return_exceptions=True)
        await self._lease.give_back()

    async def _continue_as_new(self) -> None:
        """With the same members, which the next run adopts: nothing runs on them now."""
        await self._ledger.settle()
        await self._journal.settle()
        self._stands.leased(self._lease.hand_on())
        workflow.continue_as_new(self._request.model_copy(update={"state": self._stands.state}))

    async def _closed(self, ended: str) -> None:
        """Give back what is held, and fill the gaps that were left in the numbers: then the study is whole."""
        await self._lease.give_back()
        self._give_numbers_back()
        for cut in self._stands.fill():
            self._take_in(cut)
        await self._ledger.settle(ended)

    # --- the jobs -------------------------------------------------------------------------------

    def _wants(self) -> Wants:
        """One member at least; as many more as the spec says where there is room."""
        wants = Wants.of(self._request.spec, "train")
        return wants.model_copy(
            update={"members": 1, "members_most": self._asked.parallel if self._asked.parallel > 1 else 0}
        )

    async def _tried_on(self, slot: Slot) -> None:
        """Trials on every member until the search ends, the lease does, or this run of the workflow."""
        self._told_to_end, self._lost, self._low = False, False, None
        self._mark = workflow.now()
        members = slot.members or (Member(device=slot.device),)
        self._members = [asyncio.create_task(self._member(slot, member)) for member in members]
        await asyncio.gather(*self._members)

    async def _member(self, slot: Slot, member: Member) -> None:
        while True:
            await workflow.wait_condition(lambda: self._ledger.keeps_up)
            if self._must_stop() or self._ended() or self._run_is_full():
                return
            request = self._next()
            if request is None:
                return
            await self._one_job(request, slot, member)

    def _must_stop(self) -> bool:
        """A cancel came (whose job ends with it, hears nothing more of it), or there is something with the lease."""
        cancelled = workflow.cancellation_reason() is not None
        return cancelled or self._told_to_end or self._lost or self._low is not None or self._ledger.fault is not None

    async def _one_job(self, request: TrialRequest, slot: Slot, member: Member) -> None:
        self._started += 1
        self._running[member.rank] = request
        job = start_job(
            SearchJobActivities.attempt,
            request,
            slot.model_copy(update={"device": member.device, "members": (member,)}),
            f"trials.{self._started}",
            numbers_of(request.numbers),
        )
        self._jobs[member.rank] = job
        try:
            await self._until_done_or_too_late(job, request)
            made = await job
        except asyncio.CancelledError:  # it waited for the clock
            job.cancel()
            with contextlib.suppress(ActivityError, asyncio.CancelledError):
                await job
            raise
        except (ActivityError, CancelledError) as error:
            cause = error.cause if isinstance(error, ActivityError) else error
            self._ended_without(request, cause)
        else:
            self._charge(made.ran.seconds if made.ran else 0.0)
            self._ended_with(request, made)
        finally:
            del self._jobs[member.rank], self._running[member.rank]

    async def _until_done_or_too_late(self, job: asyncio.Task[Trials], request: TrialRequest) -> None:
        """A trial looks at the clock where it can; one that cannot is ended, once there is something to go on with."""
        budget = self._stands.seconds
        if request.seconds is None or budget is None:
            return
        overtime = max(timedelta(seconds=budget * OVERTIME), LEAST_OVERTIME)
        try:
            await workflow.wait_condition(
                job.done, timeout=timedelta(seconds=request.seconds) + overtime, timeout_summary="the budget's end"
            )
        except TimeoutError:
            if self._stands.state.best is not None:
                job.cancel()

    def _next(self) -> TrialRequest | None:
        """What a free member does next; None where there is nothing left to begin."""
        if self._again:
            return self._again.pop(0)
        numbers, by_reference = self._next_numbers()
        if not numbers:
            return None
        left = self._stands.left
        return TrialRequest(
            study=self._stands.state.study,
            numbers=numbers,
            recent=self._ledger.recent,
            kept=self._ledger.kept,
            by_reference=by_reference,
            seconds=None if left is None else round(max(0.0, left), 3),
            preload=("search.asking", *(f"trainers.{FILES.get(name, name)}" for name in self._stands.families)),
        )

    def _next_numbers(self) -> tuple[tuple[int, ...], bool]:
        """And whether what comes of them is told by reference."""
        together = workflow.patched(TOGETHER)
        if not workflow.patched(BY_REFERENCE):
            return self._stands.numbers(together=together, most=AT_LENGTH_MOST), False
        return self._stands.numbers(members=len(self._members)), True

    def _ended_with(self, request: TrialRequest, made: Trials) -> None:
        where = made.ran.log.removeprefix("jobs/").rpartition("/")[0] if made.ran else ""
        trials = [trial.model_copy(update={"job": where}) for trial in made.trials]
        for trial in trials:
            self._stands.take_in(trial)
        if made.kept is None:
            self._ledger.add(trials)
        else:
            self._ledger.add_kept(Kept(blob=made.kept, numbers=request.numbers[: len(trials)], job=where))
        self._stands.free(request.numbers[len(trials) :])
        self._room.found()
        self._ledger.tell_soon()

    def _ended_without(self, request: TrialRequest, cause: BaseException | None) -> None:
        """The job was ended, or has failed for good."""
        if workflow.cancellation_reason() is not None:
            self._stands.free(request.numbers)
            return
        if self._lease.ends_unheard(cause) or isinstance(cause, CancelledError):
            if self._told_to_end:
                self._again.append(request)
            else:  # its time was over
                self._charge(self._stands.seconds or 0.0)
                self._stands.free(request.numbers)
            return
        if not isinstance(cause, ApplicationError):
            raise ApplicationError(str(cause), type="JobFailed", non_retryable=True)
        if cause.type == "LeaseLost":
            self._again.append(request)
            self._lost = True
        elif cause.type == "StorageLow":
            self._again.append(request)
            self._low = cause
        elif len(request.numbers) > 1:  # which of them it was is found out one by one
            self._stands.free(request.numbers[1:])
            self._again.append(request.model_copy(update={"numbers": request.numbers[:1]}))
        else:
            self._take_in(Trial(number=request.numbers[0], state="failed", error=cause.message[:300]))
            self._ledger.tell_soon()

    async def _go_on_otherwise(self) -> None:
        """After all members have stopped: what of the lease is to be settled before the next trials."""
        if self._ledger.fault is not None:
            raise self._ledger.fault
        if self._lost:
            self._lease.lost()
        elif self._lease.grows:
            await self._lease.resize()
        elif self._low is not None:
            await self._room.wait(self._low)
        elif self._lease.notice is not None:
            await self._lease.let_go()

    def _end_jobs(self) -> None:
        self._told_to_end = True
        self._cancel_jobs()

    def _cancel_jobs(self) -> None:
        for job in self._jobs.values():
            job.cancel()

    def _charge(self, seconds: float) -> None:
        """The time since the last job ended: at most as long as the one that ended now has worked."""
        now, mark = workflow.now(), self._mark or workflow.now()
        self._mark = now
        worked = min(now - mark, timedelta(seconds=seconds) + SLACK)
        self._stands.spend(worked.total_seconds())

    def _ended(self) -> str:
        return self._stands.ended(again=bool(self._again))

    def _take_in(self, trial: Trial) -> None:
        self._ledger.add([trial])
        self._stands.take_in(trial)

    # --- small ----------------------------------------------------------------------------------

    @property
    def _stands(self) -> Standing:
        assert self._standing is not None  # noqa: S101  # from the first step on
        return self._standing

    def _give_numbers_back(self) -> None:
        for request in (*self._again, *self._running.values()):
            self._stands.free(request.numbers)
        self._again = []

    def _run_is_full(self) -> bool:
        return self._stands.state.ended - self._first >= A_RUN or workflow.info().is_continue_as_new_suggested()

    def _must_continue_as_new(self) -> bool:
        return self._run_is_full() and not self._ended() and self._lease.slot is not None
