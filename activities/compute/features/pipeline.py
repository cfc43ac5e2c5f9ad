"""The fitted preprocessing: small, and written twice, in NumPy and as nodes of the graph."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from activities.compute.features.categories import codes, codes_in_graph
from activities.compute.features.dates import dates, dates_in_graph, difference, difference_in_graph
from activities.compute.features.encoding import encoded, encoded_in_graph
from activities.compute.features.graph import Graph
from activities.compute.features.inputs import (
    Added,
    Difference,
    Dropped,
    Encoding,
    Indicator,
    Input,
    Kind,
    Matrix,
    Terms,
)
from activities.compute.features.numbers import (
    fine,
    fine_in_graph,
    indicator,
    indicator_in_graph,
    number,
    numbers_in_graph,
)
from activities.compute.features.terms import counted, counted_in_graph
from activities.compute.inference import Columns
from everloop.artifacts import Artifacts
from everloop.errors import naming
from everloop.records import Blob

T = TypeVar("T")

FINE = ("fine", "finest")


@dataclass(frozen=True)
class Pipeline:
    """The fitted preprocessing. `transform` turns raw columns into float32 [rows, features]."""

    task: str
    target: str
    time: str | None
    key: str | None
    positive: str
    classes: tuple[str, ...]
    inputs: tuple[Input, ...]
    """Numbers and booleans, then datetimes, then categories: the order of the features."""
    dropped: tuple[Dropped, ...] = ()
    differences: tuple[Difference, ...] = ()
    indicators: tuple[Indicator, ...] = ()
    encodings: tuple[Encoding, ...] = ()
    terms: tuple[Terms, ...] = ()
    added: tuple[Added, ...] = ()
    """What was made of the columns beyond their plain features, and why."""
    center: float = 0.0
    scale: float = 1.0
    """Regression: the model learns (target - center) / scale, so that float32 leaves keep their precision."""
    names: tuple[str, ...] = field(init=False, default=())
    """Of the features, for people."""

    def __post_init__(self) -> None:
        names = [name for entry in self.inputs if entry.kind != "category" for name in _feature_names(entry)]
        names += [f"{entry.end} - {entry.start} (days)" for entry in self.differences]
        names += [f"{entry.column} (missing)" for entry in self.indicators]
        names += [f"{entry.name} ({FINE[level]})" for entry in self.blurred for level in range(entry.fine)]
        names += [f"{entry.column} ({self._mean(entry)})" for entry in self.encodings]
        names += [f"{entry.column}: {term}" for entry in self.terms for term in entry.terms]
        names += [entry.name for entry in self.of("category")]
        object.__setattr__(self, "names", tuple(names))

    def _mean(self, entry: Encoding) -> str:
        return "mean of the target" if entry.of is None else f"share of {self.classes[entry.of]}"

    def of(self, *kinds: Kind) -> tuple[Input, ...]:
        return tuple(entry for entry in self.inputs if entry.kind in kinds)

    @property
    def blurred(self) -> tuple[Input, ...]:
        """Numbers that float32 alone does not hold."""
        return tuple(entry for entry in self.inputs if entry.fine)

    @property
    def fine_places(self) -> dict[int, str]:
        """Places of the features that hold what float32 leaves of numbers, and whose columns they are of."""
        start = sum(len(_feature_names(entry)) for entry in self.inputs if entry.kind != "category")
        start += len(self.differences) + len(self.indicators)
        return dict(enumerate((entry.name for entry in self.blurred for _ in range(entry.fine)), start))

    @property
    def categorical(self) -> list[int]:
        """Places of the features that are category codes."""
        return list(range(len(self.names) - len(self.of("category")), len(self.names)))

    def transform(self, columns: Columns, folds: NDArray[np.int8] | None = None) -> Matrix:
        """Features of raw 1-D columns: what the exported graph computes inside.

        *folds*: of rows that this was fitted on, -1 for others (see `Encoding`).
        """
        return np.ascontiguousarray(self.by_feature(columns, folds).T)

    def by_feature(self, columns: Columns, folds: NDArray[np.int8] | None = None) -> Matrix:
        """`transform` as [features, rows]: how it is made, as each feature is then written in one go."""
        made = np.empty((len(self.names), len(columns[self.inputs[0].name])), np.float32)
        place = 0
        for feature in self._features(columns, folds):
            count = 1 if feature.ndim == 1 else len(feature)
            made[place : place + count] = feature
            place += count
        return made

    def _features(self, columns: Columns, folds: NDArray[np.int8] | None) -> Iterator[Matrix]:
        """One after the other in the order of `names`, each [rows]; those of a text [terms, rows]."""
        for entry in self.of("number", "boolean"):
            yield _named(entry.name, number, entry, columns[entry.name])
        for entry in self.of("datetime"):
            yield from _named(entry.name, dates, entry, columns[entry.name])
        yield from (_named(each.end, difference, each, columns) for each in self.differences)
        yield from (_named(each.column, indicator, each, columns) for each in self.indicators)
        yield from (_named(entry.name, fine, entry, columns[entry.name]) for entry in self.blurred)
        yield from (_named(each.column, encoded, each, columns[each.column], folds) for each in self.encodings)
        yield from (_named(each.column, counted, each, columns[each.column]).T for each in self.terms)
        yield from (_named(entry.name, codes, entry, columns[entry.name]) for entry in self.of("category"))

    def in_graph(self, graph: Graph) -> str:
        """Add nodes that compute what `transform` does, once; returns the name of the features [rows, features]."""
        if not graph.features:
            graph.features = self._in_graph(graph)
        return graph.features

    def _in_graph(self, graph: Graph) -> str:
        plain = self.of("number", "boolean")
        blocks = [numbers_in_graph(graph, plain)] if plain else []
        blocks += [part for entry in self.of("datetime") for part in dates_in_graph(graph, entry)]
        blocks += [difference_in_graph(graph, entry) for entry in self.differences]
        blocks += [indicator_in_graph(graph, entry) for entry in self.indicators]
        blocks += [rest for entry in self.blurred for rest in fine_in_graph(graph, entry)]
        blocks += [encoded_in_graph(graph, entry) for entry in self.encodings]
        blocks += [counted_in_graph(graph, entry) for entry in self.terms]
        blocks += [codes_in_graph(graph, entry) for entry in self.of("category")]
        return graph.add("Concat", *blocks, axis=1)

    def dump(self) -> bytes:
        values = asdict(self)
        del values["names"]
        return json.dumps(values, allow_nan=False).encode()

    @classmethod
    def read(cls, artifacts: Artifacts, blob: Blob) -> "Pipeline":
        """The pipeline in *blob*, also one that was fitted before a rule was there."""
        values = _frozen(json.loads(artifacts.get(blob)))
        return cls(**(values | {name: tuple(kind(**each) for each in values.get(name, ())) for name, kind in MADE_OF}))


def _named(column: str, rule: Callable[..., T], *given: object) -> T:
    with naming(column=column):
        return rule(*given)


MADE_OF: tuple[tuple[str, Any], ...] = (
    ("inputs", Input),
    ("dropped", Dropped),
    ("differences", Difference),
    ("indicators", Indicator),
    ("encodings", Encoding),
    ("terms", Terms),
    ("added", Added),
)


def _frozen(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Lists as tuples."""
    if isinstance(value, dict):
        return {name: _frozen(each) for name, each in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _feature_names(entry: Input) -> list[str]:
    if entry.kind == "text":
        return []
    return [f"{entry.name} ({part})" for part in entry.parts] if entry.kind == "datetime" else [entry.name]
