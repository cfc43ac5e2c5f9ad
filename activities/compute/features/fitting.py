# what a job prints is its log
"""The preprocessing is fitted: each column says what it holds, and rules say what becomes of it.

Nothing here depends on how rows are cut into chunks or on the number of threads: the same rows give the same bytes.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from activities.compute.data import Table, Target, array_of, mistaken, unread_type
from activities.compute.features.automation import Gap, make
from activities.compute.features.choices import choose, repeat
from activities.compute.features.columns import Numbers, Texts, numbers_of, texts_in
from activities.compute.features.encoding import MOST_ENCODED
from activities.compute.features.goals import Goal
from activities.compute.features.inputs import Added, Dropped, Input, Part, Terms, smallest_leaf
from activities.compute.features.pipeline import Pipeline
from activities.compute.features.terms import SAMPLE_ROWS
from activities.compute.features.terms import fitted as fit_terms
from activities.compute.resources import Resources
from activities.compute.rows import chunks
from everloop.errors import InvalidData, InvalidSpec, naming
from everloop.records import Column
from everloop.specs import LifecycleSpec

MOST_VALUES = 100
"""Values of a category that keep a code of their own; rarer and unseen ones share one."""
LEAST_COUNT = 2
OWN_TEXTS = "nearly every row has its own text: free text or an identifier"
FAR = 2.0**12
"""A column this many spreads away from 0 is centred in float64 first: float32 would blur its rows together."""
BLURRED = 2.0**24
"""From here on float32 skips whole numbers: 500000015 and 500000016 are one to it."""
MOSTLY_HELD = 0.01
"""Share of a column's values that float32 may take for others without a word."""
INDEX = "__index_level_"
"""How pandas calls an index without a name in a Parquet file: no feature unless asked for."""
USUAL = 1.349
"""Between a normal distribution's quartiles lie so many standard deviations."""
MICROSECOND = 1e-6
VALUE_BYTES = 16
"""Of each row of a column of numbers while it is looked at, and of its file's buffers."""
LOOKED_AT = 1_000_000
"""Rows of a text column that is not used, of which more is said."""

DATE_PARTS: tuple[Part, ...] = ("hour", "weekday", "day", "month", "elapsed")
EVENT_PARTS: tuple[Part, ...] = ("hour", "weekday")
# Of the event time only what comes back within a window: a test part that is later in time has months and an
# elapsed time that training never saw, and a tree can only repeat its last leaf there.


def fit(  # noqa: PLR0917
    spec: LifecycleSpec,
    table: Table,
    target: Target,
    rows: NDArray[np.int64],
    like: Pipeline | None = None,
    scratch: Path | None = None,
    resources: Resources | None = None,
) -> Pipeline:
    """The preprocessing of the columns that the spec allows, fitted on *rows*. Raises `InvalidData`, `InvalidSpec`.

    With *like*, of the columns that an earlier fit looks at: more rows must not bring in others.
    """
    chosen = {entry.name for entry in like.inputs} if like else None
    names = [name for name in _candidates(spec, table) if chosen is None or name in chosen]
    asked = spec.features.include is not None or like is not None
    inputs: list[Input] = []
    dropped: list[Dropped] = list(like.dropped) if like else []
    center, scale = (0.0, 1.0) if target.classes else _usual(target, rows)
    goal = Goal.of(target, rows, center, scale)
    fitting = _Fitting(spec, table, rows, goal, like, scratch, resources or Resources(), asked=asked)
    for name, fitted in fitting.columns(names).items():
        if isinstance(fitted, Input):
            inputs.append(fitted)
        else:
            dropped.append(Dropped(name, _why(table, name, fitted)))
    if not inputs:
        hint = "add columns that say something about the target, or name them in features.include"
        reasons = "; ".join(f"{column.name!r}: {column.reason}" for column in dropped[:5]) or "there are no others"
        raise InvalidData(f"no column is left to learn from ({reasons})", field="features", hint=hint)
    ranks = {"number": 0, "boolean": 0, "datetime": 1, "text": 2, "category": 3}
    inputs.sort(key=lambda entry: ranks[entry.kind])
    made = make(table, rows, goal, inputs, fitting.texts, fitting.gaps, like, target_mean=spec.features.target_mean)
    pipeline = Pipeline(
        task=spec.task,
        target=spec.target,
        time=spec.time,
        key=spec.key,
        positive=target.positive,
        classes=target.classes,
        inputs=tuple(inputs),
        dropped=tuple(dropped),
        differences=made.differences,
        indicators=made.indicators,
        encodings=made.encodings,
        terms=tuple(fitting.terms),
        added=(*fitting.added, *made.added),
        center=center,
        scale=scale,
    )
    return (
        repeat(pipeline, table, rows, like, spec.training.seed) if like else choose(spec, pipeline, table, rows, goal)
    )


