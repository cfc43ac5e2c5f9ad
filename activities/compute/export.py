# ruff: noqa: T201  # what a job prints is its log
"""ONE ONNX graph: raw columns in, probabilities or a value out, proven equal to the trained model row by row.

Known wrong conversions that this file is shaped around: onnxmltools rounds thresholds to the nearest float32,
which sends rows that sit on a threshold to the other side (up to 0.12 of probability); and it lets a missing value
follow `default_left` where LightGBM, which saw none in training, compares 0 with the threshold.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from onnx import TensorProto, helper

from activities.compute import UNUSED_BY_LIGHTGBM, Job, without
from activities.compute.data import Table, target_of, time_layouts
from activities.compute.features import DAY, FIRST_SECOND, LAST_SECOND, Floats, Input, Pipeline
from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Terms
from activities.compute.features.terms import OPSET as TEXT_OPSET
from activities.compute.inference import Columns, Model
from activities.compute.rows import opened
from activities.compute.training import predicted
from everloop.contracts import ExportRequest
from everloop.errors import DatasetTooSmall, ParityFailed, naming
from everloop.records import Exported, Field, Parity, Signature
from everloop.specs import LifecycleSpec

with without(*UNUSED_BY_LIGHTGBM):
    import lightgbm
    from onnxmltools.convert import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType
    from onnxmltools.convert.lightgbm.operator_converters import LightGbm as converter  # noqa: N813  # a module

OPSET, ML_OPSET, IR_VERSION = 18, 3, 9
TEXTS = ("category", "text")
REFERENCE_ROWS = 50_000
PARITY_ROWS = 50_000
LEAST_PARITY_ROWS = 10_000
TOLERANCE = 1e-4
"""Largest difference of a probability, or of a value in standard deviations of the target."""
MOST_EDGE_ROWS = 30_000
BATCH_CELLS = 4_000_000
STACK_BYTES = 512 << 20
"""The converter recurses once per node on a path, and a category split is a chain of nodes."""
MOST_KNOWN = 100
MOST_BESIDE = 1000
"""Edges where a number and what float32 leaves of it are both at a threshold."""

T = TypeVar("T")


def export(request: ExportRequest, job: Job) -> Exported:
    """Convert, prove, store. Raises `ParityFailed` when one row of the proof differs."""
    spec = request.spec
    pipeline = Pipeline.read(job.artifacts, request.refitted.pipeline)
    booster = lightgbm.Booster(model_str=job.artifacts.get(request.refitted.model).decode())
    with opened(job.artifacts, request.snapshot) as table:
        return _export(spec, pipeline, booster, table, job)


def _export(spec: LifecycleSpec, pipeline: Pipeline, booster: "lightgbm.Booster", table: Table, job: Job) -> Exported:
    graph = build(pipeline, booster)
    onnx.checker.check_model(graph, full_check=False)
    data = graph.SerializeToString()
    signature = signature_of(spec, pipeline, table)
    print(f"one graph, {len(data):,} bytes, {len(signature.fields)} inputs")
    parity = prove(pipeline, booster, Model(data, signature), table, seed=spec.training.seed)
    print(f"{parity.rows:,} rows and {parity.edge_rows:,} edge rows: largest difference {parity.max_difference:.2g}")
    return Exported(
        model=job.artifacts.put(data, "model.onnx"),
        signature=job.artifacts.put(signature.model_dump_json().encode(), "signature.json"),
        parity=parity,
        reference=job.artifacts.put_file(_reference(spec, pipeline, table, job), "reference.parquet"),
    )


def signature_of(spec: LifecycleSpec, pipeline: Pipeline, table: Table) -> Signature:
    """What predict requests must bring, in the order of the graph's inputs."""
    names = {entry.name for entry in pipeline.inputs} | {spec.target, spec.time, spec.key}
    return Signature(
        task=spec.task,
        fields=tuple(
            Field(
                name=entry.name,
                kind="category" if entry.kind == "text" else entry.kind,
                minimum=entry.low if entry.kind == "number" else None,
                maximum=entry.high if entry.kind == "number" else None,
                known=entry.known[:MOST_KNOWN],
                layouts=table.column(entry.name).layouts,
                read=table.reading.column(entry.name) if table.reading else None,
            )
            for entry in pipeline.inputs
        ),
        target=spec.target,
        classes=pipeline.classes,
        positive=pipeline.positive,
        target_type=target_of(table, spec).type,
        time=spec.time,
        time_layouts=time_layouts(table, spec.time) if spec.time else (),
        key=spec.key,
        time_read=table.reading.column(spec.time) if table.reading else None,
        key_read=table.reading.column(spec.key) if table.reading else None,
        ignored=tuple(column.name for column in table.columns if column.name not in names),
    )


