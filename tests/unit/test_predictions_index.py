"""The index of the log: what control knows of it without opening a Parquet file."""

import asyncio
import os
import random
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import col, select

from activities.compute.predictions import Logged
from activities.compute.predictions.compacting import compact
from activities.predictions import counting
from activities.predictions.index import LogIndex
from activities.predictions.keeping import LogKeeper
from everloop.artifacts import Artifacts
from everloop.errors import DatasetMissing
from everloop.predictions import LogParts, PredictionLog
from everloop.records import Field, Signature, Window
from everloop.specs import LifecycleSpec
from everloop.store import LogHourRow, LogPartRow, MonitorRow
from tests import api_parts as parts
from tests import stores

NOON = datetime(2024, 3, 5, 12, tzinfo=UTC)
DAY = Window(start=datetime(2024, 3, 5, tzinfo=UTC), end=datetime(2024, 3, 6, tzinfo=UTC))
ALWAYS = Window(start=datetime(1900, 1, 1, tzinfo=UTC), end=datetime(2100, 1, 1, tzinfo=UTC))
LATER = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Deployment:
    """A store, an artifact store and one model whose versions are registered."""

    def __init__(self, folder: Path) -> None:
        self.settings, self.store, self.signer = parts.deployed(folder)
        self.artifacts = Artifacts(self.settings.artifacts)
        parts.release(self.store, self.artifacts, self.signer)
        self.index = LogIndex(self.store, self.settings.predictions_dir, "default", "credit")
        self.keeper = LogKeeper(self.store, self.artifacts, self.settings.predictions_dir, worth_rows=1)

    def log(self) -> PredictionLog:
        return PredictionLog(self.index.folder)

    def append(self, *rows: dict[str, object]) -> None:
        log = self.log()
        log.append(list(rows))
        log.close()

    def compact(self) -> None:
        """As the keeper does it, in this process."""
        self.index.refresh()
        asked = self.keeper._begin(self.index)
        assert asked is not None
        assert self.keeper._flip(self.index, asked, compact(asked))

    def logged(self, window: Window = ALWAYS, listing: LogParts | None = None) -> Logged:
        listing = listing or self.index.parts(window)
        signatures = {
            version: Signature.model_validate_json(self.artifacts.get(blob))
            for version, blob in listing.signatures.items()
        }
        return Logged(self.index.folder, listing, window, signatures, SIGNATURE)

    def ids(self, window: Window = ALWAYS, listing: LogParts | None = None) -> list[str]:
        return sorted(self.logged(window, listing).table(["request_id"])["request_id"].to_pylist())


SIGNATURE = Signature(
    task="binary",
    fields=(Field(name="age", kind="number"), Field(name="purpose", kind="category", known=("car", "house"))),
    target="y",
    classes=("bad", "good"),
    positive="good",
)


def row(request_id: str, at: datetime = NOON, index: int = 0, **other: object) -> dict[str, object]:
    return {
        "request_id": request_id,
        "row": index,
        "key": None,
        "event_time": at.isoformat(),
        "logged_at": datetime.now(UTC).isoformat(),
        "version": 1,
        "features": {"age": 40.5, "purpose": "car"},
        "prediction": {"label": "good", "probability": 0.75, "probabilities": {"bad": 0.25, "good": 0.75}},
        **other,
    }


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


def test_a_window_has_closed_once_a_row_at_or_after_its_end_is_there(made: Deployment) -> None:
    index = made.index
    assert not index.closed(DAY.end, LATER)
    for at, closed in ((DAY.end - timedelta(seconds=1), False), (DAY.end, True)):
        made.append(row(str(at), at))
        index.refresh()
        assert index.closed(DAY.end, LATER) is closed
    assert not index.closed(DAY.end + timedelta(seconds=1), LATER)
    assert index.closed(DAY.start - timedelta(days=400), LATER)


def test_the_first_event_time_is_found_also_after_a_moment_and_so_is_the_last_write(made: Deployment) -> None:
    index, before = made.index, datetime.now(UTC) - timedelta(seconds=1)  # a file's clock is coarser
    assert (index.first(), index.last_write(LATER)) == (None, None)
    made.append(row("late", NOON + timedelta(days=40)), row("b", NOON), row("a", NOON - HOUR))
    index.refresh()

    assert index.first() == NOON - HOUR
    assert index.first_at_or_after(NOON) == NOON
    assert index.first_at_or_after(NOON + timedelta(seconds=1)) == NOON + timedelta(days=40)
    assert index.first_at_or_after(NOON + timedelta(days=41)) is None
    last = index.last_write(LATER)
    assert last is not None and before < last <= datetime.now(UTC)


