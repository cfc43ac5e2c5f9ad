"""What a search looks like over HTTP."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

TrialState = Literal["complete", "pruned", "cut", "failed"]
Order = Literal["best", "newest", "number", "seconds"]


class Wanted(BaseModel):
    """Which trials are asked for."""

    order: Order = "best"
    family: Annotated[str, Field(max_length=63)] = ""
    state: TrialState | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000


class Rung(BaseModel):
    """What a trial reported on its way: after so many rounds, epochs or trees, or folds, its loss so far."""

    step: int
    loss: float


class TrialView(BaseModel):
    """A trial that has ended."""

    number: int
    state: TrialState
    """pruned: worse than others were by then; cut: the time was over."""
    family: str
    parameters: dict[str, Any]
    """What was chosen; one that is not there has the family's default. Those that begin with `features.` are the
    preparation's."""
    origin: str
    """Where the parameters are from: `portfolio` (a family's good starting points), `champion`, `sampler`."""
    value: float | None
    """The metric, of a complete one."""
    rank: int | None
    """Among the complete ones; 1 is the best."""
    losses: list[float]
    """Of each fold."""
    rungs: list[Rung]
    metrics: dict[str, float]
    """On the rows that it was judged by."""
    ended_at: datetime
    seconds: float
    bytes: int
    milliseconds: float
    """To answer one row, where that was measured."""
    device: str
    error: str


class Importance(BaseModel):
    """A parameter, and how much of the trials' order goes with it alone."""

    family: str
    """Empty for the choice of the family itself."""
    parameter: str
    share: float
    """From 0 to 1."""
    trials: int
    best: str
    """The values with the best trials on average."""


class SearchSummary(BaseModel):
    """A search in a few words, with its leaders."""

    state: str
    """`running`, `paused`, or why it has ended: `budget`, `no_gain`, `person`, `exhausted`, `failed`."""
    sentence: str
    metric: str
    higher_is_better: bool
    trials: int
    """Those that have ended."""
    leaders: list[TrialView]
    """The best five."""
    can_take_best: bool
    """May a person end it now, and go on with the best so far?"""


class SearchView(SearchSummary):
    """The latest search of a lifecycle."""

    lifecycle: str
    study: str
    sampler: str
    pruner: str
    budget_seconds: float | None
    budget_trials: int | None
    spent_seconds: float
    started_at: datetime
    updated_at: datetime
    states: dict[str, int]
    """Trials by how they ended."""
    families: dict[str, int]
    """Trials by family; 0 where none has ended yet."""
    importance: list[Importance]


class TrialList(BaseModel):
    items: list[TrialView]
