"""Learning curves and progress come from reported steps; what no step says is not said."""

import io
from datetime import timedelta

import pytest
from rich.console import Console
from sqlalchemy import Engine, event

from api import curves
from api import progress as progresses
from api.app import create_app
from everloop import console, names
from everloop import steps as words
from everloop.store import LifecycleRow, MetricRow
from tests import api_parts as parts
from tests import stores


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("curves"))
    store = stores.migrated(settings.database)
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        yield settings, store, client


def lifecycle(store, name, *stages, model="credit", **changes):
    with store.write() as session:
        session.add(parts.lifecycle(name, model=model, **changes))
        for position, (stage, status) in enumerate(stages):
            ran = {"log": f"jobs/run-of-{name}/{stage}.1/1.log", "seconds": 12.3} if status == "done" else {}
            session.add(parts.stage(stage, position, status, lifecycle=name, ran=ran))


def reported(store, name, steps, stage="train.1"):
    """Steps as (step, seconds before now, values)."""
    with store.write() as session:
        for step, ago, values in steps:
            at = parts.NOW - timedelta(seconds=ago)
            session.merge(MetricRow(job=f"run-of-{name}/{stage}", step=step, values=values, at=at))


def progress(store, name, **later):
    with store.read() as session:
        return progresses.progress_of(session, session.get_one(LifecycleRow, name), parts.NOW + timedelta(**later))


def test_a_training_shows_both_lines_its_best_step_and_the_figures(served):
    _, store, client = served
    lifecycle(store, "learned", ("train", "done"), status="released")
    losses = [0.7, 0.6, 0.5, 0.4, 0.45, 0.5]
    for n, loss in enumerate(losses, 1):
        values = {"rounds": 10.0 * n, "train_log_loss": 0.8 - 0.1 * n, "validation_log_loss": loss}
        reported(store, "learned", [(10 * n, 60 - n, values)])

    rows = client.get("/api/v1/lifecycles/learned/curves").json()["items"]
    page = client.get("/lifecycles/learned").text
    (curve,) = rows

    assert curve["metric"] == "log_loss"
    assert curve["validation"] == losses
    assert curve["best_step"] == 40
    assert page.count("<polyline") == 2
    assert '<th scope="row">40 <span class="badge blue">best reported</span></th>' in page
    assert 'role="img"' in page and "<title id=" in page
    assert "<script" not in page
    assert len(client.get("/api/v1/lifecycles/learned/metrics").json()["items"]) == 6
    assert '<th scope="col">round</th>' in page
    text = printed(console.curves(rows))
    assert "round 40 (best)" in text
    assert "█" in text and "▁" in text


def printed(shown):
    out = Console(file=io.StringIO(), width=120)
    out.print(shown)
    return out.file.getvalue()


def test_who_only_looks_at_a_lifecycle_reads_no_curve(served):
    _, store, client = served
    lifecycle(store, "watched", ("train", "done"), ("evaluate", "running"))
    reported(store, "watched", [(n, 60 - n, {"train_x": 1.0, "validation_x": 1.0}) for n in range(1, 9)])
    statements = []
    listen = "before_cursor_execute", lambda *said: statements.append(said[2])
    event.listen(Engine, *listen)
    try:
        found = client.get("/api/v1/lifecycles/watched").json()
        looked = [each for each in statements if "FROM metric" in each]
        rows = client.get("/api/v1/lifecycles/watched/curves").json()["items"]
        asked = [each for each in statements if "FROM metric" in each]
    finally:
        event.remove(Engine, *listen)

    assert "curves" not in found
    assert len(looked) <= 1 < len(asked)  # how far the running stage is
    assert [curve["metric"] for curve in rows] == ["x"]
    assert "train_x" not in printed(console.lifecycle(found))


def test_without_a_training_there_is_no_curve_and_without_a_lifecycle_an_error(served):
    _, store, client = served
    lifecycle(store, "early", ("snapshot", "running"))

    assert client.get("/api/v1/lifecycles/early/curves").json() == {"items": [], "ranks": 1}
    assert "no learning curve yet" in printed(console.curves([]))
    missing = client.get("/api/v1/lifecycles/nobody/curves")
    assert (missing.status_code, missing.json()["detail"]) == (404, "there is no lifecycle nobody")


