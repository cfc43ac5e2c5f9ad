"""Lines of the log as typed columns, by the signature of the version that answered."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from activities.compute.inference import labels_of, loose_reader
from everloop.records import Field, Signature

FEATURE = "feature:"
MOMENT = pa.timestamp("us", "UTC")
BESIDE = pa.schema(
    [
        ("request_id", pa.string()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("event_time", MOMENT),
        ("logged_at", MOMENT),
        ("version", pa.int32()),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("probability", pa.float64()),
        ("probabilities", pa.list_(pa.float64())),
    ]
)
"""What every row has beside its features, see /docs/predictions.md."""
TYPES: dict[str, pa.DataType] = {
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "datetime": MOMENT,
    "category": pa.string(),
}
ABOUT = b"everloop"
"""In a file's metadata: version and classes, as JSON."""
CHUNK_LINES = 20_000
MICROSECONDS = 1_000_000

Row = dict[str, Any]


def schema_of(signature: Signature, version: int) -> pa.Schema:
    """The columns of a version's rows."""
    features = [pa.field(FEATURE + field.name, TYPES[field.kind]) for field in signature.fields]
    about = json.dumps({"version": version, "classes": signature.classes}).encode()
    return pa.schema([*BESIDE, *features], {ABOUT: about})


def tables(
    lines: Iterable[bytes], signatures: Mapping[int, Signature], default: Signature | None = None
) -> Iterator[tuple[int, pa.Table | int]]:
    """The rows of *lines* by version, some thousands at a time; a torn line is passed over.

    A version without a signature is read as *default*; without that its rows are counted only.
    """
    waiting: dict[int, list[Row]] = {}
    for line in lines:
        row = _parsed(line)
        if row is None:
            continue
        version = row["version"] if isinstance(row.get("version"), int) else 0
        rows = waiting.setdefault(version, [])
        rows.append(row)
        if len(rows) >= CHUNK_LINES:
            yield version, _table(version, waiting.pop(version), signatures.get(version, default))
    for version, rows in waiting.items():
        yield version, _table(version, rows, signatures.get(version, default))


def _parsed(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row: Row = orjson.loads(line)
        row["event_time"] = _microseconds(row["event_time"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return row


def _table(version: int, rows: Sequence[Row], signature: Signature | None) -> pa.Table | int:
    if signature is None:
        return len(rows)
    schema = schema_of(signature, version)
    predictions = [found if isinstance(found := row.get("prediction"), dict) else {} for row in rows]
    labels = dict(zip(labels_of(signature), signature.classes, strict=True))
    columns = [
        pa.array([str(row.get("request_id")) for row in rows], pa.string()),
        pa.array([row.get("row", 0) for row in rows], pa.int32()),
        pa.array([key_text(row.get("key")) for row in rows], pa.string()),
        pa.array([row["event_time"] for row in rows], pa.int64()).cast(MOMENT),
        pa.array([_logged_at(row) for row in rows], pa.int64()).cast(MOMENT),
        pa.array([version] * len(rows), pa.int32()),
        pa.array([_label(found, labels) for found in predictions], pa.string()),
        _floats([found.get("value") for found in predictions]),
        _floats([found.get("probability") for found in predictions]),
        pa.array([_in_order(found, signature.classes) for found in predictions], pa.list_(pa.float64())),
    ]
    features = [found if isinstance(found := row.get("features"), dict) else {} for row in rows]
    columns += [typed(field, [found.get(field.name) for found in features]) for field in signature.fields]
    return pa.Table.from_arrays(columns, schema=schema)


def typed(field: Field, values: Sequence[object]) -> pa.Array:
    """Logged values as a column of the field's type; null where one is missing or does not fit."""
    kinds = set(map(type, values))
    if field.kind == "number" and kinds <= {float, int, type(None)}:
        return _of_floats(np.array(values, np.float64), field)
    read = loose_reader(field)
    if field.kind == "category":
        return pa.array([read(value) or None for value in values], pa.string())
    return _of_floats(np.array([read(value) for value in values], np.float64), field)


def _of_floats(values: NDArray[np.float64], field: Field) -> pa.Array:
    missing = ~np.isfinite(values)
    if field.kind == "boolean":
        return pa.array(values == 1, pa.bool_(), mask=missing)
    if field.kind == "datetime":
        moments = np.round(np.where(missing, 0, values) * MICROSECONDS).astype(np.int64)
        return pa.array(moments, pa.int64(), mask=missing).cast(MOMENT)
    return pa.array(values, pa.float64(), mask=missing)


def key_text(key: object) -> str | None:
    """A key as text, however JSON wrote it: 7, 7.0 and "7" are one key."""
    if isinstance(key, float) and key.is_integer():
        return str(int(key))
    return None if key is None else str(key)


def _label(prediction: Mapping[str, object], labels: Mapping[Any, str]) -> str | None:
    label = prediction.get("label")
    if label is None or isinstance(label, dict | list):
        return None
    return labels.get(label, str(label))


def _in_order(prediction: Mapping[str, Any], classes: Sequence[str]) -> list[float] | None:
    found = prediction.get("probabilities")
    return [found.get(name, math.nan) for name in classes] if isinstance(found, dict) else None


def _floats(values: Sequence[object]) -> pa.Array:
    plain = [value if isinstance(value, int | float) and not isinstance(value, bool) else None for value in values]
    return pa.array(plain, pa.float64())


def _logged_at(row: Row) -> int | None:
    try:
        return _microseconds(row["logged_at"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(text: str) -> int:
    span = datetime.fromisoformat(text).astimezone(UTC) - _EPOCH
    return (span.days * 86_400 + span.seconds) * MICROSECONDS + span.microseconds
