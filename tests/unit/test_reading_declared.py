"""What the spec says of columns holds at every door: for files with types of their own, and for a row to predict."""

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from activities.compute import data
from activities.compute.inference import read_loosely
from everloop import contracts
from everloop.init import draft
from everloop.reading import ReadColumn
from everloop.records import Field
from tests.unit.test_compute_stages import SLOT, FolderJob, spec_of

ROWS = 120


@pytest.fixture
def job(tmp_path: Path) -> FolderJob:
    return FolderJob(tmp_path)


def read(job: FolderJob, path: Path, **more: Any) -> data.Table:
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec_of(path, "binary", "y", **more), slot=SLOT), job)
    return data.load(job.artifacts, kept)


def test_parquet_whole_numbers_and_decimals_stay_exact_where_the_spec_says_they_are_numbers(
    tmp_path: Path, job: FolderJob
) -> None:
    """A draft of `init` calls both `number`: that must not make floats of them."""
    ids, cents = [10**18 + n for n in range(ROWS)], [Decimal(n) / 100 for n in range(ROWS)]
    table = {"n": ids, "c": pa.array(cents, pa.decimal128(30, 2)), "b": [n % 3 for n in range(ROWS)]}
    pa.parquet.write_table(pa.table(table | {"y": [n % 2 for n in range(ROWS)]}), tmp_path / "t.parquet")
    drafted = yaml.safe_load(draft(tmp_path / "t.parquet", "y"))
    said = drafted["columns"] | {"b": {"missing": ["0"]}}

    found = read(job, tmp_path / "t.parquet", columns=said)
    again = read(job, tmp_path / "t.parquet", columns=said | {"n": {"type": "number", "missing": [str(10**18)]}})

    assert {"n": {"type": "number"}, "c": {"type": "number"}}.items() <= said.items()
    assert (found.rows["n"].to_pylist(), found.rows["c"].to_pylist()) == (ids, cents)
    assert found.rows["b"].to_pylist()[:4] == [None, 1, 2, None]
    assert again.rows["n"].to_pylist() == [None, *ids[1:]]


@pytest.mark.parametrize(
    ("kind", "column", "value", "right"),
    [
        ("number", ReadColumn(name="a", type="integer", missing=("-1",), declared=True), -1, None),
        ("number", ReadColumn(name="a", type="integer", missing=("-1",)), -1.0, None),
        ("number", ReadColumn(name="a", type="integer", missing=("-1",), declared=True), "-1", None),
        ("number", ReadColumn(name="a", type="number", missing=("9999,5",), decimal=",", declared=True), 9999.5, None),
        ("number", ReadColumn(name="a", type="integer", missing=("-1",), declared=True), 1, 1.0),
        ("boolean", ReadColumn(name="a", type="boolean", missing=("?",), declared=True), "Yes", 1.0),
        ("boolean", ReadColumn(name="a", type="boolean", missing=("?",), declared=True), "n", 0.0),
        ("boolean", ReadColumn(name="a", type="boolean", missing=("?",), declared=True), "?", None),
        ("boolean", ReadColumn(name="a", type="boolean", missing=("?",), declared=True), False, 0.0),
    ],
)
def test_a_request_means_what_the_declared_column_means(
    kind: Any, column: ReadColumn, value: object, right: float | None
) -> None:
    found = read_loosely(Field(name="a", kind=kind, read=column), value)

    assert found == right or (right is None and isinstance(found, float) and math.isnan(found))
