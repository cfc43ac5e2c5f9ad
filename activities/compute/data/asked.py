"""Columns that the spec names."""

import difflib
from collections.abc import Sequence

from everloop.errors import InvalidSpec
from everloop.specs import LifecycleSpec


def check_spec(spec: LifecycleSpec, names: Sequence[str]) -> None:
    """Every column that the spec names exists. Raises `InvalidSpec` with the nearest names that do."""
    wanted: list[tuple[str, str]] = [("target", spec.target)]
    wanted += [(field, value) for field in ("time", "key", "group", "weight") if (value := getattr(spec, field))]
    wanted += [("features.include", name) for name in spec.features.include or ()]
    wanted += [("columns", name) for name in spec.columns]
    wanted += [("features.exclude", name) for name in spec.features.exclude]
    for field, name in wanted:
        if name not in names:
            message = f"{field}: the data has no column {name!r}"
            raise InvalidSpec(message, field=field, hint=nearest(name, names))


def nearest(name: str, names: Sequence[str]) -> str:
    """Which columns are most like *name*, as a hint."""
    lowered = {other.lower(): other for other in names}
    close = [lowered[match] for match in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)]
    shown = close or list(names[:8])
    more = "" if close or len(names) <= len(shown) else f" and {len(names) - len(shown)} more"
    return f"the {'nearest ' if close else ''}columns are {', '.join(map(repr, shown))}{more}"
