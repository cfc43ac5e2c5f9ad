"""Logs are followed by pieces: every line once, in order, across stages and attempts."""

import threading
import time

import pytest

from api import logs
from api.app import create_app
from everloop import logs as files
from everloop.client import Client
from everloop.errors import Invalid
from everloop.store import LifecycleRow
from tests import api_parts as parts
from tests import stores

FOLLOW = "/api/v1/lifecycles/{}/logs/follow"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("logs"))
    store = stores.migrated(settings.database)
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        yield settings, store, client


def lifecycle(store, name, *stages, **changes):
    with store.write() as session:
        session.add(parts.lifecycle(name, **changes))
        for position, (stage, status) in enumerate(stages):
            session.add(parts.stage(stage, position, status, lifecycle=name))


def log_of(settings, name, activity, attempt=1):
    path = settings.logs_dir / f"jobs/run-of-{name}/{activity}/{attempt}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def update(store, name, **changes):
    with store.write() as session:
        row = session.get_one(LifecycleRow, name)
        for field, value in changes.items():
            setattr(row, field, value)
        session.add(row)


def test_a_client_follows_from_stage_to_stage_and_attempt_to_attempt_until_a_person_is_needed(served):
    settings, store, http = served
    lifecycle(store, "busy", ("train", "done"), ("evaluate", "running"))
    log_of(settings, "busy", "train.1").write_text("round 1\n")
    log_of(settings, "busy", "train.1", 2).write_text("round 1 again\nround 2\n")
    told, over = [], threading.Event()

    def follow():
        with Client(str(http.base_url), parts.key_of(settings)) as client:
            told.extend(client.logs("busy", follow=True))
        over.set()

    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(0.3)
    with log_of(settings, "busy", "evaluate.1").open("a") as log:
        log.write("looks g")
        log.flush()
        time.sleep(0.6)  # half a line is not told
        log.write("ood\nno end of line")
    update(store, "busy", status="waiting_approval", wait_what="a decision", wait_since=parts.NOW, wait_unblocks="yes")
    assert over.wait(60)

    assert [(piece["stage"], piece["attempt"]) for piece in told[:3]] == [("train", 1), ("train", 2), ("evaluate", 1)]
    assert "".join(piece["text"] for piece in told[:-1]) == (
        "round 1\nround 1 again\nround 2\nlooks good\nno end of line"
    )
    assert told[-1]["status"] == "waiting_approval"
    assert told[-1]["wait"].startswith("Waiting for a decision since")


def test_a_log_that_is_cut_while_it_is_followed_loses_no_line_that_was_not_read(served, monkeypatch):
    settings, store, http = served
    monkeypatch.setattr(logs, "PIECE_BYTES", 5000)
    lifecycle(store, "long", ("train", "done"), status="released")
    path = log_of(settings, "long", "train.1")
    path.write_text("".join(f"line {number}\n" for number in range(30_000)))

    first = http.get(FOLLOW.format("long")).json()
    assert files.bound(path, limit=100_000, kept=50_000)
    texts, answer = [first["items"][0]["text"]], first
    while not answer["over"]:
        answer = http.get(FOLLOW.format("long"), params={"cursor": answer["cursor"]}).json()
        texts += [piece["text"] for piece in answer["items"]]
        assert all(len(piece["text"]) <= 5000 for piece in answer["items"])
    lines = "".join(texts).splitlines()

    said = next(index for index, line in enumerate(lines) if line.startswith("[older lines were dropped here"))
    assert lines[:said] == [f"line {number}" for number in range(said)]  # what was read before the cut
    kept = lines[said + 1 :]
    assert kept == [f"line {number}" for number in range(30_000 - len(kept), 30_000)]
    assert len("\n".join(kept)) > 49_000


