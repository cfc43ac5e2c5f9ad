"""A context for one of several trainings in a job: their checkpoints and curves lie one after the other."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from activities.compute import Context
from everloop.artifacts import Artifacts
from everloop.records import Lease
from everloop.steps import PART_STEPS

STEPS = 10_000_000
"""Of checkpoints, that each training has to itself. In parts of parts they come again: the one kept last counts."""
SHOWN = PART_STEPS
"""The same of learning curves."""

Restored = tuple[int, dict[str, Any]] | None


class Part:
    """The context of the training number *place*. *held* is what those before it have left: arrays by name.

    What is dear to make is a function that makes it: it is called where a checkpoint is due.
    """

    def __init__(self, whole: Context, place: int, held: Mapping[str, Any], restored: Restored = None) -> None:
        self.whole, self.place, self.held, self._restored = whole, place, held, restored

    @staticmethod
    def done(restored: Restored) -> tuple[int, dict[str, Any]]:
        """How many trainings had ended at a checkpoint of the job, and what they have left."""
        if restored is None:
            return 0, {}
        held = {name.removeprefix("held."): each for name, each in restored[1].items() if name.startswith("held.")}
        return int(restored[1]["part"]), held

    def begins(self) -> bool:
        """Keep that those before this one have ended, where a checkpoint is due."""
        return self.whole.checkpoint(self.place * STEPS, self._state, at=f"part {self.place + 1}")

    def _state(self) -> dict[str, Any]:
        made = {name: each() if callable(each) else each for name, each in self.held.items()}
        return {"part": self.place, "step": 0} | {f"held.{name}": each for name, each in made.items()}

    def checkpoint(
        self, step: int, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]], *, at: str = ""
    ) -> bool:
        def whole() -> dict[str, Any]:
            own = state() if callable(state) else state
            return self._state() | {"step": step} | {f"state.{name}": each for name, each in own.items()}

        where = f"part {self.place + 1}, {at or f'step {step}'}"
        return self.whole.checkpoint(self.place * STEPS + step, whole, at=where)

    def restore(self) -> Restored:
        if self._restored is None or int(self._restored[1]["part"]) != self.place:
            return None
        state = {n.removeprefix("state."): each for n, each in self._restored[1].items() if n.startswith("state.")}
        return (int(self._restored[1]["step"]), state) if state else None

    def report(self, step: int, /, **values: float) -> None:
        curves = {name: value for name, value in values.items() if name.startswith(("train_", "validation_"))}
        self.whole.report(self.place * SHOWN + min(step, SHOWN - 1), part=self.place + 1, **curves)

    def should_stop(self) -> bool:
        return self.whole.should_stop()

    def shrink(self, most: int = 3) -> int:
        return self.whole.shrink(most)

    def log_artifact(self, name: str, data: bytes | Path) -> None:
        self.whole.log_artifact(f"{self.place}-{name}", data)

    @property
    def lease(self) -> Lease:
        return self.whole.lease

    @property
    def cores(self) -> int:
        return self.whole.cores

    def limit(self) -> None:
        self.whole.limit()

    @property
    def rank(self) -> int:
        return self.whole.rank

    @property
    def world_size(self) -> int:
        return self.whole.world_size

    @property
    def rendezvous(self) -> Any:  # noqa: ANN401
        return self.whole.rendezvous

    def join(self, backend: str = "") -> None:
        self.whole.join(backend)

    @property
    def artifacts(self) -> Artifacts:
        return self.whole.artifacts

    @property
    def predictions_dir(self) -> Path:
        return self.whole.predictions_dir

    @property
    def scratch(self) -> Path:
        return self.whole.scratch
