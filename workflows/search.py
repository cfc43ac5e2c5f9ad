"""A search: trials under a budget, one job each, on the members of one elastic lease.

A trial's job asks for its parameters itself, from the study: what has been told, and the few trials that have ended
since. What comes back is all that a study is. This workflow hands out numbers, keeps the budget, and ends.
"""

import asyncio
import contextlib
from collections.abc import Iterable
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
    TellRequest,
    TrialRequest,
    Wants,
)
from everloop.families import FILES
from everloop.records import Member, Slot
from everloop.search import Search as Asked
from everloop.specs import HIGHER_IS_BETTER
from everloop.trials import Searched, Study, Trial, Trials
from workflows.disk import Room
from workflows.journal import Journal
from workflows.lease import Lease
from workflows.stage import LIGHT_TIMEOUT, RETRY, start_job

A_RUN = 300
"""Trials of one run of the workflow: then it continues as new, so that its history stays short."""
SHORT_SECONDS, MOST_AT_ONCE = 1.0, 8
"""Trials that together take so long are asked of one job; and how many at most."""
MOST_RECENT = 12
"""Trials that travel with a request, or are told at once: each takes up to 3 KB of a payload's 64."""
SLACK = timedelta(seconds=2)
"""How much longer than a job itself its activity takes, at most: what is more was a wait, and no work."""
OVERTIME, LEAST_OVERTIME = 0.05, timedelta(seconds=2)
"""Share of the budget after whose end a trial is ended that does not look at the clock."""
GAIN = 0.001
"""Share of the loss by which the best must get better to have gained."""
PATIENCE, PATIENT_SHARE = 25, 0.5
"""Trials without a gain after which a search ends early that is limited by time alone: so many, and of all it made."""
TELL_TIMEOUT = timedelta(seconds=60)