def _reference(spec: LifecycleSpec, pipeline: Pipeline, table: Table, job: Job) -> Any:  # noqa: ANN401  # a Path
    """Raw feature rows that the model learned from, and their time: what drift is measured against."""
    names = [entry.name for entry in pipeline.inputs]
    if spec.time and spec.time not in names:
        names.append(spec.time)
    rows = _sample(target_of(table, spec).labelled, REFERENCE_ROWS, spec.training.seed)
    path = job.scratch / "reference.parquet"
    pa.parquet.write_table(table.rows.select(names).take(pa.array(rows)), path, compression="zstd")
    return path


def _sample(rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


# --- the graph ----------------------------------------------------------------------------------


def build(pipeline: Pipeline, booster: "lightgbm.Booster") -> Any:  # noqa: ANN401  # a ModelProto
    """The graph of preprocessing and trees. Its inputs are [rows, 1], in the order of the pipeline's inputs."""
    graph = Graph(frozenset(entry.name for entry in pipeline.inputs))
    output = _trees(graph, pipeline, booster, pipeline.in_graph(graph))
    inputs = [
        helper.make_tensor_value_info(
            entry.name, TensorProto.STRING if entry.kind in TEXTS else TensorProto.DOUBLE, ["rows", 1]
        )
        for entry in pipeline.inputs
    ]
    made = helper.make_graph(graph.nodes, "everloop", inputs, [output], initializer=graph.constants)
    opsets = [
        helper.make_opsetid("", TEXT_OPSET if pipeline.terms else OPSET),
        helper.make_opsetid("ai.onnx.ml", ML_OPSET),
    ]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="everloop")


def _trees(graph: Graph, pipeline: Pipeline, booster: "lightgbm.Booster", features: str) -> Any:  # noqa: ANN401
    """LightGBM's trees, and the description of the output they give."""
    node = _deep(lambda: _converted(booster, len(pipeline.names)))
    node.input[:] = [features]
    if pipeline.task == "regression":
        node.output[:] = [graph.free("everloop:learned")]
        graph.nodes.append(node)
        value = graph.free("value")
        wide = graph.add("Cast", node.output[0], to=TensorProto.DOUBLE)
        spread = graph.add("Mul", wide, graph.constant(pipeline.scale, np.float64))
        graph.add("Add", spread, graph.constant(pipeline.center, np.float64), outputs=[value])
        return helper.make_tensor_value_info(value, TensorProto.DOUBLE, ["rows", 1])
    probabilities = graph.free("probabilities")
    node.output[:] = [graph.free("everloop:label"), probabilities]
    graph.nodes.append(node)
    return helper.make_tensor_value_info(probabilities, TensorProto.FLOAT, ["rows", len(pipeline.classes)])


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


# --- the proof ----------------------------------------------------------------------------------


