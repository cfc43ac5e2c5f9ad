"""Ranks that prepare a table together leave the bytes that one leaves, however the rows fall to them."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pydantic import ValidationError

from activities.compute import data, features
from activities.compute.features import columns
from activities.compute.features.columns import Numbers
from activities.compute.features.goals import Goal
from activities.compute.features.table import BATCH_ROWS, Writer, join
from activities.compute.resources import Resources
from activities.compute.together import Together
from activities.jobs.gang import RankEnded
from everloop import contracts
from everloop.contracts import Wants
from everloop.errors import InvalidData
from everloop.records import Champion, Prepared, Snapshot
from everloop.specs import LifecycleSpec
from tests.job import FolderJob
from tests.stages import SLOT, Passed, csv, hostile, snapshot, spec_of
from tests.unit.test_compute_rows import mixed

SEVERAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD = [0.0, -0.0, 1.0, 2.0, 3.0, np.nan, np.inf, -np.inf, 2.0**53, -(2.0**53), 5e-324, 0.1]


def rank_of(job: FolderJob, folder: Path, rank: int, size: int, meeting: str = "") -> FolderJob:
    """One of *size* ranks of *job*'s lifecycle, with a disk of its own but for the artifacts and where they meet."""
    own = folder / str(rank)
    own.mkdir(parents=True)
    made = FolderJob(own)
    made.artifacts, made.rank, made.world_size = job.artifacts, rank, size
    made.rendezvous = SimpleNamespace(folder=meeting or str(folder / "meeting"))  # type: ignore[attr-defined]
    return made


def prepared_by(  # noqa: PLR0917
    size: int,
    spec: LifecycleSpec,
    taken: Snapshot,
    job: FolderJob,
    folder: Path,
    champion: Champion | None = None,
    meeting: str = "",
) -> Prepared:
    request = contracts.PrepareRequest(spec=spec, snapshot=taken, champion=champion, slot=SLOT)
    if size == 1:
        return features.prepare(request, job)
    left: dict[int, Any] = {}

    def run(rank: int) -> None:
        try:
            left[rank] = features.prepare(request, rank_of(job, folder, rank, size, meeting))
        except BaseException as error:  # noqa: BLE001  # a rank that has done its part says so by one
            left[rank] = error

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert all(isinstance(left[rank], RankEnded) for rank in range(1, size)), left
    if isinstance(left[0], BaseException):
        raise left[0]
    assert not list((folder / "meeting" / "shares").glob("*-*")), "what one rank sent to another is still there"
    return left[0]


def alike(spec: LifecycleSpec, taken: Snapshot, job: FolderJob, folder: Path, *sizes: int) -> Prepared:
    alone = prepared_by(1, spec, taken, job, folder)
    for size in sizes:
        assert prepared_by(size, spec, taken, job, folder / f"of{size}") == alone
    return alone


@pytest.mark.parametrize("name", [name for name in hostile() if name != "wide"])
def test_ranks_leave_the_digests_that_one_leaves(tmp_path: Path, job: FolderJob, name: str) -> None:
    frame, task, more = hostile()[name]
    taken = snapshot(job, csv(tmp_path, frame), task=task, **more)
    spec = spec_of(tmp_path / "table.csv", task, "y", **more)

    alike(spec, taken, job, tmp_path, 3)


@pytest.mark.parametrize("many_texts", [10, 100_000])
def test_ranks_leave_them_for_every_kind_of_column_and_feature(
    tmp_path: Path, job: FolderJob, monkeypatch: pytest.MonkeyPatch, many_texts: int
) -> None:
    """In several files, with words, means of the target, chosen columns, groups; texts in memory and by DuckDB."""
    monkeypatch.setattr(columns, "MANY_TEXTS", many_texts)
    frame = mixed(3000)
    for place, part in enumerate(np.split(np.arange(len(frame)), [1, 700, 701, 2500])):
        csv(tmp_path / "s", frame.iloc[part], f"{place}.csv")
    taken = snapshot(job, tmp_path / "s")
    choices = {"target_mean": True, "interactions": 2, "skew": "quantile", "near_duplicates": 0.99}
    chosen = {**choices, "selection": {"method": "mutual_information", "keep": 0.8}}

    for more in ({"features": chosen}, {"time": "at"}, {"group": "many"}):
        alike(spec_of(tmp_path / "s", "binary", "y", **more), taken, job, tmp_path / "-".join(more), 4)


