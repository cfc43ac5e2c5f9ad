"""A job's result, errors, progress and surroundings, through Temporal and Dask to a child and back."""

import asyncio
import re
import time
from dataclasses import replace

import pytest
from sqlmodel import select
from temporalio.testing import ActivityEnvironment

from everloop import logs
from everloop.errors import ComputeLost, Invalid, LeaseLost
from everloop.records import Code, Lease, Member, Slot
from everloop.settings import AWAY_SECONDS
from everloop.store import MetricRow
from tests.faults import jobs_harness as harness
from tests.faults.jobs_harness import Trial, Tried, failure, until

from job_functions import looks  # isort: skip  # the harness puts it on the path


@pytest.fixture(scope="module")
def dask(tmp_path_factory, temporal_server):
    settings = harness.new_settings(tmp_path_factory.mktemp("data"), temporal_server.address)
    settings = replace(settings, away_seconds=8)
    started = harness.Dask(settings)
    started.start_all()
    yield started
    started.stop()


@pytest.fixture
async def bridge(dask):
    async with harness.bridge(dask.settings, dask) as made:
        yield made


async def test_a_result_comes_back_with_how_it_ran(bridge):
    tried = await bridge.call("trial.echo", token=7, hello="you")

    assert tried.values["hello"] == "you"
    assert tried.values["token"] == 7
    assert (bridge.settings.data_dir / "artifacts" / "sha256").exists()
    assert (tried.ran.device, tried.ran.token, tried.ran.attempt, tried.ran.kept) == ("cpu0", 7, 1, False)
    assert (bridge.settings.logs_dir / tried.ran.log).exists()
    assert not (bridge.settings.data_dir / tried.values["scratch"]).exists()


async def test_what_the_function_raises_arrives_with_its_class_field_and_hint(bridge):
    error = await failure(bridge, "trial.small")

    assert (error.type, error.message) == ("DatasetTooSmall", "12 rows are too few")
    assert tuple(error.details) == ("source", "give it 100")
    assert error.non_retryable


async def test_any_other_exception_is_job_failed_in_one_line_and_its_traceback_is_in_the_log(bridge):
    error = await failure(bridge, "trial.wrong")

    assert (error.type, error.message) == ("JobFailed", "ValueError: the shapes do not fit")
    assert error.non_retryable
    assert re.fullmatch(r"raised at trial\.py, line \d+, in wrong: raise ValueError\(.*\)", error.details[1])
    left = list((bridge.settings.logs_dir / "jobs").glob("*/trial.1/1.log"))
    assert any("in wrong" in log.read_text() and "second line" in log.read_text() for log in left)


async def test_a_job_that_prints_without_end_ends_well_and_its_log_keeps_the_last_lines(bridge):
    lines = 5 * logs.LIMIT_BYTES // 60_000

    tried = await bridge.call("trial.flood", lines=lines)

    log = bridge.settings.logs_dir / tried.ran.log
    assert tried.values["largest"] < 4 * logs.LIMIT_BYTES
    assert log.stat().st_blocks * 512 <= logs.LIMIT_BYTES
    assert log.stat().st_mode & 0o077 == 0
    assert logs.last_words(log, 1).strip() == "the last line"


async def test_a_job_that_leaves_no_result_is_job_failed(bridge):
    error = await failure(bridge, "trial.leave")

    assert (error.type, error.message) == ("JobFailed", "the job ended with exit code 3 and left no result")


@pytest.mark.parametrize("status", [0, 3])
async def test_a_trainer_that_ends_the_process_is_said_to_have_ended_it(bridge, status):
    error = await failure(bridge, "trial.leave", code=Code(), status=status)

    assert error.type == "TrainerFailed"
    assert error.message == f"the trainer ended the process with exit code {status} and left no result"
    assert error.details[0] == "trainer"
    assert error.non_retryable


async def test_a_job_that_forks_and_closes_its_log_ends_as_itself(bridge):
    tried = await bridge.call("trial.hush", wrong=False)
    assert tried.values == {"who": "the job"}
    assert "the last line before" in (bridge.settings.logs_dir / tried.ran.log).read_text()

    error = await failure(bridge, "trial.hush", wrong=True)
    assert error.message == "ValueError: said after all"
    left = (bridge.settings.logs_dir / "jobs").glob("*/trial.1/1.log")
    assert any("in hush" in log.read_text() for log in left)


async def test_a_result_of_another_type_is_refused(bridge):
    error = await failure(bridge, "trial.other")

    assert (error.type, error.message) == ("JobFailed", "other returned dict, not Tried")


@pytest.mark.parametrize("function", ["trial.nothing", "nothing.echo", "os.system.x", "../x.y", "trial.__init__"])
async def test_a_function_that_is_not_there_is_named(bridge, function):
    error = await failure(bridge, function)

    assert error.type in ("NotFound", "JobFailed")
    assert function.split(".")[0] in error.message


async def test_the_scheduler_keeps_nothing_of_the_jobs_that_have_ended(bridge):
    client = await bridge.jobs.client()
    for _ in range(3):
        await bridge.call("trial.echo")

    await until(lambda: bridge.jobs._watches == {})
    deadline = time.monotonic() + 60  # the client tells the scheduler by messages of its own time that it lets go
    while (left := await client.run_on_scheduler(looks.groups)) > 1:  # it keeps the group of the last task
        assert time.monotonic() < deadline, f"{left} groups of tasks are kept"
        await asyncio.sleep(0.1)


