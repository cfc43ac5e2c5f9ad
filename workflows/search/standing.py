"""How a search stands: its numbers, its budget, the best so far, and all that in words. Commands nothing."""

import math
from collections.abc import Iterable

from everloop.contracts import AcceptRequest, SearchRequest, SearchState
from everloop.search import Search
from everloop.specs import HIGHER_IS_BETTER
from everloop.trials import TOGETHER_SECONDS, Study, Trial

MOST_AT_ONCE = 32
"""Trials of one job: they are told at once, in brief, and each takes up to 2 KB of a payload's 64."""
AT_LENGTH_MOST = 12
"""Of runs that began when trials were told at length."""
BEFORE_SECONDS, BEFORE_MOST = 1.0, 8
"""Of runs that began before short trials came more to a job."""
GAIN = 0.001
"""Share of the loss by which the best must get better to have gained."""
PATIENCE, PATIENT_SHARE = 25, 0.5
"""Trials without a gain after which a search ends early that is limited by time alone: so many, and of all it made."""
TRIED_ENOUGH = 8
"""Trials of which none has come to its end, after which time alone ends a search."""


class Standing:
    """A `SearchState`, and what follows from it and the request."""

    def __init__(self, request: SearchRequest, state: SearchState) -> None:
        self.state = state
        asked = request.spec.search or Search()
        budget = asked.budget.of(again=request.again)
        self.seconds, self.trials = budget.seconds, budget.trials
        """Of the budget."""
        self.families = asked.families_of(request.spec.trainer)
        self._patience = asked.patience
        self._metric = asked.metric or request.spec.objective

    # --- numbers --------------------------------------------------------------------------------

    def numbers(self, *, together: bool = True, most: int = MOST_AT_ONCE, members: int = 1) -> tuple[int, ...]:
        """The next to be tried, by one job; none where there are no more. *together*: as runs now do.

        *members*: that are to share what is left.
        """
        state, many = self.state, self._many(most, together=together)
        if self.trials is not None:
            many = max(1, min(many, math.ceil((len(state.free) + self.trials - state.next) / members)))
        free = state.free[: many if together else 1]
        if free and not together:
            many = 1
        until = state.next + many - len(free)
        until = max(state.next, until if self.trials is None else min(self.trials, until))
        self._now(free=state.free[len(free) :], next=until)
        return (*free, *range(state.next, until))

    def _many(self, most: int, *, together: bool) -> int:
        """Trials that take about `TOGETHER_SECONDS`. Of the first nobody knows."""
        if not self.state.ended:
            return 1
        if not together:
            return max(1, min(BEFORE_MOST, int(BEFORE_SECONDS / (self.state.seconds or BEFORE_SECONDS))))
        return max(1, min(most, round(TOGETHER_SECONDS / (self.state.seconds or TOGETHER_SECONDS))))

    def free(self, numbers: Iterable[int]) -> None:
        """They are to be tried again."""
        self._now(free=tuple(sorted({*self.state.free, *numbers})))

    def fill(self) -> list[Trial]:
        """Trials in the place of numbers that are still free when the search ends."""
        cut = [Trial(number=number, state="cut", error="it was ended with the search") for number in self.state.free]
        self._now(free=())
        return cut

    # --- the budget -----------------------------------------------------------------------------

    @property
    def left(self) -> float | None:
        """Seconds."""
        return None if self.seconds is None else self.seconds - self.state.spent

    def spend(self, seconds: float) -> None:
        self._now(spent=self.state.spent + seconds)

    def ordered(self, order: str) -> None:
        """A person takes the best so far. *order*: in words."""
        self._now(why="person", order=order)

    def ended(self, *, again: bool) -> str:
        """Why no further trial begins, or nothing. A search that has found nothing yet goes on beyond its time.

        *again*: are there questions that are still to be asked once more?
        """
        state, left = self.state, self.left
        if self.trials is not None and state.next >= self.trials and not state.free and not again:
            return "budget"
        if state.best is None:
            return "budget" if left is not None and left <= 0 and state.ended >= TRIED_ENOUGH else ""
        if state.why:
            return "person"
        if left is not None and left <= 0:
            return "budget"
        return "no_gain" if self._gains_no_more() else ""

    def _gains_no_more(self) -> bool:
        without = self.state.ended - self.state.gained_at
        if self._patience is not None:
            return without >= self._patience
        if self.trials is not None:
            return False
        return without >= max(PATIENCE, int(self.state.ended * PATIENT_SHARE), 5 * len(self.families))

    # --- what was found -------------------------------------------------------------------------

    def take_in(self, trial: Trial) -> None:
        """A trial has ended."""
        state = self.state
        ended = state.ended + 1
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

    def leased(self, held: AcceptRequest | None) -> None:
        """What the next run of the workflow adopts."""
        self._now(lease=held)

    def told(self, study: Study) -> None:
        """It is written down."""
        self._now(study=study)

    def _loss(self, trial: Trial) -> float:
        value = trial.values[0]
        return 1 - value if self._metric in HIGHER_IS_BETTER else value

    # --- in words -------------------------------------------------------------------------------

    def sentence(self, ended: str) -> str:
        """How far it is; or, once it has *ended*, what it came to."""
        state, left = self.state, self.left
        if ended and ended != "paused":
            return self.conclusion(ended)
        count = f"trial {state.ended:,}" + (f" of at most {self.trials:,}" if self.trials else "")
        best = f", best {self._told_best(state.best)}" if state.best else ""
        rest = "" if left is None else f", {max(0.0, left):.0f} s left"
        return f"{count}{best}{rest}" + (", paused" if ended else "")

    def conclusion(self, ended: str) -> str:
        return f"{self._best_of()}; {self._why(ended)}"

    def _best_of(self) -> str:
        state = self.state
        trials = f"{state.ended:,} trial{'s' * (state.ended != 1)}"
        return f"best of {trials}: {self._told_best(state.best)}" if state.best else f"{trials}, none came to its end"

    def _told_best(self, best: Trial) -> str:
        return f"{self._metric} {best.values[0]:.4g} ({best.family}, trial {best.number})"

    def _why(self, ended: str) -> str:
        state = self.state
        if ended == "person":
            return state.order
        if ended == "no_gain":
            return f"ended early: no gain in the last {state.ended - state.gained_at} trials"
        if self.trials is not None and state.next >= self.trials:
            return f"all {self.trials:,} trials of its budget were made"
        return f"its {self.seconds:.0f} s were over" if self.seconds is not None else "its budget was used"

    def _now(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)
