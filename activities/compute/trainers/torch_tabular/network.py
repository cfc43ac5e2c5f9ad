"""The network: written once, computed by torch or written down as nodes of the graph.

Numbers are standardised, and pressed together beyond three standard deviations: no value, however extreme, makes the
sums of float32 imprecise. A missing number counts as the average one, beside a flag that says so where training has
seen one missing. A category's value is a row of one table of embeddings; one that training has not seen is answered
as the average of those it has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from activities.compute.features import Matrix, Pipeline, PreparedRows
from activities.compute.features.categories import FIRST
from activities.compute.features.graph import FLOAT, INT64, Graph
from everloop.families.torch import Params as TorchParams

T = TypeVar("T")
Tensor = Any
"""A torch.Tensor: torch's types are not read here."""

FAR = 100.0
"""Standard deviations beyond which numbers are cut, so that their squares are finite."""
NEAR = 3.0
"""Standard deviations that numbers come near to and never reach."""
LEAST_SPREAD = 1e-30
"""A column that spreads less is taken for a constant: float32 divides by no less."""
EPSILON = 1e-5
CHUNK_CELLS = 8_000_000
"""Features that are looked at together: 32 MB."""


@dataclass(frozen=True)
class Shape:
    """What the network is made of."""

    architecture: str
    layers: int
    width: int
    embedding: int
    numbers: int
    """The first features; the others are codes."""
    flagged: tuple[int, ...]
    """Numbers of which some are missing in the train rows."""
    codes: tuple[int, ...]
    """How many each category has."""
    outputs: int

    @classmethod
    def of(cls, params: TorchParams, pipeline: Pipeline, found: "Found") -> "Shape":
        return cls(
            architecture=params.architecture,
            layers=params.layers,
            width=params.width,
            embedding=params.embedding,
            numbers=len(found.mean),
            flagged=tuple(np.flatnonzero(found.missing).tolist()),
            codes=tuple(map(len, found.counts)),
            outputs=len(pipeline.classes) or 1,
        )

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each category begins in the table of embeddings."""
        return np.cumsum([0, *self.codes[:-1]])

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is learned; a `.weight` is [inputs, outputs]."""
        found: dict[str, tuple[int, ...]] = {}
        if self.codes:
            found["embedding"] = (sum(self.codes), self.embedding)
        wide = self.numbers + len(self.flagged) + len(self.codes) * self.embedding
        for name, inputs, outputs in self._linear(wide):
            found[f"{name}.weight"], found[f"{name}.bias"] = (inputs, outputs), (outputs,)
        if self.architecture == "resnet":
            for name in (*(f"block{place}.norm" for place in range(self.layers)), "leave.norm"):
                found[f"{name}.scale"], found[f"{name}.shift"] = (self.width,), (self.width,)
        return found

    def _linear(self, wide: int) -> Iterator[tuple[str, int, int]]:
        yield "enter", wide, self.width
        if self.architecture == "resnet":
            for place in range(self.layers):
                yield f"block{place}.first", self.width, 2 * self.width
                yield f"block{place}.second", 2 * self.width, self.width
        else:
            for place in range(self.layers - 1):
                yield f"layer{place}", self.width, self.width
        yield "leave", self.width, self.outputs

    @property
    def dropped(self) -> tuple[int, ...]:
        """Widths of what dropout is applied to."""
        return (2 * self.width if self.architecture == "resnet" else self.width,) * self.layers


# --- what is computed ---------------------------------------------------------------------------


class Operations(Protocol[T]):
    """What the network is made of, as torch or the graph does it."""

    def linear(self, given: T, name: str) -> T: ...
    def norm(self, given: T, name: str) -> T: ...
    def relu(self, given: T) -> T: ...
    def add(self, one: T, other: T) -> T: ...
    def dropped(self, given: T, place: int) -> T: ...


def body(do: Operations[T], shape: Shape, entered: T) -> T:
    """Outputs [rows, outputs] of what `InTorch.entered` or `InGraph.entered` makes of the features."""
    hidden = do.linear(entered, "enter")
    if shape.architecture == "mlp":
        for place in range(shape.layers):
            hidden = do.dropped(do.relu(hidden), place)
            hidden = do.linear(hidden, f"layer{place}") if place < shape.layers - 1 else hidden
        return do.linear(hidden, "leave")
    for place in range(shape.layers):
        inner = do.linear(do.norm(hidden, f"block{place}.norm"), f"block{place}.first")
        inner = do.dropped(do.relu(inner), place)
        hidden = do.add(hidden, do.linear(inner, f"block{place}.second"))
    return do.linear(do.relu(do.norm(hidden, "leave.norm")), "leave")


