"""The prediction server: approved bytes only, errors that name the field, each answer in the log."""

import concurrent.futures
import contextlib
import json
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from api import identity, serve
from api.serve import fleet as fleets
from api.serve import requests
from api.serve.version import Meaning
from everloop.artifacts import Artifacts
from everloop.cli import models
from everloop.client import Client
from everloop.errors import InvalidPrediction
from everloop.predictions import PredictionLog
from everloop.reading import ReadColumn
from everloop.records import Signature, Verdict, Window
from everloop.settings import SERVE
from everloop.store import CredentialRow, RouteRow
from tests import api_parts as parts

ALWAYS = Window(start=datetime(1970, 1, 1, tzinfo=UTC), end=datetime(2100, 1, 1, tzinfo=UTC))
ROW = {"age": 40, "purpose": "car"}


class Deployment:
    """A running prediction server and what it reads."""

    def __init__(self, folder):
        self.settings, self.store, self.signer = parts.deployed(folder)
        self.artifacts = Artifacts(self.settings.artifacts)
        self.client: httpx.Client = httpx.Client()

    def release(self, seq, **changes):
        return parts.release(self.store, self.artifacts, self.signer, seq=seq, **changes)

    def predict(self, body, path="/models/credit/predict"):
        return self.client.post(path, json=body)

    def status(self):
        return self.client.get("/status").json()["models"]

    def wait(self, look, seconds=60):
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.05)
        return found

    def log(self):
        return list(PredictionLog(self.settings.predictions_dir / "default" / "credit").read(ALWAYS))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Started before there is any route; the first release follows."""
    made = Deployment(tmp_path_factory.mktemp("serve"))
    with (
        parts.running(serve.create_app(made.settings), made.settings.port(SERVE)) as url,
        parts.client_of(made.settings, url) as client,
    ):
        made.client = client
        assert made.status() == []
        assert made.predict({"row": ROW}).status_code == 404
        made.release(1)
        made.wait(made.status)
        yield made


def test_one_row_is_answered_and_logged(server):
    answer = server.predict({"row": ROW, "request_id": "one", "key": "a-1", "event_time": "2024-03-05T12:00:00+01:00"})

    assert answer.status_code == 200
    found = answer.json()
    assert (found["model"], found["version"], found["release_seq"], found["request_id"]) == ("credit", 1, 1, "one")
    assert found["predictions"][0]["probability"] == pytest.approx(0.598687, abs=1e-5)
    (logged,) = [row for row in server.log() if row["request_id"] == "one"]
    assert logged["event_time"] == "2024-03-05T11:00:00+00:00"
    assert (logged["key"], logged["version"], logged["row"]) == ("a-1", 1, 0)
    assert logged["features"] == ROW
    assert logged["prediction"] == found["predictions"][0]


def test_a_batch_carries_its_own_times_and_keys_in_the_rows(server):
    rows = [
        ROW | {"applied_at": "2024-01-02 03:04:05", "account": 7},
        ROW | {"event_time": "2024-01-03T00:00:00Z", "key": "b"},
        ROW,
    ]

    answer = server.predict({"rows": rows, "request_id": "batch"})

    assert len(answer.json()["predictions"]) == 3
    logged = [row for row in server.log() if row["request_id"] == "batch"]
    times = {row["row"]: row["event_time"] for row in logged}
    assert times[0] == "2024-01-02T03:04:05+00:00"
    assert times[1] == "2024-01-03T00:00:00+00:00"
    assert abs(datetime.fromisoformat(times[2]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert {row["row"]: row["key"] for row in logged} == {0: 7, 1: "b", 2: None}
    assert all(row["features"] == ROW for row in logged)


def test_a_row_ahead_of_the_clock_is_answered_and_said_to_be_so_in_the_answer_and_in_the_log(server):
    ahead = (datetime.now(UTC) + timedelta(hours=14)).isoformat()

    answer = server.predict({"rows": [ROW, ROW | {"event_time": ahead}, ROW], "request_id": "ahead"})

    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 3
    assert answer.json()["ahead_of_clock"] == [1]
    logged = [row for row in server.log() if row["request_id"] == "ahead"]
    assert {row["row"]: row.get("ahead_of_clock") for row in logged} == {0: None, 1: True, 2: None}
    assert server.predict({"row": ROW}).json()["ahead_of_clock"] == []


def test_the_project_may_stand_in_the_address_or_the_query(server):
    assert server.predict({"row": ROW}, "/projects/default/models/credit/predict").status_code == 200
    assert server.predict({"row": ROW}, "/models/credit/predict?project=default").status_code == 200
    assert server.predict({"row": ROW}, "/projects/other/models/credit/predict").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"row": {"age": 40}}, "purpose"),
        ({"row": ROW | {"agee": 1}}, "agee"),
        ({"row": ROW | {"age": "40"}}, "age"),
        ({"row": ROW | {"age": True}}, "age"),
        ({"row": ROW | {"age": [1]}}, "age"),
        ({"row": ROW | {"purpose": 7}}, "purpose"),
        ({"rows": [ROW, ROW | {"age": {}}]}, "rows[1].age"),
        ({"rows": []}, "rows"),
        ({}, "rows"),
        ({"row": ROW, "rows": [ROW]}, "rows"),
        ({"rows": [ROW] * 10_001}, "rows"),
        ({"rows": "x"}, "rows"),
        ({"row": ROW, "version": 3}, "version"),
        ({"row": ROW, "event_time": "soon"}, "event_time"),
        ({"row": ROW, "event_time": "1499-12-31T23:59:59Z"}, "event_time"),
        ({"row": ROW, "event_time": "9999-12-31T23:59:59Z"}, "event_time"),
        ({"row": ROW, "event_time": "0001-01-01T00:00:00+14:00"}, "event_time"),
        ({"row": ROW | {"applied_at": "yesterday"}}, "rows[0].applied_at"),
        ({"row": ROW | {"applied_at": 5}}, "rows[0].applied_at"),
        ({"rows": [ROW, ROW], "event_times": ["2024-01-01T00:00:00Z"]}, "event_times"),
        ({"rows": [ROW, ROW], "keys": ["a"]}, "keys"),
        ({"row": ROW | {"account": {"a": 1}}}, "rows[0].key"),
        ({"row": ROW, "request_id": ""}, "request_id"),
        ({"row": ROW, "key": True}, "key"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name_and_not_logged(server, body, field):
    before = len(server.log())

    answer = server.predict(body)

    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert field in problem["field"], problem
    assert problem["detail"]
    assert len(server.log()) == before


def test_hostile_bodies_are_refused_and_the_server_stays_up(server):
    def send(body, **headers):
        given = {"Content-Type": "application/json"} | {n.replace("_", "-"): v for n, v in headers.items()}
        return server.client.post("/models/credit/predict", content=body, headers=given)

    assert send(b'{"row": {"age": NaN, "purpose": "car"}}').json()["field"] == "row.age"
    assert send(b'{"row": {"age": 1e999, "purpose": "car"}}').status_code == 422
    assert send(b'{"row": {"age": 1, "age": 2}}').status_code == 400
    assert send(b'{"row": {"purpose": "\\ud800", "age": 1}}').status_code == 422
    assert send(b'{"row": ' + b" " * (17 << 20) + b"{}}").status_code == 413
    assert send(b"{}", Content_Type="application/x-npy").status_code == 415
    assert send(b"{}", Content_Encoding="gzip").status_code == 415
    assert server.client.get("/healthz").json() == {"status": "ok"}


def test_nothing_but_healthz_answers_without_a_key(server):
    with httpx.Client(base_url=server.client.base_url, trust_env=False) as stranger:
        assert stranger.get("/healthz").status_code == 200
        for path in ("/status", "/models/credit/predict", "/openapi.json", "/"):
            assert stranger.get(path).status_code == 401
        assert stranger.get("/healthz", headers={"Host": "evil.test"}).status_code == 421


def test_a_key_that_is_taken_back_is_refused_two_seconds_later(server):
    key = identity.issue(server.store, "grace")
    headers = {"Authorization": f"Bearer {key}"}

    def ask():
        return server.client.post("/models/credit/predict", json={"row": ROW}, headers=headers).status_code

    assert ask() == ask() == 200
    with server.store.write() as session:
        session.delete(session.get(CredentialRow, identity.digest(key)))
    taken_back = time.monotonic()
    while time.monotonic() < taken_back + identity.KNOWN_SECONDS:  # it is in use all the time
        ask()

    assert ask() == 401


def test_an_answer_has_no_headers_of_a_page(server):
    answers = [server.predict({"row": ROW}), server.predict({"row": {}}), server.client.get("/status")]

    for answer in answers:
        assert len(answer.headers["x-request-id"]) == 32
        assert not {"content-security-policy", "referrer-policy", "cross-origin-opener-policy"} & answer.headers.keys()


def test_swaps_under_load_lose_nothing_and_every_answer_names_its_version(server):
    scales = {seq: seq / 100 for seq in range(1, 8)}

    def ask(number):
        answer = server.predict({"row": ROW, "request_id": f"load-{number}"})
        return answer.status_code, answer.json()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(300)]
        for seq in range(2, 8):
            server.release(seq, scale=scales[seq])
            server.wait(lambda seq=seq: server.status()[0]["release_seq"] == seq)
        answers = [one.result() for one in asked]

    assert {status for status, _ in answers} == {200}
    import math

    for _, answer in answers:
        expected = 1 / (1 + math.exp(-40 * scales[answer["version"]]))
        assert answer["predictions"][0]["probability"] == pytest.approx(expected, abs=1e-6)
    logged = {row["request_id"]: row for row in server.log() if row["request_id"].startswith("load-")}
    assert len(logged) == 300
    assert all(logged[answer["request_id"]]["version"] == answer["version"] for _, answer in answers)


def bad_routes():
    """What a hand in the database could write, by what is wrong with it."""
    return {
        "nobody signed": lambda s, route: route.model_copy(update={"decisions": ()}),
        "a rejection": lambda s, route: with_claim(s, route, verdict=Verdict.REJECT),
        "other bytes": lambda s, route: with_claim(s, route, model_digest="a" * 64),
        "another gate": lambda s, route: with_claim(s, route, gate="credit-99/approval"),
        "a changed person": lambda s, route: route.model_copy(
            update={
                "decisions": (
                    route.decisions[0].model_copy(
                        update={"claim": route.decisions[0].claim.model_copy(update={"person": "mallory"})}
                    ),
                )
            }
        ),
        "bytes that are not there": lambda s, route: with_claim(s, route, model_digest="b" * 64).model_copy(
            update={"model_digest": "b" * 64}
        ),
        "bytes that are no graph": junk,
    }


def with_claim(server, route, **changes):
    signed = server.signer.sign(route.decisions[0].claim.model_copy(update=changes))
    return route.model_copy(update={"decisions": (signed,)})


def junk(server, route):
    digest = server.artifacts.put(b"not a graph").sha256
    return with_claim(server, route, model_digest=digest).model_copy(update={"model_digest": digest})


@pytest.mark.parametrize("wrong", list(bad_routes()))
def test_a_route_that_is_not_proven_is_refused_and_the_last_good_version_answers(server, wrong):
    seq = 2 + max(model["refused_seq"] or model["release_seq"] for model in server.status())
    good = server.status()[0]["version"]
    route = bad_routes()[wrong](
        server, server.release(seq - 1, scale=0.5).model_copy(update={"release_seq": seq, "version": seq - 1})
    )
    server.wait(lambda: server.status()[0]["release_seq"] == seq - 1)
    good = server.status()[0]["version"]
    with server.store.write() as session:
        session.merge(parts.route_row(route))

    (status,) = server.wait(lambda: [model for model in server.status() if model["refused_seq"] == seq])
    answer = server.predict({"row": ROW}).json()

    assert "refused" in status["error"]
    assert (status["version"], answer["version"]) == (good, good)


def test_a_first_release_that_was_rolled_back_is_forgotten_and_the_next_one_is_served(tmp_path):
    made = Deployment(tmp_path)
    fleet = fleets.Fleet(made.settings, made.store, made.artifacts)
    route = made.release(1)
    (blob,) = [path for path in tmp_path.rglob(f"{route.model_digest}*") if path.is_file()]
    elsewhere = blob.rename(tmp_path / "elsewhere")
    fleet._look()
    assert [model.refused_seq for model in fleet.status().models] == [1]

    with made.store.write() as session:  # what rolling back a first release does
        session.delete(session.get(RouteRow, ("default", "credit")))
    fleet._look()
    assert fleet.status().models == []
    elsewhere.rename(blob)
    made.release(1)
    fleet._look()

    assert [(model.version, model.refused_seq) for model in fleet.status().models] == [(1, 0)]


def test_a_log_that_cannot_be_written_means_no_answer(server):
    folder = server.settings.predictions_dir / "default"
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    folder.write_text("a file where the folder should be")
    server.release(1, model="unlogged")  # nothing of it is open yet
    try:
        server.wait(lambda: any(model["model"] == "unlogged" for model in server.status()))
        answer = server.predict({"row": ROW}, "/models/unlogged/predict")
    finally:
        folder.unlink()
        hidden.rename(folder)

    assert answer.status_code == 503
    assert "prediction log" in answer.json()["detail"]
    assert server.predict({"row": ROW}, "/models/unlogged/predict").status_code == 200
    assert server.predict({"row": ROW}).status_code == 200


def test_a_batch_of_ten_thousand_is_answered(server):
    answer = server.predict({"rows": [ROW | {"age": n % 90} for n in range(10_000)]})

    assert len(answer.json()["predictions"]) == 10_000
    assert json.loads(answer.text)


def test_a_wrong_row_of_a_large_file_is_named_by_its_place_and_what_was_answered_is_printed(
    server, tmp_path, monkeypatch, capsys
):
    """By the command line, which sends 1,000 rows at a time."""
    url = str(server.client.base_url)
    client = Client(url, data_dir=server.settings.data_dir, serve_url=url)
    monkeypatch.setattr(models, "connected", lambda _: contextlib.nullcontext(client))
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(json.dumps(ROW | {"age": 40 if n != 2500 else "old"}) for n in range(3000)))
    before = len(server.log())

    with pytest.raises(InvalidPrediction, match="the 2000 rows before are answered") as refused:
        models.predict("credit", str(table))

    assert refused.value.field == "rows[2500].age"
    assert len(capsys.readouterr().out.splitlines()) == 2000
    assert len(server.log()) == before + 2000


def test_a_time_that_cannot_be_read_is_told_how_the_table_writes_it():
    with pytest.raises(InvalidPrediction) as refused:
        requests._moment("soon", ("seconds",), "rows[0].ts")

    assert "seconds since 1970" in refused.value.hint


@pytest.mark.parametrize(
    ("kind", "value", "right"),
    [
        ("datetime", " 31.01.2023 ", "2023-01-31T00:00:00+00:00"),
        ("datetime", "2023-01-31", "2023-01-31T00:00:00+00:00"),
        ("datetime", "31.02.2023", None),
        ("datetime", "20230131", None),  # text in the table, too
        ("datetime", "01.01.1900", ""),
        ("datetime", "NA", ""),
        ("integer", 1_700_000_000, "2023-11-14T22:13:20+00:00"),
        ("integer", -1, ""),
        ("integer", -1.0, ""),
    ],
)
def test_an_event_time_means_what_the_time_of_the_table_means(kind, value, right):
    """Nothing: no time, so that it is now; None: refused."""
    missing = ("-1",) if kind == "integer" else ("01.01.1900", "NA")
    read = ReadColumn(name="at", type=kind, missing=missing, format=("%d.%m.%Y",) if kind == "datetime" else ())
    layouts = ("seconds",) if kind == "integer" else read.format
    signature = Signature(task="regression", fields=(), target="y", time="at", time_layouts=layouts, time_read=read)
    body, now = requests.PredictRequest(row={"at": value}), datetime.now(UTC)

    if right is None:
        with pytest.raises(InvalidPrediction, match=r"rows\[0\].at is not a moment"):
            requests.moments_of(body, [{"at": value}], Meaning(signature), now)
        return
    assert requests.moments_of(body, [{"at": value}], Meaning(signature), now) == [
        datetime.fromisoformat(right) if right else now
    ]
