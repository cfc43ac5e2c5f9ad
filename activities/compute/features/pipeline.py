"""The fitted preprocessing: small, and written twice, in NumPy and as nodes of the graph."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from activities.compute.features.categories import codes, codes_in_graph
from activities.compute.features.combinations import combination, combinations_in_graph
from activities.compute.features.dates import dates, dates_in_graph, difference, difference_in_graph
from activities.compute.features.encoding import encoded, encoded_in_graph
from activities.compute.features.graph import Graph
from activities.compute.features.inputs import (
    Added,
    Combination,
    Difference,
    Dropped,
    Encoding,
    Indicator,
    Input,
    Kind,
    Matrix,
    Score,
    Selected,
    Skew,
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
    combinations: tuple[Combination, ...] = ()
    """Products, then ratios."""
    skews: tuple[Skew, ...] = ()
    selected: Selected | None = None
    """How columns were chosen, where the spec asks for it."""
    added: tuple[Added, ...] = ()
    """What was made of the columns beyond their plain features, and why."""
    center: float = 0.0
    scale: float = 1.0
    """Regression: the model learns (target - center) / scale, so that float32 leaves keep their precision."""
    names: tuple[str, ...] = field(init=False, default=())
    """Of the features, for people."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(name for name, _ in self._made()))

    def _made(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each feature's name, and the columns that it is made of."""
        for entry in self.inputs:
            if entry.kind != "category":
                yield from ((name, (entry.name,)) for name in _feature_names(entry))
        yield from ((f"{each.end} - {each.start} (days)", (each.start, each.end)) for each in self.differences)
        yield from ((f"{each.column} (missing)", (each.column,)) for each in self.indicators)
        for entry in self.blurred:
            yield from ((f"{entry.name} ({FINE[level]})", (entry.name,)) for level in range(entry.fine))
        yield from ((f"{each.column} ({self._mean(each)})", (each.column,)) for each in self.encodings)
        yield from ((each.name, (each.left, each.right)) for each in self.combinations)
        yield from ((f"{each.column}: {term}", (each.column,)) for each in self.terms for term in each.terms)
        yield from ((entry.name, (entry.name,)) for entry in self.of("category"))

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        """Of each feature, the columns that it is made of."""
        return tuple(columns for _, columns in self._made())

    @property
    def looks_at_target(self) -> bool:
        """Were features chosen or made by the target of the rows it was fitted on? Others tell how good they are."""
        return bool(self.selected or self.encodings or self.terms or self.combinations)

    def only(self, names: Collection[str], dropped: Sequence[Dropped] = ()) -> "Pipeline":
        """The same of the columns in *names*; *dropped* say why the others are not there."""
        kept = tuple(each for each in self.differences if {each.start, each.end} <= set(names))
        gone = {f"{each.end} - {each.start}" for each in set(self.differences) - set(kept)}
        gone |= {entry.name for entry in self.inputs if entry.name not in names}
        return replace(
            self,
            inputs=tuple(entry for entry in self.inputs if entry.name in names),
            dropped=(*self.dropped, *dropped),
            differences=kept,
            indicators=tuple(each for each in self.indicators if each.column in names),
            encodings=tuple(each for each in self.encodings if each.column in names),
            combinations=tuple(each for each in self.combinations if {each.left, each.right} <= set(names)),
            skews=tuple(each for each in self.skews if each.column in names),
            terms=tuple(each for each in self.terms if each.column in names),
            added=tuple(each for each in self.added if each.name not in gone),
        )

    def _mean(self, entry: Encoding) -> str:
        return "mean of the target" if entry.of is None else f"share of {self.classes[entry.of]}"

    def of(self, *kinds: Kind) -> tuple[Input, ...]:
        return tuple(entry for entry in self.inputs if entry.kind in kinds)

    @property
    def _skews(self) -> dict[str, Skew]:
        return {each.column: each for each in self.skews}

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
        skews, inputs = self._skews, {entry.name: entry for entry in self.inputs}
        for entry in self.of("number", "boolean"):
            yield _named(entry.name, number, entry, columns[entry.name], skews.get(entry.name))
        for entry in self.of("datetime"):
            yield from _named(entry.name, dates, entry, columns[entry.name])
        yield from (_named(each.end, difference, each, columns) for each in self.differences)
        yield from (_named(each.column, indicator, each, columns) for each in self.indicators)
        yield from (_named(entry.name, fine, entry, columns[entry.name]) for entry in self.blurred)
        yield from (_named(each.column, encoded, each, columns[each.column], folds) for each in self.encodings)
        yield from (_named(each.left, combination, each, inputs, columns) for each in self.combinations)
        yield from (_named(each.column, counted, each, columns[each.column]).T for each in self.terms)
        yield from (_named(entry.name, codes, entry, columns[entry.name]) for entry in self.of("category"))

    def in_graph(self, graph: Graph) -> str:
        """Add nodes that compute what `transform` does, once; returns the name of the features [rows, features]."""
        if not graph.features:
            graph.features = self._in_graph(graph)
        return graph.features

    def _in_graph(self, graph: Graph) -> str:
        plain = self.of("number", "boolean")
        inputs = {entry.name: entry for entry in self.inputs}
        blocks = [numbers_in_graph(graph, plain, self._skews)] if plain else []
        blocks += [part for entry in self.of("datetime") for part in dates_in_graph(graph, entry)]
        blocks += [difference_in_graph(graph, entry) for entry in self.differences]
        blocks += [indicator_in_graph(graph, entry) for entry in self.indicators]
        blocks += [rest for entry in self.blurred for rest in fine_in_graph(graph, entry)]
        blocks += [encoded_in_graph(graph, entry) for entry in self.encodings]
        blocks += [combinations_in_graph(graph, self.combinations, inputs)] if self.combinations else []
        blocks += [counted_in_graph(graph, entry) for entry in self.terms]
        blocks += [codes_in_graph(graph, entry) for entry in self.of("category")]
        return graph.add("Concat", *blocks, axis=1)

    def dump(self) -> bytes:
        values = asdict(self)
        del values["names"]
        for name in LATER:
            if not values[name]:
                del values[name]  # what asks for none of it has the bytes that it always had
        return json.dumps(values, allow_nan=False).encode()

    @classmethod
    def read(cls, artifacts: Artifacts, blob: Blob) -> "Pipeline":
        """The pipeline in *blob*, also one that was fitted before a rule was there."""
        return cls.load(artifacts.get(blob))

    @classmethod
    def load(cls, dumped: bytes) -> "Pipeline":
        """What `dump` wrote."""
        values = frozen(json.loads(dumped))
        if chosen := values.get("selected"):
            values["selected"] = Selected(chosen["method"], tuple(Score(**each) for each in chosen["scores"]))
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
    ("combinations", Combination),
    ("skews", Skew),
    ("terms", Terms),
    ("added", Added),
)
LATER = ("combinations", "skews", "selected")
"""Fields that came later."""


def frozen(value: Any) -> Any:  # noqa: ANN401  # JSON
    """With its lists as tuples."""
    if isinstance(value, dict):
        return {name: frozen(each) for name, each in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def _feature_names(entry: Input) -> list[str]:
    if entry.kind == "text":
        return []
    return [f"{entry.name} ({part})" for part in entry.parts] if entry.kind == "datetime" else [entry.name]
