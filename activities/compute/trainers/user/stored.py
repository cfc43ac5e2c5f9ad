"""A user's model as it is kept: ONNX with the pipeline's features, or the raw columns, as inputs and one answer.

The answer is what `trainers.Fitted` says: float [rows, classes], or [rows, 1] centred and scaled.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, compose, helper, inliner, version_converter

from activities.compute.features import FIRST_SECOND, LAST_SECOND, Floats, Input, Pipeline
from activities.compute.features.graph import DOUBLE, FLOAT, STRING, Graph
from activities.compute.trainers import Question
from activities.compute.trainers.user.returned import OPSETS, Model
from everloop.errors import IntegrityError, TrainerFailed
from everloop.steps import STEP

FEATURES = "features"
ANSWER = "answer"
NOTE = "everloop"
TEXTS = ("category", "text")
TYPES = {FLOAT: "float", DOUBLE: "double", STRING: "string"}
BATCH_ROWS = 8192
SPANS = 10
"""How far a number may go beyond training's range, in ranges."""
NEWEST_OPSET = 21
"""That what we run understands for sure."""


class Fitted:
    """A user's model: the protocol `trainers.Fitted`, answered by ONNX Runtime."""

    file = "model.onnx"
    unit = STEP
    """As the function's reports say it."""

    def __init__(self, dumped: bytes, pipeline: Pipeline) -> None:
        self._dumped, self.pipeline = dumped, pipeline
        try:
            self.model = onnx.load_from_string(dumped)
            notes = {each.key: each.value for each in self.model.metadata_props}
            self._notes: dict[str, Any] = json.loads(notes[NOTE])
        except Exception as error:  # noqa: BLE001  # protobuf's error has no other base
            raise IntegrityError(f"the kept model is no ONNX of ours: {str(error)[:200]}") from None
        self.iterations = int(self._notes["iterations"])
        self.raw = self._notes["inputs"] == "raw"

    @classmethod
    def of(cls, learned: Model, pipeline: Pipeline, iterations: int) -> "Fitted":
        """*learned* as it is kept. Raises `TrainerFailed` where its inputs or its answer are not as expected."""
        notes = {"inputs": learned.inputs, "iterations": iterations, "importance": learned.importance}
        made = _kept(learned, pipeline)
        helper.set_model_props(made, {NOTE: json.dumps(notes)})
        return cls(made.SerializeToString(deterministic=True), pipeline)

    @cached_property
    def _session(self) -> "onnxruntime.InferenceSession":
        return session(self.model, self._dumped)

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes], or values [rows] centred and scaled."""
        if self.raw:
            names = [entry.name for entry in self._session.get_inputs()]
            feed = {name: asked.columns[name].reshape(-1, 1) for name in names}
        else:
            feed = {FEATURES: asked.matrix}
        rows = len(next(iter(feed.values())))
        parts = [
            self._session.run([ANSWER], {name: values[start : start + BATCH_ROWS] for name, values in feed.items()})[0]
            for start in range(0, rows, BATCH_ROWS)
        ]
        told: Floats = np.concatenate(parts).astype(np.float64)
        return told[:, 0] if self.pipeline.task == "regression" else told

    def dump(self) -> bytes:
        return self._dumped

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """The kept graph's nodes after the pipeline's, or after the raw inputs."""
        prefix = "learned:"
        while any(name.startswith(prefix) for name in graph.taken):
            prefix += ":"
        own = compose.add_prefix(self.model, prefix).graph
        for entry, renamed in zip(self.model.graph.input, own.input, strict=True):
            source = entry.name if self.raw else pipeline.in_graph(graph)
            graph.add("Identity", source, outputs=[renamed.name])
        graph.nodes.extend(own.node)
        graph.constants.extend(own.initializer)
        for entry in self.model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                graph.opset = max(graph.opset, entry.version)
            else:
                graph.domains[entry.domain] = max(graph.domains.get(entry.domain, 1), entry.version)
        return str(own.output[0].name)

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:
        worth = self._notes.get("importance") or ()
        return dict(zip(pipeline.names, worth, strict=True)) if len(worth) == len(pipeline.names) else {}

    def thresholds(self) -> Mapping[int, list[float]]:
        return {}


def session(model: Any, data: bytes = b"") -> "onnxruntime.InferenceSession":  # noqa: ANN401  # a ModelProto
    """*model*, ready to answer. Raises `TrainerFailed` where ONNX Runtime does not take it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        data = data or model.SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's own errors share no other base
        why = " ".join(str(error).split())[:300]
        raise TrainerFailed(f"ONNX Runtime does not take the model: {why}", field="trainer") from None


