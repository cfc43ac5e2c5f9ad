"""What a search may choose beside a family's parameters: features. A trial's point names them with `features.` first.

A point that leaves one out has what the spec says. What did not help any table of ours for a family is not offered
to it (docs/choices.md has the figures).
"""

from typing import Any, Literal

from everloop.families.space import Parameter, Space, choice, integer
from everloop.specs import Features, LifecycleSpec, Selection

PREFIX = "features."
METHODS: tuple[Literal["mutual_information", "correlation", "importance", "l1"], ...] = (
    "mutual_information",
    "correlation",
    "importance",
    "l1",
)
EVEN = ("linear", "torch")
"""Families that look at how far numbers lie apart, and not only at their order."""
LEAST_COLUMNS = 4
"""With fewer there is little to choose."""
OFF = "none"


def space(spec: LifecycleSpec, family: str, rows: int, columns: int) -> Space:  # noqa: ARG001
    """What a trial of *family* may choose for a table of so many train rows and columns."""
    found: list[Parameter] = []
    if columns >= LEAST_COLUMNS:
        found += [
            choice(f"{PREFIX}selection", OFF, *METHODS),
            Parameter(name=f"{PREFIX}keep", kind="float", low=0.3, high=0.95, when={f"{PREFIX}selection": METHODS}),
            choice(f"{PREFIX}near_duplicates", 1.0, 0.99, 0.95),
        ]
    if family in EVEN:
        found.append(choice(f"{PREFIX}skew", OFF, "log1p", "yeo_johnson", "quantile"))
    found.append(integer(f"{PREFIX}interactions", 0, 6))
    return Space(parameters=tuple(found), portfolio=())


def split(point: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A point's parameters for the family, and its choices."""
    params = {name: value for name, value in point.items() if not name.startswith(PREFIX)}
    return params, {name: value for name, value in point.items() if name.startswith(PREFIX)}


def chosen(features: Features, choices: dict[str, Any]) -> Features:
    """The spec's *features* with a trial's *choices*. Raises `ValueError` for what is no choice."""
    given = {name.removeprefix(PREFIX): value for name, value in choices.items()}
    changed: dict[str, Any] = {}
    if "selection" in given:
        method = given.pop("selection")
        usual = features.selection.keep if features.selection else 0.5
        keep = given.pop("keep", usual)
        changed["selection"] = None if method == OFF else Selection(method=method, keep=keep)
    if "near_duplicates" in given:
        most = given.pop("near_duplicates")
        changed["near_duplicates"] = most if most < 1 else None
    return Features.model_validate(features.model_dump() | changed | given)
