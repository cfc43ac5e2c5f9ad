"""LightGBM: fitted until the validation rows say stop, exported threshold by threshold.

Inputs are float32: the exported graph compares float32 with its thresholds, and only a model that was fitted
on the same values can be converted exactly. Known wrong conversions that this file is shaped around: onnxmltools
rounds thresholds to the nearest float32, which sends rows that sit on a threshold to the other side (up to 0.12 of
probability); and it lets a missing value follow `default_left` where LightGBM, which saw none in training, compares
0 with the threshold.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from activities.compute import UNUSED_BY_LIGHTGBM, Context, without
from activities.compute.features import Floats, Pipeline, PreparedRows, smallest_leaf
from activities.compute.features.graph import Graph
from activities.compute.trainers import Examples, Question
from everloop.specs import LifecycleSpec

with without(*UNUSED_BY_LIGHTGBM):
    import lightgbm
    from onnxmltools.convert import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType
    from onnxmltools.convert.lightgbm.operator_converters import LightGbm as converter  # noqa: N813  # a module

T = TypeVar("T")

OBJECTIVES = {"binary": "binary", "multiclass": "multiclass", "regression": "regression"}
REPORT_EVERY = 10
"""Rounds between two progress reports."""
STACK_BYTES = 512 << 20
"""The converter recurses once per node on a path, and a category split is a chain of nodes."""


def fit(examples: Examples, params: Mapping[str, Any], context: Context) -> "Fitted":
    """Trees for the train rows; early stopping looks at the validation rows."""
    spec, pipeline, rows = examples.spec, examples.pipeline, examples.rows
    chosen = parameters(spec, pipeline, len(examples.train)) | dict(params)
    data = dataset(rows, examples.train, examples.goal[examples.train], pipeline, chosen)
    if examples.iterations is not None:
        booster = lightgbm.train(chosen, data, examples.iterations, callbacks=[_progress(context)])
        return Fitted(booster, pipeline, booster.current_iteration())
    held_out = lightgbm.Dataset(Part(rows, examples.validation), examples.goal[examples.validation], reference=data)
    booster = lightgbm.train(
        chosen,
        data,
        spec.training.rounds,
        valid_sets=[held_out],
        valid_names=["validation"],
        callbacks=[lightgbm.early_stopping(spec.training.early_stopping, verbose=False), _progress(context)],
    )
    return Fitted(booster, pipeline, booster.best_iteration or booster.current_iteration())


def load(dumped: bytes, pipeline: Pipeline) -> "Fitted":
    """The booster in LightGBM's own text."""
    booster = lightgbm.Booster(model_str=dumped.decode())
    return Fitted(booster, pipeline, booster.current_iteration())


class Fitted:
    """A booster."""

    file = "model.txt"

    def __init__(self, booster: "lightgbm.Booster", pipeline: Pipeline, iterations: int) -> None:
        self.booster, self.pipeline, self.iterations = booster, pipeline, iterations

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes], or values [rows] as they were learned."""
        raw = np.asarray(self.booster.predict(asked.matrix, num_iteration=self.iterations, num_threads=1), np.float64)
        if self.pipeline.task == "regression":
            return raw
        return np.stack([1 - raw, raw], axis=1) if raw.ndim == 1 else raw

    def dump(self) -> bytes:
        text: str = self.booster.model_to_string(num_iteration=self.iterations)
        return text.encode()

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """The trees as one node after the pipeline's nodes."""
        node = _deep(lambda: _converted(self.booster, len(pipeline.names)))
        node.input[:] = [pipeline.in_graph(graph)]
        if pipeline.task == "regression":
            node.output[:] = [graph.free("everloop:learned")]
            graph.nodes.append(node)
            return str(node.output[0])
        node.output[:] = [graph.free("everloop:label"), graph.free("everloop:told")]
        graph.nodes.append(node)
        return str(node.output[1])

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:
        """By how much the splits of each feature reduced the loss."""
        gains = np.asarray(self.booster.feature_importance("gain"), np.float64)
        return dict(zip(pipeline.names, gains.tolist(), strict=True))

    def thresholds(self) -> Mapping[int, list[float]]:
        """Of the splits, read from LightGBM's own text."""
        found: dict[int, set[float]] = {}
        features: list[int] = []
        for line in self.booster.model_to_string().splitlines():
            if line.startswith("split_feature="):
                features = [int(word) for word in line.partition("=")[2].split()]
            if line.startswith("threshold="):
                for place, word in zip(features, line.partition("=")[2].split(), strict=True):
                    found.setdefault(place, set()).add(float(word))
        return {place: sorted(values) for place, values in found.items()}


