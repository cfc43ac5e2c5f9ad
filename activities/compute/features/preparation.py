# ruff: noqa: T201  # what a job prints is its log
"""The prepare stage: rows are split, the preprocessing is fitted on the train part, all rows are transformed."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from activities.compute import Job
from activities.compute.data import Table, bounded, check_spec, content_hashes, seen, target_of
from activities.compute.features.fitting import fit
from activities.compute.features.inputs import Floats
from activities.compute.features.parts import NO_PART, TEST, TRAIN, VALIDATION, folds, split
from activities.compute.features.pipeline import Pipeline
from activities.compute.features.sample import raw
from activities.compute.features.table import BATCH_ROWS, Writer, join
from activities.compute.resources import Resources
from activities.compute.rows import CHUNK_ROWS, chunks, opened
from activities.compute.together import Together
from activities.jobs.gang import RankEnded
from everloop.contracts import PrepareRequest
from everloop.records import Column, Prepared

UNMATCHED = 5
"""Columns named in the result; the log has all."""


def prepare(request: PrepareRequest, job: Job) -> Prepared:
    """Split the labelled rows and fit the preprocessing on the train part.

    Several ranks may do it together, each on its share of the rows: what they leave has the bytes that one leaves.

    With a champion and a time column the test part is the latest half of the rows that the champion has never
    seen: neither model has, and the other half may teach the challenger. Raises `InvalidData`, `TargetUnusable`.
    """
    with opened(job.artifacts, request.snapshot) as table:
        return _prepare(request, job, table)


def _prepare(request: PrepareRequest, job: Job, table: Table) -> Prepared:
    spec, together = request.spec, Together.of(job)
    check_spec(spec, table.rows.column_names)
    divided = _divided(request, job, table, together)
    target = target_of(table, spec)
    kept = divided.part != NO_PART
    rows, unseen, part = target.labelled[kept], divided.unseen[kept], divided.part[kept]
    fresh = unseen & (part == TEST)
    pipeline = fit(
        spec, table, target, rows[part == TRAIN], scratch=job.scratch, resources=Resources.of(job), together=together
    )
    path = job.scratch / "prepared.arrow"
    low, high = together.share(len(rows), BATCH_ROWS)
    own = slice(low, high)
    write(path, pipeline, table, rows[own], y=target.of(rows)[own], part=part[own], fresh=fresh[own])
    if not together.alone:
        print(f"rank {together.rank} of {together.size} has prepared the rows {low:,} to {high:,} of {len(rows):,}")
        together.send("rows", 0, path)
        if together.rank:
            raise RankEnded
        with together.received("rows") as parts:
            join(parts, path)
    counts = np.bincount(part, minlength=3)
    print(f"train {counts[TRAIN]:,}, validation {counts[VALIDATION]:,}, test {counts[TEST]:,} rows")
    print(f"{fresh.sum():,} of the test rows are new to the champion" if request.champion else "there is no champion")
    for name in divided.unmatched:
        print(f"{name!r} is not read as it was for the champion: nobody can tell which rows are new to it")
    print(f"{len(pipeline.inputs)} columns become {len(pipeline.names)} features")
    for made in pipeline.added:
        print(f"{made.rule}: {made.name!r}, {made.reason}")
    for column in pipeline.dropped:
        print(f"not used: {column.name!r}, {column.reason}")
    if pipeline.selected:
        print(f"{pipeline.selected}")
        for each in pipeline.selected.scores:
            if each.kept:
                print(f"kept: {each.column!r}, {each.score:.4g}")
    return Prepared(
        table=job.artifacts.put_file(path, "prepared.arrow"),
        pipeline=job.artifacts.put(pipeline.dump(), "pipeline.json"),
        train_rows=int(counts[TRAIN]),
        validation_rows=int(counts[VALIDATION]),
        test_rows=int(counts[TEST]),
        feature_count=len(pipeline.inputs),
        fresh_rows=int(fresh.sum()),
        features=bounded([Column(name=entry.name, kind=entry.kind) for entry in pipeline.inputs]),
        classes=pipeline.classes,
        unmatched=divided.unmatched[:UNMATCHED],
        selection=str(pipeline.selected or ""),
        left_out_rows=int((~kept).sum()),
    )


@dataclass(frozen=True)
class Divided:
    """Of each labelled row, its part, and whether it is new to the champion."""

    part: NDArray[np.int8]
    unseen: NDArray[np.bool_]
    unmatched: tuple[str, ...]
    """Columns that keep us from knowing what is new."""


def _divided(request: PrepareRequest, job: Job, table: Table, together: Together) -> Divided:
    """Of ranks together the first one says it, for where a part ends depends on all rows; all hash their share."""
    spec = request.spec
    if not together.alone and (request.champion or spec.group or not spec.time):
        table = _hashed(table, together)
    if together.rank:
        found = together.arrays_of_the_first("divided")
        return Divided(found["part"], found["unseen"], tuple(together.told("unmatched")))
    target = target_of(table, spec)
    unseen, unmatched = seen.unseen(table, target.labelled, request, job.artifacts, job.scratch)
    part = split(spec, table, target, unseen)
    together.arrays_of_the_first("divided", {"part": part, "unseen": unseen})
    together.told("unmatched", unmatched)
    return Divided(part, unseen, unmatched)


def _hashed(table: Table, together: Together) -> Table:
    """*table* as the first rank needs it, with the hashes that each rank has made of its share of the rows."""
    path = together.scratch / "hashes"
    np.save(path, content_hashes(table, together.share(len(table))))
    together.send("hashes", 0, path.with_suffix(".npy"))
    if together.rank:
        return table
    with together.received("hashes") as paths:
        return replace(table, hashes=np.concatenate([np.load(each, allow_pickle=False) for each in paths]))


def write(
    path: Path,
    pipeline: Pipeline,
    table: Table,
    rows: NDArray[np.int64],
    *,
    y: Floats,
    part: NDArray[np.int8],
    fresh: NDArray[np.bool_],
    size: int = CHUNK_ROWS,
) -> None:
    """Transform *rows* (ascending numbers) chunk by chunk into the table of `Prepared` at *path*."""
    start = 0
    with Writer(path, len(pipeline.names)) as out:
        names = [entry.name for entry in pipeline.inputs]
        for numbers, batch in chunks(table, names, rows, size, coded=True):
            own, fold = slice(start, start + len(numbers)), folds(numbers)
            learned = np.where(part[own] == TRAIN, fold, np.int8(-1))
            matrix = pipeline.by_feature(raw(batch), learned).T
            out.add(matrix, y=y[own], part=part[own], fold=fold, row=numbers, fresh=fresh[own])
            start += len(numbers)
