"""The column to learn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from activities.compute.data.doubts import mistaken
from activities.compute.data.table import MINIMUM_ROWS, Table, example, floats, is_number, unread_type
from activities.compute.data.times import event_seconds
from everloop.errors import DatasetTooSmall, InvalidSpec, TargetUnusable
from everloop.specs import LifecycleSpec

MOST_CLASSES = 100
CODED = 1000
"""Different values after which no row is looked at as one of a class."""
MISSING_UNASKED = 0.01
"""Share of rows without a target that are left out without a word from the spec."""
TargetType = Literal["", "text", "integer", "number", "boolean"]
SPREAD = (1e-100, 1e100)
"""Of a numeric target, from its least to its largest value: squared errors must fit into float64."""


# --- the target ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The column to learn: a class index or a number per row; NaN where a row has no label."""

    values: NDArray[np.float64]
    classes: tuple[str, ...] = ()
    """Binary: negative first, then the positive class."""
    positive: str = ""
    type: TargetType = ""
    """What labels are answered as. Nothing where the first reader read them: text."""

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Row numbers with a label."""
        return np.flatnonzero(np.isfinite(self.values))

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of *rows* (ascending): where these are all, no copy."""
        return self.values if len(rows) == len(self.values) else self.values[rows]


def target_of(table: Table, spec: LifecycleSpec) -> Target:
    """The target as the spec's task needs it. Raises `TargetUnusable` or `DatasetTooSmall` with what to do."""
    kind, nulls = table.rows.schema.field(spec.target).type, _nulls(table, spec.target)
    filled = len(table) - nulls
    unread = unread_type(table, spec.target)
    if filled == 0 and unread:
        raise _unusable(spec, f"holds values of type {unread}, which are not understood", "choose another target")
    if filled == 0:
        raise _unusable(spec, "has no value in any row", "choose another target")
    if pa.types.is_timestamp(kind):
        raise _unusable(spec, "holds times", "choose another target")
    if filled < MINIMUM_ROWS:
        hint = f"at least {MINIMUM_ROWS} rows with a target are needed"
        message = f"only {filled} of {len(table)} rows have a value in the target {spec.target!r}"
        raise DatasetTooSmall(message, field=spec.target, hint=hint)
    _check_missing(table, spec, nulls)
    if spec.task == "regression":
        return _since(table, spec, _number_target(table, spec, nulls))
    found = replace(_class_target(table, spec, nulls), type=_type_of(kind) if table.reading else "")
    return _since(table, spec, found)


def _since(table: Table, spec: LifecycleSpec, target: Target) -> Target:
    """Only rows from `since` on have a label: what came before is not learned from, nor judged by."""
    if spec.since is None or spec.time is None:
        return target
    late = event_seconds(table, spec.time) >= spec.since.timestamp()
    found = replace(target, values=np.where(late, target.values, np.nan))
    if len(found.labelled) < MINIMUM_ROWS:
        since = f"{spec.since:%Y-%m-%d %H:%M} UTC"
        message = f"only {len(found.labelled)} rows since {since} have a value in the target {spec.target!r}"
        hint = f"at least {MINIMUM_ROWS} are needed: a longer `retrain.window`, or `data: all`"
        raise DatasetTooSmall(message, field="retrain.window", hint=hint)
    return found


def _nulls(table: Table, name: str) -> int:
    from activities.compute.rows import batches

    return sum(int(batch[name].null_count) for _, batch in batches(table.rows, [name]))


def _type_of(kind: pa.DataType) -> TargetType:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    return "number" if is_number(kind) else "text"


def _check_missing(table: Table, spec: LifecycleSpec, missing: int) -> None:
    """More than a few rows without a target are not left out unasked. Raises `TargetUnusable`."""
    if table.reading is None or spec.target_missing == "drop" or missing <= MISSING_UNASKED * len(table):
        return
    texts = change.frequent[:3] if (change := table.changes(spec.target)) else []
    read_so = f" (texts read as missing: {', '.join(map(repr, texts))})" if texts else ""
    hint = "`target_missing: drop` leaves those rows out (`everloop submit SPEC --set target_missing=drop`)"
    if texts:
        named = json.dumps(spec.target, ensure_ascii=False)
        hint += f"; `columns: {{{named}: {{missing: []}}}}` makes those texts classes, and so do quotes around them"
    what = f"has no value in {missing:,} of {len(table):,} rows{read_so}: say what becomes of them"
    raise _unusable(spec, what, hint)


def _unusable(spec: LifecycleSpec, what: str, hint: str) -> TargetUnusable:
    return TargetUnusable(f"the target {spec.target!r} {what}", field=spec.target, hint=hint)


