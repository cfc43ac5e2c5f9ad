"""Checkpoints: whole or not there, by one holder at a time, and what was done again is told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from activities.jobs import child, context
from activities.jobs.checkpoints import Checkpoints, Stopped
from activities.jobs.context import ThisJob
from activities.jobs.ended import REAPER_KILLED, crashed, of_nothing
from activities.jobs.reaper import NO_ROOM, ROOM
from activities.jobs.supervisor import MARK
from everloop import engine
from everloop.contracts import TrainRequest
from everloop.errors import Invalid, LeaseLost
from everloop.records import Lease, Member, Resumed, Slot

STATE = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layers": [{"bias": np.array(0.5)}, {"bias": np.zeros(0, np.int64)}],
    "model": "tree\nversion=v4\nümlaut",
    "best": 0.1 + 0.2,
    "worst": float("inf"),
    "round": np.int64(7),
    "over": False,
    "nothing": None,
}


def job(tmp_path: Path, artifacts, token: int = 1, seconds: float = 0, **more) -> ThisJob:
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "chain" / "stage" / "question", token, **more)
    return ThisJob(artifacts, tmp_path, tmp_path, context.NO_EVENTS, checkpoints, checkpoint_seconds=seconds)


def places(tmp_path: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("digests.json"))


@pytest.fixture(autouse=True)
def usual_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_state_comes_back_to_the_bit(tmp_path, artifacts):
    assert job(tmp_path, artifacts).restore() is None
    assert job(tmp_path, artifacts).checkpoint(7, STATE)

    step, state = job(tmp_path, artifacts, token=2).restore()

    assert step == 7
    assert set(state) == set(STATE)
    assert state["weights"].dtype == np.float32
    assert np.array_equal(state["weights"], STATE["weights"])
    assert state["layers"][0]["bias"].shape == ()
    assert state["layers"][1]["bias"].dtype == np.int64
    assert state["best"] == STATE["best"]
    assert (state["model"], state["worst"], state["round"]) == (STATE["model"], float("inf"), 7)
    assert (state["over"], state["nothing"]) == (False, None)


def test_a_step_below_0_is_refused_since_nobody_would_find_it(tmp_path, artifacts):
    with pytest.raises(Invalid, match="-1"):
        job(tmp_path, artifacts).checkpoint(-1, STATE)
    assert places(tmp_path) == []


NOT_KEPT = [{1}, b"bytes", np.array(["text"]), np.array([1j]), {1: 2}, object(), np.ma.masked_array([1, 2], [0, 1])]


@pytest.mark.parametrize("value", [*NOT_KEPT, np.longdouble(1)])
def test_what_cannot_be_kept_is_named(tmp_path, artifacts, value):
    with pytest.raises(Invalid, match=r"state\.inner\[1\]"):
        job(tmp_path, artifacts).checkpoint(1, {"inner": [0, value]})
    assert places(tmp_path) == []


def test_a_state_that_holds_itself_is_said_to(tmp_path, artifacts):
    state = {"inner": []}
    state["inner"].append(state)

    with pytest.raises(Invalid, match="or holds itself"):
        job(tmp_path, artifacts).checkpoint(1, state)


def torn(place: Path, how: str) -> None:
    file = place / {"cut": "arrays.safetensors", "flipped": "arrays.safetensors"}.get(how, how)
    if how == "flipped":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("how", ["cut", "flipped", "state.json", "digests.json"])
def test_a_torn_checkpoint_is_left_out_and_the_one_before_is_taken(tmp_path, artifacts, capsys, how):
    first = job(tmp_path, artifacts)
    for step in (1, 2):
        first.checkpoint(step, STATE | {"at": step})
    torn(tmp_path / "checkpoints/chain/stage/question/1/000000000002", how)

    step, state = job(tmp_path, artifacts).restore()

    assert (step, state["at"]) == (1, 1)
    assert "of token 1 after 2 is not whole" in capsys.readouterr().out


def rewrite(place: Path, **values) -> None:
    about = json.loads((place / "digests.json").read_text()) | values
    (place / "digests.json").write_text(json.dumps(about))


FOREIGN = {
    "no object": lambda place: (place / "digests.json").write_text("null"),
    "endless": lambda place: (place / "digests.json").write_text("[" * 100_000),
    "digests in a list": lambda place: rewrite(place, sha256=[]),
    "without digests": lambda place: rewrite(place, sha256={}),
    "a moment that is text": lambda place: rewrite(place, seconds="soon"),
    "of another step": lambda place: rewrite(place, step=9),
    "a folder for a file": lambda place: ((place / "state.json").unlink(), (place / "state.json").mkdir()),
}


@pytest.mark.parametrize("how", list(FOREIGN))
def test_what_is_no_checkpoint_of_ours_is_left_out_and_the_one_before_is_taken(tmp_path, artifacts, capsys, how):
    first = job(tmp_path, artifacts)
    for step in (1, 2):
        first.checkpoint(step, STATE)
    FOREIGN[how](tmp_path / "checkpoints/chain/stage/question/1/000000000002")

    assert job(tmp_path, artifacts).restore()[0] == 1
    assert "of token 1 after 2 is not whole" in capsys.readouterr().out


def test_what_else_lies_among_the_checkpoints_holds_up_nobody(tmp_path, artifacts):
    job(tmp_path, artifacts).checkpoint(1, STATE)
    folder = tmp_path / "checkpoints/chain/stage/question"
    (folder / "8").write_text("a file, and no newer holder")
    (folder / "7").symlink_to(tmp_path / "nowhere")
    (folder / "\N{SUPERSCRIPT TWO}").mkdir()
    (folder / "1" / "000000000009").write_text("")
    (folder / "1" / "progress-x").mkdir()
    (folder / "1" / "progress-y").write_bytes(b"\xff\xff")

    assert job(tmp_path, artifacts, token=2).restore()[0] == 1
    assert job(tmp_path, artifacts, token=2).checkpoint(3, STATE)


@pytest.mark.parametrize("lost", [b'{"token": 1, "st', b"\0" * 64, b"\xff\xfe", b"null"])
def test_a_report_that_the_disk_has_lost_a_line_of_does_not_hold_the_training_up(tmp_path, artifacts, lost):
    first = job(tmp_path, artifacts)
    first.checkpoint(1, {})
    job(tmp_path, artifacts).restore()
    with (tmp_path / "checkpoints/chain/stage/question/resumes").open("ab") as resumes:
        resumes.write(lost)

    again, later = job(tmp_path, artifacts), job(tmp_path, artifacts)
    assert again.restore()[0] == later.restore()[0] == 1
    assert (again.resumed.times, later.resumed.times) == (2, 3)


def test_a_disk_that_takes_no_more_costs_the_checkpoint_and_not_the_training(tmp_path, artifacts, capsys):
    going = job(tmp_path, artifacts)
    going.checkpoint(1, STATE)
    shutil.rmtree(tmp_path / "checkpoints/chain/stage/question/1")  # as good as a disk gone read-only, also for root

    assert not going.checkpoint(2, STATE)
    assert "no checkpoint after 2" in capsys.readouterr().out

    def wrong():
        raise FileNotFoundError("the trainer's own file")

    with pytest.raises(FileNotFoundError, match="own file"):
        going.checkpoint(3, wrong)


def test_the_two_newest_stay_and_a_newer_token_is_newer_whatever_its_step(tmp_path, artifacts):
    first = job(tmp_path, artifacts)
    for step in (10, 20, 30):
        first.checkpoint(step, {})
    assert [place[-14:] for place in places(tmp_path)] == ["1/000000000020", "1/000000000030"]

    job(tmp_path, artifacts, token=2).checkpoint(11, {})

    assert job(tmp_path, artifacts, token=3).restore()[0] == 11
    assert [place[-14:] for place in places(tmp_path)] == ["1/000000000030", "2/000000000011"]


def test_a_trainer_that_counts_its_steps_anew_goes_on_at_what_it_kept_last(tmp_path, artifacts):
    folds = job(tmp_path, artifacts)
    for fold in range(3):
        for step in (0, 10, 20) if fold < 2 else (0, 5):
            assert folds.checkpoint(step, {"fold": fold})
            assert job(tmp_path, artifacts).restore() == (step, {"fold": fold})
    assert [place[-14:] for place in places(tmp_path)] == ["1/000000000000", "1/000000000005"]

    one_step = job(tmp_path, artifacts, token=2)
    for fold in range(3):  # the same step each time
        assert one_step.checkpoint(0, {"fold": fold})
    assert job(tmp_path, artifacts, token=3).restore() == (0, {"fold": 2})


def test_an_older_token_writes_no_more_once_a_newer_one_has_begun(tmp_path, artifacts):
    older = job(tmp_path, artifacts, token=4)
    older.checkpoint(1, {})
    newer = job(tmp_path, artifacts, token=5)
    assert newer.restore()[0] == 1

    with pytest.raises(LeaseLost, match="token 4 is older"):
        older.checkpoint(2, {})
    with pytest.raises(LeaseLost):
        job(tmp_path, artifacts, token=4).restore()
    newer.checkpoint(3, {})
    older.ended()

    assert [place[-14:] for place in places(tmp_path)] == ["4/000000000001", "5/000000000003"]


def test_who_has_lost_the_lease_is_told_to_stop_and_what_it_returns_is_no_result(tmp_path, artifacts):
    older = job(tmp_path, artifacts, token=4)
    assert not older.should_stop()
    older.checkpoint(1, {})
    job(tmp_path, artifacts, token=5).restore()
    older._checkpoints._looked = 0.0

    assert older.should_stop()
    for ends in (older.gave_up, lambda: older.checkpoint(1, {})):
        with pytest.raises(LeaseLost):
            ends()


def test_one_is_due_by_time_so_that_the_next_call_does_not_come_too_late(tmp_path, artifacts):
    slow = job(tmp_path, artifacts, seconds=0.3)
    slow.restore()
    began, kept, made = time.monotonic(), [], []

    def state():
        made.append(1)
        return {}

    for step in range(1, 11):
        time.sleep(0.1)
        if slow.checkpoint(step, state):
            kept.append(time.monotonic() - began)

    assert len(kept) == len(made) >= 3
    assert max(after - before for before, after in zip([0, *kept], kept, strict=False)) < 0.45


def test_on_notice_one_is_kept_at_once_and_the_job_ends(tmp_path, artifacts):
    told = job(tmp_path, artifacts, seconds=3600)
    assert not told.checkpoint(1, {})
    os.kill(os.getpid(), signal.SIGTERM)

    assert told.should_stop()
    with pytest.raises(Stopped):
        told.checkpoint(2, {})
    assert job(tmp_path, artifacts).restore()[0] == 2
    assert told.gave_up()


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path, artifacts, capsys):
    assert not job(tmp_path, artifacts, floor_bytes=1 << 60).checkpoint(1, STATE)

    assert places(tmp_path) == []
    assert "no checkpoint after 1" in capsys.readouterr().out


def test_what_was_done_again_is_counted_over_all_attempts(tmp_path, artifacts, capsys):
    first = job(tmp_path, artifacts, token=3)
    assert first.restore() is None
    assert first.resumed is None
    began = time.time()
    first.checkpoint(120, {})
    time.sleep(0.2)
    first.report(150)  # killed here
    most = time.time() - began

    second = job(tmp_path, artifacts, token=4)
    second.restore()
    assert second.resumed == Resumed(
        times=1, step=120, token=3, steps_again=30, seconds_again=second.resumed.seconds_again, at="step 120"
    )
    assert 0.2 <= second.resumed.seconds_again <= most + 0.1
    second.report(130)  # killed before it kept anything

    third = job(tmp_path, artifacts, token=5)
    third.restore()
    third.restore()
    assert (third.resumed.times, third.resumed.steps_again, third.resumed.token) == (2, 40, 3)
    assert "resumed 2 times, at last at step 120 from a checkpoint of token 3" in capsys.readouterr().out


def test_the_report_is_a_sentence_for_people():
    resumed = Resumed(times=1, step=120, token=3, steps_again=12, seconds_again=4.2)
    begun = Resumed(times=2, step=0, token=0, steps_again=12, seconds_again=9)

    assert resumed.sentence("round") == "resumed at round 120 from a checkpoint of token 3; 4 s of work done again"
    assert begun.sentence() == "begun again 2 times, at last without a checkpoint; 9 s of work done again"


@pytest.mark.parametrize(
    ("values", "step", "at"),
    [
        ({"rounds": 30, "most": 400, "validation_loss": 1.0}, 20, "round 20 of at most 400"),
        ({"epochs": 3, "most": 9}, 3, "epoch 3 of 9"),
        ({"epochs": 3, "most": 9}, 1234, "step 1,234"),  # it counts something else
        ({"trees": 5}, 5, "tree 5"),
        ({}, 7, "step 7"),
    ],
)
def test_a_checkpoint_is_called_what_its_trainer_calls_it_also_in_the_next_attempt(
    tmp_path, artifacts, values, step, at
):
    first = job(tmp_path, artifacts)
    first.report(3, **values)
    first.checkpoint(step, {})

    second = job(tmp_path, artifacts, token=2)
    second.restore()

    assert second.resumed.at == at
    assert f"resumed at {at} from a checkpoint of token 1" in second.resumed.sentence()


def test_with_the_result_the_checkpoints_go(tmp_path, artifacts):
    done = job(tmp_path, artifacts)
    done.checkpoint(1, STATE)

    done.ended()

    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_crash_after_more_was_kept_is_counted_anew(tmp_path, artifacts):
    order = {"folder": str(tmp_path), "checkpoints": str(tmp_path / "checkpoints/chain/stage/question")}
    assert [crashed(order, "SIGKILL")["crashes"] for _ in range(2)] == [1, 2]
    job(tmp_path, artifacts).checkpoint(5, {})

    assert [crashed(order, "SIGKILL")["crashes"] for _ in range(2)] == [1, 2]


def test_a_job_that_ends_its_own_reaper_or_by_a_code_that_means_something_does_not_run_for_ever(tmp_path):
    order = {
        "folder": str(tmp_path),
        "token": 1,
        "environment": {MARK: str(tmp_path / "nobody")},
        "request": {"code": {"archive": None}},
    }
    order |= {"artifacts": "", "logs_dir": str(tmp_path)}
    ends = [of_nothing(order, REAPER_KILLED) for _ in range(3)]
    assert ends == [{"crash": "the end of its reaper", "crashes": number} for number in (1, 2, 3)]

    (tmp_path / "1").mkdir()
    (tmp_path / "1" / ROOM).touch()
    for code in (NO_ROOM, 200):
        said = of_nothing(order, code)["error"]
        assert (said["error"], said["field"]) == ("TrainerFailed", "trainer")
        assert f"exit code {code}" in said["message"]
    assert of_nothing(order, 128 + 9) == {"crash": "SIGKILL", "crashes": 4}
    (tmp_path / "1" / ROOM).unlink()  # as our own code does where the disk is full
    assert of_nothing(order, NO_ROOM)["error"]["error"] == "StorageLow"


FUNCTIONS = """
    import os, sys, time
    from everloop.contracts import JobRequest
    from everloop.records import Result

    def learn(request: JobRequest, job) -> Result:
        found = job.restore()
        step = found[0] if found else 0
        while step < 100_000 and not job.should_stop():
            step += 1
            if step == 3:
                print("begin", flush=True)
            job.checkpoint(step, {"step": step})
            time.sleep(0.001)
        job.checkpoint(step, {"step": step})
        return Result()

    def load(request: JobRequest, job) -> Result:
        print("begin", flush=True)
        time.sleep(60)
        return Result()

    def heedless(request: JobRequest, job) -> Result:
        job.should_stop()
        print("begin", flush=True)
        while not job.should_stop():
            pass
        return Result()
