"""The fitted preprocessing: small, and written twice, in NumPy and as nodes of the graph."""

import json
from dataclasses import asdict, dataclass, field

import numpy as np

from activities.compute.features.categories import codes, codes_in_graph
from activities.compute.features.dates import dates, dates_in_graph
from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Dropped, Input, Kind, Matrix
from activities.compute.features.numbers import numbers, numbers_in_graph
from activities.compute.inference import Columns
from everloop.artifacts import Artifacts
from everloop.records import Blob


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
    center: float = 0.0
    scale: float = 1.0
    """Regression: the model learns (target - center) / scale, so that float32 leaves keep their precision."""
    names: tuple[str, ...] = field(init=False, default=())
    """Of the features, for people."""

    def __post_init__(self) -> None:
        names = [name for entry in self.inputs for name in _feature_names(entry)]
        object.__setattr__(self, "names", tuple(names))

    def of(self, *kinds: Kind) -> tuple[Input, ...]:
        return tuple(entry for entry in self.inputs if entry.kind in kinds)

    @property
    def categorical(self) -> list[int]:
        """Places of the features that are category codes."""
        return list(range(len(self.names) - len(self.of("category")), len(self.names)))

    def transform(self, columns: Columns) -> Matrix:
        """Features of raw 1-D columns: what the exported graph computes inside."""
        rows = len(columns[self.inputs[0].name])
        blocks = [numbers(self.of("number", "boolean"), columns, rows)]
        blocks += [dates(entry, columns[entry.name]) for entry in self.of("datetime")]
        blocks += [codes(entry, columns[entry.name]) for entry in self.of("category")]
        return np.ascontiguousarray(np.concatenate(blocks, axis=1))

    def in_graph(self, graph: Graph) -> str:
        """Add nodes that compute what `transform` does; returns the name of the features [rows, features]."""
        plain = self.of("number", "boolean")
        blocks = [numbers_in_graph(graph, plain)] if plain else []
        blocks += [part for entry in self.of("datetime") for part in dates_in_graph(graph, entry)]
        blocks += [codes_in_graph(graph, entry) for entry in self.of("category")]
        return graph.add("Concat", *blocks, axis=1)

    def dump(self) -> bytes:
        values = asdict(self)
        del values["names"]
        return json.dumps(values, allow_nan=False).encode()

    @classmethod
    def read(cls, artifacts: Artifacts, blob: Blob) -> "Pipeline":
        values = json.loads(artifacts.get(blob))
        inputs = tuple(
            Input(**(entry | {"known": tuple(entry["known"]), "parts": tuple(entry["parts"])}))
            for entry in values.pop("inputs")
        )
        dropped = tuple(Dropped(**entry) for entry in values.pop("dropped"))
        return cls(**(values | {"inputs": inputs, "dropped": dropped, "classes": tuple(values["classes"])}))


def _feature_names(entry: Input) -> list[str]:
    return [f"{entry.name} ({part})" for part in entry.parts] if entry.kind == "datetime" else [entry.name]
