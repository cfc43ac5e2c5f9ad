"""The journal as a workflow sees it: facts get their number, and are appended beside whatever runs next."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

from temporalio import workflow
from temporalio.common import RetryPolicy

from everloop.contracts import AppendRequest, JournalActivities
from everloop.events import (
    Event,
    StageFailed,
    StageFinished,
    StagePreempted,
    StageSkipped,
    StageStarted,
    WaitBegan,
    WaitEnded,
)
from everloop.records import Wait

APPEND_TIMEOUT = timedelta(seconds=30)


def heed_a_cancel() -> None:
    """Raise the cancel that has come, if one has. Call it where a workflow goes on to something new.

    The SDK (1.35) waits for a signal to another workflow in a way that forgets a cancel which comes meanwhile, and
    `asyncio.wait_for` of Python 3.11 one that comes with the result: the workflow would wait for ever.
    """
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError


async def until(true: Callable[[], bool], timeout: timedelta, summary: str) -> bool:
    """Wait until *true*, at most *timeout*; whether it came true. Heeds a cancel."""
    try:
        await workflow.wait_condition(true, timeout=timeout, timeout_summary=summary)
    except TimeoutError:
        heed_a_cancel()
        return False
    heed_a_cancel()
    return True


class Journal:
    """Facts of one run, in order.

    One append per stage boundary: `record` collects, `post` starts the append without waiting,
    `settle` waits until all is written (before a gate, an irreversible effect, and the end).
    """

    def __init__(self) -> None:
        self._next = 0
        self._unposted: list[Event] = []
        self._tail: asyncio.Task[None] | None = None
        self._story: list[str] = []

    def record(self, *facts: Event) -> None:
        """Number the *facts* and keep them for the next post."""
        for fact in facts:
            self._unposted.append(fact.model_copy(update={"seq": self._next, "at": workflow.now()}))
            self._next += 1
            self._story += _line(fact)
            if isinstance(fact, StageStarted):
                self.say(f"Running stage **{fact.stage}**.")

    def say(self, sentence: str) -> None:
        """What Temporal's UI shows as the current details: *sentence*, then the stages so far."""
        workflow.set_current_details("\n".join([sentence, "", *self._story]))

    @contextmanager
    def waiting(self, wait: Wait, needs: Literal["", "approval", "attention"] = "") -> Iterator[None]:
        """For as long as the block runs, everybody can read what is waited for and what unblocks it."""
        self.record(WaitBegan(wait=wait, needs=needs))
        self.post()
        self.say(f"**{wait.sentence()}**")
        try:
            yield
        except GeneratorExit:  # the worker stops and drops the workflow from its memory: nothing has happened
            raise
        except BaseException:
            self.record(WaitEnded())
            raise
        self.record(WaitEnded())
        self.say("Going on.")

    def waits_on(self, wait: Wait) -> None:
        """Say a wait that is on in other words; only within `waiting`."""
        self.record(WaitBegan(wait=wait))
        self.post()
        self.say(f"**{wait.sentence()}**")

    def post(self) -> None:
        """Start appending what was recorded; appends of one run never overtake each other."""
        if not self._unposted:
            return
        events, self._unposted = tuple(self._unposted), []
        self._tail = asyncio.create_task(self._append(events, self._tail))

    async def settle(self) -> None:
        """Post and wait. Also right while the workflow is being cancelled: an append is never called back."""
        self.post()
        if self._tail is not None:
            await asyncio.shield(self._tail)

    async def _append(self, events: tuple[Event, ...], before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await before
        await workflow.execute_activity_method(
            JournalActivities.append,
            AppendRequest(events=events),
            start_to_close_timeout=APPEND_TIMEOUT,
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
            summary=", ".join(event.type for event in events)[:200],
        )


def _line(fact: Event) -> list[str]:
    if isinstance(fact, StageFinished):
        return [f"- {fact.stage}: {fact.summary}"]
    if isinstance(fact, StageFailed):
        return [f"- {fact.stage} **failed**: {fact.message} {fact.hint}"]
    if isinstance(fact, StagePreempted):
        return [f"- {fact.stage}: {fact.device} was taken for others ({fact.reason}); it goes on by itself"]
    if isinstance(fact, StageSkipped):
        return [f"- {fact.stage}: skipped by {fact.person}"]
    return []
