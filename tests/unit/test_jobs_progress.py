"""What a job may report is refused where it is wrong, and nothing else comes out of its pipe."""

import contextlib
import json
import os
from decimal import Decimal

import numpy as np
import pytest

from activities.jobs.checkpoints import Checkpoints
from activities.jobs.context import ThisJob
from activities.jobs.progress import LINE_BYTES, Progress, is_kept
from everloop.errors import Invalid


@pytest.fixture
def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    yield read, write
    for end in (read, write):
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def job(tmp_path, artifacts, pipe):
    return ThisJob(artifacts, tmp_path, tmp_path, pipe[1], Checkpoints(tmp_path / "question", 1), checkpoint_seconds=0)


def heard(read):
    progress = Progress(print)
    with contextlib.suppress(BlockingIOError):
        while progress.read(read):
            pass
    return [(line["step"], line["values"]) for line in progress.lines if not is_kept(line)]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (10**30, "a step must be 0 or more and have at most 64 bits, unlike 1000000000000000000000000000000"),
        (10**5000, "a step must be 0 or more and have at most 64 bits, unlike ..."),
        (-1, "a step must be 0 or more and have at most 64 bits, unlike -1"),
        (float("nan"), "a step must be a whole number, not nan"),
        (float("inf"), "a step must be a whole number, not inf"),
        (0.5, "a step must be a whole number, not 0.5"),
        ("12", "a step must be a whole number, not the str '12'"),
        (None, "a step must be a whole number, not the NoneType None"),
        (np.array([1, 2]), r"a step must be a whole number, not the ndarray array\(\[1, 2\]\)"),
    ],
    ids=["70 bits", "too many digits", "negative", "nan", "inf", "half", "text", "none", "array"],
)
def test_what_is_no_step_is_refused_where_it_is_said(job, pipe, step, said):
    for what in (lambda: job.report(step, loss=1.0), lambda: job.checkpoint(step, {})):
        with pytest.raises(Invalid, match=said) as refused:
            what()
        assert refused.value.field == "step"
    assert heard(pipe[0]) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": "0.5"}, "the reported loss must be a number, not the str '0.5'"),
        ({"loss": None}, "the reported loss must be a number, not the NoneType None"),
        ({"loss": 10**400}, "the reported loss must be a number, not 1000"),
        ({"loss": np.arange(3)}, "the reported loss must be a number, not the ndarray"),
        ({"x" * (1 << 20): 1.0}, "name of 1 to 100 printable characters, not 'xxx.*1,048,576 characters"),
        ({"\ud800": 1.0}, "name of 1 to 100 printable characters"),
        ({"a\nb": 1.0}, "name of 1 to 100 printable characters"),
        ({"": 1.0}, "name of 1 to 100 printable characters"),
        ({f"v{n}": 1.0 for n in range(10**6)}, "may take 4,096 bytes as JSON, this one has 1,000,000 values"),
        ({f"a value {n:020}": 1 / 3 for n in range(100)}, "may take 4,096 bytes as JSON, this one has 100 values of"),
    ],
    ids=["text", "none", "beyond floats", "array", "1 MB name", "surrogate", "line", "no name", "million", "long"],
)
def test_what_cannot_be_shown_is_refused_by_its_name(job, pipe, values, said):
    with pytest.raises(Invalid, match=said) as refused:
        job.report(1, **values)
    assert len(str(refused.value)) < 300
    assert heard(pipe[0]) == []


@pytest.mark.parametrize("step", [7, np.int64(7), np.uint8(7), 7.0, np.float32(7), True + 6])
def test_numbers_of_other_libraries_are_numbers(job, pipe, step):
    job.report(step, loss=np.float32(0.5), share=Decimal("0.25"), rows=3, done=True, one=np.array(2))

    assert heard(pipe[0]) == [(7, {"loss": 0.5, "share": 0.25, "rows": 3.0, "done": 1.0, "one": 2.0})]


def test_a_value_that_no_chart_can_show_is_left_out(job, pipe):
    job.report(0, loss=float("nan"), gain=float("-inf"), rate=0.1)
    job.report((1 << 63) - 1)

    assert heard(pipe[0]) == [(0, {"rate": 0.1}), ((1 << 63) - 1, {})]


def test_the_largest_report_goes_through_as_a_whole(job, pipe):
    values = {f"v{n:03}": 0.125 for n in range((LINE_BYTES - 30) // 13)}
    job.report(1, **values)

    assert heard(pipe[0]) == [(1, values)]


def test_of_what_a_job_writes_into_its_pipe_only_reports_are_believed(pipe):
    lines = [
        {"step": 10**30, "values": {}}, {"step": -1, "values": {}}, {"step": True, "values": {}},
        {"step": "1", "values": {}}, {"values": {}}, {"step": 1}, [1], 7, {"step": 1, "values": [1]},
        {"step": 1, "values": {"a": 10**30}}, {"step": 1, "values": {"a": float("nan")}},
        {"step": 1, "values": {"\ud800": 1.0}}, {"step": 1, "values": {"a" * 101: 1.0}},
        {"step": 1, "values": {"a": 1.0}, "more": "x" * LINE_BYTES},
    ]  # fmt: skip
    for line in (*map(json.dumps, lines), "[" * 4000, "\xff", "", '{"step": 2, "values": {"a": 1.5}, "gone": true}'):
        os.write(pipe[1], line.encode("latin-1") + b"\n")

    assert heard(pipe[0]) == [(2, {"a": 1.5})]


def test_a_line_without_an_end_takes_no_memory_and_costs_no_other_line(pipe):
    read, write = pipe
    progress = Progress(print)
    for _ in range(100):
        os.write(write, b"x" * 60_000)
        progress.read(read)
    kept = len(progress.partial)
    os.write(write, b'\n{"step": 3, "values": {}}\n')
    progress.read(read)

    assert kept <= LINE_BYTES + 1
    assert [line["step"] for line in progress.lines] == [3]


def test_a_durable_checkpoint_is_told_beside_the_reports(job, pipe):
    job.report(1, loss=1.0)
    job.checkpoint(1, {"of": "the job"})

    told = Progress(print)
    told.read(pipe[0])
    assert [is_kept(line) for line in told.lines] == [False, True]


def test_a_fork_of_the_job_cannot_speak_for_it(job, pipe, tmp_path):
    answers = {
        "report": lambda: job.report(99, loss=0.0), "checkpoint": lambda: job.checkpoint(99, {}),
        "restore": job.restore, "should_stop": job.should_stop, "shrink": job.shrink,
        "log_artifact": lambda: job.log_artifact("plot.txt", b"of the fork"),
    }  # fmt: skip
    job.report(1, loss=1.0)
    job.checkpoint(1, {"of": "the job"})
    pid = os.fork()
    if pid == 0:
        refused = {}
        for name, call in answers.items():
            try:
                call()
            except Invalid as error:
                refused[name] = str(error)
        (tmp_path / "refused.json").write_text(json.dumps(refused))
        os._exit(0)
    os.waitpid(pid, 0)

    refused = json.loads((tmp_path / "refused.json").read_text())
    assert list(refused) == list(answers)
    said = "only the process that was given the training may report, keep checkpoints or files, or ask for them"
    assert set(refused.values()) == {f"{said}: this one ({pid}) was forked from it"}
    assert heard(pipe[0]) == [(1, {"loss": 1.0})]
    assert job.restore() == (1, {"of": "the job"})
    assert job.logged == []
