"""What a compute function is given beside its request: the `Context` of activities.compute, in the job's process."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from activities.jobs import gpu, memory, progress
from activities.jobs.checkpoints import Checkpoints, Kept, Stopped
from activities.jobs.gang import Gang, alone
from everloop import disk, steps
from everloop.artifacts import Artifacts
from everloop.errors import Invalid
from everloop.records import Blob, Lease, Member, Resumed

NO_EVENTS = -1
CHECKPOINT_SECONDS = 30.0
STOP, KEEP = "stop", "keep"
MOST_ARTIFACTS = 32
"""Of a job: they travel with its result."""
ARTIFACT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._-]{0,127}")
BY_HAND = Lease(token=0, holder="", members=(Member(device=""),))


class ThisJob:
    """The job of this process (the `Context` protocol of activities.compute), and of no process that it forks.

    Until the function first asks for a checkpoint, SIGTERM ends the job at once: there is nothing to keep yet, and
    while libraries load no handler of ours would run. After that it is a notice, see `should_stop`.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        predictions_dir: Path,
        scratch: Path,
        events: int,
        checkpoints: Checkpoints,
        *,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        lease: Lease = BY_HAND,
        gang: Gang | None = None,
    ) -> None:
        self.artifacts = artifacts
        self.predictions_dir = predictions_dir
        self.scratch = scratch
        """An empty folder of this attempt's own; gone when the job is."""
        self.lease = lease
        self.gang = gang or alone()
        """The ranks that run this job together; mostly it is the only one."""
        self.resumed: Resumed | None = None
        """What was kept and what is done again, once the function has asked for its checkpoint."""
        self.logged: list[Blob] = []
        self._events = events
        self._checkpoints = checkpoints
        self._interval = checkpoint_seconds
        self._kept_at = self._asked_at = time.monotonic()
        self._listening = False
        self._noticed = False
        self._told_to_stop = False
        self._restored = False
        self._process = os.getpid()
        self._values: dict[str, float] = {}
        """The latest of each name that was reported: they say what a step is."""

    @property
    def cores(self) -> int:
        """Threads that this process may use: its member's of the lease."""
        return self.member.cores

    @property
    def member(self) -> Member:
        """Of the lease, what this process may use."""
        return next((one for one in self.lease.members if one.rank == self.rank), self.lease.members[0])

    def limit(self) -> None:
        """Tell the libraries that are loaded by now how much of the GPU's memory is the lease's."""
        gpu.limit(self.member)

    @property
    def rank(self) -> int:
        return self.gang.rank

    @property
    def world_size(self) -> int:
        return self.gang.size

    @property
    def rendezvous(self) -> Gang:
        """Where the ranks meet: `host` of rank 0 and a `folder` that is new for every attempt."""
        return self.gang

    def join(self, backend: str = "") -> None:
        """Torch's process group of all ranks: nccl where there is a GPU, else gloo. Also of a job that is alone."""
        self._must_be_its_process()
        self.gang.join(backend)

    def shrink(self, most: int = 3) -> int:
        """How often this stage has run out of memory: halve the batch so often, and accumulate.

        Who asks says that it can do with less: it is then run again, up to *most* times, before a person is asked.
        """
        self._must_be_its_process()
        return memory.shrink(self.scratch.parent, most)

    def report(self, step: int, /, **values: float) -> None:
        """Show progress: *values* of *step*. Never waits, whoever listens.

        A value that is NaN or infinite is left out. Raises `Invalid` for a step that is no whole number of 64 bits
        from 0 on, for a value that is no number, and for more than `progress.LINE_BYTES` bytes.
        """
        self._must_be_its_process()
        number, known = progress.reported(step, values)
        line = progress.line_of(number, known)
        self._checkpoints.reached(number)
        self._values |= known
        if self._events == NO_EVENTS:
            return
        try:
            os.write(self._events, line)
        except OSError:  # nobody reads any more, or not fast enough: progress is not worth the job
            return

    def checkpoint(
        self, step: int, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]], *, at: str = ""
    ) -> bool:
        """Keep *state* after *step* if one is due; was it kept? *at*: what people call the step, if not as reported.

        Due: when the next call may come later than the interval after the last one, and at once when the job is to
        end: then this does not return, `Stopped` ends the job. On a disk that is full or takes nothing else, nothing
        is kept and the training goes on. Raises `LeaseLost` when the stage runs elsewhere with a newer lease,
        `Invalid` for a state that cannot be kept and for a step that is none.
        """
        self._listen()
        number = progress.step_of(step)
        now, rhythm = time.monotonic(), time.monotonic() - self._asked_at
        self._asked_at = now
        self._checkpoints.reached(number)
        overdue = now + rhythm - self._kept_at >= self._interval
        word = self.gang.agreed(STOP if self._must_stop() else KEEP if overdue else "")
        kept = bool(word) and self._keep(number, state, at or steps.told(number, self._values))
        if word == STOP:
            self._told_to_stop = True
            self._checkpoints.check()
            raise Stopped
        return kept

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest whole checkpoint of this stage, by whatever lease it was kept."""
        self._must_be_its_process()
        kept = self._checkpoints.newest()
        if not self._restored:
            self._tell_resumed(kept)
        self._kept_at = self._asked_at = time.monotonic()
        if kept is None:
            return None
        return kept.step, kept.state

    def should_stop(self) -> bool:
        """The job is to end: keep a checkpoint and return. What it returns then is no result."""
        self._listen()
        self._told_to_stop = self.gang.agreed(STOP if self._must_stop() else "") == STOP
        return self._told_to_stop

    def _must_stop(self) -> bool:
        return self._told_to_stop or self._noticed or self._checkpoints.fenced_lately()

    def gave_up(self) -> bool:
        """Was the function told to stop, and is its result no whole one? Raises `LeaseLost` where that is why."""
        if self._told_to_stop:
            self._checkpoints.check()
        return self._told_to_stop

    def log_artifact(self, name: str, data: bytes | Path) -> None:
        """Keep a file beside the stage's result, for people. The same name again replaces it."""
        self._must_be_its_process()
        if not ARTIFACT.fullmatch(name):
            raise Invalid(f"{name!r} cannot be an artifact's name", field="name", hint="letters, digits, dot and dash")
        blob = self.artifacts.put(data, name) if isinstance(data, bytes) else self.artifacts.put_file(data, name)
        self.logged = [*(each for each in self.logged if each.name != name), blob]
        if len(self.logged) > MOST_ARTIFACTS:
            raise Invalid(f"a job may keep {MOST_ARTIFACTS} artifacts", field="name", hint="put several into one file")

    def ended(self) -> None:
        """The result is on the disk: nobody goes on from the checkpoints."""
        self._checkpoints.forget()

    def _keep(self, step: int, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]], at: str) -> bool:
        now = state() if callable(state) else state
        try:
            self._checkpoints.write(step, now, at)
        except Exception as error:
            if not (isinstance(error, OSError) or disk.is_full(error)):
                raise
            print(f"no checkpoint after {step}: {error}")  # noqa: T201  # into the job's log
            return False
        self._kept_at = time.monotonic()
        if self._events != NO_EVENTS:
            with contextlib.suppress(OSError):  # as with a report
                os.write(self._events, progress.kept_line(step))
        return True

    def _tell_resumed(self, kept: Kept | None) -> None:
        self._restored = True
        said = self._checkpoints.resumed(kept)
        self.resumed = None if said is None else Resumed.model_validate(said)
        if self.resumed is not None:
            print(self.resumed.sentence())  # noqa: T201  # into the job's log

    def _listen(self) -> None:
        """From now on SIGTERM is a notice. Claims the stage for this token."""
        self._must_be_its_process()
        if self._listening:
            return
        self._checkpoints.claim()
        with contextlib.suppress(ValueError):  # not in the main thread: it ends at once, as before
            signal.signal(signal.SIGTERM, self._notice)
        self._listening = True

    def _must_be_its_process(self) -> None:
        """Raise `Invalid` in a fork: what it says would be said as the job, between what the job itself says."""
        if os.getpid() != self._process:
            raise Invalid(
                "only the process that was given the training may report, keep checkpoints or files, or ask for them: "
                f"this one ({os.getpid()}) was forked from it",
                hint="let it answer to the one that forked it, which then reports",
            )

    def _notice(self, _number: int, _frame: FrameType | None) -> None:
        self._noticed = True
