"""What predict requests may hold, and how they are answered. The graph is a real one, made by hand."""

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from activities.compute.inference import Model, read_loosely
from everloop import engine
from everloop.errors import IntegrityError, InvalidPrediction
from everloop.reading import ReadColumn
from everloop.records import Field, Signature

FIELDS = (
    Field(name="age", kind="number"),
    Field(name="member", kind="boolean"),
    Field(name="since", kind="datetime"),
    Field(name="city", kind="category", known=("Rome", "Oslo")),
    Field(name="code", kind="category", known=("7", "12")),
)
ROW: dict[str, Any] = {"age": 30, "member": True, "since": "2020-01-02T03:04:05Z", "city": "Rome", "code": "7"}


def graph() -> bytes:
    """[1 - sigmoid(age), sigmoid(age)]; the other inputs are taken and not used."""
    kinds = {"category": TensorProto.STRING}
    inputs = [
        helper.make_tensor_value_info(field.name, kinds.get(field.kind, TensorProto.DOUBLE), ["rows", 1])
        for field in FIELDS
    ]
    nodes = [
        helper.make_node("Sigmoid", ["age"], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Concat", ["q", "p"], ["probabilities"], axis=1),
    ]
    one = helper.make_tensor("one", TensorProto.DOUBLE, [1], [1.0])
    output = helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, ["rows", 2])
    made = helper.make_graph(nodes, "g", inputs, [output], initializer=[one])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def model() -> Model:
    signature = Signature(
        task="binary",
        fields=FIELDS,
        target="left",
        classes=("no", "yes"),
        positive="yes",
        time="at",
        key="id",
        ignored=("notes",),
    )
    return Model(graph(), signature)


def test_a_row_is_answered_with_label_and_probabilities(model: Model) -> None:
    (answer,) = model.predict(model.check([ROW | {"age": 2}])).rows()

    assert answer["label"] == "yes"
    assert answer["probability"] == pytest.approx(0.8808, abs=1e-4)
    assert answer["probabilities"] == pytest.approx({"no": 0.1192, "yes": 0.8808}, abs=1e-4)


def test_values_become_raw_columns(model: Model) -> None:
    rows = [ROW, dict.fromkeys(ROW), ROW | {"since": "2020-01-02T05:04:05+02:00", "member": 0, "code": 7, "city": "NA"}]

    columns = model.check(rows)

    assert columns["age"][:, 0].tolist()[::2] == [30, 30]
    assert np.isnan(columns["age"][1, 0])
    assert columns["since"][0, 0] == columns["since"][2, 0] == 1577934245
    assert columns["member"][:, 0].tolist()[::2] == [1, 0]
    assert columns["city"][:, 0].tolist() == ["Rome", "", ""]
    assert columns["code"][:, 0].tolist() == ["7", "", "7"]


