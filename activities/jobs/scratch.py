"""Folders of jobs, `scratch/jobs/<run id>/<activity id>`: kept for a second attempt, removed when their run has ended.

While a run is open, its next attempt finds there what an earlier one has left. A closed run has no next attempt: what
it made is in the artifact store, and its logs are in a folder of their own. A run that a Reset makes has another id.
"""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlmodel import col, select

from everloop.store import HistoryRow, Store

QUIET = timedelta(seconds=10)
"""A run that was cancelled is closed before its job has ended: it still writes there."""
AT_ONCE = 500


def remove_ended(store: Store, jobs: Path, quiet: timedelta = QUIET) -> int:
    """Remove the folders of runs that closed longer than *quiet* ago. Returns how many.

    Closed is what the archive of histories has: also after a crash of everything each run comes there once.
    """
    try:
        folders = [each.name for each in jobs.iterdir() if each.is_dir()]
    except FileNotFoundError:  # no job has run yet
        return 0
    before, ended = datetime.now(UTC) - quiet, set[str]()
    for start in range(0, len(folders), AT_ONCE):
        with store.read() as session:
            query = select(HistoryRow.run_id).where(
                col(HistoryRow.run_id).in_(folders[start : start + AT_ONCE]), HistoryRow.closed_at < before
            )
            ended |= set(session.exec(query))
    for run_id in ended:
        shutil.rmtree(jobs / run_id, ignore_errors=True)
    return len(ended)
