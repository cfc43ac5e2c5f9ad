# ruff: noqa: T201  # what a job prints is its log
"""Raw columns become features, and rows become parts.

The preprocessing is fitted on the train part only and is small enough to be written twice: here in NumPy and in
`export` as ONNX nodes, operation by operation the same, so that the parity gate can ask for equality.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from activities.compute import Job
from activities.compute.data import (
    Table,
    Target,
    bounded,
    check_spec,
    content_hashes,
    event_seconds,
    load,
    mistaken,
    row_hashes,
    target_of,
    unread_type,
)
from activities.compute.data import seen as data_seen
from activities.compute.inference import Columns
from everloop.artifacts import Artifacts
from everloop.contracts import PrepareRequest
from everloop.errors import InvalidData, InvalidSpec
from everloop.records import Blob, Column, Prepared
from everloop.specs import LifecycleSpec

Kind = Literal["number", "boolean", "datetime", "category"]
Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]

TRAIN, VALIDATION, TEST = 0, 1, 2
MOST_VALUES = 100
"""Values of a category that keep a code of their own; rarer and unseen ones share one."""
LEAST_COUNT = 2
MISSING, OTHER, FIRST = 0, 1, 2  # codes of a category
DAY = 86400.0
FIRST_SECOND, LAST_SECOND = -62135596800.0, 253402300799.0  # years 1 to 9999: calendar arithmetic stays positive
FAR = 2.0**12
"""A column this many spreads away from 0 is centred in float64 first: float32 would blur its rows together."""
LARGEST = float(np.finfo(np.float32).max)
"""Numbers are kept within float32: LightGBM's infinite threshold ("missing or not") is exported as 1e300."""
NOTHING = np.float32(1e-35)
"""LightGBM takes what is this near to 0 for 0, but only in some of its ways through a tree: so it never sees any."""
INDEX = "__index_level_"
"""How pandas calls an index without a name in a Parquet file: no feature unless asked for."""
FRESH_ROWS = 30
"""Fewer rows than this that the champion has not seen cannot compare two models."""

Part = Literal["hour", "weekday", "day", "month", "elapsed"]
DATE_PARTS: tuple[Part, ...] = ("hour", "weekday", "day", "month", "elapsed")
EVENT_PARTS: tuple[Part, ...] = ("hour", "weekday")
# Of the event time only what comes back within a window: a test part that is later in time has months and an
# elapsed time that training never saw, and a tree can only repeat its last leaf there.


@dataclass(frozen=True)
class Input:
    """A raw column and what was fitted on it."""

    name: str
    kind: Kind
    nullable: bool = True
    """Missing values were there when this was fitted. Where not, `fill` answers for one."""
    offset: float = 0.0
    """Number: taken off in float64. Datetime: the moment that `elapsed` counts from."""
    fill: float = 0.0
    low: float | None = None
    high: float | None = None
    known: tuple[str, ...] = ()
    """Category: values in the order of their codes, from `FIRST`."""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A column that the model does not look at, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Pipeline:
    """The fitted preprocessing. `transform` turns raw columns into float32 [rows, features]."""

    task: str
    target: str
    time: str | None
    key: str | None
    positive: str
    classes: tuple[str, ...]
    inputs: tuple[Input, ...]
    """Numbers and booleans, then datetimes, then categories: the order of the features."""
    dropped: tuple[Dropped, ...] = ()
    center: float = 0.0
    scale: float = 1.0
    """Regression: the model learns (target - center) / scale, so that float32 leaves keep their precision."""
    names: tuple[str, ...] = field(init=False, default=())
    """Of the features, for people."""

    def __post_init__(self) -> None:
        names = [name for entry in self.inputs for name in _feature_names(entry)]
        object.__setattr__(self, "names", tuple(names))

    def of(self, *kinds: Kind) -> tuple[Input, ...]:
        return tuple(entry for entry in self.inputs if entry.kind in kinds)

    @property
    def categorical(self) -> list[int]:
        """Places of the features that are category codes."""
        return list(range(len(self.names) - len(self.of("category")), len(self.names)))

    def transform(self, columns: Columns) -> Matrix:
        """Features of raw 1-D columns: what the exported graph computes inside."""
        rows = len(columns[self.inputs[0].name])
        blocks = [numbers(self.of("number", "boolean"), columns, rows)]
        blocks += [dates(entry, columns[entry.name]) for entry in self.of("datetime")]
        blocks += [codes(entry, columns[entry.name]) for entry in self.of("category")]
        return np.ascontiguousarray(np.concatenate(blocks, axis=1))

    def dump(self) -> bytes:
        values = asdict(self)
        del values["names"]
        return json.dumps(values, allow_nan=False).encode()

    @classmethod
    def read(cls, artifacts: Artifacts, blob: Blob) -> "Pipeline":
        values = json.loads(artifacts.get(blob))
        inputs = tuple(
            Input(**(entry | {"known": tuple(entry["known"]), "parts": tuple(entry["parts"])}))
            for entry in values.pop("inputs")
        )
        dropped = tuple(Dropped(**entry) for entry in values.pop("dropped"))
        return cls(**(values | {"inputs": inputs, "dropped": dropped, "classes": tuple(values["classes"])}))