def test_a_number_is_taken_as_the_table_writes_it(model: Model) -> None:
    """And as JSON does: one value has one answer, however it is spelled."""
    read = ReadColumn(name="age", type="integer", decimal=",", unit="%", missing=("keine",), declared=True)
    fields = tuple(
        field.model_copy(update={"read": read}) if field.name == "age" else field for field in model.signature.fields
    )
    dressed = Model(graph(), model.signature.model_copy(update={"fields": fields}))

    spelled = ["12,5 %", "12,5", 12.5, "13", "keine", "", None]
    columns = dressed.check([ROW | {"age": value} for value in spelled])
    with pytest.raises(InvalidPrediction, match="row 0: 'age'") as refused:
        dressed.check([ROW | {"age": "12.5x"}])

    np.testing.assert_array_equal(columns["age"][:, 0].astype(float), [12.5, 12.5, 12.5, 13, *[np.nan] * 3])
    assert refused.value.hint == "expected a number like 1,5 %, or null"
    assert read_loosely(fields[0], "12,5 %") == read_loosely(fields[0], 12.5)  # in the log, for drift


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("age", "30", "a number or null"),
        ("age", True, "a number or null"),
        ("age", float("nan"), "a finite number"),
        ("age", float("inf"), "a finite number"),
        ("age", 10**400, "a smaller number|a finite number"),
        ("age", [1], "a number or null"),
        ("member", "yes", "true, false or null"),
        ("member", 2, "true, false or null"),
        ("since", 1577934245, "ISO 8601"),
        ("since", "yesterday", "ISO 8601"),
        ("city", 5, "text or null"),
        ("city", {"a": 1}, "text or null"),
        ("code", True, "text"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_expected(
    model: Model, field: str, value: object, hint: str
) -> None:
    with pytest.raises(InvalidPrediction) as refused:
        model.check([ROW, ROW | {field: value}])

    assert refused.value.field == f"rows[1].{field}"
    assert any(each in refused.value.hint for each in hint.split("|"))


@pytest.mark.parametrize(
    ("known", "value"), [(("00007", "00012"), 7), (("1.0", "2.0"), 1.0), (("7", "007"), 7), (("+5", "6"), 5)]
)
def test_a_number_is_refused_where_a_known_text_is_not_spelled_as_that_number(
    known: tuple[str, ...], value: float
) -> None:
    codes = tuple(field.model_copy(update={"known": known}) if field.name == "code" else field for field in FIELDS)
    coded = Model(graph(), Signature(task="binary", fields=codes, target="y", classes=("0", "1"), positive="1"))

    assert coded.check([ROW | {"code": known[0]}])["code"][0, 0] == known[0]
    with pytest.raises(InvalidPrediction) as refused:
        coded.check([ROW | {"code": value}])
    assert refused.value.hint == "expected text or null"


def test_a_number_stands_for_a_known_text_that_is_spelled_so() -> None:
    fields = tuple(
        field.model_copy(update={"known": ("7", "-1.5", "B12")}) if field.name == "code" else field for field in FIELDS
    )
    coded = Model(graph(), Signature(task="binary", fields=fields, target="y", classes=("0", "1"), positive="1"))

    columns = coded.check([ROW | {"code": value} for value in (7, 7.0, -1.5)])

    assert columns["code"][:, 0].tolist() == ["7", "7", "-1.5"]


def test_a_missing_column_is_named(model: Model) -> None:
    with pytest.raises(InvalidPrediction, match="row 0 lacks 'age', 'city'") as refused:
        model.check([{name: value for name, value in ROW.items() if name not in ("age", "city")}])

    assert refused.value.field == "rows[0].age"


def test_an_unknown_column_is_named_and_columns_of_the_table_are_not(model: Model) -> None:
    model.check([ROW | {"left": "no", "at": "now", "id": 3, "notes": "..."}])

    with pytest.raises(InvalidPrediction, match="does not know: 'agee'"):
        model.check([ROW | {"agee": 3}])


@pytest.mark.parametrize("rows", [[], ["text"], [None]])
def test_rows_that_are_no_rows_are_refused(model: Model, rows: list[Any]) -> None:
    with pytest.raises(InvalidPrediction):
        model.check(rows)


def test_half_a_surrogate_pair_is_an_unseen_value(model: Model) -> None:
    assert len(model.predict(model.check([ROW | {"city": "\ud800"}]))) == 1


def test_a_model_whose_time_is_an_input_takes_it_from_the_event() -> None:
    signature = Signature(task="binary", fields=FIELDS, target="y", classes=("0", "1"), positive="1", time="since")
    timed = Model(graph(), signature)
    row = {name: value for name, value in ROW.items() if name != "since"}

    columns = timed.check([row], [datetime(2020, 1, 2, tzinfo=UTC)])

    assert columns["since"][0, 0] == 1577923200
    with pytest.raises(InvalidPrediction, match="lacks 'since'"):
        timed.check([row])


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(IntegrityError, match="not a graph"):
        Model(b"nonsense", Signature(task="regression", fields=FIELDS, target="y"))


def test_more_rows_than_a_batch_are_answered_in_order(model: Model) -> None:
    columns = model.check([ROW]) | {}
    many = {name: np.repeat(values, 20_000, axis=0) for name, values in columns.items()}
    many["age"] = np.linspace(-5, 5, 20_000)

    answers = model.predict(many).values[:, 1]

    assert len(answers) == 20_000
    assert (np.diff(answers) > 0).all()


def test_answering_loads_numpy_and_onnxruntime_only() -> None:
    heavy = "pandas", "lightgbm", "onnx", "sklearn", "pyarrow", "scipy"
    code = f"import activities.compute.inference, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=engine.environment(), capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