def test_ranks_of_several_hosts_meet_on_the_store(tmp_path: Path, job: FolderJob) -> None:
    """A store that no path leads to: fsspec's, in memory."""
    spec = spec_of(csv(tmp_path, mixed(500)), "binary", "y", features={"target_mean": True})
    taken = snapshot(job, tmp_path / "table.csv")

    alone = prepared_by(1, spec, taken, job, tmp_path)

    assert prepared_by(3, spec, taken, job, tmp_path / "3", meeting=f"memory://{tmp_path.name}") == alone


def test_a_table_of_several_batches_is_cut_between_them(tmp_path: Path, job: FolderJob) -> None:
    random, rows = np.random.default_rng(0), 2 * BATCH_ROWS + 1234
    frame = pd.DataFrame(
        {"x": random.normal(size=rows), "n": random.integers(0, 9, rows), "y": random.integers(0, 2, rows)}
    )
    taken = snapshot(job, csv(tmp_path, frame))

    found = alike(spec_of(tmp_path / "table.csv", "binary", "y"), taken, job, tmp_path, 2, 5)

    assert found.train_rows + found.validation_rows + found.test_rows == rows


def test_what_is_new_to_a_champion_is_the_same(tmp_path: Path, job: FolderJob) -> None:
    frame = mixed(2000)
    spec = spec_of(csv(tmp_path, frame[:1500]), "binary", "y", training={"rounds": 3})
    champion = Passed(job, spec).champion()
    taken = snapshot(job, csv(tmp_path, frame))

    alone = prepared_by(1, spec, taken, job, tmp_path, champion)

    assert 0 < alone.fresh_rows < alone.test_rows + 1
    assert prepared_by(3, spec, taken, job, tmp_path / "3", champion) == alone


def test_a_rank_that_finds_nothing_to_learn_from_says_so(tmp_path: Path, job: FolderJob) -> None:
    frame = pd.DataFrame({"same": [1.0] * 100, "y": [0, 1] * 50})
    spec = spec_of(csv(tmp_path, frame), "binary", "y")
    taken = snapshot(job, tmp_path / "table.csv")

    request = contracts.PrepareRequest(spec=spec, snapshot=taken, champion=None, slot=SLOT)
    with pytest.raises(InvalidData, match="no column is left to learn from") as caught:
        features.prepare(request, job)
    left = []

    def run(rank: int) -> None:
        own = rank_of(job, tmp_path / "two", rank, 2)
        with pytest.raises(InvalidData) as each:
            features.prepare(request, own)
        left.append(str(each.value))

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert left == 2 * [str(caught.value)]


# --- the merges -----------------------------------------------------------------------------------


@SEVERAL
@given(
    values=some.lists(some.sampled_from(ODD) | some.floats() | some.integers(0, 99).map(float), max_size=80),
    draw=some.data(),
)
def test_merged_numbers_are_those_of_all_rows(tmp_path: Path, values: list[float], draw: Any) -> None:
    if draw.draw(some.booleans()):
        values = sorted(values)
    held = data.Table(pa.table({"v": pa.array(values, pa.float64(), from_pandas=True)}), ())
    cuts = sorted(draw.draw(some.lists(some.integers(0, len(values)), max_size=4)))
    rows, goal = np.arange(len(values)), Goal(np.arange(len(values), dtype=np.int32) % 7, 0)

    whole = columns.numbers_of(held, "v", rows, goal)
    parts = []
    for place, some_rows in enumerate(np.split(rows, cuts)):
        path = tmp_path / str(place)
        columns.numbers_of(held, "v", some_rows, Goal(some_rows.astype(np.int32) % 7, 0)).write(path)
        parts.append(Numbers.read(path))
    merged = Numbers.merged(parts)

    assert (merged.ranked == whole.ranked).all()
    same = [(each.rows, each.ordered, each.gaps, each.gap_sums.tolist(), each.nulls) for each in (merged, whole)]
    assert same[0] == same[1]
    if whole.count:
        exact = [(each.low, each.high, each.different(), each.apart(0.5)) for each in (merged, whole)]
        assert str(exact[0]) == str(exact[1])  # of 0.0 and -0.0 too
        assert [merged.quantile(share) for share in (0.25, 0.5, 0.75)] == [
            whole.quantile(share) for share in (0.25, 0.5, 0.75)
        ]