def parameters(spec: LifecycleSpec, pipeline: Pipeline, rows: int) -> dict[str, Any]:
    """LightGBM's parameters for the spec's training."""
    params: dict[str, Any] = {
        "objective": OBJECTIVES[spec.task],
        "learning_rate": spec.training.learning_rate,
        "num_leaves": spec.training.leaves,
        "seed": spec.training.seed,
        "deterministic": True,
        "force_row_wise": True,  # the other layout sums in another order
        "num_threads": 1,  # one slot, one thread: two that spin on a shared core are slower than one
        "verbosity": -1,
        "min_data_in_leaf": smallest_leaf(rows),
        "min_data_per_group": min(100, max(5, rows // 50)),
        "feature_pre_filter": False,
        "bin_construct_sample_cnt": max(200_000, min(rows, 500_000)),  # see every missing value there is
    }
    if spec.task == "multiclass":
        params["num_class"] = len(pipeline.classes)
    return params


class Part(lightgbm.Sequence):  # type: ignore[misc]  # LightGBM has no types for us
    """Some prepared rows, as LightGBM asks for them: one by one to draw its bins, then batch by batch."""

    batch_size = 65_536

    def __init__(self, rows: PreparedRows, places: NDArray[np.int64]) -> None:
        """*places* ascend."""
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Floats:  # noqa: ANN401  # a number, a slice or a list
        # LightGBM draws its sample as float64: every float32 is one of those.
        if isinstance(index, int | np.integer):
            return self._rows.row(int(self._places[index])).astype(np.float64)
        return self._rows.matrix(self._places[index]).astype(np.float64)


def dataset(
    rows: PreparedRows, places: NDArray[np.int64], goal: Floats, pipeline: Pipeline, params: Mapping[str, Any]
) -> "lightgbm.Dataset":
    """Rows by their places (ascending) to learn *goal* from. Only bins of them are kept in memory."""
    names = [f"f{place}" for place in range(rows.features)]  # column names may hold what LightGBM refuses
    categorical = pipeline.categorical
    return lightgbm.Dataset(
        Part(rows, places), goal, feature_name=names, categorical_feature=categorical, params=dict(params)
    )


def _progress(job: Context) -> Callable[[Any], None]:
    def report(env: Any) -> None:  # noqa: ANN401  # LightGBM's CallbackEnv
        done = env.iteration + 1
        if done % REPORT_EVERY and done != env.end_iteration:
            return
        losses = {f"{name}_{metric}": float(value) for name, metric, value, *_ in env.evaluation_result_list or ()}
        # Only now: LightGBM would look at the train rows in every round, a fifth of the time.
        losses |= {f"train_{metric}": float(value) for _, metric, value, *_ in env.model.eval_train()}
        job.report(done, rounds=done, most=env.end_iteration, **losses)

    return report


# --- export ---


def _converted(booster: "lightgbm.Booster", features: int) -> Any:  # noqa: ANN401  # a NodeProto
    """The one tree-ensemble node of onnxmltools' conversion, with exact thresholds."""
    shape = [("X", FloatTensorType([None, features]))]
    unfold = converter.modify_tree_for_rule_in_set

    def exact(text: dict[str, Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = unfold(text, *args, **kwargs)
        for tree in text.get("tree_info", ()):
            _make_exact(tree["tree_structure"])
        return result

    converter.modify_tree_for_rule_in_set = exact
    try:
        model = convert_lightgbm(booster, initial_types=shape, zipmap=False, target_opset=15)
    finally:
        converter.modify_tree_for_rule_in_set = unfold
    return next(node for node in model.graph.node if node.op_type.startswith("TreeEnsemble"))


def _make_exact(root: dict[str, Any]) -> None:
    """Let float32 comparisons decide as LightGBM's float64 ones do, and missing values go where LightGBM sends them."""
    stack, done = [root], set()
    while stack:
        node = stack.pop()
        if "decision_type" not in node or id(node) in done:
            continue
        done.add(id(node))  # nodes of an unfolded category split share their left side
        stack += [node["left_child"], node["right_child"]]
        if node["decision_type"] != "<=":
            continue
        if node["missing_type"] == "None":
            node["default_left"] = node["threshold"] >= 0  # LightGBM takes a missing value for 0 there
        node["threshold"] = _round_down(node["threshold"])


def _round_down(threshold: float) -> float:
    """The largest float32 that is not above *threshold*: x <= threshold is the same for every float32 x."""
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
    return float(np.nextafter(near, np.float32(-np.inf)) if float(near) > threshold else near)


def _deep(work: Callable[[], T]) -> T:
    """Run *work* with a deep stack: its recursion follows the trees."""
    answer: list[T] = []
    fault: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again below, in the caller's thread
            fault.append(error)

    limit, size = sys.getrecursionlimit(), threading.stack_size(STACK_BYTES)
    sys.setrecursionlimit(200_000)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(size)
    if fault:
        raise fault[0]
    return answer[0]
