"""What has learned."""

from datetime import datetime
from typing import Any, Literal

from everloop.records.data import Code
from everloop.records.features import Prepared
from everloop.records.job import Result
from everloop.records.record import Blob, Record
from everloop.specs import Features


class Curve(Record):
    """How one class's probability is calibrated. sigmoid: slope and shift of its log odds; isotonic: places and
    values, lines between them.
    """

    where: tuple[float, ...]
    value: tuple[float, ...]


class Finish(Record):
    """What is done with a model's probabilities; part of the version and of its graph."""

    calibration: Literal["", "sigmoid", "isotonic"] = ""
    curves: tuple[Curve, ...] = ()
    """Of each class; of a binary target of the positive one alone."""
    threshold: float | None = None
    """The probability from which the positive class is answered; none: the likelier class."""


class Trained(Result):
    """A fitted model on the train part."""

    model: Blob
    iterations: int
    """Rounds, epochs, or what `unit` says."""
    metrics: dict[str, float]
    """On the validation part."""
    family: str = "lightgbm"
    """The trainer that can read `model`, as the spec names it."""
    unit: str = ""
    """What the trainer calls one of `iterations`. Empty: an older Everloop trained."""
    parameters: dict[str, Any] = {}
    """What it was fitted with, beyond the spec's `training`."""
    code: Code | None = None
    """The user's code that was called: a refit calls the same."""
    folds: int = 0
    """That `metrics` are of, each row by a model that has not learned it; 0: of the validation part."""
    finish: Finish | None = None
    """Calibration and threshold, where the spec asks for them: a refit and the export keep them."""
    environment: Blob | None = None
    """JSON: Python, platform, seed and installed packages, where a user's code learned."""
    features: Features | None = None
    """The features that a search chose instead of the spec's: what comes after prepares rows so."""
    prepared: Prepared | None = None
    """The rows as it has learned them, where a search chose other features."""


class Refitted(Result):
    """The model fitted again on all rows of the snapshot, with the iterations that early stopping found."""

    model: Blob
    pipeline: Blob
    rows: int
    seen: Blob
    """npz: `hashes` uint64 of the rows it has learned from, `reading` JSON of how their columns were read."""
    trained_until: datetime | None = None
    family: str = "lightgbm"
    unit: str = ""
    """What its trainer counts."""
    parameters: dict[str, Any] = {}
    code: Code | None = None
    environment: Blob | None = None
    finish: Finish | None = None