def _usual(target: Target, rows: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and spread of a numeric target."""
    values = target.of(rows)  # in the order of the rows, so that their sums are always the same
    return float(values.mean()), float(values.std()) or 1.0


def _why(table: Table, name: str, reason: str) -> str:
    """Why a column is not used, said of the whole table where that says more."""
    if unread := unread_type(table, name):
        return f"values of type {unread} are not understood"
    if table.column(name).kind not in ("text", "category"):
        return reason
    return mistaken(table.rows[name].slice(0, LOOKED_AT)) or reason


def _candidates(spec: LifecycleSpec, table: Table) -> list[str]:
    """Columns that may be features, in the table's order. The time column may, for its calendar parts."""
    never = {spec.target, spec.key, spec.group, spec.weight, *spec.features.exclude}
    chosen = spec.features.include
    both = sorted(set(chosen or ()) & set(spec.features.exclude))
    if both:
        hint = "leave it out of one of them"
        raise InvalidSpec(f"{both[0]!r} is both included and excluded", field="features.exclude", hint=hint)
    names = [column.name for column in table.columns]
    if chosen is None:
        never |= {name for name in names if name.startswith(INDEX)}
    return [name for name in names if name not in never and (chosen is None or name in chosen)]


class _Fitting:
    """Columns of some rows become inputs, or the reason why not."""

    def __init__(  # noqa: PLR0917
        self,
        spec: LifecycleSpec,
        table: Table,
        rows: NDArray[np.int64],
        goal: Goal,
        like: Pipeline | None,
        scratch: Path | None,
        resources: Resources,
        *,
        asked: bool,
    ) -> None:
        """*asked*: the columns were asked for by name, so they may be identifiers."""
        self._spec, self._table, self._rows, self._goal = spec, table, rows, goal
        self._scratch, self._resources = scratch, resources
        self._asked, self._named = asked, spec.features.include is not None
        self._before = {entry.name: entry.fine for entry in like.blurred} if like else None
        self._like = {entry.column: entry for entry in like.terms} if like else {}
        self.texts: dict[str, Texts] = {}
        """What the columns of text hold."""
        self.gaps: dict[str, Gap] = {}
        """Of the columns of numbers, those with missing values."""
        self.terms: list[Terms] = []
        self.added: list[Added] = []
        self._text = {field.name for field in table.rows.schema if pa.types.is_string(field.type)}

    def columns(self, names: list[str]) -> dict[str, Input | str]:
        """Each column as an input, or why it is none. As many at once as there are threads and memory for."""
        plain = [name for name in names if name not in self._text]
        held = max(1, len(self._rows) * VALUE_BYTES >> 20)
        at_once = max(1, min(self._resources.threads, self._resources.memory_mib // held))
        with ThreadPoolExecutor(at_once) as pool:
            found = dict(zip(plain, pool.map(self._plain, plain), strict=True))
        for name in names:
            with naming(column=name):
                found |= {name: self._category(name)} if name in self._text else {}
        return {name: found[name] for name in names}

    def _plain(self, name: str) -> Input | str:
        with naming(column=name):
            return self._plain_input(name)

    def _plain_input(self, name: str) -> Input | str:
        column = self._table.column(name)
        held = numbers_of(self._table, name, self._rows, self._goal)
        if column.kind == "number" and held.gaps:
            self.gaps[name] = held.gaps, held.gap_sums
        if not held.count:
            return "it has no usable values"
        if name == self._spec.time and column.kind != "datetime":
            return "it is the time, as a number"
        if held.low == held.high and not held.nulls:
            return "it is always the same"
        if column.kind == "datetime":
            return self._datetime(name, held)
        if column.kind == "number" and not self._asked and _counts_rows(held):
            return "it only counts the rows"
        return self._number(column, held)

    def _number(self, column: Column, held: Numbers) -> Input | str:
        first, middle, third = map(held.quantile, (0.25, 0.5, 0.75))
        if first == third and not self._asked and (why := self._hardly_varies(held.other_than(middle))):
            return why
        usual = (third - first) / USUAL or held.high - held.low or 1.0
        number = column.kind == "number"
        offset = middle if number and _is_far(middle, usual, held) else 0.0
        return Input(
            name=column.name,
            kind="boolean" if column.kind == "boolean" else "number",
            nullable=held.nulls > 0,
            offset=offset,
            fill=middle,
            low=held.low,
            high=held.high,
            fine=self._blurred(column.name, offset, held) if number else 0,
        )

    def _blurred(self, name: str, offset: float, held: Numbers) -> int:
        """How many further features float32 needs for the values: of two clusters that lie far apart, at least one."""
        if self._before is not None:
            return self._before.get(name, 0)
        far = max(abs(held.low - offset), abs(held.high - offset))
        if far < BLURRED:
            return 0
        values = held.different()
        lost = values - held.apart(offset)
        if lost <= MOSTLY_HELD * values:
            return 0
        reason = f"float32 takes {lost:,} of its {values:,} values for others: what it leaves is a feature of its own"
        self.added.append(Added(name, "fine", reason))
        return 1 if far < BLURRED**2 else 2

    def _hardly_varies(self, others: int) -> str:
        """Why a column with so many rows unlike its usual value is not used; nothing where it may be."""
        rows = len(self._rows)
        if others >= smallest_leaf(rows):
            return ""
        return f"it is nearly always the same: {others} of {rows:,} rows differ, a leaf needs {smallest_leaf(rows)}"

    def _category(self, name: str) -> Input | str:
        if name in self._like:
            return self._text_input(self._like[name])
        found = self.texts[name] = texts_in(self._table, name, self._rows, MOST_ENCODED, self._scratch, self._resources)
        if not found.distinct:
            return "it has no usable values"
        if found.distinct == 1 and not found.nulls:
            return "it is always the same"
        if found.distinct > max(20, found.count // 2) and not self._named:
            terms = self._terms(name)
            return self._text_input(terms) if terms else OWN_TEXTS
        usual, count = found.common[0]
        if not self._asked and (why := self._hardly_varies(len(self._rows) - max(count, found.nulls))):
            return why
        # By count, then by value: the same rows in another order give the same codes.
        known = tuple(value for value, count in found.common[:MOST_VALUES] if count >= LEAST_COUNT) or (usual,)
        if rare := found.distinct - len(known):
            reason = f"{rare:,} of its {found.distinct:,} values are rare: they share a code with unseen ones"
            self.added.append(Added(name, "rare", reason))
        return Input(name=name, kind="category", nullable=found.nulls > 0, known=known)

    def _terms(self, name: str) -> Terms | None:
        step = max(1, -(-len(self._rows) // SAMPLE_ROWS))
        some = np.arange(0, len(self._rows), step)
        texts = [text for _, batch in chunks(self._table, [name], self._rows[some]) for text in array_of(batch[name])]
        goal = Goal(self._goal.values[some], self._goal.classes)
        return fit_terms(name, texts, goal, len(self._rows))

    def _text_input(self, terms: Terms) -> Input:
        self.terms.append(terms)
        reason = f"{len(terms.terms):,} words with which the target differs"
        self.added.append(Added(terms.column, "terms", reason))
        return Input(name=terms.column, kind="text")

    def _datetime(self, name: str, held: Numbers) -> Input | str:
        wanted = EVENT_PARTS if name == self._spec.time else DATE_PARTS
        varies = held.calendar() | {"elapsed": held.low < held.high}
        varied = tuple(part for part in wanted if varies[part])
        if not varied:
            return "its calendar parts never vary"
        middle = float(np.floor(held.quantile(0.5) * MICROSECOND))
        return Input(
            name=name,
            kind="datetime",
            nullable=held.nulls > 0,
            offset=middle,
            fill=middle,
            low=held.low * MICROSECOND,
            high=held.high * MICROSECOND,
            parts=varied,
        )


def _is_far(middle: float, usual: float, held: Numbers) -> bool:
    """Whether float32 tells more of the values apart around *middle* than around 0."""
    if abs(middle) > FAR * usual:
        return True
    if max(abs(held.low), abs(held.high)) < BLURRED:
        return False
    return held.apart(middle) > held.apart(0.0)


def _counts_rows(held: Numbers) -> bool:
    """Row numbers: whole, each once, without gaps to speak of, and in the order of the rows."""
    return held.ordered and held.count > MOST_VALUES // 2 and held.high - held.low < 100 * held.count
