"""Preparation out of core: the same bytes whatever the chunks, the threads and the files; any path opens the door."""

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from activities.compute import data, features, rows
from activities.compute.features import columns
from activities.compute.features.goals import Goal
from activities.compute.features.table import Writer
from activities.compute.resources import Resources
from everloop import contracts
from everloop.records import Lease, Member, Prepared
from tests.job import FolderJob
from tests.stages import SLOT, Passed, csv, spec_of

ROWS = 5000
GOLDEN = [9160033856657488884, 332585132051147477, 9066807658496438383, 13854969315905379917]


def mixed(count: int = ROWS, seed: int = 3) -> pd.DataFrame:
    """Every kind of column, with missing values, ties, signed zeros and texts that begin alike."""
    random = np.random.default_rng(seed)
    target = random.integers(0, 2, count)
    frame = pd.DataFrame(
        {
            "x": random.normal(size=count) * 10.0 ** random.integers(-9, 9, count) + target,
            "X": np.where(random.random(count) < 0.3, np.nan, random.integers(-2, 3, count)) * -0.0,
            "far": 5e8 + random.integers(0, 100, count),
            "flag": random.choice([True, False], count),
            "at": pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 10**8, count), unit="s"),
            "few": random.choice(["ä", "a", "a ", "Z", "ab"], count),
            "many": [f"v{number % 130}" for number in random.integers(0, 10**6, count)],
            "note": [
                f"{'Good' if random.random() < 0.2 + 0.5 * y else 'bad'} or not {n}" for n, y in enumerate(target)
            ],
            "y": target,
        }
    )
    frame.loc[::11, "few"] = None
    frame.loc[::13, "at"] = None
    return frame


def kept(job: FolderJob, folder: Path, cuts: list[int]) -> tuple[data.Table, list[Path]]:
    """The mixed table in files that end at *cuts*, as a snapshot keeps it."""
    frame = mixed()
    for place, part in enumerate(np.split(np.arange(len(frame)), cuts)):
        csv(folder, frame.iloc[part], f"{place:03d}.csv")
    taken = data.snapshot(contracts.SnapshotRequest(spec=spec_of(folder, "binary", "y"), slot=SLOT), job)
    whole = data.load(job.artifacts, taken)
    manifest = json.loads(job.artifacts.get(taken.manifest))
    root = Path(job.artifacts.root) / "sha256"
    names = [file["table"]["sha256"] for file in manifest["files"]]
    return whole, [root / name[:2] / name for name in names]


def prepared_bytes(table: data.Table, folder: Path, *, size: int, threads: int) -> tuple[bytes, bytes]:
    spec = spec_of(folder, "binary", "y", features={"target_mean": True})
    target = data.target_of(table, spec)
    labelled = target.labelled
    part = features.split(spec, table, target, np.ones(len(labelled), np.bool_))
    given = Resources(threads)
    pipeline = features.fit(spec, table, target, labelled[part == features.TRAIN], scratch=folder, resources=given)
    assert pipeline.terms
    assert pipeline.encodings
    path = folder / "prepared.arrow"
    fresh, goal = part == features.TEST, target.values[labelled]  # noqa: PD011  # not a frame
    features.write(path, pipeline, table, labelled, y=goal, part=part, fresh=fresh, size=size)
    return pipeline.dump(), path.read_bytes()


def test_the_prepared_bytes_are_the_same_in_any_chunking_with_any_threads_and_files(
    tmp_path: Path, job: FolderJob
) -> None:
    whole, (only,) = kept(job, tmp_path / "one", [])
    _, many = kept(job, tmp_path / "many", [1, 777, 778, 4000])
    in_memory = prepared_bytes(whole, tmp_path, size=10**9, threads=1)

    for paths, size, threads in (([only], 10**9, 1), ([only], 997, 2), (many, 65_536, 1), (many, 64, 2)):
        table = data.Table(rows.Stored(paths), whole.columns)
        assert prepared_bytes(table, tmp_path, size=size, threads=threads) == in_memory


