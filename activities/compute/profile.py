# ruff: noqa: T201  # what a job prints is its log
"""Look at a table and say what it seems to be: `python -m activities.compute.profile FILE --target COLUMN`.

Prints one JSON object: the profile, or `{"error", "message", "field", "hint"}` with exit status 2.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from activities.compute.data import (
    CATEGORY_DISTINCT,
    MINIMUM_ROWS,
    Table,
    Target,
    check_spec,
    event_seconds,
    find,
    mistaken,
    month_first,
    read_paths,
    row_hashes,
    target_of,
)
from activities.compute.data.doubts import CODES
from activities.compute.data.manifest import Drawn
from activities.compute.data.reading import Read
from activities.compute.data.target import MISSING_UNASKED
from activities.compute.evaluation import auc
from activities.compute.features import TRAIN, Pipeline, fit, split
from everloop.errors import (
    DatasetMissing,
    DatasetTooSmall,
    EverloopError,
    InvalidData,
    InvalidSpec,
    TargetUnusable,
    naming,
    unknown,
)
from everloop.init import WINDOWS
from everloop.reading import ReadColumn
from everloop.records import Column
from everloop.specs import ColumnReading, LifecycleSpec, Source, Task, checked
from everloop.texts import AMONG_NUMBERS, THOUSANDS, offered

FEW_NUMBERS = 10
"""A whole-number target with at most this many values is taken for classes."""
LOOKED_AT = 20_000
PLAIN_COMMAS = re.compile(rf"{THOUSANDS[1:-1]}|[+-]?[0-9]+")
MOST_BINS, BIN_ROWS = 200, 20
"""Of numbers: at most so many bins, and at least so many rows (half of them fitted on) in each."""
FEW_OF_A_CLASS = 5
"""With fewer rows than this of either class, a column of noise may tell the two apart."""
LEAK, SUSPICION = 0.999, 0.98
SURE_ROWS, DOUBT = 1000, 0.998
"""With fewer rows a column that orders the target perfectly is asked about and not left out: two kinds of iris are
told apart by one petal, honestly."""
"""How well one column alone says the target: AUC, share of right classes, R squared, or rank correlation."""
POSITIVES = frozenset(
    {"1", "true", "yes", "y", "positive", "t", "ja", "oui", "sí", "si", "sim", "sì", "tak", "ano", "evet", "igen"}
    | {"да", "так", "כן", "نعم", "हाँ", "是", "はい", "有", "예", "네"}
)
KEY_NAME = re.compile(r"(?i:(^|[_\s.-])(id|key|uuid|guid|identifier)$)|[a-z](Id|ID)$")
TIME_NAME = re.compile(r"time|date|stamp|(^|_)(ts|at|on|day|when)$", re.IGNORECASE)


def profile(path: Path, target: str, time: str | None, encoding: str | None = None) -> dict[str, Any]:
    """What the table at *path* seems to be. Raises `InvalidData`, `InvalidSpec`, `TargetUnusable`."""
    paths = find(path)
    asked = _spec(Source(path=str(path), encoding=encoding), "regression", target, time)
    table, read, drawn, offers = _looked_at(paths, asked)
    check_spec(asked, table.rows.column_names)
    rows = sum(read.rows)
    if len(table) < MINIMUM_ROWS:
        hint = f"at least {MINIMUM_ROWS} rows with a target are needed"
        raise DatasetTooSmall(
            f"the data has {len(table)} row{'s' * (len(table) != 1)}", field=str(path.name), hint=hint
        )
    task, why = guess_task(table, target)
    spec = asked.model_copy(update={"task": task})
    found = target_of(table, spec)
    without = drawn.target_missing
    when = event_seconds(table, time) if time else None
    suspects = leaks(table, found, target, time)
    guess = _time_guess(table, target) if not time else None
    key = _key_guess(table, target, time, drawn.repeated)
    fitted = _prepared(spec.model_copy(update={"key": key}), table, found)
    exclude, last = _left_out(suspects, fitted)
    return {
        "path": str(path),
        "rows": rows,
        "looked_at": len(table),
        "files": len(paths),
        "columns": [column.model_dump() for column in table.columns],
        "reading": [
            column.model_dump() | {"type": "identifier" if column.name == key else _drafted(column, table)}
            for column in read.reading.columns
        ],
        "dialect": read.reading.dialect.model_dump() if read.files[0].dialect else None,
        "changed": [sentence for change in table.changed for sentence in change.sentences()],
        "offers": offers,
        "target_missing": without,
        "target_asks": without > MISSING_UNASKED * rows,
        "target_texts": change.frequent if (change := table.changes(target)) else [],
        "target": target,
        "task": task,
        "why": why,
        "classes": list(found.classes),
        "positive": _positive(found) if task == "binary" else None,
        "time": time,
        "time_guess": guess,
        "time_notes": [note for column in table.columns if (note := month_first(table, column.name))],
        "windows": _windows(when, rows / len(table)) if when is not None else {},
        "key": key,
        "suspects": suspects,
        "exclude": exclude,
        "last": last,
        "unused": {column.name: column.reason for column in fitted.dropped if column.name not in exclude},
    }


def _looked_at(paths: Sequence[Path], asked: LifecycleSpec) -> tuple[Table, Read, Drawn, dict[str, str]]:
    """The table, how it is read, and the columns whose texts are numbers if one says so: they are read as such."""
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        table, read, drawn = read_paths(paths, asked, Path(scratch), threads, KEY_NAME.search)
    offers = _offers(table)
    if not offers:
        return table, read, drawn, {}
    columns = {
        name: ColumnReading(
            type="number",
            unit=style.unit,
            decimal=style.decimal,
            missing=style.missing if style.missing != AMONG_NUMBERS else None,
        )
        for name, style in offers.items()
    }
    asked = asked.model_copy(update={"columns": columns})
    with tempfile.TemporaryDirectory() as scratch:
        table, read, drawn = read_paths(paths, asked, Path(scratch), threads, KEY_NAME.search)
    return table, read, drawn, {name: example(table, name, style) for name, style in offers.items()}


def _drafted(read: ReadColumn, table: Table) -> str:
    """The type that a draft says: whole numbers may get fractions one day, and free text is no category."""
    if read.type == "integer":
        return "number"
    return "text" if read.type == "category" and table.column(read.name).kind == "text" else str(read.type)


def _offers(table: Table) -> dict[str, ReadColumn]:
    found = {}
    for column in table.columns:
        if column.kind not in ("text", "category") or (column.distinct or 0) <= CODES:
            continue
        texts = pc.drop_null(table.rows[column.name]).unique().to_pylist()
        if all(PLAIN_COMMAS.fullmatch(text) for text in texts):
            continue  # 1,234 is either number: nobody but the owner knows
        change = table.changes(column.name)  # what is already read as missing
        if style := offered([*texts, *(change.texts if change else ())]):
            found[column.name] = style
    return found


def example(table: Table, name: str, style: ReadColumn) -> str:
    """How a number of the column was written, for people."""
    value = pc.drop_null(table.rows[name])[0].as_py()
    return f"{value:g}{' ' + style.unit if style.unit else ''}"


def _spec(source: Source, task: Task, target: str, time: str | None) -> LifecycleSpec:
    if target == time:
        raise InvalidSpec("the target must not be the time column", field="target", hint="choose another target")
    asked = {"model": "profile", "task": task, "target": target, "time": time, "source": source.model_dump()}
    return checked(asked | {"target_missing": "drop"})  # counted and asked about in the draft


def _prepared(spec: LifecycleSpec, table: Table, target: Target) -> Pipeline:
    """What the prepare stage would fit. Raises as it does, so that a draft is never one that stops there."""
    part = split(spec, table, target, np.ones(len(target.labelled), np.bool_))
    try:
        return fit(spec, table, target, target.labelled[part == TRAIN])
    except InvalidData as error:
        if error.field != "features":
            raise
        # The stage's hint names a field of the spec, and no spec is written.
        hint = "add columns that say something about the target, or mend those that the message names"
        raise InvalidData(str(error), field="path", hint=hint) from None


def _left_out(suspects: dict[str, float], fitted: Pipeline) -> tuple[list[str], str | None]:
    """Columns that say the target too well to be features, and the one of them that stays all the same.

    It stays where nothing else is left to learn from: the one that says the least.
    """
    leaking = [name for name, score in suspects.items() if score >= LEAK]
    usable = [entry.name for entry in fitted.inputs]
    if not set(usable) <= set(leaking):
        return leaking, None
    last = min(usable, key=suspects.__getitem__)
    return [name for name in leaking if name != last], last


def _windows(seconds: NDArray[np.float64], times: float) -> dict[str, int]:
    """How many rows a window of each length usually holds: the median of those with any rows, each for so many."""
    days = np.floor(seconds[np.isfinite(seconds)] / 86400).astype("datetime64[D]")
    units = {"day": days, "week": (days.astype(np.int64) + 3) // 7, "month": days.astype("datetime64[M]")}
    return {window: int(times * np.median(np.unique(units[window], return_counts=True)[1])) for window in WINDOWS}


def guess_task(table: Table, target: str) -> tuple[Task, str]:
    """The task that the target asks for, and why."""
    column = table.column(target)
    distinct = column.distinct or 0
    if column.kind == "datetime":
        hint = "choose another target; a column that says when each row happened goes to --time"
        raise TargetUnusable(f"the target {target!r} holds times", field=target, hint=hint)
    if distinct == 2:  # noqa: PLR2004
        return "binary", "the target has two values"
    if column.kind == "number" and not _few_whole(table, column):
        return "regression", f"the target is a number with {distinct:,} different values"
    why = mistaken(table.rows[target]) if column.kind in ("text", "category") else ""
    if distinct > CATEGORY_DISTINCT and column.kind != "number":
        if why:
            hint = "mend the column, or choose a target with at most 100 values"
            raise TargetUnusable(f"the target {target!r} is not numeric: {why}", field=target, hint=hint)
        hint = "choose a target with at most 100 values, or a numeric one"
        raise TargetUnusable(f"the target {target!r} has {distinct:,} different texts", field=target, hint=hint)
    return "multiclass", f"the target has {distinct} values" + (f" ({why})" if why else "")


def _few_whole(table: Table, column: Column) -> bool:
    return bool(column.distinct) and (column.distinct or 0) <= FEW_NUMBERS and _whole(table, column)


def _whole(table: Table, column: Column) -> bool:
    values = table.arrays([column.name])[column.name]
    values = values[np.isfinite(values)]
    return bool((values == np.round(values)).all())


def _positive(target: Target) -> str:
    """The class that people most likely look for: the one that says yes, else the rarer one."""
    yes = [label for label in target.classes if label.lower() in POSITIVES]
    if len(yes) == 1:
        return yes[0]
    counts = np.bincount(target.values[target.labelled].astype(np.int64), minlength=2)
    return target.classes[int(counts.argmin())]


def _time_guess(table: Table, target: str) -> str | None:
    """The one datetime column that looks like the time of the event, if there is exactly one."""
    found = [
        column.name
        for column in table.columns
        if column.kind == "datetime" and column.name != target and column.nulls == 0 and (column.distinct or 0) > 2  # noqa: PLR2004
    ]
    named = [name for name in found if TIME_NAME.search(name)]
    return named[0] if len(named) == 1 else (found[0] if len(found) == 1 else None)


def _key_guess(table: Table, target: str, time: str | None, repeated: frozenset[str]) -> str | None:
    for column in table.columns:
        if column.name in (target, time) or column.name in repeated or column.nulls or column.distinct != len(table):
            continue
        if not KEY_NAME.search(column.name) or column.kind not in ("number", "text", "category"):
            continue
        if column.kind != "number" or _whole(table, column):
            return column.name
    return None


# --- leaks --------------------------------------------------------------------------------------


def leaks(table: Table, target: Target, goal: str, time: str | None) -> dict[str, float]:
    """Columns that say the target almost alone, and how well.

    Means are fitted on one half of the rows and judged on the other; ranks need no fit. Times are judged by means
    alone: what grows with time is not known from it.
    """
    rows = target.labelled
    if len(rows) > LOOKED_AT:
        rows = np.sort(np.random.default_rng(0).choice(rows, LOOKED_AT, replace=False))
    first = (row_hashes(table)[rows] & np.uint64(1)) == 0
    values = target.values[rows]
    found: dict[str, float] = {}
    for column in table.columns:
        if column.name in (goal, time):
            continue
        with naming(column=column.name):
            raw = table.arrays([column.name], rows)[column.name]
            score = _alone(raw, values, first, len(target.classes))
            if column.kind == "number":
                score = max(score, _in_order(raw, values, len(target.classes)))
                score = score if len(rows) >= SURE_ROWS else min(score, DOUBT)
        if score >= SUSPICION:
            found[column.name] = round(score, 4)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _alone(raw: NDArray[Any], values: NDArray[np.float64], first: NDArray[np.bool_], classes: int) -> float:
    """What the mean of the target per bin of one column is worth on the other half of the rows."""
    bins, count = _bins(raw, first)
    if count > len(raw) // 10:
        return 0.0  # a bin for nearly every row proves nothing
    truth = np.eye(classes)[values.astype(np.int64)] if classes else values[:, None]
    sums = np.stack([np.bincount(bins[first], truth[first][:, place], count) for place in range(truth.shape[1])], 1)
    seen = np.bincount(bins[first], minlength=count)[:, None]
    means = (sums + truth[first].mean(axis=0)) / (seen + 1)
    told, other = means[bins[~first]], truth[~first]
    if not len(other):
        return 0.0
    if classes == 2:  # noqa: PLR2004
        return 0.0 if _few_of_a_class(other[:, 1] > 0) else auc(other[:, 1] > 0, told[:, 1]) or 0.0
    if classes:
        right = float((told.argmax(1) == other.argmax(1)).mean())
        return right if right > float(other.mean(axis=0).max()) else 0.0
    spread = float(((other - other.mean()) ** 2).sum())
    return 1 - float(((other - told) ** 2).sum()) / spread if spread else 0.0


def _in_order(raw: NDArray[np.float64], values: NDArray[np.float64], classes: int) -> float:
    """How well the numbers themselves order the target, up or down: the AUC of two classes, or |Spearman's rho|.

    Bins cannot say it of few rows: a border between two classes lies within one.
    """
    filled = np.isfinite(raw)
    raw, values = raw[filled], values[filled]
    if 2 * len(raw) < len(filled) or classes > 2:  # noqa: PLR2004
        return 0.0
    if classes:
        area = None if _few_of_a_class(values > 0) else auc(values > 0, raw)
        return 0.0 if area is None else max(area, 1 - area)
    ranks = [_ranks(raw), _ranks(values)]
    if len(raw) < MINIMUM_ROWS // 2 or not all(np.ptp(each) for each in ranks):
        return 0.0
    return min(1.0, abs(float(np.asarray(np.corrcoef(ranks))[0, 1])))


def _few_of_a_class(positive: NDArray[np.bool_]) -> bool:
    return min(int(positive.sum()), int((~positive).sum())) < FEW_OF_A_CLASS


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of each value in their order; equal ones share the middle of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


def _bins(raw: NDArray[Any], first: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    if raw.dtype == object:
        _, places = np.unique(raw.astype(str), return_inverse=True)
        return places, int(places.max()) + 1
    filled = raw[first & np.isfinite(raw)]
    if not len(filled):
        return np.zeros(len(raw), np.int64), 1
    count = max(1, min(MOST_BINS, len(raw) // BIN_ROWS))
    edges = np.unique(np.quantile(filled, np.linspace(0, 1, count + 1)))
    places = np.searchsorted(edges, np.where(np.isnan(raw), np.inf, raw), "right")
    return np.where(np.isnan(raw), len(edges) + 1, places).astype(np.int64), len(edges) + 2


def _told(error: EverloopError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error), "field": error.field, "hint": error.hint}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m activities.compute.profile", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--time")
    parser.add_argument("--encoding")
    given = parser.parse_args(arguments)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the answer alone goes to stdout
            found = profile(given.path.absolute(), given.target, given.time, given.encoding)
    except EverloopError as error:
        found = _told(error)
    except OSError as error:
        why = (error.strerror or "the system refuses").lower()
        hint = "check that the file is there and may be read"
        found = _told(DatasetMissing(f"{given.path} cannot be read: {why}", field="path", hint=hint))
    except Exception as error:  # noqa: BLE001  # a fault of ours: its traceback goes to stderr, what was worked on to the person
        traceback.print_exc()
        found = _told(unknown(error))
    print(json.dumps(found))
    return 2 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main())
