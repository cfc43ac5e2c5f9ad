"""A search: its trials, its ledger, what a person tells it, where it stands."""

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field
from temporalio import activity

from everloop.contracts.job import JobRequest
from everloop.contracts.lease import AcceptRequest
from everloop.contracts.short import Short
from everloop.records import Champion, Prepared, Record, Snapshot
from everloop.specs import LifecycleSpec
from everloop.trials import Kept, Searched, Study, Trial, Trials


class TrialRequest(JobRequest):
    """Ask, learn and judge, trial by trial, as many of *numbers* as there is time for."""

    study: Study
    numbers: tuple[int, ...]
    """In their order. The first is tried in any case."""
    recent: tuple[Trial, ...] = ()
    """Trials that have ended and are not in the study's blobs yet, of which nothing is kept elsewhere."""
    kept: tuple[Kept, ...] = ()
    """Where the others of these are."""
    by_reference: bool = False
    """What is found is kept, and told in brief."""
    seconds: float | None = None
    """That the budget has left."""
    preload: tuple[str, ...] = ()
    """Modules of the heavy place that the warm process loads before its fork."""


class SearchJobActivities(ABC):
    @activity.defn(name="everloop.search.try")
    @abstractmethod
    async def attempt(self, request: TrialRequest) -> Trials: ...


class BeginRequest(Record):
    """A search begins: what its trials have in common is written down once."""

    study: str
    """Its id."""
    lifecycle: str
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    champion: Champion | None = None
    again: bool = False
    """A retraining: it begins from the champion's parameters, on a quarter of the budget."""


class TellRequest(Record):
    """Trials that have ended, and how the search stands."""

    study: Study
    trials: tuple[Trial, ...]
    """Of which nothing is kept elsewhere."""
    kept: tuple[Kept, ...] = ()
    """Where the others are."""
    spent: float
    """Seconds of the budget."""
    sentence: str
    """How far it is, or what it waits for."""
    ended: str = ""
    """Why it has ended, as `Searched.ended`; `paused`: it goes on later."""


class SearchActivities(ABC):
    @activity.defn(name="everloop.search.begin")
    @abstractmethod
    async def begin(self, request: BeginRequest) -> Study: ...

    @activity.defn(name="everloop.search.tell")
    @abstractmethod
    async def tell(self, request: TellRequest) -> Study: ...


class SearchOrder(Record):
    """What a person tells a running search: `take_best` ends it, and its best so far goes on."""

    action: Literal["take_best"]
    person: Short
    reason: str = Field(default="", max_length=2000)


class SearchState(Record):
    """Where a search stands when it is paused, or continues as new. Nothing of it runs then."""

    study: Study
    spent: float = 0.0
    """Seconds of the budget."""
    next: int = 0
    """Number of the next trial."""
    free: tuple[int, ...] = ()
    """Numbers before it that are to be tried again."""
    ended: int = 0
    """Trials that have ended."""
    gained_at: int = 0
    """There were so many when the best got better the last time."""
    best: Trial | None = None
    seconds: float = 0.0
    """That a trial takes, about."""
    error: str = ""
    """Why the last one failed that did."""
    why: Literal["", "person"] = ""
    """Why it is to end."""
    order: str = ""
    """A person's words for it."""
    lease: AcceptRequest | None = None
    """What the next run adopts."""


class SearchRequest(Record):
    """The input of a Search workflow."""

    lifecycle: str
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    champion: Champion | None = None
    again: bool = False
    state: SearchState | None = None
    """It goes on from here."""


class SearchAnswer(Record):
    """How a search ended. `paused`: it goes on from *state*."""

    outcome: Literal["found", "paused"]
    searched: Searched | None = None
    state: SearchState | None = None