# --- from what a library made to what is kept -----------------------------------------------------


def _kept(learned: Model, pipeline: Pipeline) -> Any:  # noqa: ANN401  # a ModelProto
    theirs = compose.add_prefix(_plain(learned.onnx), "user:")
    graph = Graph(frozenset(entry.name for entry in pipeline.inputs))
    given = {entry.name: entry for entry in theirs.graph.initializer}
    inputs = [entry for entry in theirs.graph.input if entry.name not in given]
    if learned.inputs == "raw":
        wanted = _from_columns(graph, inputs, pipeline)
    else:
        wanted = _from_features(graph, inputs, learned, pipeline)
    graph.nodes.extend(theirs.graph.node)
    graph.constants.extend(theirs.graph.initializer)
    kind = DOUBLE if pipeline.task == "regression" else FLOAT
    told = graph.add("Cast", _answer_of(graph, theirs.graph), to=kind)
    opsets = [helper.make_opsetid(entry.domain, entry.version) for entry in theirs.opset_import]
    width = _width(_model(graph, wanted, told, (kind, None), opsets), pipeline, learned)
    answer = _normal(graph, told, width, learned, pipeline)
    return _model(graph, wanted, answer, (kind, ["rows", len(pipeline.classes) or 1]), opsets)


def _plain(model: Any) -> Any:  # noqa: ANN401
    """The model without functions of its own, in operators that we can put beside ours."""
    if any(each.data_location == TensorProto.EXTERNAL for each in model.graph.initializer):
        raise TrainerFailed("the ONNX keeps its weights in another file: save it as one", field="trainer")
    if len(model.graph.sparse_initializer):
        raise TrainerFailed("the ONNX holds sparse weights: save it with dense ones", field="trainer")
    if model.functions:
        model = inliner.inline_local_functions(model)
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSETS[""])
    if version > NEWEST_OPSET:
        hint = f"export it with opset {OPSETS['']} to {NEWEST_OPSET}"
        raise TrainerFailed(f"the ONNX is of opset {version}, which is too new here", field="trainer", hint=hint)
    if version >= OPSETS[""]:
        return model
    try:
        return version_converter.convert_version(model, OPSETS[""])
    except Exception as error:  # noqa: BLE001  # onnx raises what it likes
        why = " ".join(str(error).split())[:200]
        hint = f"export it with opset {OPSETS['']} to {NEWEST_OPSET}"
        raise TrainerFailed(
            f"the ONNX is of opset {version} and cannot be raised: {why}", field="trainer", hint=hint
        ) from None


def _shape(entry: Any) -> tuple[int, int | None]:  # noqa: ANN401  # a ValueInfoProto
    """Type and rank of an input."""
    tensor = entry.type.tensor_type
    return tensor.elem_type, len(tensor.shape.dim) if tensor.HasField("shape") else None


