"""The parts of a job that need no server: names, certificates, devices, the child, errors, internals we lean on."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import distributed
import pytest
from distributed import LocalCluster
from temporalio.exceptions import ApplicationError

from activities.jobs import child, context, scratch, supervisor, warming
from activities.jobs.checkpoints import Checkpoints
from activities.jobs.security import security
from everloop import engine
from everloop import settings as configuration
from everloop.errors import ComputeLost, DatasetTooSmall, Invalid, NotFound, Unavailable
from everloop.settings import Settings
from everloop.store import HistoryRow, JournalRow
from workers import cluster, connect, devices


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, temporal_address="127.0.0.1:9", session="s1")


def test_the_certificate_is_ours_alone_made_once_and_good_for_both_ends(settings):
    first = cluster.create_certificates(settings.keys_dir)
    content = first.read_bytes()

    assert cluster.create_certificates(settings.keys_dir).read_bytes() == content
    assert first.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in settings.keys_dir.iterdir()] == ["dask.pem"]
    args = security(settings).get_connection_args("client")
    assert args["require_encryption"]
    assert args["ssl_context"].verify_mode == ssl.CERT_REQUIRED


def test_without_a_certificate_the_error_says_who_makes_it(settings):
    with pytest.raises(Unavailable, match=r"dask\.pem is missing") as caught:
        security(settings)
    assert "everloop up" in caught.value.hint


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


def test_the_warm_process_ends_when_no_job_has_come_for_a_while_and_the_next_job_gets_a_new_one(monkeypatch):
    environment = engine.environment()
    monkeypatch.setattr(warming, "IDLE_SECONDS", 1.0)
    first = warming.warm_up("activities.jobs", environment)
    assert warming.warm_up("activities.jobs", environment) is first

    warming.cool_down_later()
    warming.warm_up("activities.jobs", environment)  # a job comes meanwhile
    time.sleep(1.5)
    assert warming.pid() == first.pid

    warming.cool_down_later()
    deadline = time.monotonic() + 60
    while warming.pid():
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.02)
    second = warming.warm_up("activities.jobs", environment)

    assert second.pid != first.pid
    while (told := Path(f"/proc/{first.pid}/stat")).exists() and ") Z " not in told.read_text():
        assert time.monotonic() < deadline + 10, "it is still there"
        time.sleep(0.02)
    warming.cool_down_later()
    while warming.pid():
        time.sleep(0.02)


def test_a_slot_whose_worker_is_killed_starts_another_and_ends_it_when_told(tmp_path):
    pids = tmp_path / "pids"
    code = textwrap.dedent(f"""
        import os, sys, time
        from workers import cluster
        def work():
            with open({str(pids)!r}, "a") as told:
                told.write(f"{{os.getpid()}}\\n")
            time.sleep(600)
            return 0
        sys.exit(cluster._kept_running(work))
    """)
    slot = subprocess.Popen([sys.executable, "-c", code], env=engine.environment())

    def told(count: int) -> int:
        deadline = time.monotonic() + 60
        while not pids.exists() or len(pids.read_text().split()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return int(pids.read_text().split()[-1])

    os.kill(told(1), signal.SIGKILL)
    second = told(2)
    slot.send_signal(signal.SIGTERM)

    assert slot.wait(60) == 0
    assert not Path(f"/proc/{second}").exists()


@pytest.mark.parametrize(("slots", "names", "light"), [(1, ["cpu0"], []), (3, ["cpu0", "cpu1", "cpu2"], ["cpu2"])])
def test_the_last_of_several_cpu_slots_is_for_checks(settings, monkeypatch, slots, names, light):
    monkeypatch.setattr(devices.nvml, "found", tuple)

    assert devices.slot_names(replace(settings, slots=slots)) == names
    assert devices.light_slots(replace(settings, slots=slots)) == light


@pytest.mark.parametrize(
    ("cores", "shares"), [(1, (1, 1)), (2, (1, 1)), (3, (1, 1)), (4, (2, 1)), (16, (14, 1)), (64, (62, 1))]
)
def test_without_a_word_the_default_pool_uses_the_machine(settings, cores, shares):
    assert devices.shares(replace(settings, slots=0), cores) == shares
    assert devices.shares(replace(settings, slots=3, slot_cores=4), cores) == (4, 4, 4)


def test_the_memory_of_the_machine_is_shared_by_the_cores():
    found = devices.CpuDevices((6, 2), 8000).slots()

    assert [(device.name, device.cores, device.memory_mib, device.light) for device in found] == [
        ("cpu0", 6, 6000, False),
        ("cpu1", 2, 2000, True),
    ]


def test_a_gpu_slot_sees_its_own_gpu_and_the_check_slot_none():
    slots = devices.NvmlDevices((devices.Gpu("GPU-1a-2b", 8000),)).slots()

    assert [(slot.name, slot.light) for slot in slots] == [("gpu-1a-2b", False), ("cpu0", True)]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["GPU-1a-2b", ""]


async def test_a_temporal_that_does_not_answer_is_named_with_what_to_do(settings):
    with pytest.raises(Unavailable, match=r"Temporal at 127\.0\.0\.1:9 does not answer") as caught:
        await connect.connect(settings, "test", wait_seconds=0.3)
    assert "everloop up" in caught.value.hint


@pytest.mark.parametrize(("error", "final"), [(DatasetTooSmall("few", field="source"), True), (ComputeLost(), False)])
def test_an_error_crosses_temporal_with_its_class_and_whether_retrying_helps(error, final):
    failure = connect.as_failure(error)

    assert isinstance(failure, ApplicationError)
    assert (failure.type, failure.message, failure.non_retryable) == (type(error).__name__, str(error), final)
    assert tuple(failure.details) == (error.field, error.hint)


@pytest.mark.parametrize(
    "name", ["data", "data.snapshot.x", "../x.y", "os.system", "data.__doc__", "Data.snapshot", ""]
)
def test_only_public_functions_below_the_root_can_be_named(name):
    with pytest.raises(NotFound):
        child.find("activities.compute", name)


def test_a_job_folder_can_be_run_by_hand(tmp_path):
    (tmp_path / "hand_made").mkdir()
    (tmp_path / "hand_made" / "__init__.py").touch()
    (tmp_path / "hand_made" / "trial.py").write_text(
        textwrap.dedent("""
        from everloop.contracts import JobRequest
        from everloop.records import Result

        def run(request: JobRequest, job) -> Result:
            job.report(0, loss=1.0)
            return Result()
        """)
    )
    order = {"function": "trial.run", "root": "hand_made", "request": {}, "digest": "d", "log": "l"}
    places = {"artifacts": str(tmp_path / "artifacts"), "predictions_dir": str(tmp_path)}
    (tmp_path / "request.json").write_text(json.dumps(order | places))

    environment = engine.environment({"PYTHONPATH": f"{engine.source()}{os.pathsep}{tmp_path}"})
    subprocess.run([sys.executable, "-m", "activities.jobs.child", tmp_path], env=environment, check=True)

    assert json.loads((tmp_path / "result.json").read_text())["result"] == {"ran": None}


def by_hand(folder: Path, body: str) -> tuple[dict, str]:
    """Run a job whose function is *body*, as a process of its own. What it left, and what it said."""
    (folder / "hand_made").mkdir()
    (folder / "hand_made" / "__init__.py").touch()
    head = "import os, sys\nfrom everloop.contracts import JobRequest\nfrom everloop.records import Result\n"
    text = f"{head}def run(request: JobRequest, job) -> Result:\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    (folder / "hand_made" / "trial.py").write_text(text)
    order = {"function": "trial.run", "root": "hand_made", "request": {}, "digest": "d", "log": "l"}
    places = {"artifacts": str(folder / "artifacts"), "predictions_dir": str(folder)}
    (folder / "request.json").write_text(json.dumps(order | places))
    environment = engine.environment({"PYTHONPATH": f"{engine.source()}{os.pathsep}{folder}"})
    command = [sys.executable, "-m", "activities.jobs.child", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    left = folder / ("result.json" if (folder / "result.json").exists() else "error.json")
    assert left.exists(), done.stdout + done.stderr
    return json.loads(left.read_text()), done.stdout + done.stderr


def test_an_exception_that_cannot_be_shown_is_named_with_its_line(tmp_path):
    body = """
    class Mute(Exception):
        __str__ = __repr__ = lambda self: 1 / 0
    raise Mute
    """
    left, said = by_hand(tmp_path, body)

    assert left["error"] == "JobFailed"
    assert left["message"] == "Mute: (its text cannot be shown: __str__ raised ZeroDivisionError)"
    assert left["hint"].endswith("in run: raise Mute")
    assert "in run" in said


@pytest.mark.parametrize(
    "closes",
    [
        "sys.stdout.close(); sys.stderr.close()",
        "os.close(1); os.close(2)",
        "import io; sys.stdout = io.TextIOWrapper(sys.stdout.buffer); del sys.stdout",
        "sys.stdout.detach(); sys.stderr = None",
        "sys.stdout = sys.stderr = open(os.devnull, 'w'); sys.stdout.close()",
    ],
)
@pytest.mark.parametrize("then", ["returns", "raises"])
def test_a_job_ends_well_and_its_log_goes_on_whatever_was_done_to_stdout(tmp_path, closes, then):
    body = f"from everloop import streams\nwith streams.guest():\n    {closes}\nprint('and goes on')\nreturn Result()"
    if then == "raises":
        body = f"{closes}\nraise ValueError('a \\udcff bug')"

    left, said = by_hand(tmp_path, body)

    assert left.get("result") == {"ran": None} if then == "returns" else "bug" in left["message"]
    assert ("and goes on" if then == "returns" else "in run") in said


@pytest.mark.parametrize("ends", ["return Result()", "raise ValueError", "sys.exit(3)"])
def test_a_process_that_a_job_has_forked_writes_no_result_of_the_job(tmp_path, ends):
    body = f"""
    pid = os.fork()
    if pid == 0:
        {ends}
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = [name for name in os.listdir({str(tmp_path)!r}) if name in ("result.json", "error.json")]
    raise RuntimeError(f"the fork ended with {{code}} and left {{left}}")
    """

    left, said = by_hand(tmp_path, body)

    code = 0 if "return" in ends else 1
    assert left["message"] == f"RuntimeError: the fork ended with {code} and left []"
    assert code == 0 or ends.partition("(")[0].removeprefix("raise ") in said


def test_threads_come_from_the_lease_by_call(tmp_path):
    """As in the fork: the libraries are loaded with one thread."""
    code = textwrap.dedent("""
        import os
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
        import numpy, pyarrow
        from threadpoolctl import threadpool_info
        from activities.jobs import threads
        before = pyarrow.cpu_count(), os.environ["OMP_NUM_THREADS"]
        threads.allow(3)
        print(before, pyarrow.cpu_count(), os.environ["OMP_NUM_THREADS"], [i["num_threads"] for i in threadpool_info()])
    """)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=engine.environment(), capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "(1, '1') 3 3 [3]"


def test_the_settings_say_what_a_slot_may_use_and_a_wrong_interval_is_named(monkeypatch):
    monkeypatch.setenv("EVERLOOP_SLOT_CORES", "4")
    monkeypatch.setenv("EVERLOOP_CHECKPOINT_SECONDS", "2.5")
    loaded = configuration.load()
    assert (loaded.slot_cores, loaded.checkpoint_seconds) == (4, 2.5)
    assert loaded.environment()["EVERLOOP_CHECKPOINT_SECONDS"] == "2.5"
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("EVERLOOP_CHECKPOINT_SECONDS", wrong)
        with pytest.raises(Invalid, match="EVERLOOP_CHECKPOINT_SECONDS must be a number of seconds"):
            configuration.load()


def test_progress_to_nobody_never_fails_and_never_waits(tmp_path, artifacts):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    job = context.ThisJob(artifacts, tmp_path, tmp_path, writer, Checkpoints(tmp_path, 0))
    for step in range(20_000):  # a report that waits for a reader waits for ever
        job.report(step, loss=0.1)
    os.close(reader)
    job.report(1, loss=0.1)


def state_of_me() -> str:
    """In a Dask task: the state that the supervisor looks at."""
    worker = distributed.get_worker()
    return str(worker.state.tasks[worker.get_current_task()].state)


def watch_myself(folder: str) -> None:
    """In a Dask task: write down when it is no longer wanted."""
    task = supervisor.Task("topic")
    Path(folder, "begun").touch()
    deadline = time.monotonic() + 60
    while task.wanted() and time.monotonic() < deadline:
        time.sleep(0.02)
    Path(folder, "unwanted").write_text(str(time.monotonic() < deadline))


async def test_the_internals_of_distributed_that_tell_a_cancelled_task_are_as_we_know_them(tmp_path):
    options = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    async with (
        LocalCluster(**options, asynchronous=True, protocol="inproc") as local,
        distributed.Client(local, asynchronous=True) as client,
    ):
        assert await client.submit(state_of_me) == "executing"
        future = client.submit(watch_myself, str(tmp_path), pure=False)
        for _ in range(500):
            if (tmp_path / "begun").exists():
                break
            await asyncio.sleep(0.02)
        await future.cancel()
        for _ in range(100):
            if (tmp_path / "unwanted").exists():
                break
            await asyncio.sleep(0.05)

    assert (tmp_path / "unwanted").read_text() == "True"


@pytest.mark.parametrize(("slept", "left"), [(True, 1), (False, 0)], ids=["it has slept", "it was awake"])
async def test_a_scheduler_takes_no_silent_worker_for_dead_when_it_has_slept_itself(slept, left):
    """A worker that has not been heard of for ten minutes, by a scheduler that gives it one."""
    options = {"protocol": "inproc://", "dashboard_address": None, "dashboard": False, "worker_ttl": 60}
    async with (
        cluster.LightSleeper(**options) as scheduler,
        distributed.Worker(scheduler.address, nthreads=1, dashboard=False),
    ):
        ten_minutes_ago = time.time() - 600
        scheduler.notice_sleep()
        if slept:
            scheduler._looked = ten_minutes_ago
        next(iter(scheduler.workers.values())).last_seen = ten_minutes_ago

        await scheduler.check_worker_ttl()

        assert len(scheduler.workers) == left


@pytest.mark.parametrize("process", ["workers.connect", "workers.takeover", "workers.devices"])
def test_control_side_modules_do_not_load_dask(process):
    code = f"import sys, {process}; sys.exit('distributed' in sys.modules or 'dask' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=engine.environment(), check=True)


def test_dask_processes_load_neither_temporal_nor_the_store():
    code = "import sys, workers.cluster, activities.jobs.supervisor; heavy = {'temporalio', 'sqlalchemy', 'pydantic'}"
    code += "; sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], env=engine.environment(), check=True)


def test_the_compute_worker_loads_nothing_heavy():
    code = "import sys, workers.compute, workers.cluster; "
    code += "heavy = {'pandas', 'sklearn', 'lightgbm', 'onnx', 'evidently', 'torch'}"
    code += "; sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], env=engine.environment(), check=True)


def test_a_process_ends_with_its_parent(tmp_path):
    """The parent starts it and is killed at once."""
    code = textwrap.dedent(f"""
        import subprocess, sys, time
        inner = "import time; from workers import process; process.die_with_parent(); print(1, flush=True)"
        inner += "; time.sleep(60)"
        p = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE)
        p.stdout.readline()
        open({str(tmp_path / "pid")!r}, "w").write(str(p.pid))
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], env=engine.environment())
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.02)

    assert not Path(f"/proc/{pid}").exists()


def test_the_warm_process_ends_with_its_dask_worker_even_while_it_loads():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "activities.jobs.warm", "activities.compute", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=engine.environment())
    theirs.close()
    loading = f"/proc/{process.pid}/maps"
    while "numpy" not in Path(loading).read_text():
        time.sleep(0.01)  # it has begun to load, which goes on for seconds

    ours.close()

    assert process.wait(60) == 0
