"""The checks of a monitor are told by pages, however many there are."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from api import drift
from everloop.errors import NotFound
from everloop.store import DriftRow, Store

START, HOUR = datetime(2026, 1, 1, tzinfo=UTC), timedelta(hours=1)
WINDOWS = 230


def row(number: int, *, seq: int = 0, rows: int = 10, hours: int = 1) -> DriftRow:
    start = START + number * HOUR
    return DriftRow(
        workflow_id=f"check-{number}-{hours}", run_id="r", seq=seq, project="default", model="churn", version=1,
        window_start=start, window_end=start + hours * HOUR, rows=rows, share=0.1, drifted=[], report="", reason="",
        verdict="quiet", lifecycle="", checked_at=start + timedelta(days=9, seconds=seq),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'everloop.db'}")
    made.migrate()
    with made.write() as session:
        session.add_all([row(number) for number in range(WINDOWS)])
        session.add(row(5, seq=1, rows=11))  # looked at twice
        session.add(row(7, hours=24))  # a window of another size with the same start
    yield made
    made.close()


def test_every_window_is_on_one_page_under_its_number(store: Store) -> None:
    seen, before = [], None
    with store.read() as session:
        while True:
            page = drift.checks(session, "default", "churn", 100, before)
            if not page:
                break
            seen, before = page + seen, page[0].number

    assert [view.number for view in seen] == list(range(1, WINDOWS + 2))
    assert [view.key for view in seen] == sorted(view.key for view in seen)
    assert seen[5].rows == 11
    with store.read() as session:
        assert len(drift.checks(session, "default", "churn")) == drift.MOST_CHECKS
        assert drift.checks(session, "default", "churn")[-1].number == WINDOWS + 1


def test_a_window_is_found_by_its_number_its_start_and_both_edges(store: Store) -> None:
    here: Any = SimpleNamespace(store=store)
    names = ("6", "20260101T050000Z", "20260101T050000Z-20260101T060000Z")
    found = [drift._find(here, "default", "churn", name) for name in names]

    assert {one.rows for one in found} == {11}
    assert drift._find(here, "default", "churn", "20260101T070000Z-20260102T070000Z").window_end == START + 31 * HOUR
    with store.read() as session:
        assert drift.number_of(session, found[0]) == 6
    for name in ("0", "232", "x", "20260101T050000Z-20260101T050000Z", "9" * 400, ""):
        with pytest.raises(NotFound):
            drift._find(here, "default", "churn", name)
