"""What a function returns wrong is said, and named."""

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from activities.compute.features import Pipeline
from activities.compute.trainers import user
from activities.jobs.checkpoints import Checkpoints
from activities.jobs.context import NO_EVENTS, ThisJob
from everloop.errors import ParityFailed, TrainerFailed
from tests.unit.user_trainers.functions import Stages, Write, small
from tests.unit.user_trainers.test_learning import PIPELINE, RAW


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


def test_a_kept_model_is_read_as_onnx_and_never_as_a_pickle(tmp_path: Path, module: Write) -> None:
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(RAW)}:fit")
    stages.train()
    dumped = stages.job.artifacts.get(stages.trained.model)
    pipeline = Pipeline.read(stages.job.artifacts, stages.prepared.pipeline)

    assert stages.trained.model.name == "model.onnx"
    onnx.checker.check_model(onnx.load_from_string(dumped))
    assert user.load(dumped, pipeline).dump() == dumped


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
