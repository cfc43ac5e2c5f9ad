"""Hostile bodies against a real server: each a problem that names the field, and the server stays up."""

import contextlib
import gzip
import socket
import threading
import time

import httpx
import pytest

from api.app import create_app
from tests import api_parts as parts
from tests import stores


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("bodies"))
    stores.migrated(settings.database)
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        yield settings, client


def submit(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    given = {"Content-Type": "application/json", "Idempotency-Key": "hostile"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return client.post("/api/v1/lifecycles", content=body, headers=given)


def problem(answer: httpx.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status
    assert found["detail"]
    assert "Traceback" not in answer.text
    assert "/work" not in answer.text
    return found


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b'{"model": "a", "training": {"learning_rate": NaN}}', 422, "invalid", "training.learning_rate"),
        (b'{"model": "a", "x": {"y": Infinity}}', 422, "invalid", "x.y"),
        (b'{"model": "\\ud800"}', 422, "invalid", "model"),
        (b'{"model": "a\\u0000b"}', 422, "invalid", "model"),
        (b'{"training": {"seed": 9223372036854775808}}', 422, "invalid", "training.seed"),
        (b'{"model": "a", "model": "b"}', 400, "malformed", "model"),
        (b'{"training": {"seed": ' + b"9" * 5000 + b"}}", 422, "invalid", "training.seed"),
        (b"[" * 100_000, 422, "invalid", ""),
        (b'{"a":' * 400 + b"1" + b"}" * 400, 422, "invalid", ""),
        (b"", 400, "malformed", ""),
        (b"[]", 400, "malformed", ""),
        (b"{", 400, "malformed", ""),
        (b'\xef\xbb\xbf{"model": "a"}', 400, "malformed", ""),
        ('{"model": "a"}'.encode("utf-16"), 400, "malformed", ""),
        (b'{"model": "a", "task": "binary", "source": {"path": "/x.csv"}}', 422, "invalid_spec", "target"),
        (
            b'{"model": "A B", "task": "binary", "target": "t", "source": {"path": "/x.csv"}}',
            422,
            "invalid_spec",
            "model",
        ),
        (
            b'{"model": "a", "task": "binary", "target": "t", "source": {"path": "x.csv"}}',
            422,
            "invalid_spec",
            "source.path",
        ),
        (
            b'{"model": "a", "task": "binary", "target": "t", "source": {"path": "/x.csv"}, "status": "released"}',
            422,
            "invalid_spec",
            "status",
        ),
        (
            b'{"model": "a", "task": "binary", "target": "t", "source": {"path": "/x.csv"}, "metric": "rmse"}',
            422,
            "invalid_spec",
            "metric",
        ),
        (
            b'{"model": "a", "task": "binary", "target": "t", "source": {"path": "/x"}, "training": {"rounds": 10000}}',
            422,
            "invalid_spec",
            "training.rounds",
        ),
    ],
)
def test_a_body_that_will_not_do_is_refused_with_its_field(served, body, status, code, field):
    found = problem(submit(served[1], body), status)

    assert found["code"] == code
    if field:
        assert found["field"] == field


@pytest.mark.parametrize(
    "media",
    [
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/x-npy",
        "multipart/form-data; boundary=x",
    ],
)
def test_only_json_in_utf_8_is_read(served, media):
    problem(submit(served[1], b'{"model": "a"}', Content_Type=media), 415)


def test_a_compressed_body_is_not_opened(served):
    bomb = gzip.compress(b" " * (8 << 20))
    problem(submit(served[1], bomb, Content_Encoding="gzip"), 415)


@pytest.mark.parametrize("key", ["", "a b", "a/b", "../x", "..", "ä", "x" * 129, "a\tb", "$(id)", "%2e%2e"])
def test_an_idempotency_key_that_cannot_be_an_id_is_refused(served, key):
    answer = served[1].post(
        "/api/v1/lifecycles", json=parts.SPEC, headers=[(b"Idempotency-Key", key.encode("latin-1"))]
    )
    assert problem(answer, 422)["field"] == "Idempotency-Key"


def test_a_two_megabyte_spec_is_answered_not_cut_off(served):
    found = problem(submit(served[1], b'{"model": "' + b"a" * (2 << 20) + b'"}'), 413)
    assert found["code"] == "too_large"


def test_a_chunked_body_without_a_length_is_capped_too(served):
    def chunks():
        for _ in range(40):
            yield b" " * 65536

    answer = served[1].post(
        "/api/v1/lifecycles", content=chunks(), headers={"Content-Type": "application/json", "Idempotency-Key": "x"}
    )
    problem(answer, 413)


def test_hostile_bodies_do_not_hold_up_others(served):
    settings, client = served
    slow: list[float] = []
    stop = threading.Event()

    def others() -> None:
        with parts.client_of(settings, str(client.base_url)) as reader:
            while not stop.is_set():
                began = time.monotonic()
                assert reader.get("/healthz").status_code == 200
                slow.append(time.monotonic() - began)

    thread = threading.Thread(target=others)
    thread.start()
    for _ in range(3):
        for body in (
            b"[" * 1_000_000,
            b'{"a":' * 200_000,
            b'{"' + b'x":1,"' * 150_000 + b'y":1}',
            b'"' + b"\\ud800" * 150_000 + b'"',
        ):
            assert 400 <= submit(client, body).status_code < 500
    stop.set()
    thread.join()

    assert len(slow) > 3
    assert sorted(slow)[len(slow) // 2] < 0.5


def test_slow_senders_do_not_stop_the_server(served):
    settings, client = served
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", settings.port_base)))
            connection.sendall(
                f"POST /api/v1/lifecycles HTTP/1.1\r\nHost: 127.0.0.1:{settings.port_base}\r\n"
                f"Authorization: Bearer {parts.key_of(settings)}\r\nContent-Type: application/json\r\n"
                "Content-Length: 100\r\n\r\n{".encode()
            )
        assert client.get("/healthz").status_code == 200


def test_control_characters_of_a_request_are_not_echoed(served):
    answer = served[1].get("/api/v1/models/%1b%5b31m%0d%0aX-Evil:%201")
    assert answer.status_code == 404
    assert "x-evil" not in answer.headers
    assert b"\x1b" not in answer.content
