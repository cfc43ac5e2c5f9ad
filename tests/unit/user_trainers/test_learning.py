"""Functions of users learn, whatever they return of what is allowed."""

import importlib
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest

from activities.compute import evaluation
from everloop import contracts
from everloop.errors import TrainerFailed
from tests.stages import real
from tests.unit.user_trainers.functions import Stages, Write, small

PIPELINE = """
def fit(t):
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    model = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(max_iter=300))
    return model.fit(t.train.numpy(), t.train.y)
"""

LABELS = """
def fit(t):
    from sklearn.ensemble import RandomForestClassifier
    kept = t.train.y != 0  # one class is never seen
    labels = np.array(t.classes)[t.train.y[kept]]
    return RandomForestClassifier(20, random_state=t.seed).fit(t.train.pandas()[kept].to_numpy(), labels)
"""

HISTOGRAMS = """
def fit(t):
    from sklearn.ensemble import HistGradientBoostingRegressor
    return HistGradientBoostingRegressor(max_iter=20, random_state=t.seed).fit(t.train.numpy(), t.train.y)
"""

NET = """
import torch

def fit(t):
    rows = t.train.numpy()
    low, high = torch.tensor(np.nanmin(rows, 0)), torch.tensor(np.nanmax(rows, 0))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(rows.shape[1], 1)

        def forward(self, x):
            return self.inner(torch.nan_to_num((x - low) / (high - low + 1e-6)))

    net = Net()
    learner = torch.optim.Adam(net.parameters(), 0.05)
    for epoch in range(t.iterations or 4):
        for x, y in t.train.loader(256, shuffle=True):
            learner.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y.float()).backward()
            learner.step()
        t.report(epoch + 1)
    return net
"""


@pytest.mark.parametrize(
    ("text", "table", "target", "task", "metric", "least"),
    [
        (PIPELINE, "credit_data", "Status", "binary", "auc", 0.75),
        (LABELS, "hpc_data", "class", "multiclass", "accuracy", 0.3),
        (HISTOGRAMS, "ames", "Sale_Price", "regression", "r2", 0.75),
        (NET, "credit_data", "Status", "binary", "auc", 0.75),
    ],
    ids=["a scikit-learn pipeline", "labels, and a class that is not there", "histogram boosting", "a torch module"],
)
def test_what_is_returned_learns_a_real_table_and_answers_as_one_graph(  # noqa: PLR0917
    tmp_path: Path, module: Write, text: str, table: str, target: str, task: str, metric: str, least: float
) -> None:
    name = module(text)
    stages = Stages(tmp_path, real(table), target=target, task=task, trainer=f"{name}:fit", inputs="features")

    stages.train()
    del sys.modules[name]
    (tmp_path / "code" / f"{name}.py").rename(tmp_path / "gone")
    importlib.invalidate_caches()
    asked = contracts.EvaluateRequest(
        spec=stages.spec, snapshot=stages.snapshot, prepared=stages.prepared, trained=stages.trained, champion=None
    )
    judged = evaluation.evaluate(asked, stages.job)  # nothing of the user's is needed any more
    (tmp_path / "gone").rename(tmp_path / "code" / f"{name}.py")
    exported = stages.rest()

    assert judged.metrics[metric] > least
    assert exported.parity.mismatches == 0
    assert stages.trained.iterations == (4 if text is NET else 1)
    assert stages.refitted.family == f"{name}:fit"
    assert stages.model(exported).output == ("value" if task == "regression" else "probabilities")


RAW = """
from onnx import TensorProto as T
from onnx import helper

def fit(t):
    from sklearn.linear_model import LogisticRegression
    x = t.train.pandas()["x"].to_numpy(float)[:, None]
    model = LogisticRegression().fit(x, t.train.y)
    constants = [
        helper.make_tensor("w", T.FLOAT, [1, 1], model.coef_.astype("f4").ravel()),
        helper.make_tensor("b", T.FLOAT, [1], model.intercept_.astype("f4")),
    ]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["l"]), helper.make_node("Sigmoid", ["l"], ["p"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", T.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("p", T.FLOAT, ["n", 1])], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", t.params.get("opset", 15))])
    shift = t.params.get("shift", 0.0)
    predict = lambda rows: model.predict_proba(rows.pandas()["x"].to_numpy(float)[:, None])[:, 1] + shift
    return Learned(made.SerializeToString(), iterations=7, predict=predict)
"""


@pytest.mark.parametrize("opset", [15, 18, 21])
def test_onnx_over_raw_columns_answers_what_it_was_made_to_answer(tmp_path: Path, module: Write, opset: int) -> None:
    name = module(RAW)
    trainer = {"trainer": f"{name}:fit", "params": {"opset": opset}}
    stages = Stages(tmp_path, small(), target="y", task="binary", **trainer)

    stages.train()
    exported = stages.rest()

    kept = onnx.load_from_string(stages.job.artifacts.get(stages.refitted.model))
    weights = {each.name.split(":")[-1]: onnx.numpy_helper.to_array(each) for each in kept.graph.initializer}
    x = np.array([-1.0, 0.0, 2.5])
    told = stages.model(exported).predict({"x": x, "c": np.array(["a", "b", "zzz"], object)}).rows()
    answers = np.array([[row["probabilities"][label] for label in ("no", "yes")] for row in told])  # type: ignore[index]
    expected = 1 / (1 + np.exp(-(x * float(weights["w"][0, 0]) + float(weights["b"][0]))))
    assert np.abs(answers[:, 1] - expected).max() < 1e-6
    assert np.abs(answers.sum(axis=1) - 1).max() < 1e-6
    assert stages.trained.iterations == 7


