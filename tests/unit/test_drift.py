"""Which window of event time is checked next: by the clock first, and never one that was decided."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from activities.drift.windows import next_closed
from activities.predictions.index import LogIndex
from everloop.predictions import PredictionLog
from everloop.predictions.refusals import Refusals
from everloop.records import Window
from everloop.specs import Monitor
from everloop.windows import begins, window_of
from tests import stores

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 1, 8, 10, 30, tzinfo=UTC)  # a Thursday
TODAY = NOW.replace(hour=0, minute=0)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogIndex]:
    store = stores.migrated(f"sqlite:///{tmp_path / 'everloop.db'}")
    yield LogIndex(store, tmp_path / "predictions", "default", "credit")
    store.close()


def came(log: LogIndex, *moments: datetime) -> None:
    written = PredictionLog(log.folder)
    written.append([{"request_id": uuid.uuid4().hex, "row": 0, "event_time": moment.isoformat()} for moment in moments])
    written.close()
    log.refresh()


def monitor(window: str = "day", lateness: timedelta = timedelta(), idle: timedelta = 100 * DAY) -> Monitor:
    return Monitor.model_validate({"window": window, "lateness": lateness, "idle": idle})


def drained(log: LogIndex, policy: Monitor, cursor: datetime | None, now: datetime) -> list[Window]:
    """Every window that a monitor checks now, one after the other."""
    found = []
    while (window := next_closed(log, policy, cursor, now)) is not None:
        found.append(window)
        cursor = window.end
    return found


@pytest.mark.parametrize("ahead", [timedelta(seconds=1), 14 * HOUR, 20 * HOUR, 300 * DAY])
def test_a_row_ahead_of_the_clock_closes_no_window(log: LogIndex, ahead: timedelta) -> None:
    came(log, TODAY - 5 * HOUR, NOW + ahead)

    assert drained(log, monitor(), None, NOW) == []
    assert drained(log, monitor("hour"), None, NOW) == []


def test_a_row_from_the_future_leaves_every_honest_row_its_window(log: LogIndex) -> None:
    came(log, TODAY - 20 * HOUR, NOW + 14 * HOUR)
    checked: list[Window] = []
    cursor, now = None, NOW
    for _ in range(60):  # hour after hour, the honest rows come at their time
        came(log, now)
        closed = drained(log, monitor("hour", lateness=HOUR), cursor, now)
        assert all(window.end + HOUR <= now for window in closed)
        checked += closed
        cursor = checked[-1].end if checked else None
        now += HOUR

    assert all(before.end <= after.start for before, after in pairwise(checked))
    rows = sum(log.rows(window) for window in checked)
    # In the first window, each hour until two hours ago, and what was from the future when its own time had come.
    assert rows == 1 + 58 + 1


def test_a_window_that_is_not_over_stays_open_also_when_nothing_comes_any_more(log: LogIndex) -> None:
    came(log, TODAY + HOUR)

    assert next_closed(log, monitor(idle=timedelta()), None, NOW) is None
    later = datetime.now(UTC) + DAY  # the files' clock says when a row was last logged
    assert next_closed(log, monitor(idle=timedelta()), None, later) == window_of(TODAY, "day")


def test_a_replay_of_the_past_closes_windows_by_event_time_as_ever(log: LogIndex) -> None:
    first = datetime(2013, 1, 1, tzinfo=UTC)
    came(log, *(first + day * DAY for day in range(70)))

    closed = drained(log, monitor("month"), None, NOW)

    assert [(window.start.month, window.end.month) for window in closed] == [(1, 2), (2, 3)]


def refused(log: LogIndex, moment: datetime, rows: int) -> None:
    noted = Refusals(log.folder)
    noted.note("rows[0].income", [moment] * rows)
    noted.flush(now=True)


def test_a_window_of_which_every_row_was_refused_is_looked_at(log: LogIndex) -> None:
    refused(log, TODAY - 20 * HOUR, 100)
    yesterday = window_of(TODAY - DAY, "day")

    assert drained(log, monitor(), None, NOW) == [yesterday]  # nothing was ever answered: that is silence
    came(log, TODAY - 50 * HOUR)
    assert drained(log, monitor(), None, NOW) == []  # a replay that goes on may still come to it
    assert drained(log, monitor(idle=timedelta()), None, datetime.now(UTC)) == [
        window_of(TODAY - 50 * HOUR, "day"),
        yesterday,
    ]
    came(log, TODAY + HOUR)
    assert drained(log, monitor(), None, NOW)[1:] == [yesterday]


def test_a_few_refused_rows_are_no_window_and_close_none(log: LogIndex) -> None:
    refused(log, TODAY + HOUR, 99)
    refused(log, TODAY - 30 * DAY, 99)
    came(log, TODAY - 20 * HOUR)
    assert drained(log, monitor(), None, NOW) == []
    refused(log, TODAY + 2 * HOUR, 5000)
    assert drained(log, monitor(), None, NOW) == []
    assert next_closed(log, monitor(), TODAY, NOW) is None  # of an open window


SIZES = ("hour", "day", "week", "month")
LENGTHS = {"hour": HOUR, "day": DAY, "week": 7 * DAY, "month": 31 * DAY}


@pytest.mark.parametrize("after", SIZES)
@pytest.mark.parametrize("before", SIZES)
def test_a_monitor_whose_window_changes_goes_on_after_the_last_decided_one(
    log: LogIndex, before: str, after: str
) -> None:
    first = datetime(2025, 9, 10, tzinfo=UTC)  # a Wednesday
    came(log, *(first + number * 12 * HOUR for number in range(90)))
    decided = drained(log, monitor(before), None, NOW)
    came(log, *(decided[-1].end + number * 12 * HOUR for number in range(150)))

    goes_on = drained(log, monitor(after), decided[-1].end, NOW + 100 * DAY)

    assert goes_on
    assert goes_on[0].start >= decided[-1].end
    assert goes_on[0].start - decided[-1].end <= LENGTHS[after]
    assert goes_on[0].start == begins(decided[-1].end, after)
    every = [*decided, *goes_on]
    assert all(one.end <= two.start for one, two in pairwise(every))
    assert all(window == window_of(window.start, after) for window in goes_on)