def _from_features(graph: Graph, inputs: list[Any], learned: Model, pipeline: Pipeline) -> list[Any]:
    """Keep the features within what is known (see `returned.bounds_of`) and give them to the one input."""
    if len(inputs) != 1 or _shape(inputs[0])[0] not in (FLOAT, DOUBLE):
        shown = ", ".join(entry.name.removeprefix("user:") for entry in inputs) or "none"
        message = (
            f"with `inputs: features` the ONNX must have one input, float [rows, {len(pipeline.names)}]; it has {shown}"
        )
        raise TrainerFailed(message, field="trainer")
    low, high = (graph.constant(edge.reshape(1, -1), np.float32) for edge in learned.bounds)
    block = graph.add("Where", graph.add("Greater", FEATURES, high), high, FEATURES)
    block = graph.add("Where", graph.add("Less", block, low), low, block)
    graph.add("Cast", block, to=_shape(inputs[0])[0], outputs=[inputs[0].name])
    return [helper.make_tensor_value_info(FEATURES, FLOAT, ["rows", len(pipeline.names)])]


def _from_columns(graph: Graph, inputs: list[Any], pipeline: Pipeline) -> list[Any]:
    """Give each input the raw column of its name, as a prediction brings it, in the type that the model takes."""
    columns = {entry.name: entry for entry in pipeline.inputs}
    wanted = []
    for theirs in inputs:
        name = theirs.name.removeprefix("user:")
        entry = columns.get(name)
        if entry is None:
            hint = f"its inputs are named as columns: {', '.join(map(repr, list(columns)[:20]))}"
            raise TrainerFailed(
                f"the ONNX has an input {name!r}, which is no column of the data", field="trainer", hint=hint
            )
        kind, rank = _shape(theirs)
        allowed = (STRING,) if entry.kind in TEXTS else (FLOAT, DOUBLE)
        if kind not in allowed or rank not in (1, 2, None):
            asked = " or ".join(TYPES[each] for each in allowed)
            raise TrainerFailed(f"the input {name!r} of the ONNX must be {asked}, [rows, 1] or [rows]", field="trainer")
        value = name if entry.kind in TEXTS else graph.add("Cast", _bounded(graph, entry), to=kind)
        if rank == 1:
            value = graph.add("Reshape", value, graph.constant([-1], np.int64))
        graph.add("Identity", value, outputs=[theirs.name])
        raw = STRING if entry.kind in TEXTS else DOUBLE
        wanted.append(helper.make_tensor_value_info(name, raw, ["rows", 1]))
    if not wanted:
        raise TrainerFailed("the ONNX has no input", field="trainer")
    return wanted


def _bounded(graph: Graph, entry: Input) -> str:
    """A column of numbers as training knew it: a value where none was ever missing, and within what is known."""
    value = entry.name
    if not entry.nullable:
        value = graph.add("Where", graph.add("IsNaN", value), graph.constant([[entry.fill]], np.float64), value)
    edges: tuple[float, float] | None = None
    if entry.kind == "datetime":
        edges = (FIRST_SECOND, LAST_SECOND)
    elif entry.kind == "number" and entry.low is not None and entry.high is not None:
        span = entry.high - entry.low or max(abs(entry.high), 1.0)
        edges = (entry.low - SPANS * span, entry.high + SPANS * span)
    if edges is None:
        return value
    low, high = (graph.constant([[edge]], np.float64) for edge in edges)
    value = graph.add("Where", graph.add("Greater", value, high), high, value)
    return graph.add("Where", graph.add("Less", value, low), low, value)


def _answer_of(graph: Graph, theirs: Any) -> str:  # noqa: ANN401  # a GraphProto
    """The output that holds probabilities or values. scikit-learn's maps of labels are left off."""
    zipped = next((node for node in graph.nodes if node.op_type == "ZipMap"), None)
    if zipped is not None:
        graph.nodes.remove(zipped)
        return str(zipped.input[0])
    floats = [entry for entry in theirs.output if _shape(entry)[0] in (FLOAT, DOUBLE)]
    named = [entry for entry in floats if "probabilit" in entry.name.lower()]
    chosen = named or floats
    if len(chosen) != 1:
        shown = ", ".join(entry.name.removeprefix("user:") for entry in theirs.output)
        hint = "keep one output of floats, or call it `probabilities`"
        raise TrainerFailed(f"which output of the ONNX is the answer? It has {shown}", field="trainer", hint=hint)
    return str(chosen[0].name)


