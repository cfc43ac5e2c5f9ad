"""When a value of a time column says."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

UNITS: dict[str, Callable[[float], datetime]] = {
    "year": lambda value: datetime(int(value), 1, 1, tzinfo=UTC),
    "day": lambda value: datetime(int(value) // 10000, int(value) // 100 % 100, int(value) % 100, tzinfo=UTC),
    "seconds": lambda value: datetime.fromtimestamp(value, UTC),
    "milliseconds": lambda value: datetime.fromtimestamp(value / 1e3, UTC),
}
"""What a number in a time column may be (`day` is YYYYMMDD)."""


def moment(value: object, layouts: Sequence[str] = ()) -> datetime:
    """When *value* says: ISO 8601 text, or one of *layouts* (of strptime, or of `UNITS`). Raises `ValueError`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        for unit in (name for name in layouts if name in UNITS):
            try:
                return UNITS[unit](value)
            except OverflowError:
                break
    elif isinstance(value, str):
        text = value.strip()
        for layout in layouts:
            try:
                return datetime.strptime(text, layout).replace(tzinfo=UTC)
            except ValueError:
                continue
        return datetime.fromisoformat(text)
    raise ValueError("not a moment")


def seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
