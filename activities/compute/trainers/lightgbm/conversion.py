"""Trees become one ONNX node, threshold by threshold.

Known wrong conversions that this file is shaped around: onnxmltools rounds thresholds to the nearest float32, which
sends rows that sit on a threshold to the other side (up to 0.12 of probability); and it lets a missing value follow
`default_left` where LightGBM, which saw none in training, compares 0 with the threshold.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from activities.compute import UNUSED_BY_LIGHTGBM, without

with without(*UNUSED_BY_LIGHTGBM):
    import lightgbm
    from onnxmltools.convert import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType
    from onnxmltools.convert.lightgbm.operator_converters import LightGbm as converter  # noqa: N813  # a module

T = TypeVar("T")

STACK_BYTES = 512 << 20
"""The converter recurses once per node on a path, and a category split is a chain of nodes."""


def converted(booster: "lightgbm.Booster", features: int) -> Any:  # noqa: ANN401  # a NodeProto
    """The one tree-ensemble node of onnxmltools' conversion, with exact thresholds."""
    return _deep(lambda: _converted(booster, features))


def _converted(booster: "lightgbm.Booster", features: int) -> Any:  # noqa: ANN401  # a NodeProto
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
