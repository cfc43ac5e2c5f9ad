# ruff: noqa: T201  # what a job prints is its log
"""A file of rows, answered piece by piece. A row that cannot be answered is kept apart with the reason."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from activities.compute import Job
from activities.compute.data import engine, files
from activities.compute.inference import Model
from everloop import dialect as dialects
from everloop.contracts import ChunkRequest, CutRequest, JoinRequest
from everloop.errors import DatasetMissing, InvalidData, InvalidPrediction
from everloop.records import Blob, Champion, Signature
from everloop.rows import column_values
from everloop.scores import MOST_CHUNKS, Chunk, Cut, Joined

ROW, FAULT = "everloop:row", "everloop:fault"
"""Columns of a piece: the row's number in the file, from 1, and why it is none."""
FIELD, REASON = "everloop:field", "everloop:reason"
"""Beside the row, of a rejected one."""
OURS = frozenset({ROW, FAULT, FIELD, REASON})
ABOUT = b"everloop"
BATCH_ROWS = 2000
"""Answered together; where one of them does not fit, one by one."""
ADDED = ("prediction", "probability", "model_version")
PROBABILITY = "probability:"
SHOWN = 10


def cut(request: CutRequest, job: Job) -> Cut:
    """The rows of a file in pieces, as they were written. Raises `InvalidData` naming the first missing column."""
    signature = _signature(request.champion, job)
    path = Path(request.path)
    if not path.is_file():
        raise DatasetMissing(f"there is no file {path}", field="path", hint="give the absolute path of a file")
    wanted = {field.name for field in signature.fields} | {name for name in (signature.time, signature.key) if name}
    with engine.connection(job.scratch) as duck:
        opened = files.open_file(path, path.name, job.scratch, wanted, signature.encoding or None, duck)
    _must_have(opened, signature)
    pieces: list[str] = []
    rows = rejected = 0
    for piece in _text_pieces(opened, request) if opened.dialect else _typed_pieces(opened, request):
        pieces.append(_put(piece, job, f"piece-{len(pieces) + 1}.parquet").sha256)
        rows += piece.num_rows
        rejected += piece.num_rows - piece[FAULT].null_count
        job.report(len(pieces), rows=rows)
    if not rows:
        raise InvalidData(f"{path.name} has no rows", field="path", hint="it needs a header line and rows")
    print(f"{rows:,} rows of {path.name} in {len(pieces)} pieces; {rejected} of them are no rows")
    return Cut(rows=rows, chunks=tuple(pieces), rejected=rejected)


def _must_have(opened: files.Opened, signature: Signature) -> None:
    missing = [f.name for f in signature.fields if f.name not in opened.columns and f.name != signature.time]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise InvalidData(
            f"{opened.name} lacks {', '.join(map(repr, missing[:SHOWN]))}{more}",
            field=missing[0],
            hint="the model asks for these columns; leave a cell empty where a value is not known",
        )


def _size(rows: int, asked: int) -> int:
    return max(asked, math.ceil(rows / MOST_CHUNKS))


def _typed_pieces(opened: files.Opened, request: CutRequest) -> Iterator[pa.Table]:
    with pa.parquet.ParquetFile(opened.path) as file:
        first = 1
        for batch in file.iter_batches(_size(file.metadata.num_rows, request.chunk_rows), use_threads=False):
            table = pa.Table.from_batches([batch]).rename_columns(list(opened.columns))
            yield _piece(table, first, [None] * table.num_rows, {})
            first += table.num_rows


def _text_pieces(opened: files.Opened, request: CutRequest) -> Iterator[pa.Table]:
    dialect, width = opened.dialect, len(opened.columns)
    assert dialect is not None  # noqa: S101  # of a text file there is one
    with opened.path.open("rb") as source:
        lines = sum(block.count(b"\n") for block in iter(lambda: source.read(1 << 20), b""))
    size, first = _size(lines, request.chunk_rows), 1
    about = {"delimiter": dialect.delimiter}
    rows: list[list[str]] = []
    faults: list[str | None] = []

    def made() -> pa.Table:
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        return _piece(pa.Table.from_arrays(columns, names=list(opened.columns)), first, faults, about)

    with opened.path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        for _ in range(opened.lines):
            text.readline()
        try:
            for cells in dialects.rows(text, dialect, blanks=opened.quoted_blanks):
                if not cells:
                    continue
                odd = len(cells) != width
                faults.append(f"it has {len(cells)} fields where the header has {width}" if odd else None)
                rows.append((cells + [""] * width)[:width] if odd else cells)
                if len(rows) == size:
                    yield made()
                    first += len(rows)
                    rows, faults = [], []
        except csv.Error as error:
            raise InvalidData(f"{opened.name}: after row {first + len(rows)}: {error}", field="path") from None
    if rows:
        yield made()