def test_steps_are_called_what_the_trainer_calls_them(served):
    _, store, client = served
    for name, unit in (("networks", "epochs"), ("woods", "trees"), ("others", "other")):
        lifecycle(store, name, ("train", "running"))
        reported(store, name, [(n, 9 - n, {unit: n, "most": 8, "validation_x": 1.0}) for n in range(1, 4)])

    told = {"networks": "epoch", "woods": "tree", "others": "step"}
    for name, unit in told.items():
        (curve,) = client.get(f"/api/v1/lifecycles/{name}/curves").json()["items"]
        assert curve["unit"] == unit
        assert progress(store, name).sentence.startswith(f"{unit} 3 of at most 8, about ")


def test_the_best_of_a_metric_of_which_more_is_better_is_the_highest(served):
    _, store, client = served
    lifecycle(store, "rising", ("train", "done"), status="released")
    reported(store, "rising", [(n, 60 - n, {"validation_auc": 0.8 - abs(n - 2) / 10}) for n in range(1, 5)])
    lifecycle(store, "falling", ("train", "done"), status="released")
    reported(store, "falling", [(n, 60 - n, {"validation_mape": 0.8 - abs(n - 2) / 10}) for n in range(1, 5)])

    assert client.get("/api/v1/lifecycles/rising/curves").json()["items"][0]["best_step"] == 2
    assert client.get("/api/v1/lifecycles/falling/curves").json()["items"][0]["best_step"] == 4


def test_a_loss_that_explodes_both_ways_is_drawn_and_a_count_without_sense_is_not_told(served):
    _, store, client = served
    lifecycle(store, "exploded", ("train", "running"), status="running")
    for n in range(1, 5):
        reported(store, "exploded", [(n, 60 - n, {"most": 1e300, "train_loss": (-1.0) ** n * 1.5e308})])

    page = client.get("/lifecycles/exploded").text

    assert 'points="0.0,212.0 213.3,8.0 426.7,212.0 640.0,8.0"' in page
    assert progress(store, "exploded").sentence.startswith("step 4; the last one")
    assert progress(store, "exploded").most is None


def test_progress_says_how_far_it_is_and_how_long_the_rest_may_take(served):
    _, store, client = served
    lifecycle(store, "busy", ("train", "running"))
    reported(
        store, "busy", [(n, 40 - n / 5, {"rounds": n, "most": 400, "validation_x": 1.0}) for n in range(10, 130, 10)]
    )

    found = progress(store, "busy", seconds=-15)

    assert found.sentence == (
        "round 120 of at most 400, about 56 s left if it goes to the end; early stopping may end it sooner"
    )
    assert found.seconds_left == pytest.approx(56)
    assert "round 120 of at most 400" in client.get("/lifecycles/busy").text
    assert '<progress max="400" value="120"' in client.get("/lifecycles/busy").text
    assert "train: round 120 of at most 400" in printed(console.lifecycle(client.get("/api/v1/lifecycles/busy").json()))


def test_after_a_restart_only_the_steps_of_the_new_attempt_count(served):
    _, store, _ = served
    lifecycle(store, "again", ("train", "running"))
    reported(store, "again", [(n, 100 - n / 10, {"rounds": n, "most": 400}) for n in range(10, 310, 10)])
    reported(store, "again", [(n, 20 - n / 5, {"rounds": n, "most": 400}) for n in range(10, 60, 10)])

    found = progress(store, "again")

    assert (found.step, found.most) == (50, 400)
    assert found.seconds_left == pytest.approx(70)
    assert found.sentence == "round 50 of 400, about 1 min 10 s left"  # no validation rows, no early stopping


def test_what_cannot_be_told_is_not_told(served):
    _, store, _ = served
    lifecycle(store, "young", ("train", "running"))
    reported(store, "young", [(1, 1, {"loss": 0.5}), (2, 1, {"loss": 0.4})])
    lifecycle(store, "silent", ("train", "running"))
    reported(store, "silent", [(1, 30, {"most": 9}), (2, 28, {"most": 9}), (3, 26, {"most": 9})])
    lifecycle(store, "first", ("prepare", "running"), model="new")
    lifecycle(store, "queued", ("train", "running"), wait_what="a free slot", wait_since=parts.NOW)
    lifecycle(store, "asked", ("approve", "running"))

    assert progress(store, "young").sentence == "step 2"
    assert progress(store, "young").seconds_left is None
    assert progress(store, "silent").sentence == "step 3 of 9, about 12 s left; the last one was reported 26 s ago"
    assert progress(store, "first", minutes=-6).sentence == "for 1 min"
    assert progress(store, "queued") is None
    assert progress(store, "asked") is None


