"""A raw column and what was fitted on it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["number", "boolean", "datetime", "category"]
Part = Literal["hour", "weekday", "day", "month", "elapsed"]
Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Input:
    """A raw column and what was fitted on it."""

    name: str
    kind: Kind
    nullable: bool = True
    """Missing values were there when this was fitted. Where not, `fill` answers for one."""
    offset: float = 0.0
    """Number: taken off in float64. Datetime: the moment that `elapsed` counts from."""
    fill: float = 0.0
    low: float | None = None
    high: float | None = None
    known: tuple[str, ...] = ()
    """Category: values in the order of their codes, from `FIRST`."""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A column that the model does not look at, and why."""

    name: str
    reason: str