def _piece(table: pa.Table, first: int, faults: Sequence[str | None], about: Mapping[str, str]) -> pa.Table:
    # A file of rejected rows that was mended has them, of the time before.
    table = table.select([place for place, name in enumerate(table.column_names) if name not in OURS])
    table = table.append_column(ROW, pa.array(range(first, first + table.num_rows), pa.int64()))
    table = table.append_column(FAULT, pa.array(faults, pa.string()))
    return table.replace_schema_metadata({ABOUT: json.dumps(about).encode()})


# --- one piece ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A row that is not answered."""

    place: int
    field: str
    reason: str


def chunk(request: ChunkRequest, job: Job) -> Chunk:
    """The piece's rows with what the model says of each; apart, those that it cannot answer."""
    signature = _signature(request.champion, job)
    model = Model(job.artifacts.get(request.champion.model), signature)
    table = _read(request.chunk, job)
    raw = table.drop_columns([ROW, FAULT])
    told = table[FAULT].to_pylist()
    faults = [Fault(place, "", reason) for place, reason in enumerate(told) if reason is not None]
    good = [place for place, reason in enumerate(told) if reason is None]
    rows = _asked(raw.take(pa.array(good, pa.int64())), table.schema.metadata, signature)
    answers: dict[int, dict[str, Any]] = {}
    for start in range(0, len(rows), BATCH_ROWS):
        places, batch = good[start : start + BATCH_ROWS], rows[start : start + BATCH_ROWS]
        found, wrong = _answered(model, places, batch, request.asked_at)
        answers |= found
        faults += wrong
        job.report(start + len(batch), answered=len(answers))
    scored = _with_answers(raw, answers, signature, request.champion.version)
    rejects = _put(_rejects(table, faults), job, "rejects.parquet").sha256 if faults else ""
    print(f"{len(answers):,} rows answered by version {request.champion.version}, {len(faults):,} not")
    return Chunk(
        scored=_put(scored, job, "scored.parquet").sha256, rejects=rejects, rows=len(answers), rejected=len(faults)
    )


