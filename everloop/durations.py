"""Lengths of time as people read them, on pages and in a terminal."""

from datetime import timedelta


def span(seconds: float | timedelta) -> str:
    """In one or two units: `0.8 s`, `3 min 5 s`, `2 h 10 min`, `4 d`."""
    left = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if left < 10:  # noqa: PLR2004
        return f"{left:.1f} s"
    minutes, rest = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)