def test_a_stage_that_ended_without_an_end_of_its_own_has_its_log(served):
    """Cancelled, paused, or begun again when there was room: such a row names no log."""
    settings, store, http = served
    lifecycle(store, "ended", ("prepare", "done"), ("train", "failed"), ("train", "cancelled"), status="cancelled")
    log_of(settings, "ended", "train.1").write_text("the first start\n")
    log_of(settings, "ended", "train.2", 3).write_text("the second start\n")

    for asked in ({}, {"stage": "train"}):
        answer = http.get("/api/v1/lifecycles/ended/logs", params=asked)
        assert (answer.status_code, answer.text) == (200, "the second start\n")
    assert http.get("/api/v1/lifecycles/ended/logs", params={"stage": "prepare"}).status_code == 404


def test_a_line_without_end_is_shown_by_its_ends_beside_a_failure_and_whole_as_a_log(served):
    settings, store, http = served
    line = "a" * 300_000 + "z" * 300_000
    lifecycle(store, "endless", ("train", "failed"), status="needs_attention")
    log_of(settings, "endless", "train.1").write_text(line + "\nthe last\n")
    update(store, "endless", error={"stage": "train", "message": "no", "log": "jobs/run-of-endless/train.1"})

    shown = http.get("/api/v1/lifecycles/endless").json()["error"]["log_tail"]
    assert shown == ["a" * 1000 + " [598,000 characters] " + "z" * 1000, "the last"]
    assert http.get("/api/v1/lifecycles/endless/logs").text == line + "\nthe last\n"


def test_it_begins_with_the_last_lines_when_asked(served):
    settings, store, http = served
    lifecycle(store, "old", ("prepare", "done"), ("train", "done"), status="released")
    log_of(settings, "old", "prepare.1").write_text("prepared\n")
    log_of(settings, "old", "train.1").write_text("".join(f"line {number}\n" for number in range(100)))

    told = http.get(FOLLOW.format("old"), params={"tail": 2}).json()
    only = http.get(FOLLOW.format("old"), params={"stage": "prepare"}).json()

    assert [piece["text"] for piece in told["items"]] == ["line 98\nline 99\n"]
    assert [piece["text"] for piece in only["items"]] == ["prepared\n"]
    assert http.get(FOLLOW.format("old"), params={"cursor": told["cursor"]}).json()["over"]


def test_a_cursor_leads_nowhere_but_to_logs_of_this_lifecycle(served):
    settings, store, http = served
    lifecycle(store, "mine", ("train", "done"), status="released")
    log_of(settings, "mine", "train.1").write_text("mine\n")
    (settings.logs_dir / "api.log").write_text("secret\n")

    for cursor in ("api.log:0", "../everloop.db:0", "jobs/run-of-other/train.1/1.log:0"):
        answer = http.get(FOLLOW.format("mine"), params={"cursor": cursor}).json()
        assert [piece["text"] for piece in answer["items"]] == ["mine\n"], cursor
    for cursor in ("nonsense", ":7", "jobs/run-of-mine/train.1/1.log:-1"):
        answer = http.get(FOLLOW.format("mine"), params={"cursor": cursor})
        assert (answer.status_code, answer.json()["field"]) == (422, "cursor"), cursor
    assert http.get(FOLLOW.format("nobody")).status_code == 404
    assert http.get(FOLLOW.format("mine"), headers={"Authorization": "Bearer no"}).status_code == 401


def test_a_terminal_is_not_obeyed(served):
    settings, store, http = served
    lifecycle(store, "rude", ("train", "done"), status="released")
    log_of(settings, "rude", "train.1").write_bytes(b"a\x1b]0;owned\x07\xff\n")

    (piece,) = http.get(FOLLOW.format("rude")).json()["items"]

    assert "\x1b" not in piece["text"] and "\x07" not in piece["text"]
    assert piece["text"].startswith("a") and piece["text"].endswith("\n")


def test_a_cursor_that_cannot_be_one_is_refused():
    with pytest.raises(Invalid):
        logs._begin([], "x:" + "9" * 30, None)
