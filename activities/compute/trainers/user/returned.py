"""What a user's function may return: ONNX, a torch module, an estimator. Each becomes ONNX and something to ask."""

import sys
from collections.abc import Callable
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
    if said.iterations is not None and (not isinstance(said.iterations, int) or said.iterations < 1):
        raise TrainerFailed(
            f"Learned.iterations must be a whole number from 1, not {said.iterations!r}", field="trainer"
        )
    return said if said.iterations else Learned(said.model, training.steps, said.predict, said.probabilities)


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
        what = "nothing" if model is None else f"a {type(model).__module__}.{type(model).__qualname__}"
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

    if logits:
        _must_be_logits(module(example).detach().numpy(), name)
    return Model(onnx.load_from_string(made.getvalue()), "features", live, logits=logits, bounds=bounds)


def _must_be_logits(told: NDArray[Any], name: str) -> None:
    if told.ndim == 2 and told.shape[1] > 1 and (told >= 0).all() and np.allclose(told.sum(axis=1), 1, atol=1e-4):  # noqa: PLR2004
        hint = "return Learned(module, probabilities=True), or leave the last Softmax off"
        raise TrainerFailed(
            f"the module of {name} gives probabilities, and logits are expected", field="trainer", hint=hint
        )


# --- estimators -----------------------------------------------------------------------------------


def _estimator(model: Any, examples: Examples, name: str) -> Model:  # noqa: ANN401
    pipeline, bounds = examples.pipeline, bounds_of(examples)
    places = _places(model, pipeline, name)

    def live(matrix: Matrix) -> Floats:
        parts = [within(bounds, part) for part in _parts(matrix)]
        if pipeline.task == "regression":
            return np.concatenate(
                [np.asarray(call(name, model.predict, part), np.float64).reshape(-1) for part in parts]
            )
        told = np.concatenate([np.asarray(call(name, model.predict_proba, part), np.float64) for part in parts])
        every = np.zeros((len(told), len(pipeline.classes)))
        every[:, list(places)] = told
        return every

    importance = getattr(model, "feature_importances_", None)
    worth = tuple(map(float, importance)) if importance is not None and len(importance) == len(pipeline.names) else ()
    graph = _converted(model, examples.rows.features, name)
    return Model(graph, "features", live, classes=places, bounds=bounds, importance=worth)


def _places(model: Any, pipeline: Pipeline, name: str) -> tuple[int, ...]:  # noqa: ANN401
    """Which of our classes the estimator's columns stand for."""
    every = tuple(range(len(pipeline.classes)))
    said = getattr(model, "classes_", None)
    if pipeline.task == "regression" or said is None:
        return every
    learned: list[Any] = np.asarray(said).tolist()
    labels = {label: place for place, label in enumerate(pipeline.classes)}
    found = [
        labels.get(each) if isinstance(each, str) else {place: place for place in every}.get(each) for each in learned
    ]
    if None in found:
        hint = f"learn `Rows.y`: 0 to {len(every) - 1} stand for {', '.join(pipeline.classes[:10])}"
        shown = ", ".join(map(repr, learned[:10]))
        raise TrainerFailed(
            f"{name} learned the classes {shown}, which are not the target's", field="trainer", hint=hint
        )
    return tuple(place for place in found if place is not None)


def _converted(model: Any, features: int, name: str) -> Any:  # noqa: ANN401  # a ModelProto
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
