"""What a model looks at."""

from typing import Annotated, Literal

from pydantic import Field

from everloop.specs.data import Column
from everloop.strict import Strict


class Selection(Strict):
    """Columns are ranked on the train part, and the best are kept; a request may bring the others, nobody looks."""

    method: Literal["mutual_information", "correlation", "importance", "l1"] = "mutual_information"
    """Filters: mutual information with the target, or the correlation of ranks. Embedded: by how much LightGBM is worse
    without a column (importance), or how early an L1 penalty lets it into a linear model."""
    keep: Annotated[int, Field(ge=1, le=10_000)] | Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A share of the columns below 1, or how many."""


class Features(Strict):
    """Which columns the model may look at. The target, the time and the key never are features."""

    include: tuple[Column, ...] | None = None
    """Only these; all other columns when left out."""
    exclude: tuple[Column, ...] = ()
    """Never these: leaks (columns known only after the fact) and identifiers."""
    target_mean: bool = False
    """Tell a category of more than 100 values also as the target's mean, fold by fold. LightGBM rarely needs it."""
    near_duplicates: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    """Of two numbers whose correlation is above it, one is left out."""
    selection: Selection | None = None
    """Keep only the columns that say most about the target."""
    skew: Literal["none", "log1p", "yeo_johnson", "quantile"] = "none"
    """Make skewed numbers even, for linear and torch: trees only look at their order."""
    interactions: Annotated[int, Field(ge=0, le=10)] = 0
    """Products and ratios of each pair of so many numbers, those that say most about the target."""
