"""A job in its process: what can be named, run by hand, and what its end leaves."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from activities.jobs import child, context
from activities.jobs.checkpoints import Checkpoints
from everloop import engine
from everloop.errors import ComputeLost, DatasetTooSmall, NotFound
from workers import connect


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


def test_progress_to_nobody_never_fails_and_never_waits(tmp_path, artifacts):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    job = context.ThisJob(artifacts, tmp_path, tmp_path, writer, Checkpoints(tmp_path, 0))
    for step in range(20_000):  # a report that waits for a reader waits for ever
        job.report(step, loss=0.1)
    os.close(reader)
    job.report(1, loss=0.1)