class InTorch:
    """Computed now. *masks* [rows, width] say what dropout keeps, times *kept*."""

    def __init__(self, values: Mapping[str, Tensor], masks: Sequence[Tensor] = (), kept: float = 1.0) -> None:
        self._values, self._masks, self._kept = values, masks, kept

    def entered(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Scaled numbers and flags [rows, ...] and places in the table of embeddings [rows, categories], side by side.

        `Scaling.features` makes both of features.
        """
        if not codes.shape[1]:
            return numbers
        embedded = torch.nn.functional.embedding(codes, self._values["embedding"])
        return torch.cat([numbers, embedded.flatten(1)], dim=1)

    def linear(self, given: Tensor, name: str) -> Tensor:
        return torch.addmm(self._values[f"{name}.bias"], given, self._values[f"{name}.weight"])

    def norm(self, given: Tensor, name: str) -> Tensor:
        scale, shift = self._values[f"{name}.scale"], self._values[f"{name}.shift"]
        return torch.nn.functional.layer_norm(given, scale.shape, scale, shift, EPSILON)

    def relu(self, given: Tensor) -> Tensor:
        return torch.relu(given)

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other

    def dropped(self, given: Tensor, place: int) -> Tensor:
        return given * self._masks[place] / self._kept if self._masks else given


class InGraph:
    """Written down as nodes."""

    def __init__(self, graph: Graph, values: Mapping[str, Tensor]) -> None:
        self._graph, self._values = graph, values

    def _value(self, name: str) -> str:
        return self._graph.constant(self._values[name].numpy(), np.float32)

    def entered(self, shape: Shape, scaling: "Scaling", features: str) -> str:
        """What `Scaling.features` and `InTorch.entered` make of features [rows, features]."""
        add, constant = self._graph.add, self._graph.constant
        blocks = []
        if shape.numbers:
            numbers = add("Gather", features, constant(np.arange(shape.numbers), np.int64), axis=1)
            missing, mean = add("IsNaN", numbers), constant(scaling.mean[None], np.float32)
            apart = add("Sub", add("Where", missing, mean, numbers), mean)
            far = constant(-FAR, np.float32), constant(FAR, np.float32)
            scaled = add("Clip", add("Div", apart, constant(scaling.spread[None], np.float32)), *far)
            shrunk = add("Div", scaled, constant(NEAR, np.float32))
            root = add("Sqrt", add("Add", add("Mul", shrunk, shrunk), constant(1, np.float32)))
            blocks.append(add("Div", scaled, root))
            if shape.flagged:
                flags = add("Gather", missing, constant(shape.flagged, np.int64), axis=1)
                blocks.append(add("Cast", flags, to=FLOAT))
        if shape.codes:
            places = constant(np.arange(len(shape.codes)) + shape.numbers, np.int64)
            codes = add("Cast", add("Gather", features, places, axis=1), to=INT64)
            codes = add("Add", codes, constant(shape.offsets[None], np.int64))
            embedded = add("Gather", self._value("embedding"), codes, axis=0)
            flat = constant([0, len(shape.codes) * shape.embedding], np.int64)
            blocks.append(add("Reshape", embedded, flat))
        return add("Concat", *blocks, axis=1) if len(blocks) > 1 else blocks[0]

    def linear(self, given: str, name: str) -> str:
        return self._graph.add("Gemm", given, self._value(f"{name}.weight"), self._value(f"{name}.bias"))

    def norm(self, given: str, name: str) -> str:
        scale, shift = self._value(f"{name}.scale"), self._value(f"{name}.shift")
        return self._graph.add("LayerNormalization", given, scale, shift, axis=-1, epsilon=EPSILON)

    def relu(self, given: str) -> str:
        return self._graph.add("Relu", given)

    def add(self, one: str, other: str) -> str:
        return self._graph.add("Add", one, other)

    def dropped(self, given: str, place: int) -> str:  # noqa: ARG002  # only training drops
        return given


# --- what is fitted in one pass -----------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What the features of the train rows hold."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    """Standard deviations."""
    missing: NDArray[np.int64]
    """How many, per number."""
    counts: list[NDArray[np.int64]]
    """Of each code, per category."""


@dataclass(frozen=True)
class Scaling:
    """Of numbers, float32 [numbers]."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    @classmethod
    def of(cls, found: Found) -> "Scaling":
        spread = np.where(found.spread > LEAST_SPREAD, found.spread, 1.0)
        return cls(found.mean.astype(np.float32), spread.astype(np.float32))

    def features(self, shape: Shape, matrix: Matrix, device: str) -> tuple[Tensor, Tensor]:
        """Scaled numbers and flags, and places in the table of embeddings, of features [rows, features]."""
        whole = torch.from_numpy(matrix).to(device)
        numbers = whole[:, : shape.numbers]
        mean, spread = (torch.from_numpy(each).to(device) for each in (self.mean, self.spread))
        missing = torch.isnan(numbers)
        scaled = torch.clamp((torch.where(missing, mean, numbers) - mean) / spread, -FAR, FAR)
        shrunk = scaled / NEAR
        scaled = scaled / torch.sqrt(shrunk * shrunk + 1)
        offsets = torch.from_numpy(shape.offsets[: len(shape.codes)]).to(device)
        return torch.cat([scaled, missing[:, list(shape.flagged)].float()], dim=1), (
            whole[:, shape.numbers :].long() + offsets
        )


def look(pipeline: Pipeline, rows: PreparedRows, places: NDArray[np.int64]) -> Found:
    """Means and deviations in float64, chunk by chunk, and how often each code is there."""
    categories = pipeline.of("category")
    width = rows.features - len(categories)
    count, mean, squares = np.zeros(width, np.int64), np.zeros(width), np.zeros(width)
    counts = [np.zeros(FIRST + len(entry.known), np.int64) for entry in categories]
    for chunk in rows.matrices(places, max(1, CHUNK_CELLS // rows.features)):
        numbers = chunk[:, :width].astype(np.float64)
        there = ~np.isnan(numbers)
        added = there.sum(axis=0)
        own = np.where(there, numbers, 0).sum(axis=0) / np.maximum(added, 1)
        # Chan's rule: sums of squares around each chunk's own mean lose nothing where the mean is far from 0.
        squares += np.where(there, (numbers - own) ** 2, 0).sum(axis=0)
        both, apart = np.maximum(count + added, 1), own - mean
        squares += apart**2 * (count * added / both)
        mean = mean + apart * (added / both)
        count += added
        for place, entry in enumerate(categories):
            codes = chunk[:, width + place].astype(np.int64)
            counts[place] += np.bincount(codes, minlength=FIRST + len(entry.known))
    return Found(mean, np.sqrt(squares / np.maximum(count, 1)), len(places) - count, counts)
