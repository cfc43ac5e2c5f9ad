"""What a search may choose beside a family's parameters: features. A trial's point names them with `features.` first.

A point that leaves one out has what the spec says. What did not help any table of ours for a family is not offered
to it (docs/choices.md has the figures).
"""

from typing import Any

from everloop.families.space import Parameter, Space, choice, integer
from everloop.specs import Features, LifecycleSpec, Selection

PREFIX = "features."
OFF = "none"
LINES = ("linear", "torch")
"""Families that look at how far numbers lie apart. Trees only look at their order, and leave out by themselves what
says nothing: to them less is offered."""
POINTS: tuple[dict[str, Any], ...] = ({f"{PREFIX}skew": "log1p"},)
"""To try before any sampler, beside the family's own: on ten tables the one that helped linear most."""
LEAST_COLUMNS = 4
"""With fewer there is little to choose."""


def methods(family: str) -> tuple[str, ...]:
    """Of `Selection`, those that are offered."""
    found = ("mutual_information", "correlation")
    return (*found, "importance", "l1") if family in LINES else found


def space(spec: LifecycleSpec, family: str, rows: int, columns: int) -> Space:  # noqa: ARG001
    """What a trial of *family* may choose for a table of so many train rows and columns. What the spec says stays."""
    said, lines = spec.features, family in LINES
    found: list[Parameter] = []
    if not said.interactions:
        found.append(integer(f"{PREFIX}interactions", 0, 6))
    if lines and said.skew == OFF:
        found.append(choice(f"{PREFIX}skew", OFF, "log1p", "yeo_johnson", "quantile"))
    if not lines and said.near_duplicates is None:
        found.append(choice(f"{PREFIX}near_duplicates", 1.0, 0.95))
    if said.selection is None and columns >= LEAST_COLUMNS:
        offered = methods(family)
        found.append(choice(f"{PREFIX}selection", OFF, *offered))
        when: dict[str, tuple[Any, ...]] = {f"{PREFIX}selection": offered}
        least = 0.3 if lines else 0.5
        found.append(Parameter(name=f"{PREFIX}keep", kind="float", low=least, high=0.95, when=when))
    named = {each.name for each in found}
    return Space(parameters=tuple(found), portfolio=tuple(point for point in POINTS if point.keys() <= named))


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
