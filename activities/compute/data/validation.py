# ruff: noqa: T201  # what a job prints is its log
"""A look at the table before anything is learned from it."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from activities.compute import Job
from activities.compute.data.asked import check_spec
from activities.compute.data.doubts import mistaken
from activities.compute.data.hashing import content_hashes
from activities.compute.data.table import Table, enough, whole
from activities.compute.data.target import Target, target_of
from activities.compute.data.times import event_seconds, month_first
from everloop.contracts import ValidateRequest
from everloop.errors import naming
from everloop.records import Check, Column, Validation
from everloop.specs import LifecycleSpec

# --- validation ---------------------------------------------------------------------------------

MANY_NULLS = 0.5
RARE_CLASS = 10
MOST_CHECKS = 60
"""Listed in the result; the log has all."""


def validate(request: ValidateRequest, job: Job) -> Validation:
    """Look at the table before anything is learned from it.

    Raises `TargetUnusable`, `DatasetTooSmall` or `InvalidData` for what cannot be learned from;
    the rest is listed as warnings.
    """
    from activities.compute.rows import opened

    with opened(job.artifacts, request.snapshot) as table:  # one column in memory at a time
        return _validate(request.spec, table)


def _validate(spec: LifecycleSpec, table: Table) -> Validation:
    check_spec(spec, table.rows.column_names)
    enough(len(table))
    with naming(column=spec.target):
        target = target_of(table, spec)
    looks: tuple[Callable[[Table, LifecycleSpec], list[Check]], ...] = (_nulls, _ranges, _duplicates, _when)
    checks = [_ok("schema", f"{len(table.columns)} columns, {len(table):,} rows"), *_target_checks(target, spec)]
    for look in looks:
        checks += look(table, spec)
    checks += [_warn("read", change.column, said) for change in table.changed for said in change.sentences()]
    for check in checks:
        print(f"{check.level}: {check.message}")
    return Validation(checks=_bounded_checks(checks))


def _bounded_checks(checks: Sequence[Check]) -> tuple[Check, ...]:
    kept = list(checks[:MOST_CHECKS])
    if len(checks) > len(kept):
        left = len(checks) - len(kept)
        kept.append(Check(name="more", level="warning", message=f"{left} more, see the log of this stage"))
    return tuple(kept)


def _ok(name: str, message: str) -> Check:
    return Check(name=name, level="ok", message=message)


def _warn(name: str, column: str, message: str) -> Check:
    shown = column if len(column) <= 80 else column[:77] + "..."  # noqa: PLR2004
    return Check(name=name, level="warning", column=shown, message=message.replace(column, shown))


def _target_checks(target: Target, spec: LifecycleSpec) -> list[Check]:
    missing = len(target.values) - len(target.labelled)
    checks = []
    if missing:
        earlier = f", or from before {spec.since:%Y-%m-%d %H:%M} UTC," if spec.since else ""
        what = f"{missing:,} of {len(target.values):,} rows without a target{earlier} are not used"
        checks.append(_warn("target", spec.target, what))
    counts: list[int] = []
    if target.classes:
        counts = np.bincount(target.values[target.labelled].astype(np.int64)).tolist()
    for label, count in zip(target.classes, counts, strict=True):
        if count < RARE_CLASS:
            checks.append(_warn("target", spec.target, f"the class {label[:80]!r} has only {count} rows"))
    kinds = f"{len(target.classes)} classes" if target.classes else "numeric"
    return checks or [_ok("target", f"{kinds}, {len(target.labelled):,} labelled rows")]


def _nulls(table: Table, spec: LifecycleSpec) -> list[Check]:
    found = []
    for column in table.columns:
        share = column.nulls / len(table)
        if column.name == spec.target or share <= MANY_NULLS:
            continue
        what = "has no usable values" if share == 1 else f"is missing in {share:.0%} of the rows"
        found.append(_warn("nulls", column.name, f"{column.name!r} {what}"))
    return found or [_ok("nulls", "no column is mostly missing")]


def _ranges(table: Table, spec: LifecycleSpec) -> list[Check]:
    found = []
    for column in table.columns:
        if column.name not in (spec.target, spec.time, spec.key):
            with naming(column=column.name):
                found += _range(table, column)
    return found or [_ok("ranges", "every column varies")]


def _range(table: Table, column: Column) -> list[Check]:
    found = []
    if column.distinct == 1 and not column.nulls:
        found.append(_warn("ranges", column.name, f"{column.name!r} is the same in every row"))
    if column.kind in ("text", "category") and (why := mistaken(table.rows[column.name])):
        found.append(_warn("ranges", column.name, f"{column.name!r}: {why}"))
    elif column.kind == "text":
        found.append(_warn("ranges", column.name, f"{column.name!r} looks like free text or an identifier"))
    if column.kind == "number" and _beyond_whole(table.rows[column.name]):
        what = f"{column.name!r} holds numbers beyond 2^63: they are rounded; write them like 1.8e19 in requests"
        found.append(_warn("ranges", column.name, what))
    return found


def _duplicates(table: Table, spec: LifecycleSpec) -> list[Check]:
    hashes = content_hashes(table)
    double = len(hashes) - len(np.unique(hashes))
    found = []
    if double:
        found.append(Check(name="duplicates", level="warning", message=f"{double:,} rows are there more than once"))
    if spec.key and (distinct := table.column(spec.key).distinct or 0) < len(table) - table.column(spec.key).nulls:
        what = f"the key {spec.key!r} has {distinct:,} different values in {len(table):,} rows"
        found.append(_warn("duplicates", spec.key, what))
    return found or [_ok("duplicates", "no row is there twice")]


def _when(table: Table, spec: LifecycleSpec) -> list[Check]:
    if not spec.time:
        return []
    found = [_warn("time", name, why) for name in (spec.time,) if (why := month_first(table, name))]
    missing = int(np.isnan(event_seconds(table, spec.time)).sum())
    if missing:
        found.append(_warn("time", spec.time, f"{missing:,} rows have no time: they are only trained on"))
    return found or [_ok("time", "every row has a time")]


def _beyond_whole(column: pa.ChunkedArray) -> bool:
    """Whole numbers that JSON may not carry as such: our API takes those of 64 bits with a sign."""
    most = pc.max(pc.abs(column)).as_py()
    return most is not None and most >= 2**63 and whole(column)