@workflow.defn(name=names.SEARCH)
class Search:
    """Tries families and parameters for one lifecycle."""

    _request: SearchRequest
    _asked: Asked

    def __init__(self) -> None:
        self._journal = Journal()
        self._lease = Lease(self._journal)
        self._room = Room(self._journal, self._lease)
        self._state: SearchState | None = None
        self._recent: dict[int, Trial] = {}
        """Ended, and not in the study's blobs."""
        self._untold: list[Trial] = []
        self._telling: asyncio.Task[None] | None = None
        self._again: list[TrialRequest] = []
        """Asked of jobs that were ended before they had: the same is asked once more."""
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
            self._state = request.state or SearchState(study=await self._begun())
            self._first = self._state.ended
            self._heed_the_order()
            return await self._searched()
        except (asyncio.CancelledError, CancelledError):
            if workflow.cancellation_reason() is None:
                raise
            return await self._paused()

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
        if self._state is not None:
            self._heed_the_order()

    def _heed_the_order(self) -> None:
        """End the jobs, where there is something to take; else with the first trial that comes to its end."""
        order = self._order
        if order is None:
            return
        why = f"{order.person} took the best so far" + (f": {order.reason}" if order.reason else "")
        self._now(why="person", order=why)
        if self._state_now.best is not None:
            for job in self._jobs.values():
                job.cancel()

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
        if self._state_now.lease is not None:
            await self._lease.adopt(self._state_now.lease)
            self._now(lease=None)
        while not self._ended():
            slot = await self._lease.take()
            await self._tried_on(slot)
            await self._go_on_otherwise()
            if self._must_continue_as_new():
                await self._continue_as_new()
        await self._closed(self._ended())
        state = self._state_now
        if state.best is None:
            why = f": {state.error}" if state.error else ""
            message = f"none of {state.ended} trials came to its end{why}"
            raise ApplicationError(message, "search", "its jobs' logs say why", type="JobFailed", non_retryable=True)
        ended = self._ended()
        sentence = f"{self._best_of(state)}; {self._why(ended)}"
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
        if self._state is None:
            return SearchAnswer(outcome="paused")
        self._give_numbers_back()
        await self._settle("paused")
        await self._journal.settle()
        return SearchAnswer(outcome="paused", state=self._state_now)

    async def _continue_as_new(self) -> None:
        """With the same members, which the next run adopts: nothing runs on them now."""
        await self._settle()
        await self._journal.settle()
        self._now(lease=self._lease.hand_on())
        workflow.continue_as_new(self._request.model_copy(update={"state": self._state_now}))

    async def _closed(self, ended: str) -> None:
        """Give back what is held, and fill the gaps that were left in the numbers: then the study is whole."""
        await self._lease.give_back()
        self._give_numbers_back()
        for number in self._state_now.free:
            self._take_in(Trial(number=number, state="cut", error="it was ended with the search"))
        self._now(free=())
        await self._settle(ended)

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
        await asyncio.gather(*(self._member(slot, member) for member in members))

    async def _member(self, slot: Slot, member: Member) -> None:
        while True:
            await workflow.wait_condition(lambda: self._telling is None or len(self._recent) <= MOST_RECENT)
            if self._must_stop() or self._ended() or self._run_is_full():
                return
            request = self._next()
            if request is None:
                return
            await self._one_job(request, slot, member)

    def _must_stop(self) -> bool:
        """A cancel came (whose job ends with it, hears nothing more of it), or there is something with the lease."""
        cancelled = workflow.cancellation_reason() is not None
        return cancelled or self._told_to_end or self._lost or self._low is not None

    async def _one_job(self, request: TrialRequest, slot: Slot, member: Member) -> None:
        self._started += 1
        self._running[member.rank] = request
        job = start_job(
            SearchJobActivities.attempt,
            request,
            slot.model_copy(update={"device": member.device, "members": (member,)}),
            f"trials.{self._started}",
            _numbers(request.numbers),
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
        budget = self._budget_seconds()
        if request.seconds is None or budget is None:
            return
        overtime = max(timedelta(seconds=budget * OVERTIME), LEAST_OVERTIME)
        try:
            await workflow.wait_condition(
                job.done, timeout=timedelta(seconds=request.seconds) + overtime, timeout_summary="the budget's end"
            )
        except TimeoutError:
            if self._state_now.best is not None:
                job.cancel()

    def _next(self) -> TrialRequest | None:
        """What a free member does next; None where there is nothing left to begin."""
        if self._again:
            return self._again.pop(0)
        numbers = self._numbers()
        if not numbers:
            return None
        left = self._left()
        return TrialRequest(
            study=self._state_now.study,
            numbers=numbers,
            recent=tuple(self._recent[number] for number in sorted(self._recent)[:MOST_RECENT]),
            seconds=None if left is None else round(max(0.0, left), 3),
            preload=("search.asking", *(f"trainers.{FILES.get(name, name)}" for name in self._families())),
        )

    def _numbers(self) -> tuple[int, ...]:
        state = self._state_now
        usual = state.seconds or SHORT_SECONDS
        many = max(1, min(MOST_AT_ONCE, int(SHORT_SECONDS / usual))) if state.ended else 1
        if state.free:
            self._now(free=state.free[1:])
            return state.free[:1]
        most = self._most_trials()
        until = state.next + many if most is None else min(most, state.next + many)
        self._now(next=until)
        return tuple(range(state.next, until))

    def _ended_with(self, request: TrialRequest, made: Trials) -> None:
        where = made.ran.log.removeprefix("jobs/").rpartition("/")[0] if made.ran else ""
        for trial in made.trials:
            self._take_in(trial.model_copy(update={"job": where}))
        self._free(request.numbers[len(made.trials) :])
        self._room.found()
        self._tell_soon()

    def _ended_without(self, request: TrialRequest, cause: BaseException | None) -> None:
        """The job was ended, or has failed for good."""
        if workflow.cancellation_reason() is not None:
            self._free(request.numbers)
            return
        if self._lease.ends_unheard(cause) or isinstance(cause, CancelledError):
            if self._told_to_end:
                self._again.append(request)
            else:  # its time was over
                self._charge(self._budget_seconds() or 0.0)
                self._free(request.numbers)
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
            self._free(request.numbers[1:])
            self._again.append(request.model_copy(update={"numbers": request.numbers[:1]}))
        else:
            self._take_in(Trial(number=request.numbers[0], state="failed", error=cause.message[:300]))
            self._tell_soon()

    async def _go_on_otherwise(self) -> None:
        """After all members have stopped: what of the lease is to be settled before the next trials."""
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
        for job in self._jobs.values():
            job.cancel()

    # --- the budget -----------------------------------------------------------------------------

    def _budget_seconds(self) -> float | None:
        return self._asked.budget.of(again=self._is_again).seconds

    def _most_trials(self) -> int | None:
        return self._asked.budget.of(again=self._is_again).trials

    @property
    def _is_again(self) -> bool:
        return self._request.again

    def _left(self) -> float | None:
        budget = self._budget_seconds()
        return None if budget is None else budget - self._state_now.spent

    def _charge(self, seconds: float) -> None:
        """The time since the last job ended: at most as long as the one that ended now has worked."""
        now, mark = workflow.now(), self._mark or workflow.now()
        self._mark = now
        worked = min(now - mark, timedelta(seconds=seconds) + SLACK)
        self._now(spent=self._state_now.spent + worked.total_seconds())

    def _ended(self) -> str:
        """Why no further trial begins, or nothing. A search that has found nothing yet goes on beyond its time."""
        state, left, most = self._state_now, self._left(), self._most_trials()
        if most is not None and state.next >= most and not state.free and not self._again:
            return "budget"
        if state.best is None:
            return "budget" if left is not None and left <= 0 and state.ended >= _TRIED_ENOUGH else ""
        if state.why:
            return "person"
        if left is not None and left <= 0:
            return "budget"
        return "no_gain" if self._gains_no_more(state) else ""

    def _gains_no_more(self, state: SearchState) -> bool:
        without = state.ended - state.gained_at
        if self._asked.patience is not None:
            return without >= self._asked.patience
        if self._most_trials() is not None:
            return False
        return without >= max(PATIENCE, int(state.ended * PATIENT_SHARE), 5 * len(self._families()))

    # --- what was found -------------------------------------------------------------------------

    def _take_in(self, trial: Trial) -> None:
        state = self._state_now
        ended = state.ended + 1
        self._recent[trial.number] = trial
        self._untold.append(trial)
        usual = trial.seconds if not state.seconds else 0.7 * state.seconds + 0.3 * trial.seconds
        self._now(ended=ended, seconds=usual or state.seconds, error=trial.error or state.error)
        if trial.state != "complete":
            return
        before = None if state.best is None else self._loss(state.best)
        now = self._loss(trial)
        if before is not None and (now, trial.number) >= (before, state.best.number if state.best else 0):
            return
        self._now(best=trial)
        if before is None or before - now > GAIN * abs(before):
            self._now(gained_at=ended)

    def _loss(self, trial: Trial) -> float:
        value = trial.values[0]
        return 1 - value if self._metric() in HIGHER_IS_BETTER else value

    def _tell_soon(self) -> None:
        """Start writing down what has ended; one after the other."""
        if self._telling is None and self._untold:
            self._telling = asyncio.create_task(self._told())

    async def _told(self) -> None:
        try:
            while self._untold:
                some, self._untold = self._untold[:MOST_RECENT], self._untold[MOST_RECENT:]
                await self._tell(tuple(some), "")
        finally:
            self._telling = None

    async def _tell(self, trials: tuple[Trial, ...], ended: str) -> None:
        sentence = self._stands(ended)
        self._journal.say(sentence)
        study = await workflow.execute_activity_method(
            SearchActivities.tell,
            TellRequest(
                study=self._state_now.study,
                trials=trials,
                spent=round(self._state_now.spent, 3),
                sentence=sentence,
                ended=ended,
            ),
            start_to_close_timeout=TELL_TIMEOUT,
            retry_policy=RETRY,
            summary=_numbers([trial.number for trial in trials]) if trials else "how it stands",
        )
        self._now(study=study)
        self._recent = {number: trial for number, trial in self._recent.items() if number >= study.told}

    async def _settle(self, ended: str = "") -> None:
        """Everything that has ended is written down when this returns. Also right while it is being cancelled."""
        if self._telling is not None:
            await asyncio.shield(self._telling)
        await self._told()
        if ended:
            await self._tell((), ended)

    def _stands(self, ended: str) -> str:
        state, left, most = self._state_now, self._left(), self._most_trials()
        if ended and ended != "paused":
            return f"{self._best_of(state)}; {self._why(ended)}"
        count = f"trial {state.ended:,}" + (f" of at most {most:,}" if most else "")
        best = f", best {self._told_best(state.best)}" if state.best else ""
        rest = "" if left is None else f", {max(0.0, left):.0f} s left"
        return f"{count}{best}{rest}" + (", paused" if ended else "")

    def _best_of(self, state: SearchState) -> str:
        trials = f"{state.ended:,} trial{'s' * (state.ended != 1)}"
        return f"best of {trials}: {self._told_best(state.best)}" if state.best else f"{trials}, none came to its end"

    def _told_best(self, best: Trial) -> str:
        return f"{self._metric()} {best.values[0]:.4g} ({best.family}, trial {best.number})"

    def _why(self, ended: str) -> str:
        state = self._state_now
        if ended == "person":
            return state.order
        if ended == "no_gain":
            return f"ended early: no gain in the last {state.ended - state.gained_at} trials"
        seconds = self._budget_seconds()
        most = self._most_trials()
        if most is not None and state.next >= most:
            return f"all {most:,} trials of its budget were made"
        return f"its {seconds:.0f} s were over" if seconds is not None else "its budget was used"

    # --- small ----------------------------------------------------------------------------------

    @property
    def _state_now(self) -> SearchState:
        assert self._state is not None  # noqa: S101  # from the first step on
        return self._state

    def _now(self, **changes: object) -> None:
        self._state = self._state_now.model_copy(update=changes)

    def _free(self, numbers: Iterable[int]) -> None:
        self._now(free=tuple(sorted({*self._state_now.free, *numbers})))

    def _give_numbers_back(self) -> None:
        for request in (*self._again, *self._running.values()):
            self._free(request.numbers)
        self._again = []

    def _families(self) -> tuple[str, ...]:
        return self._asked.families_of(self._request.spec.trainer)

    def _metric(self) -> str:
        return self._asked.metric or self._request.spec.objective

    def _run_is_full(self) -> bool:
        return self._state_now.ended - self._first >= A_RUN or workflow.info().is_continue_as_new_suggested()

    def _must_continue_as_new(self) -> bool:
        return self._run_is_full() and not self._ended() and self._lease.slot is not None


_TRIED_ENOUGH = 8
"""Trials of which none has come to its end, after which time alone ends a search."""


def _numbers(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return f"trial {found[0]}" if len(found) == 1 else f"trials {found[0]} to {found[-1]}"
