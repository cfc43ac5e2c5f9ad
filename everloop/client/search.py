"""What a client asks of searches: start one, follow its leaders, take the best so far, go on with it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from everloop.client.lifecycle import LifecycleCalls
from everloop.client.shapes import Json
from everloop.client.spec import load_spec
from everloop.errors import EverloopError, NotFound, Unavailable

Order = Literal["best", "newest", "number", "seconds"]

OPEN = frozenset({"running", "paused"})
"""States of a search that has not ended."""
ENDED_BADLY = frozenset({"failed", "terminated", "cancelled", "aborted", "needs_attention"})
"""Statuses of a lifecycle that has nothing more to tell of its search."""
GO_ON_FROM = "evaluate"


class SearchCalls(LifecycleCalls):
    """The part of `Client` that speaks of searches."""

    def search(
        self,
        spec: Any,  # noqa: ANN401  # as `submit` takes it
        *,
        budget: str | None = None,
        trials: int | None = None,
        families: Sequence[str] | None = None,
        changes: Mapping[str, Any] | None = None,
        key: str | None = None,
        go_on: bool = False,
    ) -> "Search":
        """Start a lifecycle that searches and then ends, or with *go_on* goes its whole way; answers its search.

        *budget*, such as `10min`, *trials* and *families* stand over what the spec says under `search:`. `best()`
        waits for the end, `trials()` answers what there is so far, `go_on()` takes the result to the gate.
        """
        asked = dict(changes or {}) | searching(spec, budget, trials, families)
        asked |= {} if go_on else {"until": "train"}
        return Search(self, str(self.submit(spec, key, asked)["id"]))

    def searched(self, lifecycle: str) -> "Search":
        """The search of a lifecycle that was started before."""
        return Search(self, lifecycle)

    def trials(
        self,
        lifecycle: str,
        *,
        order: Order = "best",
        family: str | None = None,
        state: str | None = None,
        limit: int = 1000,
    ) -> list[Json]:
        """The trials of a lifecycle's search that have ended. Raises `NotFound` where it has none."""
        asked = {"order": order, "family": family, "state": state, "limit": limit}
        given = {name: value for name, value in asked.items() if value is not None}
        return list(self._api("GET", f"/lifecycles/{quote(lifecycle, safe='/')}/trials", params=given)["items"])

    def take_best(self, lifecycle: str, reason: str = "") -> Json:
        """End its search now; the lifecycle goes on with the best trial so far. Raises `NotWaiting` where none runs."""
        return self._attend(lifecycle, "take_best", {"reason": reason})


class Search:
    """The search of one lifecycle."""

    def __init__(self, client: SearchCalls, lifecycle: str) -> None:
        self._client = client
        self.lifecycle = lifecycle

    def __repr__(self) -> str:
        return f"Search({self.lifecycle!r})"

    def now(self) -> Json:
        """How far it is, its leaders, and which parameters made the difference. Raises `NotFound` before it began."""
        return dict(self._client._api("GET", f"/lifecycles/{quote(self.lifecycle, safe='/')}/search"))  # noqa: SLF001

    def trials(self, order: Order = "best", **which: Any) -> list[Json]:  # noqa: ANN401
        """The trials that have ended; none before it began. *which*: `family`, `state`, `limit`."""
        try:
            return self._client.trials(self.lifecycle, order=order, **which)
        except NotFound:
            self._client.show(self.lifecycle)  # that lifecycle is there, or this raises
            return []

    def wait(self, timeout: float | None = None, every: float = 0.5) -> Json:
        """Wait until it has ended; answers it. *timeout* and *every* are seconds.

        Raises what ended its lifecycle before that, and `Unavailable` when *timeout* has passed.
        """
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            shown = self._client.show(self.lifecycle)
            state = (shown.get("search") or {}).get("state", "")
            if state and state not in OPEN:
                return self.now()
            if shown["status"] in ENDED_BADLY:
                raise _why(shown)
            if shown["status"] != "running":
                return self.now()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{self.lifecycle} still searches",
                    hint=f"`everloop take-best {self.lifecycle}` takes the best so far",
                )
            time.sleep(every)

    def best(self, timeout: float | None = None) -> Json:
        """Wait for its end; the best trial: family, parameters, value and all the rest."""
        found = self.wait(timeout)
        if not found["leaders"] or found["leaders"][0]["rank"] is None:
            raise NotFound(f"no trial of {self.lifecycle} was completed", hint=str(found["sentence"]))
        return dict(found["leaders"][0])

    def take_best(self, reason: str = "") -> Json:
        """End it now, with the best so far."""
        return self._client.take_best(self.lifecycle, reason)

    def go_on(self, key: str | None = None) -> Json:
        """Take what it found to the gate: a new lifecycle that keeps everything up to here; answers that one."""
        return self._client.fork(self.lifecycle, GO_ON_FROM, {"until": None}, key)


def searching(spec: Any, budget: str | None, trials: int | None, families: Sequence[str] | None) -> Json:  # noqa: ANN401
    """Changes to a spec that make it search. What is not said stays as the spec has it, or as it is by default."""
    limits: Json = ({"time": budget} if budget else {}) | ({"trials": trials} if trials else {})
    asked: Json = {"search.budget": limits} if limits else {}
    asked |= {"search.families": list(families)} if families else {}
    return asked or ({} if _searches(spec) else {"search": {}})


def _searches(spec: Any) -> bool:  # noqa: ANN401
    return load_spec(spec).get("search") is not None


def _why(shown: Json) -> EverloopError:
    """What ended a lifecycle before its search had."""
    error = shown.get("error") or {}
    what = error.get("message") or shown.get("reason") or f"it is {shown['status'].replace('_', ' ')}"
    return EverloopError(f"{shown['id']}: {what}", hint=error.get("hint") or f"`everloop show {shown['id']}`")
