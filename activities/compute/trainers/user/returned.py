"""What a user's function may return: ONNX, a torch module, an estimator. Each becomes ONNX and something to ask."""

import contextlib
import importlib
import operator
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from activities.compute.features import Floats, Matrix, Pipeline
from activities.compute.trainers import Examples
from activities.compute.trainers.user.calling import call
from activities.compute.trainers.user.given import Given
from everloop.errors import TrainerFailed, text
from everloop.trainer import Learned

EXPECTED = "return ONNX (bytes or a ModelProto), a torch.nn.Module, or an estimator with predict_proba or predict"
OPSETS = {"": 18, "ai.onnx.ml": 3}
BATCH_ROWS = 8192
MOST_ITERATIONS = 10**9
PASSING = frozenset(("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"))
"""Operators that leave numbers as they are."""


@dataclass
class Model:
    """What was returned, as ONNX of its own and as the thing itself."""

    onnx: Any
    """A ModelProto as its library made it."""
    inputs: Literal["raw", "features"]
    live: Callable[[Matrix], Floats] | None = None
    """What the thing itself answers to features: [rows, classes] or [rows]. None: the graph is all there is."""
    logits: bool = False
    classes: tuple[int, ...] = ()
    """Which classes the graph's columns stand for, where not all in order."""
    bounds: NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, 0), np.float32))
    """Features are kept within these [2, features]: see `bounds_of`."""
    importance: tuple[float, ...] = ()


def said_by(given: object, training: Given) -> Learned:
    """*given* with what goes without saying."""
    said = given if isinstance(given, Learned) else Learned(given)
    iterations = training.steps if said.iterations is None else _iterations(said.iterations)
    return Learned(said.model, iterations, said.predict, said.probabilities)


def _iterations(given: object) -> int:
    try:
        found = operator.index(given)  # type: ignore[arg-type]  # NumPy's whole numbers too
    except TypeError:
        found = 0
    if not 1 <= found <= MOST_ITERATIONS or isinstance(given, bool):
        most = f"{MOST_ITERATIONS:,}"
        raise TrainerFailed(
            f"Learned.iterations must be a whole number from 1 to {most}, not {given!r}"[:200], field="trainer"
        )
    return found


def model_of(said: Learned, examples: Examples, name: str) -> Model:
    """Recognize what was returned and convert it. Raises `TrainerFailed` naming what was expected."""
    model = said.model
    wanted = examples.spec.inputs
    if isinstance(model, bytes | bytearray | onnx.ModelProto):
        return Model(_read(model, name), wanted, bounds=bounds_of(examples))
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(model, torch.nn.Module)
    asks = "predict" if examples.spec.task == "regression" else "predict_proba"
    if not is_module and not callable(getattr(model, asks, None)):
        what = "nothing" if model is None else f"a {_kind(model)}"
        lacks = f", which has no {asks}" if callable(getattr(model, "predict", None)) else ""
        raise TrainerFailed(f"{name} returned {what}{lacks}", field="trainer", hint=EXPECTED)
    if isinstance(model, type):
        raise TrainerFailed(f"{name} returned the class {model.__name__}, not a fitted object", field="trainer")
    if wanted == "raw":
        hint = "say `inputs: features` in the spec, or return ONNX whose inputs are named as the columns"
        what = type(model).__name__
        raise TrainerFailed(
            f"{name} returned a {what}, which must have learned from features", field="trainer", hint=hint
        )
    return _module(said, examples, name) if is_module else _estimator(model, examples, name)


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def bounds_of(examples: Examples) -> NDArray[np.float32]:
    """How far features may go: ten times the range of what was learned from, on both sides.

    Nothing is known out there, and a number that is as large as float32 allows makes most models answer none at all.
    """
    low = np.full(examples.rows.features, np.inf)
    high = -low
    for batch in examples.rows.matrices(examples.train):
        finite = np.where(np.isfinite(batch), batch.astype(np.float64), np.nan)
        low, high = np.fmin(low, np.fmin.reduce(finite, axis=0)), np.fmax(high, np.fmax.reduce(finite, axis=0))
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1.0))
    seen = np.isfinite(low)
    most = float(np.finfo(np.float32).max)
    edges = np.stack([np.where(seen, low - 10 * span, 0.0), np.where(seen, high + 10 * span, 0.0)])
    kept: NDArray[np.float32] = np.clip(edges, -most, most).astype(np.float32)
    return kept


def within(bounds: NDArray[np.float32], matrix: Matrix) -> Matrix:
    """Features as the graph takes them; missing ones stay missing."""
    high = np.where(matrix > bounds[1], bounds[1], matrix)
    return np.where(high < bounds[0], bounds[0], high).astype(np.float32)


