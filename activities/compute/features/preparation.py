# ruff: noqa: T201  # what a job prints is its log
"""The prepare stage: rows are split, the preprocessing is fitted on the train part, all rows are transformed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from activities.compute import Job
from activities.compute.data import Table, bounded, check_spec, seen, target_of
from activities.compute.features.fitting import fit
from activities.compute.features.inputs import Floats
from activities.compute.features.parts import NO_PART, TEST, TRAIN, VALIDATION, folds, split
from activities.compute.features.pipeline import Pipeline
from activities.compute.features.sample import raw
from activities.compute.features.table import Writer
from activities.compute.resources import Resources
from activities.compute.rows import CHUNK_ROWS, chunks, opened
from everloop.contracts import PrepareRequest
from everloop.records import Column, Prepared

UNMATCHED = 5
"""Columns named in the result; the log has all."""


def prepare(request: PrepareRequest, job: Job) -> Prepared:
    """Split the labelled rows and fit the preprocessing on the train part.

    With a champion and a time column the test part is the latest half of the rows that the champion has never
    seen: neither model has, and the other half may teach the challenger. Raises `InvalidData`, `TargetUnusable`.
    """
    with opened(job.artifacts, request.snapshot) as table:
        return _prepare(request, job, table)


def _prepare(request: PrepareRequest, job: Job, table: Table) -> Prepared:
    spec = request.spec
    check_spec(spec, table.rows.column_names)
    target = target_of(table, spec)
    rows = target.labelled
    unseen, unmatched = seen.unseen(table, rows, request, job.artifacts, job.scratch)
    part = split(spec, table, target, unseen)
    kept = part != NO_PART
    rows, unseen, part = rows[kept], unseen[kept], part[kept]
    fresh = unseen & (part == TEST)
    pipeline = fit(spec, table, target, rows[part == TRAIN], scratch=job.scratch, resources=Resources.of(job))
    path = job.scratch / "prepared.arrow"
    write(path, pipeline, table, rows, y=target.of(rows), part=part, fresh=fresh)
    counts = np.bincount(part, minlength=3)
    print(f"train {counts[TRAIN]:,}, validation {counts[VALIDATION]:,}, test {counts[TEST]:,} rows")
    print(f"{fresh.sum():,} of the test rows are new to the champion" if request.champion else "there is no champion")
    for name in unmatched:
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
        unmatched=unmatched[:UNMATCHED],
        selection=str(pipeline.selected or ""),
        left_out_rows=int((~kept).sum()),
    )


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