def test_rows_have_the_types_of_their_columns_and_a_refit_has_no_validation(tmp_path: Path, module: Write) -> None:
    name = module("seen = []\ndef fit(t):\n    seen.append(t)\n    raise KeyError('looked')\n")
    table = small().assign(
        price=[f"{number % 97}.1234567890123456789" for number in range(300)],
        count=[None if number % 50 == 0 else 2**60 + number for number in range(300)],
        day=pd.date_range("2024-01-01", periods=300, freq="7h").strftime("%Y-%m-%d %H:%M"),
    )
    table["count"] = table["count"].astype("Int64")
    columns = {"count": {"type": "integer"}, "price": {"type": "number"}}
    stages = Stages(tmp_path, table, target="y", task="binary", trainer=f"{name}:fit", columns=columns)

    with pytest.raises(TrainerFailed, match="KeyError: 'looked'"):
        stages.train()
    seen = sys.modules[name].seen  # type: ignore[attr-defined]
    given = seen[0]
    assert given.task == "binary" and given.classes == ("no", "yes") and given.iterations is None
    assert set(given.train.names) == {"x", "c", "price", "count", "day"}
    assert given.categorical == ("c",)
    assert len(given.train) + len(given.validation) == 240
    frame = given.train.pandas()
    types = {field.name: str(field.type) for field in given.train.arrow().schema}
    assert types["c"].startswith("dictionary") and types["day"] == "timestamp[us, tz=UTC]" and types["count"] == "int64"
    assert isinstance(frame["price"].iloc[0], Decimal)
    assert frame["count"].dropna().min() >= 2**60 and frame["count"].dropna().max() % 2 in (0, 1)
    assert set(frame["count"].dropna() - 2**60) <= set(range(300))
    assert given.train.numpy()["day"].dtype == np.dtype("datetime64[us]")
    assert sum(len(batch) for batch in given.train.batches(50)) == len(given.train)
    batches = [batch.pandas() for batch in given.train.batches(50)]
    assert pd.concat(batches)["x"].tolist() == frame["x"].tolist()
    drawn = [(batch["x"], y) for batch, y in given.train.loader(64, shuffle=True)]
    assert sorted(float(x) for xs, _ in drawn for x in xs) == sorted(frame["x"])
    by_x = dict(zip(frame["x"], given.train.y, strict=True))
    assert all(by_x[float(x)] == int(label) for xs, labels in drawn for x, label in zip(xs, labels, strict=True))


def test_steps_are_called_what_the_reports_of_the_function_call_them(module: Write, small_stages: Stages) -> None:
    text = """
def fit(t):
    from sklearn.linear_model import LogisticRegression
    t.report(5, {}=5)
    return LogisticRegression().fit(np.nan_to_num(t.train.numpy()), t.train.y)
"""
    told = []
    for counts in ("trees", "loss"):
        stages = small_stages.learned_by(f"{module(text.format(counts))}:fit")
        stages.train()
        told.append((stages.trained.iterations, stages.trained.unit))

    assert told == [(5, "tree"), (5, "step")]


def test_whole_numbers_of_numpy_count_iterations(tmp_path: Path, module: Write) -> None:
    text = PIPELINE + "first = fit\nfit = lambda t: Learned(first(t), iterations=np.int64(7))"
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(text)}:fit", inputs="features")
    stages.train()
    assert stages.trained.iterations == 7


def test_the_forest_example_learns_a_regression_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = Path(__file__).parents[3] / "examples" / "trainers"
    monkeypatch.syspath_prepend(str(examples / "scikit_learn"))
    table = small()
    table["y"] = 1000 + 50 * table["x"]
    stages = Stages(
        tmp_path, table, target="y", task="regression", trainer="forest:fit", inputs="features", params={"most": 40}
    )
    stages.train()
    stages.rest()
    assert stages.evaluation.metrics["r2"] > 0.9


def test_values_of_a_regression_over_raw_columns_are_in_the_targets_units(tmp_path: Path, module: Write) -> None:
    text = """
from onnx import TensorProto as T
from onnx import helper

def fit(t):
    assert t.train.y.min() > 900 and (t.validation is None) == (t.iterations is not None)
    nodes = [helper.make_node("Mul", ["x", "two"], ["m"]), helper.make_node("Add", ["m", "base"], ["v"])]
    constants = [helper.make_tensor("two", T.DOUBLE, [], [2.0]), helper.make_tensor("base", T.DOUBLE, [], [1000.0])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", T.DOUBLE, ["n"])],
                              [helper.make_tensor_value_info("v", T.DOUBLE, ["n"])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return Learned(model, predict=lambda rows: 1000 + 2 * rows.numpy()["x"])
"""
    random = np.random.default_rng(1)
    x = random.normal(size=200)
    table = pd.DataFrame({"x": x, "z": random.normal(size=200), "y": 1000 + 2 * x + random.normal(size=200) / 10})
    stages = Stages(tmp_path, table, target="y", task="regression", trainer=f"{module(text)}:fit")

    stages.train()
    exported = stages.rest()

    assert stages.evaluation.metrics["r2"] > 0.99
    told = stages.model(exported).predict({"x": np.array([0.0, 1.5]), "z": np.zeros(2)})
    assert np.allclose(told.values, [1000.0, 1003.0], atol=1e-9)
