"""Labels: what became of what was predicted, as people know it later.

JSON lines in `labels/labels.jsonl` beside the prediction log of the model, appended in the order in which they came:
of several for one row the last counts, and the others stay, which is the history. A label whose prediction is not
there yet waits in the file until it is. Names are texts and compared as such: `7` is not `7.0`, nor `07`.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from everloop import disk
from everloop.errors import Invalid, StorageLow, Unavailable
from everloop.records import Signature

FOLDER = "labels"
FILE = "labels.jsonl"
REQUEST, ROW, KEY, LABEL = "request_id", "row", "key", "label"
MOST_TEXT = 500
"""Letters of a name, and of a label."""
SHOWN = 60
LARGEST = 1e100
"""Of a number, either way: the squares of errors are added up, and one that overflows would hide all others."""

Name = tuple[str, ...]
"""Of a row: `request_id` with id and row, `key` with its text, or columns and their texts in turn."""


@dataclass(frozen=True)
class Label:
    """What one row turned out to be."""

    name: Name
    value: str | float
    """A class as text, or a number."""
    at: datetime
    """When we were told."""


class LabelLog:
    """The labels of one model. Any number of processes may append and read."""

    def __init__(self, folder: Path) -> None:
        """*folder*: `settings.predictions_dir/<project>/<model>`."""
        self.path = folder / FOLDER / FILE

    def append(self, labels: Iterable[Label]) -> None:
        """Keep *labels*, on the disk when this returns, all of them or none.

        Raises `StorageLow` when the disk is full, `Unavailable` when it cannot be written.
        """
        lines = [
            json.dumps([list(label.name), label.value, label.at.isoformat()], ensure_ascii=False, allow_nan=False)
            for label in labels
        ]
        data = ("\n".join(lines) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path) as descriptor:
                _write_all(descriptor, data)
        except OSError as error:
            if disk.is_full(error):
                raise StorageLow("the labels' disk is full, and none of these is kept", hint=disk.HINT) from error
            raise Unavailable(f"the labels cannot be written ({os.strerror(error.errno or 0)})") from error

    def read(self, until: int | None = None) -> Iterator[Label]:
        """Every label in the order in which they came, up to byte *until*. A torn line was never acknowledged."""
        try:
            source = self.path.open("rb")
        except FileNotFoundError:
            return
        with source:
            at = 0
            for line in source:
                at += len(line)
                if until is not None and at > until:
                    return
                label = _parsed(line)
                if label is not None:
                    yield label

    def size(self) -> int:
        """Bytes that were kept: it grows with every label."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def last_write(self) -> datetime | None:
        """When a label last came, by the file's clock."""
        try:
            return datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        except FileNotFoundError:
            return None


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The file, nobody else's to append to in the block. A torn last line, of a process that died, is cut off."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = os.lseek(descriptor, 0, os.SEEK_END)
        whole = _whole(descriptor, end)
        os.truncate(descriptor, whole)
        os.lseek(descriptor, whole, os.SEEK_SET)
        try:
            yield descriptor
            os.fsync(descriptor)
        except OSError:
            os.truncate(descriptor, whole)  # all of it or nothing
            raise
    finally:
        os.close(descriptor)


def _whole(descriptor: int, end: int) -> int:
    """Where the last whole line ends."""
    step = 1 << 16
    while end:
        start = max(0, end - step)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _parsed(line: bytes) -> Label | None:
    if not line.endswith(b"\n"):
        return None
    try:
        name, value, at = json.loads(line)
        return Label(tuple(name), value, datetime.fromisoformat(at))
    except (ValueError, TypeError):
        return None


# --- what a row of the log is called ----------------------------------------------------------------


