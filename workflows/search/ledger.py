"""What has ended and is on its way into the study: written down beside the trials, one activity after the other."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from everloop.contracts import SearchActivities, TellRequest
from everloop.trials import Kept, Study, Trial
from workflows.journal import Journal
from workflows.search.standing import Standing
from workflows.stage import RETRY

MOST_RECENT = 12
"""Trials at length (up to 3 KB of a payload's 64 each), or jobs, that travel with a request or are told at once."""
TELL_TIMEOUT = timedelta(seconds=60)


class Ledger:
    """Trials that are not in the study's blobs yet, and those of them that nobody has written down."""

    def __init__(self, journal: Journal, standing: Callable[[], Standing]) -> None:
        self._journal, self._standing = journal, standing
        self._recent: dict[int, Trial] = {}
        """Of which nothing is kept elsewhere."""
        self._kept: list[Kept] = []
        self._untold: list[Trial | Kept] = []
        self._telling: asyncio.Task[None] | None = None
        self.fault: ActivityError | None = None
        """What has ended cannot be written down."""

    @property
    def keeps_up(self) -> bool:
        """May another job begin, or is too much on its way?"""
        return self._telling is None or len(self._recent) + len(self._kept) <= MOST_RECENT

    @property
    def recent(self) -> tuple[Trial, ...]:
        return tuple(self._recent[number] for number in sorted(self._recent)[:MOST_RECENT])

    @property
    def kept(self) -> tuple[Kept, ...]:
        return tuple(self._kept)

    def add(self, trials: Iterable[Trial]) -> None:
        """They have ended."""
        for trial in trials:
            self._recent[trial.number] = trial
            self._untold.append(trial)

    def add_kept(self, kept: Kept) -> None:
        """The same, of a job that has kept its trials."""
        self._kept.append(kept)
        self._untold.append(kept)

    def tell_soon(self) -> None:
        """Start writing down what has ended; one after the other."""
        if self._telling is None and self._untold:
            self._telling = asyncio.create_task(self._told_or_fault())

    async def settle(self, ended: str = "") -> None:
        """Everything that has ended is written down when this returns. Also right while it is being cancelled."""
        if self._telling is not None:
            await asyncio.shield(self._telling)
        await self._told()
        if ended:
            await self._tell((), ended)

    async def _told_or_fault(self) -> None:
        try:
            await self._told()
        except ActivityError as error:
            self.fault = error
        finally:
            self._telling = None

    async def _told(self) -> None:
        while self._untold:
            some = tuple(self._untold[:MOST_RECENT])
            await self._tell(some, "")
            del self._untold[: len(some)]

    async def _tell(self, some: tuple[Trial | Kept, ...], ended: str) -> None:
        stands = self._standing()
        sentence = stands.sentence(ended)
        self._journal.say(sentence)
        kept = tuple(each for each in some if isinstance(each, Kept))
        trials = tuple(each for each in some if isinstance(each, Trial))
        study = await workflow.execute_activity_method(
            SearchActivities.tell,
            TellRequest(
                study=stands.state.study,
                trials=trials,
                kept=kept,
                spent=round(stands.state.spent, 3),
                sentence=sentence,
                ended=ended,
            ),
            start_to_close_timeout=TELL_TIMEOUT,
            retry_policy=RETRY,
            summary=numbers_of([*(trial.number for trial in trials), *(n for each in kept for n in each.numbers)]),
        )
        self._into(study)

    def _into(self, study: Study) -> None:
        """It has become this one."""
        self._standing().told(study)
        self._recent = {number: trial for number, trial in self._recent.items() if number >= study.told}
        self._kept = [kept for kept in self._kept if kept.numbers[-1] >= study.told]


def numbers_of(numbers: Iterable[int]) -> str:
    """In words."""
    found = sorted(numbers)
    if not found:
        return "how it stands"
    return f"trial {found[0]}" if len(found) == 1 else f"trials {found[0]} to {found[-1]}"