def _feature_names(entry: Input) -> list[str]:
    return [f"{entry.name} ({part})" for part in entry.parts] if entry.kind == "datetime" else [entry.name]


UNMATCHED = 5
"""Columns named in the result; the log has all."""


def prepare(request: PrepareRequest, job: Job) -> Prepared:
    """Split the labelled rows and fit the preprocessing on the train part.

    With a champion and a time column the test part is the latest half of the rows that the champion has never
    seen: neither model has, and the other half may teach the challenger. Raises `InvalidData`, `TargetUnusable`.
    """
    spec = request.spec
    table = load(job.artifacts, request.snapshot)
    check_spec(spec, table.rows.column_names)
    target = target_of(table, spec)
    rows = target.labelled
    unseen, unmatched = data_seen.unseen(table, rows, request, job.artifacts)
    part = split(spec, table, target, unseen)
    pipeline = fit(spec, table, target, rows[part == TRAIN])
    matrix = pipeline.transform(table.arrays([entry.name for entry in pipeline.inputs], rows))
    fresh = unseen & (part == TEST)
    path = job.scratch / "matrix.npz"
    np.savez(path, X=matrix, y=target.values[rows], part=part, fresh=fresh, rows=rows)
    counts = np.bincount(part, minlength=3)
    print(f"train {counts[TRAIN]:,}, validation {counts[VALIDATION]:,}, test {counts[TEST]:,} rows")
    print(f"{fresh.sum():,} of the test rows are new to the champion" if request.champion else "there is no champion")
    for name in unmatched:
        print(f"{name!r} is not read as it was for the champion: nobody can tell which rows are new to it")
    print(f"{len(pipeline.inputs)} columns become {len(pipeline.names)} features")
    for column in pipeline.dropped:
        print(f"not used: {column.name!r}, {column.reason}")
    return Prepared(
        matrix=job.artifacts.put_file(path, "matrix.npz"),
        pipeline=job.artifacts.put(pipeline.dump(), "pipeline.json"),
        train_rows=int(counts[TRAIN]),
        validation_rows=int(counts[VALIDATION]),
        test_rows=int(counts[TEST]),
        feature_count=len(pipeline.inputs),
        fresh_rows=int(fresh.sum()),
        features=bounded([Column(name=entry.name, kind=entry.kind) for entry in pipeline.inputs]),
        classes=pipeline.classes,
        unmatched=unmatched[:UNMATCHED],
    )


# --- the split ----------------------------------------------------------------------------------


