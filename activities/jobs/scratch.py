"""Folders of jobs, `scratch/jobs/<run id>/<activity id>`: kept for a second attempt, removed when their run has ended.

While a run is open, its next attempt finds there what an earlier one has left. A closed run has no next attempt: what
it made is in the artifact store, and its logs are in a folder of their own. A run that a Reset makes has another id.

Checkpoints, `scratch/checkpoints/<chain>/...`, belong to a workflow and go on with such a run. A stage's result removes
its own; those of a workflow that ended before are removed here.
"""

import hashlib
import re
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
from sqlmodel import Session, col, func, select

from activities.jobs.depot import modified
from everloop.store import HistoryRow, JournalRow, Store

QUIET = timedelta(seconds=10)
"""A run that was cancelled is closed before its job has ended: it still writes there."""
AT_ONCE = 500
SKEW = timedelta(minutes=1)
"""By so much Temporal's clock may differ from that of the files."""


def remove_ended(store: Store, jobs: Path, quiet: timedelta = QUIET) -> int:
    """Remove the folders of runs that closed longer than *quiet* ago. Returns how many.

    Closed is what the archive of histories has: also after a crash of everything each run comes there once.
    """
    try:
        folders = [each.name for each in jobs.iterdir() if each.is_dir()]
    except FileNotFoundError:  # no job has run yet
        return 0
    ended = _closed(store, folders, quiet)
    for run_id in ended:
        shutil.rmtree(jobs / run_id, ignore_errors=True)
    return len(ended)


def _closed(store: Store, runs: Sequence[str], quiet: timedelta) -> set[str]:
    """Of *runs* those that closed longer than *quiet* ago."""
    before, ended = datetime.now(UTC) - quiet, set[str]()
    for start in range(0, len(runs), AT_ONCE):
        with store.read() as session:
            query = select(HistoryRow.run_id).where(
                col(HistoryRow.run_id).in_(runs[start : start + AT_ONCE]), HistoryRow.closed_at < before
            )
            ended |= set(session.exec(query))
    return ended


def remove_ended_of_store(store: Store, url: str, quiet: timedelta = QUIET) -> int:
    """The same on the artifact store, where gangs meet and files are lent: what attempts that were killed have left."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    runs = {path.removeprefix(root).strip("/").partition("/")[0] for path in files.find(root)}
    ended = _closed(store, sorted(runs), quiet)
    for run_id in ended:
        files.rm(f"{root}/{run_id}", recursive=True)
    return len(ended)


def chain(workflow_id: str) -> str:
    """The folder's name of a workflow's checkpoints: what may stand in a name, and the id's digest."""
    return (
        re.sub(r"[^A-Za-z0-9._-]", "_", workflow_id)[:80] + "-" + hashlib.sha256(workflow_id.encode()).hexdigest()[:12]
    )


def remove_checkpoints(store: Store, checkpoints: Path, quiet: timedelta = QUIET) -> int:
    """Remove the checkpoints of workflows whose last run closed longer than *quiet* ago. Returns how many.

    A workflow with a run that the archive does not have is spared, and one in whose folder something was written after
    its end: a Reset has made a run of which nothing is written down yet.
    """
    try:
        made = {each.name: each.stat().st_mtime for each in checkpoints.iterdir() if each.is_dir()}
    except FileNotFoundError:  # no job has kept one yet, or another has just removed one
        return 0
    removed = 0
    for name, closed in _over(store, made, quiet):
        if not _written_after(checkpoints / name, (closed + max(quiet, QUIET)).timestamp()):
            shutil.rmtree(checkpoints / name, ignore_errors=True)
            removed += 1
    return removed


def remove_checkpoints_of_store(store: Store, url: str, quiet: timedelta = QUIET) -> int:
    """The same on the artifact store, where hosts share no disk."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    made: dict[str, float] = {}
    written: dict[str, float] = {}
    for path, about in files.find(root, detail=True).items():
        name, at = path.removeprefix(root).strip("/").partition("/")[0], modified(about).timestamp()
        made[name], written[name] = min(at, made.get(name, at)), max(at, written.get(name, at))
    removed = 0
    for name, closed in _over(store, made, quiet):
        if written[name] <= (closed + max(quiet, QUIET)).timestamp():
            files.rm(f"{root}/{name}", recursive=True)
            removed += 1
    return removed


def _over(store: Store, made: Mapping[str, float], quiet: timedelta) -> list[tuple[str, datetime]]:
    """Of the folders *made* then (seconds since 1970) those whose workflow is over, and when it closed."""
    if not made:
        return []
    oldest = datetime.fromtimestamp(min(made.values()), UTC) - SKEW  # whoever made a folder has closed after it
    with store.read() as session:
        return list(_ended(session, made, oldest, quiet))


def _ended(session: Session, made: Container[str], since: datetime, quiet: timedelta) -> Iterator[tuple[str, datetime]]:
    """Of the folders *made* those whose workflow has no open run, and when its last one closed, after *since*."""
    last: dict[str, datetime] = {}
    query = select(HistoryRow.workflow_id, HistoryRow.closed_at).where(HistoryRow.closed_at >= since)
    for workflow_id, closed in session.exec(query):
        last[workflow_id] = max(closed, last.get(workflow_id, closed))
    for workflow_id, closed in last.items():
        name = chain(workflow_id)
        if name in made and closed < datetime.now(UTC) - quiet and not _is_open(session, workflow_id):
            yield name, closed


def _is_open(session: Session, workflow_id: str) -> bool:
    """Does the journal know a run of it that the archive does not?"""
    archived = select(HistoryRow.run_id).where(HistoryRow.workflow_id == workflow_id)
    query = select(func.count()).where(JournalRow.workflow_id == workflow_id, col(JournalRow.run_id).not_in(archived))
    return session.exec(query).one() > 0


def _written_after(folder: Path, moment: float) -> bool:
    try:
        return any(each.stat().st_mtime > moment for each in (folder, *folder.rglob("*")))
    except OSError:  # somebody is at work in it
        return True
