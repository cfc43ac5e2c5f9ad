"""What the prediction server refuses is counted by column and minute of event time."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from everloop.predictions import refusals
from everloop.predictions.refusals import OTHERS, Refusals, refused_in
from everloop.records import Window

AT = datetime(2026, 1, 5, 10, 30, 12, tzinfo=UTC)
DAY = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 6, tzinfo=UTC))


def test_rows_count_in_the_window_of_their_event_time(tmp_path: Path) -> None:
    noted = Refusals(tmp_path)
    noted.note("rows[0].income", [AT] * 3)
    noted.note("rows[17].a].b", [AT])  # a column may be called anything
    noted.note("rows[0].income", [AT + timedelta(days=1)])
    noted.flush()
    noted.note("rows[0].income", [datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))])  # of no window
    noted.note("rows[0].income", [])
    noted.note("", [AT])
    noted.flush()  # too soon: it waits
    assert refused_in(tmp_path, DAY) == {"income": 3, "a].b": 1}
    noted.flush(now=True)
    with next((tmp_path / "refused").iterdir()).open("a") as file:
        file.write('{"at": "2026-01-05T1')  # its process died
    assert refused_in(tmp_path, DAY) == {"income": 3, "a].b": 1, OTHERS: 1}
    assert refused_in(tmp_path / "none", DAY) == {}


def test_made_up_columns_take_no_memory_without_end(tmp_path: Path) -> None:
    noted = Refusals(tmp_path)
    for number in range(refusals.MOST_COUNTS + 50):
        noted.note(f"rows[0].{number}", [AT])
    noted.flush()
    counts = refused_in(tmp_path, DAY)
    assert len(counts) == refusals.MOST_COUNTS + 1
    assert counts[OTHERS] == 50
