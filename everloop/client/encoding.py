"""Values as JSON, also those of pandas and numpy."""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime

from everloop.errors import Invalid

MISSING_TYPES = frozenset({"NAType", "NaTType"})
"""What pandas calls a missing value; this client must not load pandas to ask."""


def encode(value: object) -> bytes:
    def plain(item: object) -> object:
        if type(item).__name__ in MISSING_TYPES:
            return None
        if isinstance(item, datetime):
            return item.isoformat()
        if hasattr(item, "item"):  # a numpy scalar
            return item.item()
        return str(item)

    try:
        return json.dumps(value, default=plain, allow_nan=False).encode()
    except ValueError:
        where = next(_not_finite(value), "")
        raise Invalid(
            f"{where or 'a value'} is NaN or Infinity, which are not JSON",
            field=where,
            hint="send null (None) for a missing value",
        ) from None


def _not_finite(value: object, where: str = "") -> Iterator[str]:
    """Where *value* holds NaN or Infinity: `rows[3].age`."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _not_finite(item, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{where}[{index}]")
    else:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, float) and not math.isfinite(number):
            yield where