def prove(pipeline: Pipeline, booster: "lightgbm.Booster", model: Model, table: Table, *, seed: int) -> Parity:
    """Compare the graph with the trained model on real rows and on edges, by probability or value.

    Real rows: all up to 50,000; fewer than 10,000 are filled up by drawing each column on its own.
    Raises `ParityFailed` with the first rows that differ.
    """
    if not len(table):
        raise DatasetTooSmall("there is no row to compare the exported model on")
    random = np.random.default_rng(seed)
    names = [entry.name for entry in pipeline.inputs]
    rows = _sample(np.arange(len(table)), PARITY_ROWS, seed)
    real = table.arrays(names, rows)
    filled = _filled_up(real, random)
    edges = _edges(pipeline, booster, real, random)
    worst, mismatches, first = 0.0, 0, ""
    for batch in (*_batches(filled), *_batches(edges)):
        differences = _differences(pipeline, booster, model, batch)
        wrong = ~(differences <= TOLERANCE)  # NaN is wrong too
        mismatches += int(wrong.sum())
        worst = max(worst, float(np.nanmax(differences)))
        if wrong.any() and not first:
            first = _shown_rows(batch, np.flatnonzero(wrong)[:3])
    parity = Parity(
        rows=_length(filled), edge_rows=_length(edges), mismatches=mismatches, max_difference=worst, tolerance=TOLERANCE
    )
    if mismatches:
        print(f"parity failed in {mismatches} rows, for instance {first}")
        hint = "this is a fault of the export, not of the data: report it with the row"
        compared = parity.rows + parity.edge_rows
        message = f"{mismatches} of {compared} rows differ by up to {worst:.3g}, for instance {first[:500]}"
        raise ParityFailed(message, hint=hint)
    return parity


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _batches(columns: Columns) -> Iterator[Columns]:
    step = max(1, BATCH_CELLS // len(columns))
    for start in range(0, _length(columns), step):
        yield {name: values[start : start + step] for name, values in columns.items()}


def _differences(pipeline: Pipeline, booster: "lightgbm.Booster", model: Model, columns: Columns) -> Floats:
    told = model.predict(columns).values
    true = predicted(booster, pipeline, pipeline.transform(columns))
    apart: Floats = np.abs(told - true)
    return apart / pipeline.scale if pipeline.task == "regression" else apart.max(axis=1)


def _shown_rows(columns: Columns, places: NDArray[np.int64]) -> str:
    rows = [{name: values[place] for name, values in columns.items()} for place in places]
    return "; ".join(str(dict(list(row.items())[:20])) for row in rows)


def _filled_up(real: Columns, random: np.random.Generator) -> Columns:
    missing = LEAST_PARITY_ROWS - _length(real)
    if missing <= 0:
        return real
    return {
        name: np.concatenate([values, values[random.integers(0, len(values), missing)]])
        for name, values in real.items()
    }


EXTREMES = (0.0, -0.0, 1.0, -1.0, 1e-40, 1e-300, 3.5e38, -3.5e38, 1e308, -1e308, 2.0**24 + 1, 2.0**53, np.nan)
UNSEEN = ("", "everloop: unseen", " ", "\u00e9\u4e16\U0001f600", "x" * 300)


def _edges(pipeline: Pipeline, booster: "lightgbm.Booster", real: Columns, random: np.random.Generator) -> Columns:
    """Real rows with one column replaced: missing, unseen, extreme, and both neighbours of every threshold."""
    plain = dict(enumerate(entry.name for entry in pipeline.of("number", "boolean")))
    thresholds, steps = _thresholds(plain, booster), _thresholds(pipeline.fine_places, booster)
    tried = {}
    for entry in pipeline.inputs:
        with naming(column=entry.name):
            tried[entry.name] = _edge_values(entry, thresholds.get(entry.name, []), steps.get(entry.name, []))
    for encoding in pipeline.encodings:
        tried[encoding.column] = [*UNSEEN, *encoding.known]
    for terms in pipeline.terms:
        tried[terms.column] = [*UNSEEN, *_texts(terms)]
    most = max(len(EXTREMES), MOST_EDGE_ROWS // len(tried))
    tried = {
        name: values if len(values) <= most else [*values[:13], *random.choice(values[13:], most - 13).tolist()]
        for name, values in tried.items()
    }
    starts = np.cumsum([0, *(len(values) for values in tried.values())])
    drawn = random.integers(0, _length(real), starts[-1] + 1)
    edges = {name: values[drawn].copy() for name, values in real.items()}
    for name, start in zip(tried, starts, strict=False):
        edges[name][start : start + len(tried[name])] = tried[name]
    for entry in pipeline.inputs:  # and one row with nothing at all
        edges[entry.name][-1] = "" if entry.kind in TEXTS else np.nan
    return edges


def _edge_values(entry: Input, thresholds: Sequence[float], fine: Sequence[float]) -> list[Any]:
    if entry.kind == "category":
        return [*UNSEEN, *entry.known]
    if entry.kind == "boolean":
        return [0.0, 1.0, np.nan]
    if entry.kind == "datetime":
        days = [FIRST_SECOND, LAST_SECOND, -1.0, 0.0, 951782400.0, 951868800.0, 1e12, -1e15, 0.5, np.nan]
        return [*days, *(entry.offset + DAY * step for step in (-800, -366, -31, 0, 1, 59, 60, 365))]
    near = np.asarray(thresholds, np.float64)
    with np.errstate(over="ignore"):
        single = near.astype(np.float32)
        around = [np.nextafter(single, np.float32(-np.inf)), single, np.nextafter(single, np.float32(np.inf))]
    held = np.concatenate([near, *(one.astype(np.float64) for one in around)])
    steps = np.nextafter(np.asarray(fine, np.float32), np.float32(np.inf)).astype(np.float64)
    beside = [held[: MOST_BESIDE // max(1, len(fine))] + step for step in (*fine, *steps)]
    values = np.concatenate([held, *beside]) + entry.offset
    return [*EXTREMES, *values[np.isfinite(values)].tolist()]


def _texts(terms: Terms) -> list[str]:
    """Each spelling alone, and texts of several with blanks, tabs and newlines around."""
    words = [word for word, _ in terms.spellings]
    pairs = [f"  {first} {second}  {first}" for first, second in pairwise(words)]
    return [*pairs, " ".join(words[:100]), *(f"{word}\t{word}\n {word}" for word in words[:50]), ".", *words]


def _thresholds(names: Mapping[int, str], booster: "lightgbm.Booster") -> dict[str, list[float]]:
    """Thresholds of the features whose places are in *names*, by name; read from LightGBM's own text."""
    found: dict[str, set[float]] = {}
    features: list[int] = []
    for line in booster.model_to_string().splitlines():
        if line.startswith("split_feature="):
            features = [int(word) for word in line.partition("=")[2].split()]
        if line.startswith("threshold="):
            for place, word in zip(features, line.partition("=")[2].split(), strict=True):
                if place in names:
                    found.setdefault(names[place], set()).add(float(word))
    return {name: sorted(values) for name, values in found.items()}
