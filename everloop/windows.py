"""Calendar windows of event time, UTC."""

from datetime import UTC, datetime, timedelta

from everloop.records import Window


def begins(cursor: datetime, size: str) -> datetime:
    """When the first window of *size* begins that has nothing in common with what was decided up to *cursor*.

    It is *cursor* itself unless the monitor's window has changed its size since.
    """
    window = window_of(cursor, size)
    return window.start if window.start >= cursor else window.end


def window_of(moment: datetime, size: str) -> Window:
    """The calendar window (UTC) that *moment* lies in."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if size == "hour":
        start = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        return Window(start=start, end=start + timedelta(hours=1))
    if size == "day":
        return Window(start=day, end=day + timedelta(days=1))
    if size == "week":
        start = day - timedelta(days=day.weekday())
        return Window(start=start, end=start + timedelta(days=7))
    start = day.replace(day=1)
    return Window(start=start, end=(start + timedelta(days=32)).replace(day=1))
