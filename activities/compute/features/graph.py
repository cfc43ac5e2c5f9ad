"""An ONNX graph while rules add their nodes to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FLOAT, INT64, STRING, DOUBLE = 1, 7, 8, 11  # ONNX's numbers of types: onnx itself is loaded where a graph is built


@dataclass
class Graph:
    """Nodes and constants as they are added; names of ours start with `everloop:` and stay clear of the columns'."""

    taken: frozenset[str]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    opset: int = 18
    """The lowest version of ONNX's operators that the nodes need."""
    domains: dict[str, int] = field(default_factory=lambda: {"ai.onnx.ml": 3})
    """The same of other sets of operators."""
    features: str = ""
    """Where the pipeline's features are, once their nodes are there: members of an ensemble share them."""

    def constant(self, values: object, kind: type | np.dtype[Any]) -> str:
        from onnx import numpy_helper

        name = self.free(f"everloop:c{len(self.constants)}")
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def text(self, value: str) -> str:
        """A constant text."""
        from onnx import helper

        name = self.free(f"everloop:c{len(self.constants)}")
        self.constants.append(helper.make_tensor(name, STRING, [1], [value.encode()]))
        return name

    def add(self, op: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:  # noqa: ANN401
        """Add a node; returns the name of its first output."""
        from onnx import helper

        names = list(outputs) or [self.free(f"everloop:n{len(self.nodes)}")]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def free(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        return name