def test_each_byte_is_parsed_once_and_a_line_that_is_half_there_waits(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    real = counting._count
    monkeypatch.setattr(counting, "_count", lambda line, found: (parsed.append(line), real(line, found))[1])
    log = made.log()
    log.append([row("a"), row("b")])
    made.index.refresh()
    made.index.refresh()
    (path,) = made.index.folder.glob("live/*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"request_id":"half')
    log.append([row("c")])  # behind the half line: together they are no row
    made.index.refresh()
    log.close()
    made.index.refresh()

    assert len(parsed) == 3
    with made.store.read() as session:
        (part,) = session.exec(select(LogPartRow)).all()
    assert (part.rows, part.torn, part.bytes, part.version) == (2, 1, path.stat().st_size, 1)
    assert part.closed_at is not None
    assert made.logged().torn == 1


def test_a_torn_last_line_is_counted_once_its_writer_is_dead(made: Deployment) -> None:
    log = made.log()
    log.append([row("whole")])
    (path,) = made.index.folder.glob("live/*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"request_id":"torn')
    made.index.refresh()
    with made.store.read() as session:
        assert [(each.torn, each.closed_at) for each in session.exec(select(LogPartRow))] == [(0, None)]
    log.close()
    made.compact()

    assert made.ids() == ["whole"]
    with made.store.read() as session:
        assert sum(each.torn for each in session.exec(select(LogPartRow))) == 1


def test_compacted_rows_are_the_same_rows_typed_and_a_reader_that_had_begun_still_finds_its_files(
    made: Deployment,
) -> None:
    rows = [
        row(str(place), NOON + timedelta(minutes=place * 7), key=[7, "7", 7.0, None][place % 4], index=place % 3)
        for place in range(500)
    ]
    made.append(*rows)
    made.index.refresh()
    begun = made.index.parts(ALWAYS)
    before = made.logged(listing=begun)
    made.compact()

    after = made.logged()
    assert {part.kind for part in made.index.parts().parts} == {"parquet"}
    assert len(made.index.parts().parts) == 3  # a file for each day
    assert made.ids() == made.ids(listing=begun) == sorted(map(str, range(500)))
    chosen = [one.table(places=one.sample(100, seed=3)) for one in (before, after)]
    assert chosen[0].equals(chosen[1])
    assert set(after.table(["key"])["key"].to_pylist()) == {"7", None}
    table = after.table()
    assert table["feature:age"].type == "double" and set(table["feature:age"].to_pylist()) == {40.5}
    assert table["probabilities"][0].as_py() == [0.25, 0.75]
    assert after.rows == made.index.rows(ALWAYS)
    assert (made.index.first(), made.index.rows(DAY)) == (NOON, 103)

    made.keeper.__class__(made.store, made.artifacts, made.settings.predictions_dir, grace=timedelta(0))._tidy(
        made.index
    )
    assert list(made.index.folder.glob("live/*")) == []
    assert made.ids() == sorted(map(str, range(500)))
    with pytest.raises(DatasetMissing, match="gone"):
        made.logged(listing=begun)
    made.index.refresh()
    assert made.index.rows(ALWAYS) == 500


def test_a_row_that_is_sent_twice_counts_once_the_one_that_was_logged_first(made: Deployment) -> None:
    made.append(row("a"), row("a", index=1), row("a", NOON + timedelta(seconds=5), features={"age": 1.0}))
    made.append(row("a", features={"age": 2.0}))
    made.index.refresh()
    assert made.logged().rows == 2
    made.compact()

    assert made.logged().rows == made.index.rows(ALWAYS) == 2
    assert made.logged().columns(SIGNATURE)["age"].tolist() == [40.5, 40.5]


def test_columns_of_several_versions_are_united_by_name(made: Deployment) -> None:
    made.append(row("a"), row("b", version=9, features={"age": "41", "purpose": 7, "new": 1}))
    made.index.refresh()

    columns = made.logged().columns(SIGNATURE)

    assert sorted(map(str, columns["age"].tolist())) == [
        "40.5",
        "nan",
    ]  # of an unknown version: as the champion reads it
    assert sorted(columns["purpose"].tolist()) == ["", "car"]


def test_lines_of_a_version_that_nobody_knows_stay_lines(made: Deployment) -> None:
    made.append(row("a"))
    made.append(row("b", version=9))
    made.compact()

    assert sorted(part.kind for part in made.index.parts().parts) == ["lines", "parquet"]
    assert made.ids() == ["a", "b"]
    assert made.keeper._begin(made.index) is None  # it is not tried again and again


def test_lines_of_older_releases_are_read_and_become_parquet_when_they_are_old(made: Deployment) -> None:
    folder = made.index.folder / "day=2024-03-05"
    log = made.log()
    log.append([row("old"), row("older", NOON - HOUR)])
    log.close()
    (path,) = made.index.folder.glob("live/*.jsonl")
    folder.mkdir()
    path.rename(folder / "123-abc.jsonl")
    made.index.refresh()
    assert made.ids() == ["old", "older"]
    assert made.keeper._begin(made.index) is None  # an older server may still append

    yesterday = datetime.now(UTC).timestamp() - 90_000
    os.utime(folder / "123-abc.jsonl", (yesterday, yesterday))
    made.compact()
    assert {part.kind for part in made.index.parts().parts} == {"parquet"}
    assert made.ids() == ["old", "older"]


def test_small_files_of_a_day_become_one(made: Deployment) -> None:
    for place in range(8):
        made.append(row(str(place), NOON + timedelta(minutes=place)))
        made.compact()
    assert len(made.index.parts().parts) == 8
    made.compact()

    (part,) = made.index.parts().parts
    assert (part.kind, part.rows) == ("parquet", 8)
    assert made.ids() == sorted(map(str, range(8)))


def test_what_the_spec_lets_go_of_is_removed_and_the_rest_stays(made: Deployment) -> None:
    made.append(row("old"))
    made.compact()
    made.append(row("new"))
    made.index.refresh()
    spec = LifecycleSpec.model_validate(
        {"model": "credit", "task": "binary", "target": "y", "source": {"path": "/t.csv"}, "log": {"keep": "90d"}}
    )
    with made.store.write() as session:
        session.add(MonitorRow(project="default", model="credit", spec=spec.model_dump_json(), updated_at=NOON))
        (part,) = session.exec(select(LogPartRow).where(LogPartRow.kind == "parquet")).all()
        part.logged_until = datetime.now(UTC) - timedelta(days=91)
        session.add(part)
    made.keeper._tidy(made.index)

    assert made.ids() == ["new"]
    assert made.index.rows(ALWAYS) == 1
    with made.store.read() as session:
        assert made.index.state(session).removed_rows == 1


def test_a_run_that_was_killed_leaves_nothing_and_another_takes_its_place(made: Deployment) -> None:
    made.append(row("a"))
    made.index.refresh()
    asked = made.keeper._begin(made.index)
    assert asked is not None
    late = compact(asked)  # and then its control died
    assert made.keeper._begin(made.index) is None
    keeper = LogKeeper(made.store, made.artifacts, made.settings.predictions_dir, stale=timedelta(0), worth_rows=1)
    asyncio.run(keeper.keep(made.index))

    assert not keeper._flip(made.index, asked, late)  # too late
    assert made.ids() == ["a"]
    assert len(list(made.index.folder.glob("parquet/*/*"))) == 1
    with made.store.read() as session:
        assert len(session.exec(select(LogHourRow)).all()) == 1
        assert session.exec(select(LogPartRow.kind).where(col(LogPartRow.replaced_at).is_(None))).all() == ["parquet"]


def test_a_sample_is_bounded_seeded_and_fair(made: Deployment) -> None:
    made.append(*(row(uuid.UUID(int=random.Random(n).getrandbits(128)).hex, features={"age": n}) for n in range(5000)))
    made.index.refresh()
    logged = made.logged()

    chosen = logged.sample(1000, seed=1)
    ages = logged.columns(SIGNATURE, chosen)["age"]
    assert len(set(ages.tolist())) == 1000
    assert (logged.sample(1000, seed=1) == chosen).all()
    assert not (logged.sample(1000, seed=2) == chosen).all()
    assert np.mean(ages) == pytest.approx(2500, rel=0.1)


MOMENTS = st.integers(0, 200)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.tuples(MOMENTS, st.integers(0, 30)), min_size=1, max_size=12), min_size=1, max_size=5))
def test_whatever_is_compacted_when_every_window_is_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]]
) -> None:
    made = Deployment(tmp_path_factory.mktemp("log"))
    plain = LogParts(parts=())
    for number, batch in enumerate(batches):
        made.append(*(row(f"r{name}", NOON + timedelta(minutes=20 * at)) for at, name in batch))
        made.index.refresh()
        plain = LogParts(parts=(*plain.parts, *(p for p in made.index.parts().parts if p.kind == "lines")))
        if number % 2:
            made.compact()
    for hour in range(0, 70, 7):
        window = Window(start=NOON + hour * HOUR, end=NOON + (hour + 7) * HOUR)
        assert made.ids(window) == made.ids(window, plain)


def test_the_store_of_a_model_without_a_log_answers_too(tmp_path: Path) -> None:
    store = stores.migrated(f"sqlite:///{tmp_path / 'everloop.db'}")
    index = LogIndex(store, tmp_path / "nowhere", "default", "credit")
    index.refresh()

    assert (index.first(), index.rows(DAY), index.parts().parts) == (None, 0, ())