def test_what_a_column_is_said_to_hold_is_what_pandas_says(tmp_path: Path, job: FolderJob) -> None:
    whole, paths = kept(job, tmp_path / "s", [2000])
    table = data.Table(rows.Stored(paths), whole.columns)
    some = np.flatnonzero(np.random.default_rng(0).random(ROWS) < 0.6)
    raw = pd.DataFrame(whole.arrays(whole.rows.column_names, some))
    target = data.target_of(table, spec_of(tmp_path, "binary", "y"))
    goal = Goal.of(target, some, 0.0, 1.0)

    held = {name: columns.numbers_of(table, name, some, goal) for name in ["x", "X", "flag", "at"]}
    for name, found in held.items():
        there = raw[name].dropna() * (1e6 if name == "at" else 1)
        assert (found.count, found.nulls, found.gaps) == (len(there), *2 * [len(some) - len(there)])
        assert (found.low, found.high) == (there.min(), there.max())
        for share in (0.25, 0.5, 0.75):
            assert found.quantile(share) == there.quantile(share, interpolation="inverted_cdf")
        missing = target.values[some][raw[name].isna()]  # noqa: PD011  # not a frame
        assert found.gap_sums.tolist() == [missing.sum()]
        assert found.other_than(found.low) == len(some) - (there == there.min()).sum()
        assert found.apart(0.5) == (there - 0.5).astype(np.float32).nunique()
    assert held["at"].calendar() == dict.fromkeys(("hour", "weekday", "day", "month"), True)
    assert str(held["X"].low) == "0.0"  # not -0.0, whichever came first


def test_moments_vary_only_in_the_parts_that_do(tmp_path: Path) -> None:
    """Noon of the first of some months: hour and day never vary."""
    moments = pd.to_datetime([f"2023-{month:02d}-01 12:00" for month in (1, 5, 10)] * 30, utc=True)
    held = data.Table(pa.table({"at": pa.array(moments).cast(pa.timestamp("us", "UTC"))}), ())
    goal = Goal(np.zeros(90, np.uint8), 2)

    found = columns.numbers_of(held, "at", np.arange(90), goal).calendar()

    assert found == {"hour": False, "weekday": True, "day": False, "month": True}


