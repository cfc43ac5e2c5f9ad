"""Pages: they show what the read models hold, escape all of it, and work without a script."""

import re

import pytest
from sqlmodel import col, select

from api.app import create_app
from everloop.records import ColumnScore, Version
from everloop.store import DriftRow, LifecycleRow, MonitorRow, VersionRow
from tests import api_parts as parts
from tests import stores

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("pages"))
    store = stores.migrated(settings.database)
    parts.fill(store)
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        yield settings, store, client


def test_home_says_what_needs_me_what_runs_and_what_is_live(served):
    _, _, client = served

    answer = client.get("/")
    page = answer.text

    assert "auc 0.8312 against 0.7954" in page
    assert "one row of class" in page
    assert "Waiting for a slot in pool default" in page
    assert "2 of 11 stages" in page
    assert re.search(r"62 %", page)
    assert answer.headers["refresh"] == "3"  # something runs
    assert "refresh" not in client.get("/?still=1").headers
    assert "<script" not in page


def test_a_lifecycle_page_shows_stages_failure_and_the_command_that_helps(served):
    settings, _, client = served
    log = settings.logs_dir / "jobs/run-of-prices-b2/validate.1/1.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(f"line {n}\n" for n in range(30)))

    answer = client.get("/lifecycles/prices-b2")
    page = answer.text

    assert "line 29" in page
    assert "line 9\n" not in page
    assert "everloop retry prices-b2" in page
    assert 'formaction="/lifecycles/prices-b2/skip"' in page  # validate can be done without
    assert "refresh" not in answer.headers  # it stands still


def test_an_approval_page_shows_the_evidence_and_both_buttons(served):
    _, _, client = served

    page = client.get("/approvals/credit-1").text

    assert "+0.0358" in page
    assert 'value="approve"' in page
    assert 'value="reject"' in page
    assert parts.gate(parts.evidence(trigger="drift:2024-02-01")).evidence_digest in page
    assert "marked <b>self-approved</b>" in page  # ada submitted it and looks at it


def test_an_approval_page_shows_which_columns_were_chosen_and_what_the_graph_costs(served):
    _, store, client = served
    with store.read() as session:
        before = Version.model_validate_json(session.get_one(VersionRow, ("default", "credit", 2)).record)
    assert "Which columns were chosen" not in client.get("/approvals/credit-1").text
    scores = (ColumnScore(column="Income", score=0.0512, kept=True), ColumnScore(column=NASTY, score=0.0, kept=False))
    chosen = before.evaluation.model_copy(update={"selected_by": "mutual_information", "selection": scores})
    model = before.exported.model.model_copy(update={"size_bytes": 3 << 20})
    exported = before.exported.model_copy(update={"model": model, "latency_ms": 0.0314})
    version = before.model_copy(update={"evaluation": chosen, "exported": exported})
    with store.write() as session:
        session.merge(parts.version_row(version))

    page = client.get("/approvals/credit-1").text

    with store.write() as session:
        session.merge(parts.version_row(before))
    assert "by mutual information, on the train part" in page
    assert re.search(r"Income</th><td class=\"n\">0.0512</td><td class=\"dim\">kept<", page)
    assert "left out: a request may bring it" in page and NASTY not in page
    assert "3.00 MiB; one row takes <b>0.031 ms</b>" in page


def test_a_rejection_without_a_comment_is_said_on_the_page_and_keeps_nothing(served):
    _, _, client = served

    answer = client.post("/approvals/credit-1", data={"verdict": "reject", "comment": " "})

    assert answer.status_code == 422
    assert "a rejection needs a comment" in answer.text
    assert 'role="alert"' in answer.text


def test_a_model_page_shows_drift_window_by_window(served):
    _, _, client = served

    page = client.get("/models/credit").text

    assert page.count("<rect") == 2 * 8  # drift, and volume
    assert "Version 1 answers since" in page
    assert "/models/credit/drift/20240105T000000Z-" in page


def test_whatever_data_says_is_text(served):
    _, store, client = served
    with store.write() as session:
        session.add(
            parts.lifecycle(
                "nasty",
                model="nasty",
                status="needs_attention",
                submitted_by=NASTY,
                wait_what=NASTY,
                wait_since=parts.NOW,
                wait_unblocks="`" + NASTY + "`",
                error={"stage": "train", "error": "JobFailed", "message": f"`{NASTY}`", "hint": NASTY, "field": NASTY},
            )
        )
    try:
        for path in ("/", "/lifecycles/nasty", "/lifecycles/" + NASTY, "/models/" + NASTY, "/approvals/" + NASTY):
            answer = client.get(path)
            page = answer.text
            assert answer.headers["content-type"].startswith("text/html"), path
            assert "<script" not in page, path
            assert "<img src=x" not in page, path
    finally:
        with store.write() as session:
            session.delete(session.get(LifecycleRow, "nasty"))


def test_a_lifecycle_whose_first_event_is_on_its_way_needs_temporal(served):
    _, _, client = served

    assert client.get("/lifecycles/unknown").status_code == 503  # this deployment's Temporal is nowhere


def test_a_gate_that_a_reset_left_behind_is_not_listed_and_nothing_is_signed_for_it(tmp_path):
    settings = parts.settings_in(tmp_path)
    store = stores.migrated(settings.database)
    evidence = parts.evidence(lifecycle="left-behind")
    with store.write() as session:
        session.add(parts.gate(evidence))
        session.add(parts.lifecycle("left-behind", status="running", stage="train"))

    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        home = client.get("/").text
        answer = client.post("/api/v1/approvals/left-behind/decision", json={"verdict": "approve", "comment": "yes"})

    assert "Look and decide" not in home
    assert (answer.status_code, answer.json()["code"]) == (409, "gate_closed")
    assert "it will ask anew" in answer.json()["detail"]


def test_a_monitor_that_has_stopped_retraining_says_so_and_a_button_lets_it_go_on(served):
    _, store, client = served
    with store.write() as session:
        last = session.exec(select(DriftRow).order_by(col(DriftRow.window_start).desc())).first()
        kept = last.verdict, last.reason
        last.verdict, last.reason = "breaker_open", "the last 3 retrainings brought no better version"
        monitor = session.get_one(MonitorRow, ("default", "credit"))
        monitor.cursor = last.window_end
        session.add_all((last, monitor))

    page = client.get("/models/credit").text
    assert "Retraining has stopped:" in page
    assert "after 3 without a release the next waits 3 windows, then twice as many, or for a person" in page
    action = re.search(r'action="(/models/credit/rearm[^"]*)"', page).group(1)

    assert client.post(action, follow_redirects=False).status_code == 303
    assert client.post("/api/v1/models/credit/rearm").json()["model"] == "credit"  # safe to repeat
    assert "Retraining has stopped:" not in client.get("/models/credit").text
    assert client.post("/api/v1/models/nothing/rearm").status_code == 404
    with store.write() as session:
        monitor = session.get_one(MonitorRow, ("default", "credit"))
        assert monitor.rearmed_at == monitor.cursor
        found = session.exec(select(DriftRow).order_by(col(DriftRow.window_start).desc())).first()
        found.verdict, found.reason = kept
        session.add(found)
