# ruff: noqa: T201  # what a job prints is its log
"""After the model: probabilities made honest, and the probability from which the answer is yes.

Both are found on rows that the model has not learned, and are nodes of the graph like all else.
"""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from activities.compute.features import Floats, Pipeline
from activities.compute.features.graph import DOUBLE, FLOAT, INT64, Graph
from everloop.records import Curve, Finish
from everloop.specs import Decision, LifecycleSpec

NEAR = 1e-6
"""Probabilities are kept this far from 0 and 1: float32 tells no more apart there."""
KNOTS, LEAST_STEP = 30, 0.01
"""Of an isotonic curve: places at most, and how far apart they are. Steeper, float32 would show in the answer."""
LEAST_ROWS, ISOTONIC_ROWS = 100, 1_000
"""Rows that a calibration needs; below the second an isotonic one learns noise."""
PARTS = 5
HALF = 0.5


def finish_of(spec: LifecycleSpec, pipeline: Pipeline, y: Floats, told: Floats) -> Finish | None:
    """What the spec asks for, found on rows with class indices *y* and out-of-fold probabilities *told*."""
    if not pipeline.classes or (spec.calibration == "none" and spec.decision is None) or len(y) < LEAST_ROWS:
        return None
    classes = y.astype(np.int64)
    finish = Finish(calibration=(kind := _kind(spec, classes, told)), curves=_curves(kind, classes, told))
    if spec.decision is not None:
        answers = calibrated(finish, told)[:, 1]
        threshold = cheapest(spec.decision, classes == 1, answers)
        cost = mean_cost(spec.decision, classes == 1, answers, threshold)
        usual = mean_cost(spec.decision, classes == 1, answers, HALF)
        print(f"threshold {threshold:.4f}: errors cost {cost:.4f} a row, {usual:.4f} at 0.5")
        finish = finish.model_copy(update={"threshold": threshold})
    return finish if finish.calibration or finish.threshold is not None else None


# --- calibration ------------------------------------------------------------------------------------


def _kind(spec: LifecycleSpec, classes: NDArray[np.int64], told: Floats) -> str:
    """auto: the kind that lowers the log loss of rows it has not seen by more than one standard error, or none."""
    if spec.calibration != "auto":
        return "" if spec.calibration == "none" else spec.calibration
    if spec.objective != "log_loss" and spec.decision is None:
        return ""  # ranks and majorities are as they were
    plain = _losses(classes, told)
    best, gain = "", 0.0
    for kind in ("sigmoid", *(("isotonic",) if len(classes) >= ISOTONIC_ROWS else ())):
        less = plain - _losses(classes, _crossed(kind, classes, told))
        sure = float(less.mean()) - float(less.std() / np.sqrt(len(less)))
        if sure > 0 and less.mean() > gain:
            best, gain = kind, float(less.mean())
    print(f"calibration: {best or 'none'}, log loss {plain.mean():.4f}{f' less {gain:.4f}' if best else ''}")
    return best


def _losses(classes: NDArray[np.int64], told: Floats) -> Floats:
    found: Floats = -np.log(np.clip(told[np.arange(len(classes)), classes], NEAR, 1.0))
    return found


def _crossed(kind: str, classes: NDArray[np.int64], told: Floats) -> Floats:
    """Each part of the rows as the others calibrate it."""
    part, found = np.random.default_rng(5).permutation(len(classes)) % PARTS, told.copy()
    for each in range(PARTS):
        others = part != each
        finish = Finish(calibration=kind, curves=_curves(kind, classes[others], told[others]))
        found[~others] = calibrated(finish, told[~others])
    return found


def _curves(kind: str, classes: NDArray[np.int64], told: Floats) -> tuple[Curve, ...]:
    if not kind:
        return ()
    find = _sigmoid if kind == "sigmoid" else _isotonic
    columns = [1] if told.shape[1] == 2 else range(told.shape[1])  # noqa: PLR2004
    return tuple(find(told[:, place], classes == place) for place in columns)


def _logit(told: Floats) -> Floats:
    near = np.clip(told, NEAR, 1 - NEAR)
    found: Floats = np.log(near) - np.log(1 - near)
    return found


def _sigmoid(told: Floats, true: NDArray[np.bool_]) -> Curve:
    """Platt's: a slope and a shift of the log odds, with his targets that are not quite 0 and 1."""
    odds, yes = _logit(told), int(true.sum())
    goal = np.where(true, (yes + 1) / (yes + 2), 1 / (len(true) - yes + 2))

    def loss(at: Floats) -> tuple[float, Floats]:
        sums = at[0] * odds + at[1]
        apart = 1 / (1 + np.exp(-np.clip(sums, -500, 500))) - goal
        return float(np.mean(np.logaddexp(0, sums) - goal * sums)), np.array([np.mean(apart * odds), np.mean(apart)])

    found = scipy.optimize.minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, 20), (-50, 50)]
    )
    return Curve(where=(float(found.x[0]),), value=(float(found.x[1]),))


