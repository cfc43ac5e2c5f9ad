# what a job prints is its log
"""The preprocessing is fitted: each column says what it holds, and rules say what becomes of it.

Nothing here depends on how rows are cut into chunks or on the number of threads: the same rows give the same bytes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from activities.compute.data import Table, Target, array_of, mistaken, unread_type
from activities.compute.features.automation import Gap, make
from activities.compute.features.choices import choose, repeat
from activities.compute.features.columns import Numbers, Texts, merged_texts, numbers_of, texts_in, write_texts
from activities.compute.features.encoding import MOST_ENCODED
from activities.compute.features.goals import Goal
from activities.compute.features.inputs import Added, Dropped, Input, Part, Terms, smallest_leaf
from activities.compute.features.pipeline import Pipeline, frozen
from activities.compute.features.terms import SAMPLE_ROWS
from activities.compute.features.terms import fitted as fit_terms
from activities.compute.resources import Resources
from activities.compute.rows import chunks
from activities.compute.together import Together, name_of
from everloop.errors import InvalidData, InvalidSpec, naming
from everloop.records import Column
from everloop.specs import LifecycleSpec

T = TypeVar("T")

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
    together: Together | None = None,
) -> Pipeline:
    """The preprocessing of the columns that the spec allows, fitted on *rows*. Raises `InvalidData`, `InvalidSpec`.

    With *like*, of the columns that an earlier fit looks at: more rows must not bring in others. *together*: ranks that
    fit it on the same rows, each looking at its share of them; all are given the same, which is what one would fit.
    """
    together = together or Together()
    chosen = {entry.name for entry in like.inputs} if like else None
    names = [name for name in _candidates(spec, table) if chosen is None or name in chosen]
    asked = spec.features.include is not None or like is not None
    inputs: list[Input] = []
    dropped: list[Dropped] = list(like.dropped) if like else []
    center, scale = (0.0, 1.0) if target.classes else _usual(target, rows)
    # A sum of many floats may end otherwise on another kind of processor: all ranks take that of the first.
    center, scale = together.told("usual", [center, scale])
    goal = Goal.of(target, rows, center, scale)
    fitting = _Fitting(spec, table, rows, goal, like, scratch, resources or Resources(), together, asked=asked)
    found = fitting.columns(names)
    for name, fitted in found.items():
        if fitted.input is not None:
            inputs.append(fitted.input)
        else:
            dropped.append(Dropped(name, fitted.why))
    if not inputs:
        hint = "add columns that say something about the target, or name them in features.include"
        reasons = "; ".join(f"{column.name!r}: {column.reason}" for column in dropped[:5]) or "there are no others"
        raise InvalidData(f"no column is left to learn from ({reasons})", field="features", hint=hint)
    ranks = {"number": 0, "boolean": 0, "datetime": 1, "text": 2, "category": 3}
    inputs.sort(key=lambda entry: ranks[entry.kind])
    in_order = sorted(found, key=fitting.is_text)  # texts last, else as in the table
    made = make(
        table, rows, goal, inputs,
        {name: each.texts for name, each in found.items() if each.texts},
        {name: each.gap for name, each in found.items() if each.gap},
        like, target_mean=spec.features.target_mean, together=together,
    )  # fmt: skip
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
        terms=tuple(each.terms for each in map(found.get, in_order) if each and each.terms),
        added=(*(added for name in in_order for added in found[name].added), *made.added),
        center=center,
        scale=scale,
    )
    if like:
        return repeat(pipeline, table, rows, like, spec.training.seed)
    if together.rank == 0:
        pipeline = choose(spec, pipeline, table, rows, goal)
    if together.alone:
        return pipeline
    return Pipeline.load(together.told("pipeline", pipeline.dump().decode()).encode())


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


@dataclass(frozen=True)
class Fitted:
    """What became of one column."""

    input: Input | None = None
    why: str = ""
    """It is no input."""
    added: tuple[Added, ...] = ()
    terms: Terms | None = None
    texts: Texts | None = None
    """What a column of texts holds."""
    gap: Gap | None = None
    """Of a column of numbers with missing values."""

    def told(self) -> dict[str, Any]:
        """As JSON."""
        gap = None if self.gap is None else [self.gap[0], self.gap[1].tolist()]
        return {**asdict(replace(self, gap=None)), "gap": gap}

    @classmethod
    def heard(cls, told: dict[str, Any]) -> "Fitted":
        """What `told` says."""
        given = frozen(told)
        return cls(
            input=given["input"] and Input(**given["input"]),
            why=given["why"],
            added=tuple(Added(**each) for each in given["added"]),
            terms=given["terms"] and Terms(**given["terms"]),
            texts=given["texts"] and Texts(**given["texts"]),
            gap=given["gap"] and (given["gap"][0], np.array(given["gap"][1], np.float64)),
        )


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
        together: Together,
        *,
        asked: bool,
    ) -> None:
        """*asked*: the columns were asked for by name, so they may be identifiers."""
        self._spec, self._table, self._rows, self._goal = spec, table, rows, goal
        self._scratch, self._resources, self._together = scratch, resources, together
        self._asked, self._named = asked, spec.features.include is not None
        self._before = {entry.name: entry.fine for entry in like.blurred} if like else None
        self._like = {entry.column: entry for entry in like.terms} if like else {}
        self._owner: dict[str, int] = {}
        """The rank that each column is merged by."""
        self._text = {field.name for field in table.rows.schema if pa.types.is_string(field.type)}

    def is_text(self, name: str) -> bool:
        return name in self._text

    def columns(self, names: list[str]) -> dict[str, Fitted]:
        """What becomes of each column. Of ranks together each looks at its rows of all columns, then at what all have
        found of its own columns.
        """
        if self._together.alone:
            return self._each(names, self._fitted)
        self._owner = {name: place % self._together.size for place, name in enumerate(names)}
        self._each(names, self._shared)
        own = self._each([name for name, rank in self._owner.items() if rank == self._together.rank], self._merged)
        told = self._together.gathered("columns", {name: fitted.told() for name, fitted in own.items()})
        found = {name: Fitted.heard(fitted) for each in told for name, fitted in each.items()}
        return {name: found[name] for name in names}

    def _each(self, names: list[str], look: Callable[[str], T]) -> dict[str, T]:
        """As many columns of numbers at once as there are threads and memory for; then those of texts."""

        def named(name: str) -> T:
            with naming(column=name):
                return look(name)

        plain = [name for name in names if not self.is_text(name)]
        held = max(1, len(self._rows) * VALUE_BYTES >> 20)
        at_once = max(1, min(self._resources.threads, self._resources.memory_mib // held))
        with ThreadPoolExecutor(at_once) as pool:
            found = dict(zip(plain, pool.map(named, plain), strict=True))
        found |= {name: named(name) for name in names if self.is_text(name)}
        return {name: found[name] for name in names}

    # --- one column, seen by one rank or by all of them ---

    def _fitted(self, name: str) -> Fitted:
        if self.is_text(name):
            return self._of_texts(name, lambda: self._texts_in(name))
        return self._of_numbers(name, numbers_of(self._table, name, self._rows, self._goal))

    def _texts_in(self, name: str) -> Texts:
        return texts_in(self._table, name, self._rows, MOST_ENCODED, self._scratch, self._resources)

    def _shared(self, name: str) -> None:
        """What this rank's rows hold, for the rank whose column it is."""
        low, high = self._together.share(len(self._rows))
        rows, path = self._rows[low:high], self._together.scratch / f"part-{name_of(name)}"
        if self.is_text(name):
            write_texts(path, self._table, name, rows, self._scratch, self._resources)
        else:
            numbers_of(self._table, name, rows, Goal(self._goal.values[low:high], self._goal.classes)).write(path)
        self._together.send(name_of(name), self._owner[name], path)

    def _merged(self, name: str) -> Fitted:
        with self._together.received(name_of(name)) as paths:
            if self.is_text(name):
                return self._of_texts(name, lambda: self._texts_of(paths))
            return self._of_numbers(name, Numbers.merged([Numbers.read(path) for path in paths]))

    def _texts_of(self, paths: Sequence[Path]) -> Texts:
        return merged_texts(paths, len(self._rows), MOST_ENCODED, self._scratch, self._resources)

    # --- rules ---

    def _of_numbers(self, name: str, held: Numbers) -> Fitted:
        column = self._table.column(name)
        gap = (held.gaps, held.gap_sums) if column.kind == "number" and held.gaps else None
        return replace(self._number_or_moment(column, held), gap=gap)

    def _number_or_moment(self, column: Column, held: Numbers) -> Fitted:
        if not held.count:
            return self._unused(column.name, "it has no usable values")
        if column.name == self._spec.time and column.kind != "datetime":
            return self._unused(column.name, "it is the time, as a number")
        if held.low == held.high and not held.nulls:
            return self._unused(column.name, "it is always the same")
        if column.kind == "datetime":
            return self._datetime(column.name, held)
        if column.kind == "number" and not self._asked and _counts_rows(held):
            return self._unused(column.name, "it only counts the rows")
        return self._number(column, held)

    def _number(self, column: Column, held: Numbers) -> Fitted:
        first, middle, third = map(held.quantile, (0.25, 0.5, 0.75))
        if first == third and not self._asked and (why := self._hardly_varies(held.other_than(middle))):
            return self._unused(column.name, why)
        usual = (third - first) / USUAL or held.high - held.low or 1.0
        number = column.kind == "number"
        offset = middle if number and _is_far(middle, usual, held) else 0.0
        fine, reason = self._blurred(column.name, offset, held) if number else (0, "")
        found = Input(
            name=column.name,
            kind="boolean" if column.kind == "boolean" else "number",
            nullable=held.nulls > 0,
            offset=offset,
            fill=middle,
            low=held.low,
            high=held.high,
            fine=fine,
        )
        return Fitted(found, added=(Added(column.name, "fine", reason),) if reason else ())

    def _blurred(self, name: str, offset: float, held: Numbers) -> tuple[int, str]:
        """How many further features float32 needs for the values (of two clusters that lie far apart, at least one),
        and why.
        """
        if self._before is not None:
            return self._before.get(name, 0), ""
        far = max(abs(held.low - offset), abs(held.high - offset))
        if far < BLURRED:
            return 0, ""
        values = held.different()
        lost = values - held.apart(offset)
        if lost <= MOSTLY_HELD * values:
            return 0, ""
        reason = f"float32 takes {lost:,} of its {values:,} values for others: what it leaves is a feature of its own"
        return 1 if far < BLURRED**2 else 2, reason

    def _hardly_varies(self, others: int) -> str:
        """Why a column with so many rows unlike its usual value is not used; nothing where it may be."""
        rows = len(self._rows)
        if others >= smallest_leaf(rows):
            return ""
        return f"it is nearly always the same: {others} of {rows:,} rows differ, a leaf needs {smallest_leaf(rows)}"

    def _of_texts(self, name: str, look: Callable[[], Texts]) -> Fitted:
        if name in self._like:
            return self._words(self._like[name])
        found = look()
        return replace(self._category_or_words(name, found), texts=found)

    def _category_or_words(self, name: str, found: Texts) -> Fitted:
        if not found.distinct:
            return self._unused(name, "it has no usable values")
        if found.distinct == 1 and not found.nulls:
            return self._unused(name, "it is always the same")
        if found.distinct > max(20, found.count // 2) and not self._named:
            terms = self._terms(name)
            return self._words(terms) if terms else self._unused(name, OWN_TEXTS)
        usual, count = found.common[0]
        if not self._asked and (why := self._hardly_varies(len(self._rows) - max(count, found.nulls))):
            return self._unused(name, why)
        # By count, then by value: the same rows in another order give the same codes.
        known = tuple(value for value, count in found.common[:MOST_VALUES] if count >= LEAST_COUNT) or (usual,)
        added: tuple[Added, ...] = ()
        if rare := found.distinct - len(known):
            reason = f"{rare:,} of its {found.distinct:,} values are rare: they share a code with unseen ones"
            added = (Added(name, "rare", reason),)
        return Fitted(Input(name=name, kind="category", nullable=found.nulls > 0, known=known), added=added)

    def _terms(self, name: str) -> Terms | None:
        step = max(1, -(-len(self._rows) // SAMPLE_ROWS))
        some = np.arange(0, len(self._rows), step)
        texts = [text for _, batch in chunks(self._table, [name], self._rows[some]) for text in array_of(batch[name])]
        goal = Goal(self._goal.values[some], self._goal.classes)
        return fit_terms(name, texts, goal, len(self._rows))

    @staticmethod
    def _words(terms: Terms) -> Fitted:
        reason = f"{len(terms.terms):,} words with which the target differs"
        return Fitted(Input(name=terms.column, kind="text"), added=(Added(terms.column, "terms", reason),), terms=terms)

    def _unused(self, name: str, reason: str) -> Fitted:
        return Fitted(why=_why(self._table, name, reason))

    def _datetime(self, name: str, held: Numbers) -> Fitted:
        wanted = EVENT_PARTS if name == self._spec.time else DATE_PARTS
        varies = held.calendar() | {"elapsed": held.low < held.high}
        varied = tuple(part for part in wanted if varies[part])
        if not varied:
            return self._unused(name, "its calendar parts never vary")
        middle = float(np.floor(held.quantile(0.5) * MICROSECOND))
        found = Input(
            name=name,
            kind="datetime",
            nullable=held.nulls > 0,
            offset=middle,
            fill=middle,
            low=held.low * MICROSECOND,
            high=held.high * MICROSECOND,
            parts=varied,
        )
        return Fitted(found)


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