def _asked(table: pa.Table, about: Mapping[bytes, bytes], signature: Signature) -> list[dict[str, Any]]:
    """The model's columns of each row, as a predict request would send them."""
    fields = {field.name: field for field in signature.fields}
    names = [name for name in table.column_names if name in fields]
    delimiter = json.loads(about[ABOUT]).get("delimiter")
    columns = []
    for name in names:
        values = table[name].to_pylist()
        is_text = delimiter is not None
        columns.append(
            column_values(name, values, signature, fields, delimiter) if is_text else [_plain(each) for each in values]
        )
    if not columns:
        return [{} for _ in range(table.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(value: object) -> object:
    """A typed cell as JSON would have it."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC).isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _answered(
    model: Model, places: Sequence[int], rows: Sequence[dict[str, Any]], asked_at: datetime
) -> tuple[dict[int, dict[str, Any]], list[Fault]]:
    try:
        found = model.answer(rows, [asked_at] * len(rows)).rows()
    except (InvalidPrediction, ValueError) as error:
        if len(rows) == 1:
            return {}, [_fault(places[0], error)]
    else:
        return dict(zip(places, found, strict=True)), []
    answers: dict[int, dict[str, Any]] = {}
    faults: list[Fault] = []
    half = max(1, len(rows) // 2)  # a bad row costs the rows beside it a few tries, not all of them one each
    for part in (slice(0, half), slice(half, None)):
        if rows[part]:
            more, wrong = _answered(model, places[part], rows[part], asked_at)
            answers |= more
            faults += wrong
    return answers, faults


def _fault(place: int, error: Exception) -> Fault:
    if isinstance(error, InvalidPrediction):
        said = str(error).removeprefix("row 0: ").removeprefix("row 0 ")
        return Fault(place, error.field.removeprefix("rows[0]").removeprefix("."), f"{said}; {error.hint}")
    return Fault(place, "", str(error))


def _with_answers(raw: pa.Table, answers: Mapping[int, dict[str, Any]], signature: Signature, version: int) -> pa.Table:
    """The raw columns of the rows that were answered, and the answers beside them."""
    order = sorted(answers)
    table = raw.take(pa.array(order, pa.int64())).replace_schema_metadata(None)
    found = [answers[place] for place in order]
    taken = set(raw.column_names)

    def add(name: str, values: pa.Array) -> None:
        nonlocal table
        while name in taken:
            name = f"{name}_"
        taken.add(name)
        table = table.append_column(name, values)

    if signature.task == "regression":
        add(ADDED[0], pa.array([each["value"] for each in found], pa.float64()))
    else:
        add(ADDED[0], _labels([each["label"] for each in found], signature))
        if signature.task == "binary":
            add(ADDED[1], pa.array([each["probability"] for each in found], pa.float64()))
        for name in signature.classes:
            add(PROBABILITY + name, pa.array([each["probabilities"][name] for each in found], pa.float64()))
    add(ADDED[2], pa.array([version] * len(found), pa.int32()))
    return table


def _labels(labels: Sequence[Any], signature: Signature) -> pa.Array:
    kinds = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64()}
    return pa.array(labels, kinds.get(signature.target_type, pa.string()))


def _rejects(table: pa.Table, faults: Sequence[Fault]) -> pa.Table:
    ordered = sorted(faults, key=lambda fault: fault.place)
    rows = table.take(pa.array([fault.place for fault in ordered], pa.int64()))
    made = pa.table(
        {
            ROW: rows[ROW],
            FIELD: pa.array([fault.field for fault in ordered], pa.string()),
            REASON: pa.array([fault.reason for fault in ordered], pa.string()),
        }
    )
    for name in table.column_names:
        if name not in (ROW, FAULT):
            made = made.append_column(name, rows[name])
    return made


# --- together -----------------------------------------------------------------------------------


def join(request: JoinRequest, job: Job) -> Joined:
    """The answered pieces as one file, and the rejected rows as another."""
    out = _joined(request.scored, request.form, job, "scored")
    rejects = _joined(request.rejects, request.form, job, "rejects") if request.rejects else None
    print(f"{request.rows:,} rows answered, {request.rejected:,} not: {out.size_bytes:,} bytes")
    return Joined(out=out, rejects=rejects, rows=request.rows, rejected=request.rejected)


def _joined(digests: Sequence[str], form: str, job: Job, name: str) -> Blob:
    path = job.scratch / f"{name}.{form}"
    schema = _as_form(_read(digests[0], job), form).schema
    with _writer(path, schema, form) as target:
        for number, digest in enumerate(digests, 1):
            target.write_table(_as_form(_read(digest, job), form).cast(schema))
            job.report(number)
    return job.artifacts.put_file(path, path.name)


def _as_form(table: pa.Table, form: str) -> pa.Table:
    """In a CSV the lists and objects of a Parquet file are JSON."""
    for place, field in enumerate(table.schema if form == "csv" else ()):
        if pa.types.is_nested(field.type):
            found = [None if each is None else json.dumps(each, default=str) for each in table[place].to_pylist()]
            table = table.set_column(place, field.name, pa.array(found, pa.string()))
    return table


@contextmanager
def _writer(path: Path, schema: pa.Schema, form: str) -> Iterator[Any]:
    if form == "csv":
        with pa.csv.CSVWriter(str(path), schema) as target:
            yield target
        return
    with pa.parquet.ParquetWriter(path, schema, compression="zstd") as target:
        yield target


def _read(digest: str, job: Job) -> pa.Table:
    with job.artifacts.open_local(Blob(sha256=digest, size_bytes=0)) as path:
        return pa.parquet.ParquetFile(path).read(use_threads=False)


def _put(table: pa.Table, job: Job, name: str) -> Blob:
    path = job.scratch / name
    pa.parquet.write_table(table, path, compression="zstd")
    blob = job.artifacts.put_file(path, name)
    path.unlink()
    return blob


def _signature(champion: Champion, job: Job) -> Signature:
    return Signature.model_validate_json(job.artifacts.get(champion.signature))