@pytest.mark.parametrize("many", [10**9, 10])
def test_texts_are_counted_alike_in_memory_and_by_duckdb(
    tmp_path: Path, job: FolderJob, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(columns, "MANY_TEXTS", many)
    whole, paths = kept(job, tmp_path / "s", [2000])
    every = np.arange(ROWS)
    some = np.flatnonzero(np.random.default_rng(0).random(ROWS) < 0.6)

    for name in ("many", "few", "note"):
        for asked in (every, some):
            texts = whole.arrays([name], asked)[name]
            counts = pd.Series(texts[texts != ""]).value_counts()
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
            expected = (int(counts.sum()), int((texts == "").sum()), len(counts), tuple(ranked))
            for table in (whole, data.Table(rows.Stored(paths), whole.columns)):
                found = columns.texts_in(table, name, asked, 5, tmp_path, Resources())
                assert (found.count, found.nulls, found.distinct, found.common) == expected


@pytest.mark.parametrize("folder", ["a [b]*?", "it's ${here}", "größe"])
def test_a_data_folder_of_any_name_is_read(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    job = FolderJob(tmp_path / folder)

    passed = Passed(job, spec_of(csv(tmp_path, mixed(300)), "binary", "y", training={"rounds": 3}))

    assert {column.name for column in passed.prepared.features} >= {"x", "far"}


def test_rows_are_taken_by_number_in_any_order(tmp_path: Path, job: FolderJob) -> None:
    whole, paths = kept(job, tmp_path / "s", [100, 3000])
    wanted = np.random.default_rng(0).integers(0, ROWS, 300)

    found = rows.Stored(paths).select(["x", "few"]).take(pa.array(wanted))

    assert found.equals(whole.rows.select(["x", "few"]).take(pa.array(wanted)))


def test_a_lifecycle_that_an_older_worker_prepared_goes_on(tmp_path: Path, job: FolderJob) -> None:
    spec = spec_of(csv(tmp_path, mixed(600)), "binary", "y", training={"rounds": 20})
    passed = Passed(job, spec)
    with features.prepared_rows(job.artifacts, passed.prepared) as new:
        path = tmp_path / "matrix.npz"
        every = new.matrix(np.arange(len(new)))
        np.savez(path, X=every, y=new.y, part=new.part, fresh=new.fresh, rows=new.rows)
    old = passed.prepared.model_dump(exclude={"table"}) | {"matrix": job.artifacts.put_file(path)}

    from activities.compute import evaluation, training

    before = Prepared.model_validate(old)
    trained = training.train(contracts.TrainRequest(spec=spec, prepared=before, slot=SLOT), job)
    found = evaluation.evaluate(
        contracts.EvaluateRequest(
            spec=spec, snapshot=passed.snapshot, prepared=before, trained=trained, champion=None, slot=SLOT
        ),
        job,
    )

    assert trained.model == passed.trained.model
    assert found.metrics == passed.evaluation.metrics


def test_every_row_has_a_fold_that_does_not_depend_on_the_others(tmp_path: Path, job: FolderJob) -> None:
    passed = Passed(job, spec_of(csv(tmp_path, mixed()), "binary", "y", training={"rounds": 3}))

    with features.prepared_rows(job.artifacts, passed.prepared) as stored:
        counts = np.bincount(stored.fold, minlength=5)
        again = features.folds(stored.rows[100:200])
        assert (again == stored.fold[100:200]).all()
    assert len(counts) == 5
    assert counts.min() > ROWS / 5 * 0.9


def test_what_was_read_is_not_kept(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    held = pa.table({f"n{place}": random.normal(size=200_000) for place in range(16)})
    pa.parquet.write_table(held, tmp_path / "t.parquet", row_group_size=20_000)
    size = held.nbytes
    del held
    before, most = pa.total_allocated_bytes(), 0

    for _, _batch in rows.Stored([tmp_path / "t.parquet"]).batches(5000):
        most = max(most, pa.total_allocated_bytes() - before)

    assert most < size / 2


def test_pages_of_prepared_rows_that_were_read_are_let_go_of(tmp_path: Path) -> None:
    count, path = 400_000, tmp_path / "prepared.arrow"
    matrix = np.random.default_rng(0).random((count, 20), np.float32)
    numbers = np.arange(count)
    small = np.zeros(count, np.int8)
    with Writer(path, 20) as out:
        out.add(matrix, y=matrix[:, 0].astype(float), part=small, fold=small, row=numbers, fresh=small > 0)

    with features.opened_rows(path) as stored:
        read = [each.copy() for each in stored.matrices(numbers)]
        lines = Path("/proc/self/smaps").read_text().split(f"{path}\n")[1:]
        one = [stored.row(place) for place in range(0, count, 1000)]
        held = sum(int(mapping.split("Rss:")[1].split()[0]) for mapping in lines) << 10

    assert (np.concatenate(read) == matrix).all()
    assert (np.array(one) == matrix[::1000]).all()
    assert lines
    assert held < path.stat().st_size / 2


def test_a_row_has_the_same_hash_in_any_chunking_and_in_any_version(tmp_path: Path, job: FolderJob) -> None:
    whole, paths = kept(job, tmp_path / "s", [1, 2000])
    other = data.Table(rows.Stored(paths), whole.columns)

    assert (data.row_hashes(other) == data.row_hashes(whole)).all()
    # A champion's rows are known by these: another sum, and all of them would seem new.
    table = pa.table(
        {
            "n": [1.5, -0.0, None, 1.5],
            "i": pa.array([2**60, 2**60 + 1, None, 2**60]),
            "t": ["a", "", None, "a"],
            "d": pa.array([Decimal("0.10"), None, Decimal("12345678901234567890.12"), Decimal("0.10")]),
        }
    )
    assert data.row_hashes(data.Table(table, ())).tolist() == GOLDEN


def test_threads_and_memory_come_from_the_job(job: FolderJob) -> None:
    job.cores = 3

    assert Resources.of(job).threads == 3
    assert Resources.of(object()).threads == 1  # a job that says nothing has one slot's
    assert 256 <= Resources.of(job).memory_mib <= 1024

    job.lease = Lease(token=1, holder="", members=(Member(device="cpu0", memory_mib=600),))
    assert Resources.of(job).memory_mib == 150  # what it buffers does not end it for its memory