def _number_target(table: Table, spec: LifecycleSpec, nulls: int) -> Target:
    from activities.compute.rows import batches

    kind = table.rows.schema.field(spec.target).type
    if not is_number(kind):
        column = table.rows[spec.target]
        if pa.types.is_string(kind) and (why := mistaken(column)):
            raise _unusable(spec, f"is not numeric: {why}", "mend the column, or choose another target")
        raise _unusable(
            spec, f"is not numeric (for instance {example(column)!r})", "use `task: binary` or `task: multiclass`"
        )
    values = np.empty(len(table))
    for start, batch in batches(table.rows, [spec.target]):
        values[start : start + len(batch)] = floats(batch[spec.target])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low == high:
        raise _unusable(spec, f"is always {low:g}{_except_missing(nulls)}", "choose a target that varies")
    if not SPREAD[0] <= high - low <= SPREAD[1]:
        hint = f"scale it, for instance divide it by {high - low:.0e}" if high - low < np.inf else "scale it"
        what = f"goes from {low:g} to {high:g}: its spread must lie between 1e-100 and 1e100, as errors are squared"
        raise _unusable(spec, what, hint)
    return Target(values)


def _except_missing(nulls: int) -> str:
    """What to think of where a class seems to have vanished: it may be called `NA`."""
    if not nulls:
        return ""
    return f" where it has a value; {nulls:,} rows have none (a text like NA or null counts as missing)"


def _class_target(table: Table, spec: LifecycleSpec, nulls: int) -> Target:
    kind = table.rows.schema.field(spec.target).type
    codes, values = _codes(table, spec.target)
    distinct = len(values)
    if distinct > CODED:
        distinct = int(pc.count_distinct(table.rows[spec.target], mode="only_valid").as_py())
    if distinct == 1:
        what = f"is always {label_of(values[0])!r}{_except_missing(nulls)}"
        hint = "choose a target that varies" + (", or give that class another name" if nulls else "")
        raise _unusable(spec, what, hint)
    numeric = is_number(kind)
    if spec.task == "binary" and distinct != 2:  # noqa: PLR2004
        hint = "use `task: regression` or `task: multiclass`" if numeric else "use `task: multiclass`"
        raise _unusable(spec, f"has {distinct} different values, a binary target has 2", hint)
    if distinct > MOST_CLASSES:
        hint = "use `task: regression`" if numeric else f"at most {MOST_CLASSES} classes can be told apart"
        raise _unusable(spec, f"has {distinct} different values", hint)
    order = sorted(range(len(values)), key=lambda place: values[place])
    labels = [label_of(values[place]) for place in order]
    if spec.positive is not None:
        chosen = _positive(labels, spec)
        order = [
            *(place for place, label in zip(order, labels, strict=True) if label != chosen),
            order[labels.index(chosen)],
        ]
        labels = [label_of(values[place]) for place in order]
    index = np.full(len(values) + 1, np.nan)  # the last is that of no value: -1
    index[order] = np.arange(len(values))
    _check_counts(np.bincount(codes[codes >= 0], minlength=len(values))[order], labels, spec)
    return Target(index[codes], tuple(labels), labels[-1] if spec.task == "binary" else "")


def _codes(table: Table, name: str) -> tuple[NDArray[np.int16], list[Any]]:
    """Each row's value as its place among the different ones, -1 where there is none; those, at most a few too many."""
    from activities.compute.rows import batches

    codes, places = np.full(len(table), -1, np.int16), dict[Any, int]()
    for start, batch in batches(table.rows, [name]):
        coded = pc.dictionary_encode(batch[name].combine_chunks())
        own = [places.setdefault(value, len(places)) for value in coded.dictionary.to_pylist()]
        if len(places) > CODED:
            break
        indices = pc.fill_null(coded.indices, len(own)).to_numpy()
        codes[start : start + len(batch)] = np.array([*own, -1], np.int16)[indices]
    return codes, list(places)


def _positive(labels: Sequence[str], spec: LifecycleSpec) -> str:
    wanted = spec.positive or ""
    for same in (lambda label: label == wanted, lambda label: _loose(label) == _loose(wanted)):
        found = [label for label in labels if same(label)]
        if len(found) == 1:
            return found[0]
    hint = f"use one of {', '.join(map(repr, labels))}"
    message = f"positive: the target {spec.target!r} has no value {wanted!r}"
    raise InvalidSpec(message, field="positive", hint=hint)


def _loose(label: str) -> str:
    try:
        return repr(float(label))
    except ValueError:
        return label.strip().lower()


def _check_counts(counts: NDArray[np.int64], labels: Sequence[str], spec: LifecycleSpec) -> None:
    for label, count in zip(labels, counts, strict=True):
        if count == 1:
            hint = "add rows of that class, or remove that row"
            raise _unusable(spec, f"has only one row of the class {label!r}", hint)


def label_of(value: object) -> str:
    """A class as text: 1.0 is `1`, true is `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return str(value)