def split(spec: LifecycleSpec, table: Table, target: Target, unseen: NDArray[np.bool_]) -> NDArray[np.int8]:
    """The part of each labelled row: 0 train, 1 validation, 2 test.

    By time the test part is the latest, and rows of one moment stay together; rows without a time are trained on.
    Without time the row's hash decides: the same in any process, and equal rows stay together unless most are.
    Every class has a row in the train part: where it would have none, its earliest rows are moved there.
    """
    rows = target.labelled
    order = _order(spec, table, rows)
    part = np.full(len(rows), TRAIN, np.int8)
    there = np.isfinite(order)
    test = _test(spec, order, there, unseen)
    part[test] = TEST
    part[latest(order, spec.split.validation, there & ~test)] = VALIDATION
    if target.classes:
        _every_class(target.values[rows].astype(np.int64), order, part, len(target.classes))
    for place, name in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
        if not (part == place).any():
            hint = "more rows are needed that differ from each other, in their values or their time"
            raise InvalidData(f"no row is left for the {name} part", field="split", hint=hint)
    return part


def _order(spec: LifecycleSpec, table: Table, rows: NDArray[np.int64]) -> Floats:
    """What the split follows: the time, or a number made from the row's hash."""
    if spec.time:
        seconds = event_seconds(table, spec.time)[rows]
        if len(np.unique(seconds[np.isfinite(seconds)])) >= 3:  # noqa: PLR2004  # three parts
            return seconds
        print(f"the times of {spec.time!r} are too few to split by: rows are split by their hash")
    content = content_hashes(table)[rows]
    if 2 * len(np.unique(content)) < len(content):
        content = row_hashes(table)[
            rows
        ]  # few different rows, as in a table of categories: copies are drawn one by one
    return (content >> np.uint64(11)).astype(np.float64)