def _model(graph: Graph, inputs: list[Any], answer: str, kind: tuple[int, list[Any] | None], theirs: list[Any]) -> Any:  # noqa: ANN401
    """*kind*: type and shape of the answer."""
    nodes = [*graph.nodes, helper.make_node("Identity", [answer], [ANSWER])]
    output = helper.make_tensor_value_info(ANSWER, *kind)
    made = helper.make_graph(nodes, "learned", inputs, [output], initializer=graph.constants)
    versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in theirs}
    opsets = [helper.make_opsetid(domain, version) for domain, version in ({"": OPSETS[""]} | versions).items()]
    return helper.make_model(made, opset_imports=opsets, ir_version=max(9, _ir(opsets)), producer_name="everloop")


def _ir(opsets: list[Any]) -> int:
    return int(helper.find_min_ir_version_for(opsets, ignore_unknown=True))


def _width(model: Any, pipeline: Pipeline, learned: Model) -> int:  # noqa: ANN401  # a ModelProto
    """How many numbers the model answers for a row, found by asking it about a few."""
    rows = 5
    if learned.inputs == "raw":
        feed = {
            entry.name: np.full((rows, 1), "", object) if entry.kind in TEXTS else np.full((rows, 1), entry.fill)
            for entry in pipeline.inputs
            if entry.name in {each.name for each in model.graph.input}
        }
    else:
        feed = {
            FEATURES: np.repeat(learned.bounds.mean(axis=0, dtype=np.float64)[None].astype(np.float32), rows, axis=0)
        }
    opened = session(model)
    try:
        told = opened.run([ANSWER], feed)[0]
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's own errors share no other base
        why = " ".join(str(error).split())[:300]
        raise TrainerFailed(f"the ONNX cannot answer {rows} rows at once: {why}", field="trainer") from None
    width = 1 if told.ndim == 1 else int(np.prod(told.shape[1:]))
    if told.shape[:1] != (rows,) or told.ndim > 2:  # noqa: PLR2004
        raise TrainerFailed(
            f"the model answers {rows} rows with an array {list(told.shape)}", field="trainer", hint=_wanted(pipeline)
        )
    known = len(learned.classes) or len(pipeline.classes)
    fits = width == 1 if pipeline.task == "regression" else width == known or (width == 1 and pipeline.task == "binary")
    if not fits:
        raise TrainerFailed(f"the model answers each row with {width} numbers", field="trainer", hint=_wanted(pipeline))
    return width


def _wanted(pipeline: Pipeline) -> str:
    if pipeline.task == "regression":
        return "one number is expected, the target's value"
    labels = ", ".join(map(repr, pipeline.classes[:10]))
    return f"{len(pipeline.classes)} are expected, the probabilities of {labels} in this order"


def _normal(graph: Graph, told: str, width: int, learned: Model, pipeline: Pipeline) -> str:
    """The model's numbers as the protocol has them."""
    told = graph.add("Reshape", told, graph.constant([-1, width], np.int64))
    if pipeline.task == "regression":
        if learned.inputs == "features":
            return told
        moved = graph.add("Sub", told, graph.constant(pipeline.center, np.float64))
        return graph.add("Div", moved, graph.constant(pipeline.scale, np.float64))
    if learned.logits:
        told = graph.add("Softmax", told, axis=1) if width > 1 else graph.add("Sigmoid", told)
    if learned.classes and learned.classes != tuple(range(len(pipeline.classes))):
        chosen = np.zeros((width, len(pipeline.classes)), np.float32)
        chosen[range(width), list(learned.classes)] = 1
        return graph.add("MatMul", told, graph.constant(chosen, np.float32))
    if width == 1:
        other = graph.add("Sub", graph.constant([[1.0]], np.float32), told)
        return graph.add("Concat", other, told, axis=1)
    return told
