"""Folders of jobs are removed when nothing needs them any more."""

import os
import time
from datetime import UTC, datetime, timedelta

from activities.jobs import scratch
from everloop.store import HistoryRow, JournalRow
from workers import cluster


def test_only_folders_of_jobs_that_ended_long_ago_are_removed(tmp_path):
    for run, age_seconds in (("old", 7200), ("new", 0), ("old-but-busy", 7200)):
        folder = tmp_path / run / "3" / "1"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        for path in (folder / "result.json", folder, folder.parent, folder.parent.parent):
            os.utime(path, (time.time() - age_seconds,) * 2)
    (tmp_path / "old-but-busy" / "3" / "1" / "request.json").write_text("{}")

    cluster.tidy(tmp_path, time.time() - 3600)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old-but-busy"]


def test_folders_of_ended_runs_are_removed_and_those_of_open_and_just_ended_ones_are_not(store, tmp_path):
    now = datetime.now(UTC)
    with store.write() as session:
        for run, closed in (("ended", now - timedelta(seconds=60)), ("just-ended", now)):
            session.add(
                HistoryRow(
                    workflow_id="w",
                    run_id=run,
                    workflow_type="everloop.Lifecycle",
                    started_at=now - timedelta(hours=1),
                    closed_at=closed,
                    sha256="0" * 64,
                )
            )
    for run in ("ended", "just-ended", "open"):
        folder = tmp_path / "jobs" / run / "train.1" / "7" / "scratch"
        folder.mkdir(parents=True)
        (folder.parent / "result.json").write_text("{}")

    assert scratch.remove_ended(store, tmp_path / "jobs") == 1
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["just-ended", "open"]
    assert scratch.remove_ended(store, tmp_path / "jobs", timedelta(seconds=-1)) == 1
    assert scratch.remove_ended(store, tmp_path / "nothing") == 0


def test_checkpoints_of_a_workflow_go_when_its_last_run_has_ended_and_a_reset_keeps_them(store, tmp_path):
    checkpoints, now = tmp_path / "checkpoints", datetime.now(UTC)
    hour, minute = now - timedelta(hours=1), now - timedelta(seconds=60)
    runs = {  # workflow: when each run closed (None: it is open), and when its last checkpoint was written
        "shop/ended": ((minute,), hour),
        "just-ended": ((now,), hour),
        "open": ((None,), hour),
        "reset": ((minute, None), hour),
        "reset-and-ended": ((hour, minute), hour),
        "reset-and-just-ended": ((minute, now), hour),
        "reset-not-yet-told": ((minute,), now),
    }
    for workflow, (closed, written) in runs.items():
        with store.write() as session:
            for number, at in enumerate(closed):
                run = f"{workflow}.{number}"
                session.add(
                    JournalRow(
                        workflow_id=workflow,
                        run_id=run,
                        seq=1,
                        run_started_at=hour,
                        type="StageStarted",
                        at=hour,
                        body="{}",
                    )
                )
                if at is not None:
                    session.add(
                        HistoryRow(
                            workflow_id=workflow, run_id=run, workflow_type="everloop.Lifecycle", started_at=hour,
                            closed_at=at, sha256="0" * 64,
                        )
                    )  # fmt: skip
        kept = checkpoints / scratch.chain(workflow) / "training.train" / "0123" / "7" / "100"
        kept.mkdir(parents=True)
        (kept / "state.json").write_text("{}")
        for path in (kept / "state.json", kept, *kept.parents[:4]):
            os.utime(path, (written.timestamp(),) * 2)

    assert scratch.remove_checkpoints(store, checkpoints) == 2
    assert {path.name for path in checkpoints.iterdir()} == {
        scratch.chain(name) for name in runs if name not in ("shop/ended", "reset-and-ended")
    }
    assert scratch.remove_checkpoints(store, checkpoints / "nothing") == 0
