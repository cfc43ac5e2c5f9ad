# ruff: noqa: T201  # what a job prints is its log
"""ONE ONNX graph: raw columns in, probabilities or a value out, proven equal to the trained model row by row.

What is special in converting a family stands in the family's file (trainers/).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from onnx import TensorProto, helper

from activities.compute import Job
from activities.compute.data import Table, target_of, time_layouts
from activities.compute.features import DAY, FIRST_SECOND, LAST_SECOND, Floats, Input, Pipeline
from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Skew, Terms
from activities.compute.features.skews import uneven
from activities.compute.features.terms import OPSET as TEXT_OPSET
from activities.compute.finish import calibrated, decided_in_graph, in_graph
from activities.compute.inference import Columns, Model
from activities.compute.latency import DIFFERENT_ROWS, must_be_quick, of_model
from activities.compute.rows import opened
from activities.compute.trainers import Fitted, Question, answers, trainer
from everloop.contracts import ExportRequest
from everloop.errors import DatasetTooSmall, GraphTooLarge, ParityFailed, naming
from everloop.records import Exported, Field, Finish, Parity, Signature
from everloop.specs import LifecycleSpec

OPSET, IR_VERSION = 18, 9
TEXTS = ("category", "text")
REFERENCE_ROWS = 50_000
PARITY_ROWS = 50_000
LEAST_PARITY_ROWS = 10_000
TOLERANCE = 1e-4
"""Largest difference of a probability, or of a value in standard deviations of the target."""
MOST_EDGE_ROWS = 30_000
BATCH_CELLS = 4_000_000
MOST_KNOWN = 100
MOST_BESIDE = 1000
"""Edges where a number and what float32 leaves of it are both at a threshold."""


def export(request: ExportRequest, job: Job) -> Exported:
    """Convert, prove, store. Raises `ParityFailed` when one row of the proof differs."""
    pipeline = Pipeline.read(job.artifacts, request.refitted.pipeline)
    fitted = trainer(request.refitted.family).load(job.artifacts.get(request.refitted.model), pipeline)
    with opened(job.artifacts, request.snapshot) as table:
        return _export(request, pipeline, fitted, table, job)


def _must_fit(spec: LifecycleSpec, family: str, size: int) -> None:
    if size <= spec.model_mib << 20:
        return
    hint = HINTS.get(family, SMALLER) + ", or raise model_mib"
    message = f"the graph of {family} takes {size / 2**20:.1f} MiB, more than model_mib allows ({spec.model_mib})"
    raise GraphTooLarge(message, field="model_mib", hint=hint)


SMALLER = "learn a smaller model"
HINTS = {
    "lightgbm": "say fewer training.rounds or training.leaves",
    "xgboost": "say fewer params.rounds or less params.max_depth",
    "forest": "say fewer params.leaves",
    "torch": "say fewer params.layers or less params.width",
    "ensemble": "say fewer or smaller params.members",
}


def _export(request: ExportRequest, pipeline: Pipeline, fitted: Fitted, table: Table, job: Job) -> Exported:
    spec, family, finish = request.spec, request.refitted.family, request.refitted.finish
    graph = build(pipeline, fitted, finish)
    onnx.checker.check_model(graph, full_check=False)
    data = graph.SerializeToString()
    _must_fit(spec, family, len(data))
    signature = signature_of(spec, pipeline, table, finish)
    print(f"one graph, {len(data):,} bytes, {len(signature.fields)} inputs")
    model = Model(data, signature)
    names = [entry.name for entry in pipeline.inputs]
    milliseconds = of_model(model, table.arrays(names, _sample(np.arange(len(table)), DIFFERENT_ROWS, 0)))
    print(f"one row takes {milliseconds:.4f} ms on one thread")
    must_be_quick(spec, family, milliseconds, HINTS.get(family, SMALLER))
    parity = prove(pipeline, fitted, model, table, seed=spec.training.seed, finish=finish)
    print(f"{parity.rows:,} rows and {parity.edge_rows:,} edge rows: largest difference {parity.max_difference:.2g}")
    return Exported(
        model=job.artifacts.put(data, "model.onnx"),
        signature=job.artifacts.put(signature.model_dump_json().encode(), "signature.json"),
        parity=parity,
        latency_ms=milliseconds,
        reference=job.artifacts.put_file(_reference(spec, pipeline, table, job), "reference.parquet"),
    )


def _encoding(table: Table) -> str:
    found = table.reading.dialect.encoding if table.reading else ""
    return "" if found.replace("_", "-").lower() in ("utf-8", "utf-8-sig", "utf8", "ascii") else found


def signature_of(spec: LifecycleSpec, pipeline: Pipeline, table: Table, finish: Finish | None = None) -> Signature:
    """What predict requests must bring, in the order of the graph's inputs."""
    names = {entry.name for entry in pipeline.inputs} | {spec.target, spec.time, spec.key}
    return Signature(
        task=spec.task,
        fields=tuple(
            Field(
                name=entry.name,
                kind="category" if entry.kind == "text" else entry.kind,
                nullable=entry.nullable,
                usual=None if entry.nullable or entry.kind in TEXTS else entry.fill,
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
        threshold=finish.threshold if finish else None,
        target_type=target_of(table, spec).type,
        time=spec.time,
        time_layouts=time_layouts(table, spec.time) if spec.time else (),
        key=spec.key,
        encoding=_encoding(table),
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


def build(pipeline: Pipeline, fitted: Fitted, finish: Finish | None = None) -> Any:  # noqa: ANN401  # a ModelProto
    """The graph of preprocessing and model. Its inputs are [rows, 1], in the order of the pipeline's inputs."""
    graph = Graph(frozenset(entry.name for entry in pipeline.inputs))
    return _whole(graph, pipeline, _outputs(graph, pipeline, fitted.onnx(graph, pipeline), finish))


def graph_of_features(pipeline: Pipeline) -> Any:  # noqa: ANN401  # a ModelProto
    """The graph of preprocessing alone: float [rows, features]."""
    graph = Graph(frozenset(entry.name for entry in pipeline.inputs))
    told = helper.make_tensor_value_info(pipeline.in_graph(graph), TensorProto.FLOAT, ["rows", len(pipeline.names)])
    return _whole(graph, pipeline, [told])


def _whole(graph: Graph, pipeline: Pipeline, outputs: list[Any]) -> Any:  # noqa: ANN401
    inputs = [
        helper.make_tensor_value_info(
            entry.name, TensorProto.STRING if entry.kind in TEXTS else TensorProto.DOUBLE, ["rows", 1]
        )
        for entry in pipeline.inputs
    ]
    made = helper.make_graph(graph.nodes, "everloop", inputs, outputs, initializer=graph.constants)
    opsets = [
        helper.make_opsetid("", max(graph.opset, TEXT_OPSET if pipeline.terms else OPSET)),
        *(helper.make_opsetid(domain, version) for domain, version in graph.domains.items()),
    ]
    ir_version = max(IR_VERSION, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    return helper.make_model(made, opset_imports=opsets, ir_version=ir_version, producer_name="everloop")


def _outputs(graph: Graph, pipeline: Pipeline, learned: str, finish: Finish | None) -> list[Any]:
    """The graph's answer, made of what the model's nodes give: ValueInfoProto."""
    if pipeline.task == "regression":
        wide = graph.add("Cast", learned, to=TensorProto.DOUBLE)
        spread = graph.add("Mul", wide, graph.constant(pipeline.scale, np.float64))
        value = graph.add("Add", spread, graph.constant(pipeline.center, np.float64), outputs=[graph.free("value")])
        return [helper.make_tensor_value_info(value, TensorProto.DOUBLE, ["rows", 1])]
    told = in_graph(graph, finish, learned)
    probabilities = graph.add("Identity", told, outputs=[graph.free("probabilities")])
    found = [helper.make_tensor_value_info(probabilities, TensorProto.FLOAT, ["rows", len(pipeline.classes)])]
    if finish is not None and finish.threshold is not None:
        decided = decided_in_graph(graph, finish.threshold, probabilities)
        decision = graph.add("Identity", decided, outputs=[graph.free("decision")])
        found.append(helper.make_tensor_value_info(decision, TensorProto.INT64, ["rows", 1]))
    return found


# --- the proof ----------------------------------------------------------------------------------


def prove(
    pipeline: Pipeline, fitted: Fitted, model: Model, table: Table, *, seed: int, finish: Finish | None = None
) -> Parity:
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
    edges = _edges(pipeline, fitted, real, random)
    worst, mismatches, first = 0.0, 0, ""
    for batch in (*_batches(filled), *_batches(edges)):
        differences = _differences(pipeline, fitted, model, batch, finish)
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


def _differences(pipeline: Pipeline, fitted: Fitted, model: Model, columns: Columns, finish: Finish | None) -> Floats:
    told = model.predict(columns).values
    true = calibrated(finish, answers(fitted, pipeline, Question(lambda: pipeline.transform(columns), lambda: columns)))
    apart: Floats = np.abs(told - true)
    if pipeline.task != "regression":
        return np.asarray(apart.max(axis=1))
    # Far from 0 the nearest two doubles lie further apart than the tolerance: 0.00012 at 1e12.
    step: Floats = np.spacing(np.abs(true))
    return np.where(apart <= step, 0.0, apart - step) / pipeline.scale


def _shown_rows(columns: Columns, places: NDArray[np.int64]) -> str:
    rows = [{name: values[place : place + 1].tolist()[0] for name, values in columns.items()} for place in places]
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


def _edges(pipeline: Pipeline, fitted: Fitted, real: Columns, random: np.random.Generator) -> Columns:
    """Real rows with one column replaced: missing, unseen, extreme, and both neighbours of every threshold."""
    plain = dict(enumerate(entry.name for entry in pipeline.of("number", "boolean")))
    thresholds, steps = _thresholds(plain, fitted), _thresholds(pipeline.fine_places, fitted)
    tried, even = {}, {each.column: each for each in pipeline.skews}
    for entry in pipeline.inputs:
        with naming(column=entry.name):
            near, fine = thresholds.get(entry.name, []), steps.get(entry.name, [])
            tried[entry.name] = _edge_values(entry, near, fine, even.get(entry.name))
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


def _edge_values(
    entry: Input, thresholds: Sequence[float], fine: Sequence[float], skew: Skew | None = None
) -> list[Any]:
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
    values = uneven(skew, held) if skew else np.concatenate([held, *beside]) + entry.offset
    return [*EXTREMES, *values[np.isfinite(values)].tolist()]


def _texts(terms: Terms) -> list[str]:
    """Each spelling alone, and texts of several with blanks, tabs and newlines around."""
    words = [word for word, _ in terms.spellings]
    pairs = [f"  {first} {second}  {first}" for first, second in pairwise(words)]
    return [*pairs, " ".join(words[:100]), *(f"{word}\t{word}\n {word}" for word in words[:50]), ".", *words]


def _thresholds(names: Mapping[int, str], fitted: Fitted) -> dict[str, list[float]]:
    """Thresholds of the features whose places are in *names*, by name."""
    found: dict[str, set[float]] = {}
    for place, values in fitted.thresholds().items():
        if place in names:
            found.setdefault(names[place], set()).update(values)
    return {name: sorted(values) for name, values in found.items()}
