"""How a model learns, and how it is judged meanwhile."""

import re
from typing import Annotated, Literal

from pydantic import Field

from everloop.families import FAMILIES
from everloop.strict import Strict

TRAINER = rf"^({'|'.join(FAMILIES)}|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)$"
CODE = re.compile(r"sha256:[0-9a-f]{64}|/[^\x00]+")


class Split(Strict):
    """How rows are held out: by time where there is a time column, else by a hash of the row."""

    test: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    """Share of rows kept for the evaluation (the latest, by time)."""
    validation: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    """Share of the remaining rows that decides when training stops."""


class Training(Strict):
    """LightGBM with early stopping, one thread per slot. Every trainer takes the seed from here."""

    rounds: Annotated[int, Field(ge=1, le=5000)] = 400
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    leaves: Annotated[int, Field(ge=2, le=1024)] = 31
    early_stopping: Annotated[int, Field(ge=1, le=1000)] = 30
    """Rounds without a better validation loss after which training stops."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Validation(Strict):
    """How a training is judged while it learns. Rows are never shuffled where there is a time column."""

    method: Literal["holdout", "folds", "auto"] = "holdout"
    """holdout: on the validation part. folds: each row by a model that has not learned it (with a time column: each
    stretch of time by what was before it). auto: folds, but where there are more than 50,000 rows."""
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    repeats: Annotated[int, Field(ge=1, le=10)] | None = None
    """With other folds each time. Left out: 3 below 1,000 rows, 2 below 3,000, else 1."""


class Decision(Strict):
    """What a wrong answer to a binary question costs, in any unit. The threshold with the least cost is part of the
    version: its label is the positive class from that probability on.
    """

    false_positive: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    """The positive class was answered and is not true."""
    false_negative: Annotated[float, Field(gt=0, le=1e12)] = 1.0
