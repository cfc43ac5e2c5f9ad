"""The words of each family of trainers: its `params`, and which of them a search may turn.

One file per family, found by being here; what it does is the file or folder of the same name in
activities/compute/trainers. Each file has

- `Params`: what a spec may say under `params:`;
- `space(task, rows)`: a `Space` for a table of so many train rows;
- `STEP`: what its rungs count (`rounds`, `epochs`, `trees`), or "" where it learns in one go.
"""

import importlib
import pkgutil
from typing import Protocol, cast

from pydantic import ValidationError

from everloop.families.space import Parameter, Space
from everloop.strict import Strict

__all__ = ["FAMILIES", "FILES", "LEARNERS", "Family", "Parameter", "Space", "check", "family"]


class Family(Protocol):
    """What a family's file has."""

    Params: type[Strict]
    STEP: str

    def space(self, task: str, rows: int) -> Space: ...


_OTHERS = {"space"}

FILES = {"torch": "torch_tabular"}
"""In activities/compute/trainers, of families that are not called as their file is there."""

FAMILIES: tuple[str, ...] = tuple(
    sorted(each.name for each in pkgutil.iter_modules(__path__) if each.name not in _OTHERS)
)
"""Trainers of ours, as a spec names them."""

LEARNERS: tuple[str, ...] = tuple(name for name in FAMILIES if name != "ensemble")
"""Those that learn by themselves: what a search chooses from, and what an ensemble is made of."""


def family(name: str) -> Family:
    """The words of a family of ours. Raises `ModuleNotFoundError` for any other."""
    return cast("Family", importlib.import_module(f"{__name__}.{name}"))


def check(name: str, params: dict[str, object]) -> None:
    """Raises `ValueError` with the first of *params* that the family does not know or that is out of its range."""
    known = family(name).Params
    try:
        known.model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        listed = f"; known are {', '.join(known.model_fields)}" if first["type"] == "extra_forbidden" else ""
        said = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"params{'.' * bool(where)}{where}: {said}{listed}") from None
