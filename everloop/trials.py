"""What a search leaves behind: trials, and the study that they are of. docs/search.md says how they are used."""

from typing import Any, Literal

from pydantic import Field

from everloop.records import Blob, Prepared, Record, Result, Snapshot
from everloop.specs import LifecycleSpec

TOGETHER_SECONDS = 2.0
"""Short trials are asked of one job that together take about so long."""


class Point(Record):
    """A family with parameters to try before any sampler is asked."""

    family: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    origin: Literal["portfolio", "champion"] = "portfolio"


class Plan(Record):
    """All that the trials of a search have in common: one blob, that each trial reads."""

    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    families: tuple[str, ...]
    seed: int
    points: tuple[Point, ...] = ()
    """The champion's parameters, where a retraining begins from them."""


class Trial(Record):
    """One trial as it went: with the ones that it knew, all that its suggestion follows from."""

    number: int
    """From 0, dense."""
    family: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """What was asked for. Names that begin with `features.` are the preparation's."""
    drawn: dict[str, Any] = Field(default_factory=dict)
    """The same as the sampler knows it: of a starting point also what it leaves to the family."""
    distributions: dict[str, str] = Field(default_factory=dict)
    """Where each sampled one was drawn from, as Optuna's JSON."""
    values: tuple[float, ...] = ()
    """Of a complete one: the metric; with nsga2 also milliseconds of one row, and bytes."""
    intermediates: tuple[tuple[int, float], ...] = ()
    """Step (rounds, epochs, trees; folds, where there are several) and loss, as the pruner was told."""
    state: Literal["complete", "pruned", "cut", "failed"] = "failed"
    """pruned: worse than others were by then; cut: the time was over."""
    attributes: dict[str, Any] = Field(default_factory=dict)
    """Optuna's system attributes: nsga2, asha and hyperband go on from these."""
    origin: Literal["portfolio", "champion", "sampler", ""] = ""
    knew: int = 0
    """It was asked for with the trials 0 to knew - 1,"""
    beside: tuple[int, ...] = ()
    """and with these, which had overtaken others."""
    left: float | None = None
    """Seconds that the budget had left when it was asked for."""
    learned: dict[str, Any] = Field(default_factory=dict)
    """Parameters for the trainer, to learn the same again on other rows."""
    iterations: int = 0
    """Rounds, epochs or trees that its folds have learned (the median)."""
    losses: tuple[float, ...] = ()
    """Of each fold: log loss, or the root of the mean squared error in standard deviations."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Of the rows that its folds have judged."""
    seconds: float = 0.0
    rows: int = 0
    """That were judged."""
    bytes: int = 0
    """Of the model as it is kept; with nsga2 of the graph."""
    milliseconds: float = 0.0
    """To answer one row in ONNX Runtime, where that was measured."""
    answers: Blob | None = None
    """Its answers out of fold, of every row of the table (NumPy): only of trials that were among the best."""
    prepared: Blob | None = None
    """JSON of the `Prepared` that it learned from, where it chose other features than the spec."""
    error: str = ""
    device: str = ""
    job: str = ""
    """`<run id>/<activity id>`: its log, and its learning curve in the metric table."""

    def brief(self) -> "Trial":
        """What its search has to know of it; the rest is with the trial's `Kept`."""
        return self.model_copy(update=dict.fromkeys(SEQUENCES, ()) | {name: {} for name in MAPPINGS})


SEQUENCES = ("intermediates", "beside", "losses")
MAPPINGS = ("drawn", "distributions", "attributes", "learned", "metrics")
"""Fields of a trial that its search has no use for."""


class Kept(Record):
    """Trials of one job, in the artifact store."""

    blob: Blob
    """JSON lines of `Trial`."""
    numbers: tuple[int, ...]
    job: str = ""
    """`Trial.job` of each."""


class Study(Record):
    """A search's memory, in few blobs: what a trial is asked from."""

    id: str
    plan: Blob
    told: int = 0
    """Trials 0 to told - 1 are in the blobs."""
    blobs: tuple[Blob, ...] = ()
    """JSON lines of `Trial`, in order of their numbers; small ones are joined as they come."""


class Searched(Record):
    """What a search has come to."""

    study: Study
    trials: int
    best: Trial
    sentence: str
    """Which trial is the best, how many there were, and why it has ended."""
    ended: Literal["budget", "no_gain", "person"]


class Trials(Result):
    """What a job of a search has tried, in order of numbers: at least the first that it was asked for."""

    trials: tuple[Trial, ...]
    kept: Blob | None = None
    """JSON lines of the same, where *trials* are brief."""
