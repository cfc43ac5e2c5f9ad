"""What a terminal shows well: marks, times, numbers and tables. Readable without colour, and when narrow."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False, soft_wrap=False)
_UTF8 = (sys.stdout.encoding or "").lower().startswith("utf")

MARKS = {
    "done": ("✓", "+", "green"),
    "running": ("●", "*", "cyan"),
    "failed": ("✗", "x", "red"),
    "skipped": ("-", "-", "yellow"),
    "paused": ("‖", "=", "yellow"),
    "preempted": ("‖", "=", "yellow"),
    "ahead": ("·", ".", "bright_black"),
}

STYLES = {
    "running": "cyan",
    "waiting_approval": "yellow",
    "needs_attention": "red",
    "released": "green",
    "done": "green",
    "failed": "red",
    "terminated": "red",
}


def mark(status: str) -> Text:
    fancy, plain, style = MARKS.get(status, ("?", "?", ""))
    return Text(fancy if _UTF8 else plain, style=style)


def words(status: str) -> Text:
    return Text(status.replace("_", " "), style=STYLES.get(status, ""))


def moment(value: object) -> datetime | None:
    """An ISO string as a moment in UTC."""
    if not isinstance(value, str) or not value:
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def when(value: object) -> str:
    found = moment(value)
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if found else ""


def number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value) if value is not None else "-"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def whole(text: str, style: str = "dim") -> Text:
    """A line that is never broken: it is there to be copied."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def command(text: str) -> Text:
    return whole(f"  $ {text}", style="")


def table(*columns: str) -> Table:
    """A plain table: no box, long words are folded and never cut."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def spark(values: list[float | None], width: int = 24) -> str:
    """The course of *values* in one line of text."""
    marks = "▁▂▃▄▅▆▇█" if _UTF8 else "_.-~=+*#"
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    count = min(width, len(known))
    picked = [known[round(place * (len(known) - 1) / max(1, count - 1))] for place in range(count)]
    scale = (len(marks) - 1) / (high - low) if high > low else 0
    return "".join(marks[round((value - low) * scale)] for value in picked)


def sketch(counts: Sequence[int]) -> str:
    """Bars of a histogram, one letter each."""
    steps = "▁▂▃▄▅▆▇█" if _UTF8 else "_.:-=+*#"
    most = max(counts, default=0)
    return "".join(steps[min(len(steps) - 1, count * len(steps) // most)] if count else " " for count in counts)