"""


@pytest.mark.parametrize(("function", "code"), [("learn", child.STOPPED), ("heedless", child.STOPPED), ("load", -15)])
def test_sigterm_ends_a_job_with_what_it_has_learned_kept_or_at_once_before_it_asks(tmp_path, function, code):
    (tmp_path / "hand_made").mkdir()
    (tmp_path / "hand_made" / "__init__.py").touch()
    (tmp_path / "hand_made" / "trial.py").write_text(textwrap.dedent(FUNCTIONS))
    order = {"function": f"trial.{function}", "root": "hand_made", "request": {}, "digest": "d", "log": "l"}
    places_ = {"artifacts": str(tmp_path / "artifacts"), "predictions_dir": str(tmp_path), "floor_bytes": 0}
    (tmp_path / "request.json").write_text(json.dumps(order | places_ | {"checkpoint_seconds": 3600}))
    environment = engine.environment({"PYTHONPATH": f"{engine.source()}{os.pathsep}{tmp_path}"})
    command = [sys.executable, "-m", "activities.jobs.child", tmp_path]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"begin")
    time.sleep(0.1)

    process.send_signal(signal.SIGTERM)

    assert process.wait(60) == code
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "error.json").exists()
    if function == "learn":
        (kept,) = (tmp_path / "checkpoints/0").glob("0*")
        assert int(kept.name) > 1


def test_a_slot_of_a_stored_history_is_a_lease_of_one_member():
    slot = Slot(device="cpu0", token=7, holder="w/r")

    assert Lease.model_validate(slot) == Lease(token=7, holder="w/r", members=(Member(device="cpu0"),))
    assert Lease.model_validate(slot.model_dump()) == Lease.model_validate(slot)
    again = Lease.model_validate_json(Lease.model_validate(slot).model_dump_json())
    assert again == Lease.model_validate(slot)
    assert "lease" in TrainRequest.model_fields
    with pytest.raises(ValueError, match="a member at least"):
        Lease(token=1, holder="", members=())


def test_a_job_keeps_files_for_people_by_their_names(tmp_path, artifacts):
    made = job(tmp_path, artifacts)
    made.log_artifact("confusion.json", b"{}")
    made.log_artifact("confusion.json", b"[]")
    (tmp_path / "plot").write_bytes(b"svg")
    made.log_artifact("plot.svg", tmp_path / "plot")

    assert [(blob.name, artifacts.get(blob)) for blob in made.logged] == [
        ("confusion.json", b"[]"),
        ("plot.svg", b"svg"),
    ]
    with pytest.raises(Invalid, match="cannot be an artifact's name"):
        made.log_artifact("../up", b"")
