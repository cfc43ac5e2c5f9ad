"""What the prediction server refuses is counted by column and minute of event time."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from everloop.predictions import refusals
from everloop.predictions.refusals import OTHERS, Refusals, first_refused, forget_before, refused_in
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


def test_the_first_window_of_which_many_rows_were_refused_is_found(tmp_path: Path) -> None:
    noted, now = Refusals(tmp_path), AT + timedelta(days=40)
    noted.note("rows[0].income", [AT - timedelta(days=1)] * 9)
    noted.note("rows[0].income", [AT + hour * timedelta(hours=1) for hour in range(4)])
    noted.note("rows[0].age", [AT] * 6)
    noted.note("rows[0].age", [datetime.max.replace(tzinfo=UTC)] * 50)  # its window has no end
    noted.note("rows[0].age", [datetime.min.replace(tzinfo=UTC)] * 9)
    noted.flush(now=True)

    assert first_refused(tmp_path, None, now, "day", 10) == DAY.start
    assert first_refused(tmp_path, None, now, "week", 10) == DAY.start  # a Monday
    assert first_refused(tmp_path, None, now, "hour", 10) is None
    assert first_refused(tmp_path, DAY.start - timedelta(days=3), now, "day", 9) == DAY.start - timedelta(days=1)
    assert first_refused(tmp_path, DAY.end, now, "day", 1) is None
    assert first_refused(tmp_path, DAY.start, DAY.start, "day", 1) is None  # nothing of it is over yet
    assert first_refused(tmp_path / "none", None, now, "day", 1) is None

    noted.note("rows[0].age", [AT + timedelta(days=1)] * 10)
    noted.flush(now=True)  # what was read before has grown
    assert first_refused(tmp_path, DAY.end, now, "day", 10) == DAY.end

    forget_before(tmp_path, datetime.now(UTC) - timedelta(days=1))
    assert refused_in(tmp_path, DAY) != {}
    forget_before(tmp_path, datetime.now(UTC) + timedelta(days=1))
    assert refused_in(tmp_path, DAY) == {}


def test_rows_of_one_request_count_each_in_its_own_window(tmp_path: Path) -> None:
    noted = Refusals(tmp_path)
    noted.note("rows[1].income", [AT, AT + timedelta(days=1), AT + timedelta(days=1)])
    noted.flush()
    after = Window(start=DAY.end, end=DAY.end + timedelta(days=1))
    assert (refused_in(tmp_path, DAY), refused_in(tmp_path, after)) == ({"income": 1}, {"income": 2})