def _read(model: Any, name: str) -> Any:  # noqa: ANN401  # a ModelProto
    try:
        read = model if isinstance(model, onnx.ModelProto) else onnx.load_from_string(bytes(model))
        onnx.checker.check_model(read)
    except Exception as error:  # noqa: BLE001  # protobuf's and onnx's errors share no other base
        why = " ".join(text(error).split())[:300]
        raise TrainerFailed(f"{name} returned bytes that are no ONNX model: {why}", field="trainer") from None
    return read


# --- torch ----------------------------------------------------------------------------------------


def _module(said: Learned, examples: Examples, name: str) -> Model:
    import copy
    import io
    import warnings

    import torch

    module: Any = call(name, lambda: copy.deepcopy(said.model).cpu().float().eval())  # type: ignore[attr-defined]
    example = torch.from_numpy(examples.rows.matrix(examples.train[:3]))
    told = call(f"{name}: the module cannot answer features [rows, {example.shape[1]}]", module, example)
    if not isinstance(told, torch.Tensor):
        hint = "its forward takes float features [rows, features] and returns one tensor [rows, answers]"
        raise TrainerFailed(f"the module of {name} answers a {_kind(told)}, no tensor", field="trainer", hint=hint)
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"features": {0: "rows"}, "answer": {0: "rows"}}
        call(
            f"{name}: the module cannot be exported to ONNX",
            lambda: torch.onnx.export(
                module, (example,), made, dynamo=False, opset_version=OPSETS[""], dynamic_axes=axes,
                input_names=["features"], output_names=["answer"],
            ),
        )  # fmt: skip
    bounds, logits = bounds_of(examples), examples.spec.task != "regression" and not said.probabilities

    def live(matrix: Matrix) -> Floats:
        with torch.no_grad():
            parts = [module(torch.from_numpy(part)) for part in _parts(within(bounds, matrix))]
            told = torch.cat(parts).double()
            if logits and not (told.ndim == 1 or told.shape[1] == 1):
                told = torch.softmax(told, dim=1)
            elif logits:
                told = torch.sigmoid(told)
        answer: Floats = told.numpy()
        return wide(answer, examples.pipeline)

    graph = onnx.load_from_string(made.getvalue())
    if logits:
        _must_be_logits(graph.graph, told.detach().numpy(), name)
    return Model(graph, "features", live, logits=logits, bounds=bounds)


def _must_be_logits(graph: Any, told: NDArray[Any], name: str) -> None:  # noqa: ANN401  # a GraphProto
    """By the last operator that does something, and by the numbers: of one column those alone do not tell."""
    columns = np.atleast_1d(told).reshape(np.atleast_1d(told).shape[0], -1)
    sums_to_1 = columns.shape[1] > 1 and (told >= 0).all() and np.allclose(columns.sum(axis=1), 1, atol=1e-4)
    made_by = {output: node for node in graph.node for output in node.output}
    last = made_by.get(graph.output[0].name)
    while last is not None and last.op_type in PASSING:
        last = made_by.get(last.input[0])
    if sums_to_1 or (last is not None and last.op_type in ("Sigmoid", "Softmax")):
        hint = "return Learned(module, probabilities=True), or leave the last Softmax off"
        raise TrainerFailed(
            f"the module of {name} gives probabilities, and logits are expected", field="trainer", hint=hint
        )


# --- estimators -----------------------------------------------------------------------------------


def _estimator(model: Any, examples: Examples, name: str) -> Model:  # noqa: ANN401
    pipeline, bounds = examples.pipeline, bounds_of(examples)
    _must_have_learned(model, name)
    places = _places(model, pipeline, name)

    def live(matrix: Matrix) -> Floats:
        parts = [within(bounds, part) for part in _parts(matrix)]
        if pipeline.task == "regression":
            return np.concatenate([numbers(call(name, model.predict, part), name).reshape(-1) for part in parts])
        told = np.concatenate([numbers(call(name, model.predict_proba, part), name) for part in parts])
        every = np.zeros((len(told), len(pipeline.classes)))
        every[:, list(places)] = told
        return every

    importance = getattr(model, "feature_importances_", None)
    worth = tuple(map(float, importance)) if importance is not None and len(importance) == len(pipeline.names) else ()
    graph = _converted(model, examples.rows.features, name)
    return Model(graph, "features", live, classes=places, bounds=bounds, importance=worth)


def _must_have_learned(model: Any, name: str) -> None:  # noqa: ANN401
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if not isinstance(model, BaseEstimator):
        return
    fitted = True
    with contextlib.suppress(Exception):  # of one that cannot say it
        try:
            check_is_fitted(model)
        except NotFittedError:
            fitted = False
    if not fitted:
        hint = "call its `fit` with the rows of `training.train`, and return what that returns"
        raise TrainerFailed(
            f"{name} returned a {type(model).__name__} that has not learned", field="trainer", hint=hint
        )


