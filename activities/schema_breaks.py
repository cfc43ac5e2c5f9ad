"""What the rows say that the prediction server has refused, beside those that it answered.

Control asks too, of a window in which too little was answered for a job: nothing heavy is loaded here.
"""

from collections.abc import Mapping

from everloop.records import Break, Measure
from everloop.specs import Monitor

REFUSED = 0.5
"""Share of a window's rows that do not fit the model's columns from which the data is broken."""
MOST_NAMED, MOST_BROKEN = 3, 20


def schema_of(refused: Mapping[str, int], answered: int, monitor: Monitor) -> tuple[Measure, list[Break]]:
    """Rows that the prediction server has refused, by the column that does not fit, beside those that it answered."""
    total = sum(refused.values())
    share = total / (answered + total) if total else 0.0
    worst = sorted(refused, key=lambda column: (-refused[column], column))
    listed = ", ".join(f"{column!r} in {refused[column]:,}" for column in worst[:MOST_NAMED])
    more = f" and {len(worst) - MOST_NAMED} more columns" if len(worst) > MOST_NAMED else ""
    why = f"{share:.1%} of the rows were refused, a column is gone or its type has changed: {listed}{more}"
    measure = Measure(
        name="schema",
        value=share,
        threshold=monitor.quality,
        over=share >= monitor.quality,
        why=why if total else "no row was refused",
        column=worst[0] if worst else "",
    )
    if share < REFUSED:
        return measure, []
    return measure, [
        Break(column=column, kind="schema", why=f"{refused[column]:,} of {answered + total:,} rows were refused for it")
        for column in worst
        if refused[column] >= REFUSED * total / 2
    ]


def unanswered(
    refused: Mapping[str, int], answered: int, monitor: Monitor | None
) -> tuple[tuple[Measure, ...], tuple[Break, ...]]:
    """Of a window in which fewer than `minimum_rows` were answered: nothing, where that is true with the refused."""
    if monitor is None or answered + sum(refused.values()) < monitor.minimum_rows or not refused:
        return (), ()
    measure, broken = schema_of(refused, answered, monitor)
    return (measure,), tuple(broken[:MOST_BROKEN])


def too_few(answered: int, refused: int, needed: int) -> str:
    """Why the drift of a window with so few rows was not measured."""
    if not refused:
        return f"{answered} rows in the window, {needed} are needed"
    return f"{answered} rows were answered in the window and {refused:,} refused; {needed} answered ones are needed"