def _test(spec: LifecycleSpec, order: Floats, there: NDArray[np.bool_], unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    fresh = unseen & there
    if not spec.time or unseen.all() or fresh.sum() < FRESH_ROWS:
        return latest(order, spec.split.test, there)
    # All of them when half would be too few to compare with.
    return latest(order, 0.5 if fresh.sum() >= 2 * FRESH_ROWS else 1.0, fresh)


def latest(order: Floats, share: float, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The highest *share* of the rows *among*, rows of one value together: all or none of them."""
    if share >= 1:
        return among
    values = np.sort(order[among])
    if not len(values):
        return among
    border = values[min(len(values) - 1, round(len(values) * (1 - share)))]
    above = np.searchsorted(values, border, "right")
    including = np.searchsorted(values, border, "left")
    wanted = len(values) * (1 - share)
    if including == 0 or (above < len(values) and abs(above - wanted) < abs(including - wanted)):
        return np.asarray(among & (order > border))
    return np.asarray(among & (order >= border))


def _every_class(codes_: NDArray[np.int64], order: Floats, part: NDArray[np.int8], classes: int) -> None:
    present = np.bincount(codes_[part == TRAIN], minlength=classes) > 0
    for missing in np.flatnonzero(~present):
        own = np.flatnonzero(codes_ == missing)
        part[own[np.argsort(order[own], kind="stable")][: max(1, len(own) // 2)]] = TRAIN


# --- fitting ------------------------------------------------------------------------------------


def fit(
    spec: LifecycleSpec, table: Table, target: Target, rows: NDArray[np.int64], like: Pipeline | None = None
) -> Pipeline:
    """The preprocessing of the columns that the spec allows, fitted on *rows*. Raises `InvalidData`, `InvalidSpec`.

    With *like*, of the columns that an earlier fit looks at: more rows must not bring in others.
    """
    chosen = {entry.name for entry in like.inputs} if like else None
    names = [name for name in _candidates(spec, table) if chosen is None or name in chosen]
    columns = table.arrays(names, rows)
    inputs: list[Input] = []
    dropped: list[Dropped] = list(like.dropped) if like else []
    asked = spec.features.include is not None or like is not None
    for name in names:
        fitted = _fit_column(table.column(name), columns[name], spec, asked=asked)
        if isinstance(fitted, Input):
            inputs.append(fitted)
        else:
            dropped.append(Dropped(name, _why(table, name, fitted)))
    if not inputs:
        hint = "add columns that say something about the target, or name them in features.include"
        reasons = "; ".join(f"{column.name!r}: {column.reason}" for column in dropped[:5]) or "there are no others"
        raise InvalidData(f"no column is left to learn from ({reasons})", field="features", hint=hint)
    ranks = {"number": 0, "boolean": 0, "datetime": 1, "category": 2}
    inputs.sort(key=lambda entry: ranks[entry.kind])
    values = target.values[rows]
    regression = not target.classes
    return Pipeline(
        task=spec.task,
        target=spec.target,
        time=spec.time,
        key=spec.key,
        positive=target.positive,
        classes=target.classes,
        inputs=tuple(inputs),
        dropped=tuple(dropped),
        center=float(values.mean()) if regression else 0.0,
        scale=(float(values.std()) or 1.0) if regression else 1.0,
    )


def _why(table: Table, name: str, reason: str) -> str:
    """Why a column is not used, said of the whole table where that says more."""
    if unread := unread_type(table, name):
        return f"values of type {unread} are not understood"
    if table.column(name).kind not in ("text", "category"):
        return reason
    return mistaken(table.rows[name]) or reason


def _candidates(spec: LifecycleSpec, table: Table) -> list[str]:
    """Columns that may be features, in the table's order. The time column may, for its calendar parts."""
    never = {spec.target, spec.key, *spec.features.exclude}
    chosen = spec.features.include
    both = sorted(set(chosen or ()) & set(spec.features.exclude))
    if both:
        hint = "leave it out of one of them"
        raise InvalidSpec(f"{both[0]!r} is both included and excluded", field="features.exclude", hint=hint)
    names = [column.name for column in table.columns]
    if chosen is None:
        never |= {name for name in names if name.startswith(INDEX)}
    return [name for name in names if name not in never and (chosen is None or name in chosen)]


def _fit_column(  # noqa: PLR0911  # one return per reason
    column: Column, values: NDArray[np.generic], spec: LifecycleSpec, *, asked: bool
) -> Input | str:
    """The column as an input, or why it is none. One that was *asked* for may be an identifier."""
    if values.dtype == object:
        return _fit_category(column, values, asked=asked)
    filled = np.asarray(values, np.float64)
    nulls = int(np.isnan(filled).sum())
    filled = filled[np.isfinite(filled)]
    if not len(filled):
        return "it has no usable values"
    if column.name == spec.time and column.kind != "datetime":
        return "it is the time, as a number"
    if filled.min() == filled.max() and not nulls:
        return "it is always the same"
    if column.kind == "datetime":
        return _fit_datetime(column.name, filled, nulls > 0, EVENT_PARTS if column.name == spec.time else DATE_PARTS)
    if column.kind == "number" and not asked and _counts_rows(filled, nulls):
        return "it only counts the rows"
    low, high = float(filled.min()), float(filled.max())
    middle = float(np.median(filled))
    with np.errstate(over="ignore"):
        far = column.kind == "number" and (abs(middle) > FAR * float(filled.std() or 1.0) or _blurred(filled, middle))
    return Input(
        name=column.name,
        kind="boolean" if column.kind == "boolean" else "number",
        nullable=nulls > 0,
        offset=middle if far else 0.0,
        fill=middle,
        low=low,
        high=high,
    )


def _blurred(filled: Floats, middle: float) -> bool:
    """Does float32 take more different numbers for one than it would around *middle*: 500000015 and 500000016?"""
    values = np.unique(filled)
    with np.errstate(over="ignore"):
        return len(np.unique((values - middle).astype(np.float32))) > len(np.unique(values.astype(np.float32)))


def _counts_rows(filled: Floats, nulls: int) -> bool:
    """Row numbers: whole, each once, without gaps to speak of, and in the order of the rows."""
    steps = np.diff(filled)
    rising = bool((steps > 0).all()) and filled[-1] - filled[0] < 100 * len(filled)
    return nulls == 0 and len(filled) > MOST_VALUES // 2 and rising and bool((filled == np.round(filled)).all())


def _fit_category(column: Column, values: NDArray[np.generic], *, asked: bool) -> Input | str:
    counts = Counter(values.tolist())
    nulls = counts.pop("", 0)
    if not counts:
        return "it has no usable values"
    if len(counts) == 1 and not nulls:
        return "it is always the same"
    filled = len(values) - nulls
    if len(counts) > max(20, filled // 2) and not asked:
        return "nearly every row has its own text: free text or an identifier"
    # By count, then by value: the same rows in another order give the same codes.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_VALUES]
    known = tuple(value for value, count in ranked if count >= LEAST_COUNT) or (ranked[0][0],)
    return Input(name=column.name, kind="category", nullable=nulls > 0, known=known)


def _fit_datetime(name: str, filled: Floats, nullable: bool, wanted: Sequence[Part]) -> Input | str:
    middle = float(np.floor(np.median(filled)))
    every = Input(name=name, kind="datetime", offset=middle, fill=middle, parts=tuple(wanted))
    found = dates(every, filled)
    varied = tuple(part for part, column in zip(wanted, found.T, strict=True) if len(np.unique(column)) > 1)
    if not varied:
        return "its calendar parts never vary"
    return Input(
        name=name,
        kind="datetime",
        nullable=nullable,
        offset=middle,
        fill=middle,
        low=float(filled.min()),
        high=float(filled.max()),
        parts=varied,
    )


# --- the same operations as export's nodes ------------------------------------------------------


def numbers(inputs: Sequence[Input], columns: Columns, rows: int) -> Matrix:
    """Numbers and booleans: filled where training had no missing value, centred, and cast as ONNX Cast does."""
    block = np.empty((rows, len(inputs)), np.float64)
    for place, entry in enumerate(inputs):
        block[:, place] = columns[entry.name]
    fills = np.array([np.nan if entry.nullable else entry.fill for entry in inputs])
    offsets = np.array([entry.offset for entry in inputs])
    with np.errstate(invalid="ignore"):
        wide = np.where(np.isnan(block), fills, block) - offsets
        wide = np.where(wide > LARGEST, LARGEST, wide)
        single = np.where(wide < -LARGEST, -LARGEST, wide).astype(np.float32)
        return np.where(np.abs(single) <= NOTHING, np.float32(0), single)


def dates(entry: Input, seconds: NDArray[np.generic]) -> Matrix:
    """Calendar parts (UTC) and days since `offset` of seconds since 1970."""
    raw = np.asarray(seconds, np.float64)
    if not entry.nullable:
        raw = np.where(np.isnan(raw), entry.fill, raw)
    missing = np.isnan(raw)
    exact = np.clip(np.where(missing, 0.0, raw), FIRST_SECOND, LAST_SECOND)
    whole = np.floor(exact).astype(np.int64) - int(FIRST_SECOND)
    parts: dict[Part, Callable[[], NDArray[Any]]] = {
        "hour": lambda: whole % 86400 // 3600,
        "weekday": lambda: whole // 86400 % 7,  # 1 January of year 1 was a Monday
        "day": lambda: _day_and_month(whole)[0],
        "month": lambda: _day_and_month(whole)[1],
        "elapsed": lambda: (exact - entry.offset) / DAY,
    }
    columns = [np.where(missing, np.nan, parts[part]()).astype(np.float32) for part in entry.parts]
    return np.stack(columns, axis=1)


def _day_and_month(whole: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Day (1-31) and month (1-12) of seconds since year 1: years begin in March, so that leap days come last."""
    days = whole // 86400 + 306  # since 1 March of year 0
    of_era = days % 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    return of_year - (153 * month + 2) // 5 + 1, (month + 2) % 12 + 1


def codes(entry: Input, values: NDArray[np.generic]) -> Matrix:
    """The code of each text: 0 missing, 1 rare or unseen, then the known values."""
    table = {value: place for place, value in enumerate(entry.known, FIRST)} | {"": MISSING}
    found = [table.get(value, OTHER) for value in values.tolist()]
    return np.array(found, np.float32).reshape(-1, 1)
