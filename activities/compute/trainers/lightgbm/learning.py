"""Rounds in segments: a training that is killed and goes on gives the same trees as one that never was.

LightGBM does not say the state of its random numbers, so a booster cannot be taken up in its middle. Each segment is
a booster of its own, seeded by (seed, first round), that begins with the scores that the one before has left: exactly
those, not the sum that a prediction would make. Where segments begin depends on the table alone, never on time.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute import UNUSED_BY_LIGHTGBM, Context, without

with without(*UNUSED_BY_LIGHTGBM):
    import lightgbm
    from lightgbm.basic import _LIB, _safe_call

REPORT_EVERY = 10
"""Rounds between two progress reports."""
SEGMENT_SECONDS = 15.0
MOST_ROUNDS, LEAST_ROUNDS = 50, 12
"""Of a segment. A new booster costs about one round (measured: 2.6 % of the time at 50 rounds, 10 % at 12)."""
CELL_SECONDS = 5e-9
"""A round's, per row, feature and class (measured on one core)."""
SEEDS = ("bagging_seed", "feature_fraction_seed", "extra_seed")

FORMAT = 1
"""Of the state in a checkpoint."""

Scores = NDArray[np.float64]


@dataclass
class Course:
    """How far the training is: all that it needs to go on at the beginning of a segment."""

    rounds: int = 0
    trees: list[str] = field(default_factory=list)
    """The model text of each segment."""
    scores: Scores | None = None
    """Of the train rows, class by class; None before the first round."""
    judged: Scores | None = None
    """Of the validation rows."""
    best: int = 0
    """Rounds with the best validation loss."""
    best_loss: float | None = None
    over: bool = False
    """It has stopped early."""

    @classmethod
    def of(cls, restored: tuple[int, dict[str, Any]] | None) -> "Course":
        """Where the checkpoint was; from the beginning without one, or with one of another Everloop."""
        state = {} if restored is None else dict(restored[1])
        if state.pop("format", FORMAT) != FORMAT:
            print("the checkpoint is of another version of Everloop: the training begins again")  # noqa: T201  # the log
            return cls()
        return cls(**state)

    def state(self) -> dict[str, Any]:
        return {"format": FORMAT, **vars(self)}

    def note(self, loss: float, patience: int, *, higher_is_better: bool) -> None:
        """One more round, with its validation loss."""
        better = self.best_loss is None or (loss > self.best_loss if higher_is_better else loss < self.best_loss)
        if better:
            self.best, self.best_loss = self.rounds, loss
        self.over = self.over or self.rounds - self.best >= patience

    def booster(self) -> "lightgbm.Booster":
        """All trees as one model."""
        *before, last = [lightgbm.Booster(model_str=text) for text in self.trees]
        for booster in reversed(before):
            _safe_call(_LIB.LGBM_BoosterMerge(last._handle, booster._handle))  # noqa: SLF001  # puts its trees in front
        return last


@dataclass(frozen=True)
class Learner:
    """What a training learns from, and when it stops."""

    data: "lightgbm.Dataset"
    held_out: "lightgbm.Dataset | None"
    """Validation rows; None in a refit."""
    params: dict[str, Any]
    context: Context
    patience: int = 0
    """Rounds without a better validation loss after which it stops."""
    reached: Callable[[int, float], None] = lambda rounds, loss: None  # noqa: ARG005
    """Is told the validation loss of each round; may raise to end the training."""

    def take(self, course: Course, most: int) -> None:
        """Take *course* to *most* rounds, or to where it stops early."""
        self.data.construct()
        classes = int(self.params.get("num_class", 1))
        size = segment_rounds(self.data.num_data(), self.data.num_feature(), classes)
        while course.rounds < most and not course.over:
            self._segment(course, min(course.rounds + size, most), most)
            if course.rounds < most and not course.over:
                self.context.checkpoint(course.rounds, course.state)

    def _segment(self, course: Course, until: int, most: int) -> None:
        first, before, stopping = course.rounds, course.state(), False
        booster = self._booster(course)
        while course.rounds < until and not course.over:
            if not stopping and self.context.should_stop():
                stopping = True
                self.context.checkpoint(first, before)
            if booster.update():  # no split is worth it any more: the new tree is none, but for the very first
                course.over = True
                if course.rounds > 0:
                    break
            course.rounds += 1
            self._judge(booster, course, until, most)
        if course.rounds == first:
            return
        course.trees = [*course.trees, booster.model_to_string(num_iteration=course.rounds - first)]
        booster.reset_parameter({"objective": "none"})  # from now on it tells scores, not probabilities
        course.scores = _scores(booster, 0)
        course.judged = _scores(booster, 1) if self.held_out is not None else None

    def _booster(self, course: Course) -> "lightgbm.Booster":
        """One that goes on from the scores of *course*."""
        if course.scores is not None:
            self.data.set_init_score(course.scores)
        booster = lightgbm.Booster(self.params | seeds(self.params["seed"], course.rounds), self.data)
        if self.held_out is not None:
            if course.judged is not None:
                self.held_out.set_init_score(course.judged)
            booster.add_valid(self.held_out, "validation")
        return booster

    def _judge(self, booster: "lightgbm.Booster", course: Course, until: int, most: int) -> None:
        """Look at the losses after a round, and tell them every so often."""
        judged = booster.eval_valid()
        if judged:
            _, _, loss, higher_is_better = judged[0]
            course.note(float(loss), self.patience, higher_is_better=higher_is_better)
        if course.rounds % REPORT_EVERY == 0 or course.rounds == until or course.over:
            told = [*judged, *booster.eval_train()]
            losses = {f"{'train' if name == 'training' else name}_{metric}": value for name, metric, value, _ in told}
            self.context.report(course.rounds, rounds=course.rounds, most=most, **losses)
        if judged:
            self.reached(course.rounds, float(loss))


def segment_rounds(rows: int, features: int, classes: int) -> int:
    """How many rounds a segment has for a table of that size."""
    seconds = max(1, rows * features * classes) * CELL_SECONDS
    return int(min(MOST_ROUNDS, max(LEAST_ROUNDS, SEGMENT_SECONDS // seconds)))


def seeds(seed: int, first: int) -> dict[str, int]:
    """LightGBM's seeds for the segment that begins after round *first*. The first one's are LightGBM's own."""
    if first == 0:
        return {}
    drawn = np.random.SeedSequence([seed, first]).generate_state(len(SEEDS)) % np.uint32(2**31)
    return {name: int(value) for name, value in zip(SEEDS, drawn, strict=True)}


def _scores(booster: "lightgbm.Booster", place: int) -> Scores:
    """Of the rows that the booster has seen: 0 the train rows, 1 the validation rows; class by class."""
    length = ctypes.c_int64(0)
    _safe_call(_LIB.LGBM_BoosterGetNumPredict(booster._handle, ctypes.c_int(place), ctypes.byref(length)))  # noqa: SLF001
    found = np.empty(length.value, np.float64)
    into = found.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
    _safe_call(_LIB.LGBM_BoosterGetPredict(booster._handle, ctypes.c_int(place), ctypes.byref(length), into))  # noqa: SLF001
    return found