def text_of(value: object) -> str | None:
    """What was sent as the text that it is compared by; None for what has none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, int | float) else None


def names_of(row: Mapping[str, Any], columns: Iterable[tuple[str, ...]]) -> Iterator[Name]:
    """All that a row of the prediction log is called: `request_id`, `row`, `key` and `feature:NAME`, as it is read
    there. *columns*: sets of columns that labels name rows by.
    """
    yield (REQUEST, row["request_id"], str(row["row"]))
    if row.get("key") is not None:
        yield (KEY, row["key"])
    for chosen in columns:
        texts = {column: row.get(f"feature:{column}") for column in chosen}
        if all(isinstance(text, str) for text in texts.values()):
            yield by_columns({column: str(text) for column, text in texts.items()})


def by_columns(texts: Mapping[str, str]) -> Name:
    return ("columns", *(part for column in sorted(texts) for part in (column, texts[column])))


def columns_of(name: Name) -> tuple[str, ...] | None:
    """The columns that *name* names a row by, if it does."""
    return name[1::2] if name[0] == "columns" else None


# --- what people send -------------------------------------------------------------------------------


def labels_of(rows: Sequence[Mapping[str, Any]], signature: Signature, at: datetime) -> list[Label]:
    """Rows such as `{"key": "A-17", "label": 1}` as labels.

    A row is named by `request_id` (with `row`, its place in that request), else by `key` or the key column's own
    name, else by columns of texts of the model. The label stands under `label` or under the target's own name.
    Raises `Invalid` that names the row and the column.
    """
    return [_label(row, place, signature, at) for place, row in enumerate(rows)]


def _label(row: Mapping[str, Any], place: int, signature: Signature, at: datetime) -> Label:
    own = signature.target if signature.target in row else LABEL
    if own not in row:
        asked = f"`{LABEL}` or {signature.target!r}"
        raise _wrong(place, LABEL, f"has no label: {asked} is missing", "send what the row turned out to be")
    value = _value(row[own], place, own, signature)
    return Label(_name({name: each for name, each in row.items() if name != own}, place, signature), value, at)


def _value(value: object, place: int, column: str, signature: Signature) -> str | float:
    if value is None or value == "":
        raise _wrong(place, column, "has no label", "leave the row out until it is known")
    if signature.task == "regression":
        return _number(value, place, column)
    text = text_of(int(value) if isinstance(value, float) and value.is_integer() else value)
    if text is None or len(text) > MOST_TEXT:
        raise _wrong(place, column, f"is {_shown(value)}, which is no class", "send a class as text or number")
    if signature.task == "binary" and text not in signature.classes:
        classes = " or ".join(map(repr, signature.classes))
        raise _wrong(place, column, f"is {_shown(value)}", f"the model answers {classes}")
    return text


def _number(value: object, place: int, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # told below
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:
        what = "too large a number" if math.isfinite(number) else "no number"
        raise _wrong(place, column, f"is {_shown(value)}, which is {what}", "the model answers numbers")
    return number


def _name(row: Mapping[str, Any], place: int, signature: Signature) -> Name:
    fields = {field.name for field in signature.fields}
    keys = [name for name in (signature.key, None if KEY in fields else KEY) if name]
    known = {REQUEST, ROW, *keys, *fields, *signature.ignored, *([signature.time] if signature.time else [])}
    for column in row:
        if column not in known:
            hint = f"name the row by {REQUEST}, {' or '.join(keys)}, or columns of the model"
            raise _wrong(place, column, "is no column that a row can be named by", hint)
    if row.get(REQUEST) is not None and REQUEST not in fields:
        return (REQUEST, _text(row[REQUEST], place, REQUEST), _text(row.get(ROW) or 0, place, ROW))
    for key in keys:
        if row.get(key) is not None:
            return (KEY, _text(row[key], place, key))
    kinds = {field.name: field.kind for field in signature.fields}
    for column in row:
        if column in kinds and kinds[column] != "category":
            hint = f"name the row by {REQUEST}, {' or '.join(keys)}, or columns of texts"
            raise _wrong(place, column, f"is a {kinds[column]}, which has no exact text", hint)
    named = {column: _text(value, place, column) for column, value in row.items() if column in fields}
    if not named:
        hint = f"send {REQUEST}, {' or '.join(keys)}, or columns of the model"
        raise _wrong(place, keys[0] if keys else REQUEST, "names no prediction", hint)
    return by_columns(named)


def _text(value: object, place: int, column: str) -> str:
    if isinstance(value, float):
        hint = f'names are compared as texts: send "{value!r}", or "{value:.0f}" where the prediction had a number'
        raise _wrong(place, column, f"is the float {value!r}, which is no exact name", hint)
    text = text_of(value)
    if text is None or not 0 < len(text) <= MOST_TEXT:
        raise _wrong(place, column, f"is {_shown(value)}, which is no name", "send text or a whole number")
    return text


def _wrong(place: int, column: str, what: str, hint: str) -> Invalid:
    return Invalid(f"row {place}: {column[:SHOWN]!r} {what}", field=f"labels[{place}].{column[:SHOWN]}", hint=hint)


def _shown(value: object) -> str:
    text = repr(value)
    return text[:SHOWN] + "..." * (len(text) > SHOWN)