async def test_a_transient_error_is_tried_again(bridge, tmp_path):
    tried = await bridge.call("trial.full", diary=str(tmp_path / "diary"))

    assert tried.ran.attempt == 2


async def test_a_poison_job_stops_after_three_crashes(bridge, tmp_path):
    error = await failure(bridge, "trial.segfault", diary=str(tmp_path / "diary"))

    assert error.type == "JobFailed"
    assert error.message == "the job crashed 3 times, the last time by SIGSEGV"
    assert (tmp_path / "diary").read_text() == "xxx"


async def test_a_job_that_kills_its_reaper_each_time_is_stopped_too(bridge, tmp_path):
    error = await failure(bridge, "trial.hurt_reaper", signal="SIGKILL", diary=str(tmp_path / "diary"))

    assert error.message == "the job crashed 3 times, the last time by the end of its reaper"
    assert (tmp_path / "diary").read_text() == "xxx"


async def test_a_job_that_stops_its_reaper_ends_all_the_same(bridge, tmp_path):
    tried = await bridge.call("trial.hurt_reaper", signal="SIGSTOP", diary=str(tmp_path / "diary"))

    assert tried.ran.attempt == 1


async def test_progress_is_in_the_metric_table_and_output_in_the_log(bridge):
    tried = await bridge.call("trial.chat", steps=300)

    job = tried.ran.log.removeprefix("jobs/").removesuffix("/1.log")
    with bridge.store.read() as session:
        rows = session.exec(select(MetricRow).where(MetricRow.job == job).order_by(MetricRow.step)).all()
    assert [row.step for row in rows] == list(range(300))
    assert rows[3].values == {"loss": 0.25}  # NaN is not JSON
    assert "hello from the job" in (bridge.settings.logs_dir / tried.ran.log).read_text()


async def test_a_job_sees_no_credentials_and_one_thread(bridge):
    seen = (await bridge.call("trial.surroundings")).values

    names = set(seen["environment"])
    assert names.isdisjoint({"EVERLOOP_DATABASE_URL", "EVERLOOP_TEMPORAL_ADDRESS", "AWS_SECRET_ACCESS_KEY"})
    assert not [name for name in names if "SECRET" in name or "TOKEN" in name or "PASSWORD" in name]
    assert seen["environment"]["OMP_NUM_THREADS"] == "1"
    assert seen["nice"] >= 5


async def test_threads_are_those_of_the_lease(bridge):
    lease = Lease(token=1, holder="h", members=(Member(device="cpu0", cores=3),))
    info = ActivityEnvironment.default_info()
    slot = Slot(device="cpu0", token=1, holder=f"{info.workflow_id}/{info.workflow_run_id}")
    request = Trial(function="trial.surroundings", slot=slot, lease=lease.model_copy(update={"holder": slot.holder}))

    seen = await ActivityEnvironment().run(bridge.jobs.run, "trial.surroundings", request, Tried)

    assert seen.values["environment"]["OMP_NUM_THREADS"] == "3"
    assert seen.values["cores"] == 3
    foreign = request.model_copy(update={"lease": lease})
    with pytest.raises(LeaseLost, match="not the slot's"):
        await ActivityEnvironment().run(bridge.jobs.run, "trial.surroundings", foreign, Tried)


async def test_a_result_of_an_older_token_is_kept_and_one_of_a_newer_token_is_not_touched(bridge):
    first = await bridge.jobs_as("run-1", "trial.echo", token=5, x=1)
    newer = await bridge.jobs_as("run-1", "trial.echo", token=9, device="cpu1", x=1)
    stale = await bridge.jobs_as("run-1", "trial.echo", token=3, x=1)
    other = await bridge.jobs_as("run-1", "trial.echo", token=10, x=2)

    assert (first.ran.kept, newer.ran.kept, stale.ran.kept, other.ran.kept) == (False, True, False, False)
    assert newer.values["token"] == 5
    assert newer.ran.token == 9
    assert stale.values["token"] == 3
    folder = bridge.settings.scratch_dir / "jobs" / "run-1" / "trial.1"
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["10", "3", "5"]


async def test_an_activity_id_that_is_no_folder_name_is_refused(bridge):
    with pytest.raises(Invalid, match=r"activity id \'\.\./up\' cannot"):
        await bridge.jobs_as("run-1", "trial.echo", activity_id="../up")


async def test_a_slot_of_an_earlier_run_is_not_used(bridge):
    """A Reset replays the lease of the run before."""
    slot = Slot(device="cpu0", token=1, holder="some-workflow/another-run")
    surroundings = ActivityEnvironment()

    with pytest.raises(LeaseLost, match="earlier run"):
        await surroundings.run(bridge.jobs.run, "trial.echo", Trial(function="trial.echo", slot=slot), Tried)


async def test_a_device_that_is_not_there_is_compute_lost_once_it_has_been_away_for_so_long(bridge):
    began = time.monotonic()
    with pytest.raises(ComputeLost, match="cpu9"):
        await asyncio.wait_for(bridge.jobs_as("run-2", "trial.echo", device="cpu9"), 40)
    assert time.monotonic() - began >= 8
    assert AWAY_SECONDS == 20  # of a stack that says nothing else
