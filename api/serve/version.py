"""A version that answers, with all that can be worked out before the first request."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from activities.compute.inference import Model
from api.serve.schema import example
from everloop.errors import EverloopError
from everloop.records import Route, Signature

TRIED = 4
"""How often a new version answers its own example before it is let near a request: the first run is a slow one."""


@dataclass(frozen=True)
class Meaning:
    """Which names of a row mean what to a model."""

    signature: Signature

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.signature.fields)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.columns)

    @cached_property
    def times(self) -> tuple[str, ...]:
        """Names under which a row may say when it happened; the first that it has counts."""
        own = () if "event_time" in self.columns else ("event_time",)
        return (self.signature.time, *own) if self.signature.time else own

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names under which a row may say its key; the first that it has counts."""
        own = () if "key" in self.columns else ("key",)
        return (self.signature.key, *own) if self.signature.key else own

    @cached_property
    def for_the_log(self) -> frozenset[str]:
        """Names that are no column of the table: the model is not asked about them."""
        named = {self.signature.time, self.signature.key}
        return frozenset({"event_time", "key"} - set(self.columns) - named)

    def asked(self, row: dict[str, Any]) -> dict[str, Any]:
        """What of *row* the model is asked about."""
        if self.for_the_log.isdisjoint(row):
            return row
        return {name: value for name, value in row.items() if name not in self.for_the_log}

    def features(self, row: dict[str, Any], moment: str) -> dict[str, Any]:
        """What the model looked at, by column: also the time column, where the event time stood in for it."""
        found = row if row.keys() == self._names else {name: row.get(name) for name in self.columns}
        time = self.signature.time
        if time is None or time not in found or found[time] is not None:
            return found
        return found | {time: moment}


class Served:
    """A version that answers. Nothing of it changes: safe to share between threads."""

    def __init__(self, route: Route, model: Model, loaded_at: datetime) -> None:
        self.route = route
        self.model = model
        self.signature = model.signature
        self.loaded_at = loaded_at
        self.meaning = Meaning(model.signature)
        self.row_seconds = _seconds(model)
        """What one row takes, about."""


def _seconds(model: Model) -> float:
    """How long the model takes for a row: the shortest of a few tries, which also spare the first caller the wait.

    A second where it does not answer its own example: then no request is answered but in a thread of its own.
    """
    row, now = example(model.signature), [datetime.now(UTC)]
    took = []
    try:
        for _ in range(TRIED):
            began = time.perf_counter()
            model.answer([row], now).rows()
            took.append(time.perf_counter() - began)
    except EverloopError:
        return 1.0
    return min(took)