def test_a_stage_without_steps_says_how_long_it_took_the_last_time_for_this_model(served):
    _, store, _ = served
    lifecycle(store, "other", ("prepare", "done"), model="other", status="released")
    lifecycle(store, "before", ("prepare", "done"), model="mine", status="released")
    lifecycle(store, "now", ("prepare", "running"), model="mine")

    assert progress(store, "now", minutes=-6, seconds=4).sentence == (
        "for 1 min 4 s; the last time for this model it took 12 s (before)"
    )


def test_thousands_of_steps_are_a_page_of_ordinary_size(served):
    _, store, client = served
    lifecycle(store, "huge", ("train", "done"), status="released")
    with store.write() as session:
        session.add_all(
            MetricRow(job="run-of-huge/train.1", step=n, values={"validation_loss": 1 / n}, at=parts.NOW)
            for n in range(1, 6_001)
        )

    (curve,) = client.get("/api/v1/lifecycles/huge/curves").json()["items"]

    assert len(curve["steps"]) <= curves.MOST_POINTS + 1
    assert curve["steps"][-1] == curve["best_step"] == 6_000
    assert len(client.get("/lifecycles/huge").content) < 60_000


def test_a_running_stage_shows_the_end_of_its_log(served):
    settings, store, client = served
    lifecycle(store, "writes", ("train", "running"))
    path = settings.logs_dir / "jobs/run-of-writes/train.1/1.log"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"row {n} <b>\n" for n in range(50)))

    answer = client.get("/lifecycles/writes")

    assert "row 49 &lt;b&gt;" in answer.text
    assert "row 29 " not in answer.text
    assert "everloop logs -f writes" in answer.text
    assert answer.headers["refresh"] == "3"


def test_a_paused_lifecycle_shows_who_paused_it_and_a_button_to_resume(served):
    _, store, client = served
    lifecycle(
        store, "still", ("train", "paused"), stage="train", wait_what=f"{names.A_RESUME} (ada paused it)",
        wait_since=parts.NOW, wait_unblocks="`everloop resume still`",
    )  # fmt: skip
    lifecycle(store, "moving", ("train", "running"), stage="train")

    found, page = client.get("/api/v1/lifecycles/still").json(), client.get("/lifecycles/still").text
    moving = client.get("/lifecycles/moving").text

    assert (found["status"], found["paused"], found["help"]) == ("running", True, "everloop resume still")
    assert 'formaction="/lifecycles/still/resume"' in page and "/still/pause" not in page
    assert "ada paused it" in page
    assert 'formaction="/lifecycles/moving/pause"' in moving and "/moving/resume" not in moving


def test_a_fork_is_refused_before_anything_starts_when_it_could_not_keep_what_it_says(served):
    _, store, client = served
    lifecycle(store, "half", ("snapshot", "done"), ("validate", "done"), ("prepare", "running"))

    def fork(stage, **changes):
        body = {"stage": stage, "changes": changes}
        return client.post("/api/v1/lifecycles/half/fork", json=body, headers={"Idempotency-Key": "new"})

    undone, early, wrong = fork("train"), fork("prepare", target="other"), fork("sometime")

    assert (undone.status_code, undone.json()["detail"]) == (409, "half has not done prepare, which comes before train")
    assert (early.status_code, early.json()["field"]) == (422, "target")
    assert (wrong.status_code, wrong.json()["field"]) == (422, "stage")
    assert fork("prepare").json()["code"] == "unavailable"  # no Temporal here: it got past all that


def test_several_trainings_of_one_job_have_a_curve_each(served):
    _, store, client = served
    lifecycle(store, "parted", ("train", "running"))
    for part in (1, 2):
        for n in range(1, 5):
            step = (part - 1) * words.PART_STEPS + 10 * n
            reported(store, "parted", [(step, 60 - 10 * part - n, {"part": part, "train_log_loss": 1 / n})])

    rows = client.get("/api/v1/lifecycles/parted/curves").json()["items"]
    page = client.get("/lifecycles/parted").text

    assert [(row["part"], row["steps"]) for row in rows] == [(1, [10, 20, 30, 40]), (2, [10, 20, 30, 40])]
    assert "log loss, part 2" in page
    assert "part 2, step 40" in progress(store, "parted").sentence
    reported(store, "parted", [(2 * words.PART_STEPS, 1, {"validation_log_loss": 0.2})])  # all of them together
    assert len(client.get("/api/v1/lifecycles/parted/curves").json()["items"]) == 2