def _isotonic(told: Floats, true: NDArray[np.bool_]) -> Curve:
    """The best curve that never falls, as lines between places that are not too near each other."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=NEAR, y_max=1 - NEAR, out_of_bounds="clip").fit(told, true.astype(np.float64))
    at = [0.0]
    for place in np.quantile(told, np.linspace(0, 1, KNOTS)).tolist():
        if place - at[-1] >= LEAST_STEP and 1 - place >= LEAST_STEP:
            at.append(place)
    at.append(1.0)
    return Curve(where=tuple(at), value=tuple(map(float, fitted.predict(np.array(at)))))


def calibrated(finish: Finish | None, told: Floats) -> Floats:
    """Probabilities [rows, classes]."""
    if finish is None or not finish.curves:
        return told
    if told.shape[1] == 2:  # noqa: PLR2004
        likely = _along(finish, finish.curves[0], told[:, 1])
        return np.stack([1 - likely, likely], axis=1)
    pairs = enumerate(finish.curves)
    wide = np.stack([np.maximum(_along(finish, curve, told[:, place]), NEAR) for place, curve in pairs], axis=1)
    found: Floats = wide / wide.sum(axis=1, keepdims=True)
    return found


def _along(finish: Finish, curve: Curve, told: Floats) -> Floats:
    if finish.calibration == "sigmoid":
        found: Floats = 1 / (1 + np.exp(-(curve.where[0] * _logit(told) + curve.value[0])))
        return found
    return np.interp(told, curve.where, curve.value)


def in_graph(graph: Graph, finish: Finish | None, told: str) -> str:
    """`calibrated`, as nodes: float [rows, classes] to the same."""
    if finish is None or not finish.curves:
        return told
    wide = graph.add("Cast", told, to=DOUBLE)
    one = graph.constant([[1.0]], np.float64)
    if len(finish.curves) == 1:
        likely = _along_in_graph(graph, finish, finish.curves[0], _column(graph, wide, 1))
        found = graph.add("Concat", graph.add("Sub", one, likely), likely, axis=1)
        return graph.add("Cast", found, to=FLOAT)
    least = graph.constant([[NEAR]], np.float64)
    parts = [
        graph.add("Max", _along_in_graph(graph, finish, curve, _column(graph, wide, place)), least)
        for place, curve in enumerate(finish.curves)
    ]
    whole = graph.add("Concat", *parts, axis=1)
    total = graph.add("ReduceSum", whole, graph.constant([1], np.int64), keepdims=1)
    return graph.add("Cast", graph.add("Div", whole, total), to=FLOAT)


def _column(graph: Graph, wide: str, place: int) -> str:
    return graph.add("Gather", wide, graph.constant([place], np.int64), axis=1)


def _along_in_graph(graph: Graph, finish: Finish, curve: Curve, told: str) -> str:
    def number(value: float) -> str:
        return graph.constant([[value]], np.float64)

    if finish.calibration == "sigmoid":
        near = graph.add("Min", graph.add("Max", told, number(NEAR)), number(1 - NEAR))
        odds = graph.add("Sub", graph.add("Log", near), graph.add("Log", graph.add("Sub", number(1.0), near)))
        return graph.add(
            "Sigmoid", graph.add("Add", graph.add("Mul", odds, number(curve.where[0])), number(curve.value[0]))
        )
    at, value = np.array(curve.where), np.array(curve.value)
    widths = np.diff(at)
    along = graph.add("Sub", told, graph.constant(at[None, :-1], np.float64))  # [rows, pieces]
    along = graph.add("Min", graph.add("Max", along, number(0.0)), graph.constant(widths[None], np.float64))
    risen = graph.add("MatMul", along, graph.constant((np.diff(value) / widths)[:, None], np.float64))
    return graph.add("Add", risen, number(float(value[0])))


# --- the decision -----------------------------------------------------------------------------------


def mean_cost(decision: Decision, true: NDArray[np.bool_], told: Floats, threshold: float) -> float:
    """What the errors cost, per row."""
    yes = told >= threshold
    wrong = decision.false_positive * (yes & ~true).sum() + decision.false_negative * (~yes & true).sum()
    return float(wrong / len(true))


def cheapest(decision: Decision, true: NDArray[np.bool_], told: Floats) -> float:
    """The threshold with the least cost on these rows; of several, the one nearest to what honest ones ask for."""
    order = np.argsort(told, kind="stable")
    values, positive = told[order], true[order]
    missed = decision.false_negative * np.concatenate([[0], np.cumsum(positive)])
    alarms = decision.false_positive * ((~positive).sum() - np.concatenate([[0], np.cumsum(~positive)]))
    between = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2, [(1 + values[-1]) / 2]])
    apart = np.concatenate([[True], values[1:] > values[:-1], [True]])  # equal answers are on one side
    cost = np.where(apart, missed + alarms, np.inf)
    honest = decision.false_positive / (decision.false_positive + decision.false_negative)
    best: Sequence[float] = between[cost == cost.min()].tolist()
    return float(min(best, key=lambda each: abs(each - honest)))


def decided_in_graph(graph: Graph, threshold: float, told: str) -> str:
    """The place of the class that is answered, int64 [rows, 1]: of probabilities float [rows, 2]."""
    likely = graph.add("Cast", _column(graph, told, 1), to=DOUBLE)
    yes = graph.add("GreaterOrEqual", likely, graph.constant([[threshold]], np.float64))
    return graph.add("Cast", yes, to=INT64)