@SEVERAL
@given(
    values=some.lists(
        some.sampled_from([None, "", "a", "A", "ä", "b", "ab", "世界", "'\"\n"]) | some.integers(0, 99).map(str),
        min_size=1,
        max_size=60,
    ),
    draw=some.data(),
)
def test_merged_texts_are_those_of_all_rows(tmp_path: Path, values: list[str | None], draw: Any) -> None:
    held = data.Table(pa.table({"v": pa.array(values, pa.string())}), ())
    cuts = sorted(draw.draw(some.lists(some.integers(0, len(values)), max_size=4)))
    most, rows = draw.draw(some.integers(1, 9)), np.arange(len(values))

    paths = [tmp_path / str(place) for place in range(len(cuts) + 1)]
    for path, own in zip(paths, np.split(rows, cuts), strict=True):
        columns.write_texts(path, held, "v", own, tmp_path, Resources())

    merged = columns.merged_texts(paths, len(rows), most, tmp_path, Resources())
    assert merged == columns.texts_in(held, "v", rows, most, tmp_path, Resources())


@given(count=some.integers(0, 10**6), unit=some.sampled_from([1, 7, BATCH_ROWS]), size=some.integers(1, 300))
def test_shares_are_whole_and_of_everything(count: int, unit: int, size: int) -> None:
    shares = [Together(rank, size).share(count, unit) for rank in range(size)]

    assert [low for low, _ in shares] == [0, *(high for _, high in shares[:-1])]
    assert shares[-1][1] == count
    assert all(low % unit == 0 or low == count for low, _ in shares)


def test_joined_rows_have_the_bytes_of_one_writer(tmp_path: Path) -> None:
    rows = 2 * BATCH_ROWS + 5
    matrix = np.random.default_rng(0).random((rows, 2), np.float32)
    beside = {"y": np.arange(rows, dtype=float), "part": np.zeros(rows, np.int8), "fold": np.ones(rows, np.int8)}
    beside |= {"row": np.arange(rows), "fresh": np.arange(rows) % 3 == 0}

    def written(path: Path, low: int, high: int) -> Path:
        with Writer(path, 2) as out:
            out.add(matrix[low:high], **{name: each[low:high] for name, each in beside.items()})
        return path

    cuts = [0, 0, BATCH_ROWS, 2 * BATCH_ROWS, rows]
    parts = [written(tmp_path / str(each), low, cuts[each + 1]) for each, low in enumerate(cuts[:-1])]
    join(parts, tmp_path / "joined")

    assert (tmp_path / "joined").read_bytes() == written(tmp_path / "one", 0, rows).read_bytes()


# --- the spec -------------------------------------------------------------------------------------


def test_prepare_is_shared_only_where_its_own_words_say_so(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "binary", "y", resources={"stages": {"prepare": {"members": 3}}})
    own = {"trainer": "ddp:fit", "code": "sha256:" + "0" * 64, "resources": {"members": 2}}

    assert (Wants.of(spec, "prepare").members, Wants.of(spec, "prepare").members_most) == (3, 0)
    assert Wants.of(spec, "train").members == 1
    assert Wants.of(spec_of(tmp_path, "binary", "y", **own), "prepare").members == 1
    with pytest.raises(ValidationError, match="one number, 1 or 3"):
        spec_of(tmp_path, "binary", "y", resources={"stages": {"prepare": {"members": {"min": 1, "max": 3}}}})
    with pytest.raises(ValidationError, match="prepare, train, refit may be more"):
        spec_of(tmp_path, "binary", "y", resources={"stages": {"export": {"members": 2}}})