def _places(model: Any, pipeline: Pipeline, name: str) -> tuple[int, ...]:  # noqa: ANN401
    """Which of our classes the estimator's columns stand for."""
    every = tuple(range(len(pipeline.classes)))
    said = getattr(model, "classes_", None)
    if pipeline.task == "regression" or said is None:
        return every
    learned: list[Any] = np.asarray(said).tolist()
    labels: dict[Any, int] = {label: place for place, label in enumerate(pipeline.classes)}
    known = labels | {place: place for place in every}
    found = [known.get(each) if isinstance(each, Hashable) else None for each in learned]
    if None in found:
        hint = f"learn `Rows.y`: 0 to {len(every) - 1} stand for {', '.join(pipeline.classes[:10])}"
        shown = ", ".join(map(repr, learned[:10]))
        raise TrainerFailed(
            f"{name} learned the classes {shown}, which are not the target's", field="trainer", hint=hint
        )
    return tuple(place for place in found if place is not None)


def _converted(model: Any, features: int, name: str) -> Any:  # noqa: ANN401  # a ModelProto
    call(
        f"{name}: skl2onnx cannot be imported", importlib.import_module, "skl2onnx"
    )  # a file of theirs may be called so
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    _with_xgboost()
    make = onnx.helper.make_attribute

    def plain(key: str, value: Any, *args: Any, **more: Any) -> Any:  # noqa: ANN401
        # skl2onnx gives HistGradientBoosting's flags as booleans, which onnx no longer takes for numbers.
        if isinstance(value, list | tuple) and any(isinstance(each, bool | np.bool_) for each in value):
            value = [int(each) for each in value]
        return make(key, int(value) if isinstance(value, bool | np.bool_) else value, *args, **more)

    onnx.helper.make_attribute = plain
    try:
        shape = [("features", FloatTensorType([None, features]))]
        return to_onnx(model, initial_types=shape, target_opset=OPSETS)
    except (MissingConverter, MissingShapeCalculator):
        hint = "skl2onnx knows scikit-learn's estimators; build the ONNX yourself and return that"
        if type(model).__module__.startswith("lightgbm"):
            hint = "LightGBM is a trainer of ours, `trainer: lightgbm` with `params`; or build the ONNX yourself"
        message = f"{name} returned a {type(model).__module__}.{type(model).__name__}, which nobody can convert to ONNX"
        raise TrainerFailed(message, field="trainer", hint=hint) from None
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {text(error)}".split())[:300]
        raise TrainerFailed(
            f"the {type(model).__name__} of {name} cannot be converted to ONNX: {why}", field="trainer"
        ) from error
    finally:
        onnx.helper.make_attribute = make


def _with_xgboost() -> None:
    """Teach skl2onnx XGBoost's estimators, where the user has them. After a scaler their trees convert wrong (seen)."""
    if (xgboost := sys.modules.get("xgboost")) is None:
        return
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx import update_registered_converter
    from skl2onnx.common import shape_calculator as shapes

    flags = {"zipmap": [True, False, "columns"], "nocl": [True, False], "raw_scores": [True, False]}
    update_registered_converter(
        xgboost.XGBClassifier,
        "XGBClassifier",
        shapes.calculate_linear_classifier_output_shapes,
        convert_xgboost,
        options=flags,
    )
    update_registered_converter(
        xgboost.XGBRegressor, "XGBRegressor", shapes.calculate_linear_regressor_output_shapes, convert_xgboost
    )


def numbers(told: object, name: str) -> Floats:
    """What the user's own code answers. Raises `TrainerFailed` where that is no array [rows] or [rows, numbers]."""
    try:
        found: Floats = np.asarray(told, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(())
    if found.ndim not in (1, 2):
        what = f"an array {list(found.shape)}" if found.ndim else f"a {_kind(told)} that is no array of numbers"
        raise TrainerFailed(f"{name} answers {what}; [rows] or [rows, numbers] is expected", field="trainer")
    return found


def wide(told: Floats, pipeline: Pipeline) -> Floats:
    """Answers of one column as the pipeline's: of a binary target both classes, of a regression [rows]."""
    if pipeline.task == "regression":
        return told.reshape(len(told), -1)[:, 0]
    if told.ndim == 1 or told.shape[1] == 1:
        one = told.reshape(-1)
        return np.stack([1 - one, one], axis=1)
    return told


def _parts(matrix: Matrix) -> list[Matrix]:
    return [matrix[start : start + BATCH_ROWS] for start in range(0, len(matrix), BATCH_ROWS)] or [matrix]
