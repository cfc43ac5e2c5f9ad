"""The door: who may not come in does not, whatever they send."""

import json
import re
import socket
import stat

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlmodel import select
from starlette.routing import Mount

from api import identity
from api.app import create_app
from everloop.store import AuditRow, CredentialRow
from tests import api_parts as parts
from tests import stores

OPEN = {"/healthz", "/readyz", "/login"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("door"))
    store = stores.migrated(settings.database)
    app = create_app(settings)
    with parts.running(app, settings.port_base) as url:
        yield settings, store, url, app


@pytest.fixture
def stranger(served):
    with httpx.Client(base_url=served[2], timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def owner(served):
    with parts.client_of(served[0], served[2]) as client:
        yield client


@pytest.fixture
def browser(served):
    """A signed-in browser."""
    settings, store, url, _ = served
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        link, _ = identity.login_link(settings, store, "ada")
        assert client.get(link).status_code == 303
        yield client


def test_every_address_but_four_needs_a_credential(served, stranger):
    walked = 0
    for route in routes_of(served[3].router.routes):
        path = re.sub(r"\{[^}]+\}", "x", route.path)
        for method in (route.methods or {"GET"}) | {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}:
            answer = stranger.request(method, path)
            walked += 1
            if route.path not in OPEN:
                assert answer.status_code == 401, (method, path)
    assert walked > 100
    assert stranger.get("/static/everloop.css").status_code == 200
    assert stranger.get("/healthz").status_code == 200


def routes_of(routes):
    for route in routes:
        if isinstance(route, Mount):
            continue  # static files: open by intent
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "effective_candidates"):
            yield from routes_of(candidate for candidate in route.effective_candidates())
        elif hasattr(route, "path"):
            yield route


@pytest.mark.parametrize(
    "path", ["/x/healthz", "/healthz/", "/static", "/static/../api/v1/lifecycles", "/login/x", "//healthz", "/HEALTHZ"]
)
def test_an_open_name_elsewhere_in_the_address_opens_nothing(stranger, path):
    assert stranger.get(path).status_code in (401, 404)


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer nothing", "bearer", "Basic YTpi", "Bearer " + "x" * 5000, "Token abc"]
)
def test_what_is_not_a_known_bearer_key_is_nobody(stranger, header):
    answer = stranger.get("/api/v1/lifecycles", headers={"Authorization": header})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["code"] == "not_authenticated"


def test_two_authorization_headers_are_refused(served, stranger):
    key = f"Bearer {parts.key_of(served[0])}"
    answer = stranger.get("/api/v1/lifecycles", headers=[("Authorization", key), ("Authorization", key)])
    assert answer.status_code == 401


def test_a_key_in_the_address_is_no_credential(served, stranger):
    assert stranger.get("/api/v1/lifecycles", params={"token": parts.key_of(served[0])}).status_code == 401


def test_a_login_or_session_value_is_no_bearer_key(served, stranger, browser):
    token = identity.login_link(served[0], served[1], "ada")[0].partition("token=")[2]
    for value in (token, *browser.cookies.values()):
        assert stranger.get("/api/v1/lifecycles", headers={"Authorization": f"Bearer {value}"}).status_code == 401


@pytest.mark.parametrize(
    "host",
    [
        b"Host: evil.test",
        b"Host: 127.0.0.1",
        b"Host: localhost:1",
        b"Host: 127.0.0.1:%d/healthz?",
        b"Host: a@127.0.0.1:%d",
        b"",
        b"Host: 127.0.0.1:%d\r\nHost: evil.test",
    ],
)
def test_another_host_name_is_misdirected(served, host):
    port = served[0].port_base
    answer = raw(
        port, b"GET /healthz HTTP/1.1\r\n" + host.replace(b"%d", b"%d" % port) + b"\r\nConnection: close\r\n\r\n"
    )
    assert answer.split(b" ")[1] in (b"421", b"400")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_the_names_of_loopback_are_ours(served, host):
    port = served[0].port_base
    answer = raw(port, f"GET /healthz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] == b"200"


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def test_a_login_link_works_once_and_leaves_a_guarded_cookie(served, stranger):
    settings, _, url, _ = served
    link = (settings.keys_dir / "login.url").read_text()
    assert link.startswith(f"{url}/login?token=")

    first = stranger.get(link)
    cookie = first.headers["set-cookie"].lower()
    stranger.cookies.clear()
    second = stranger.get(link)

    assert (first.status_code, first.headers["location"]) == (303, "/")
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert second.status_code == 401
    assert "everloop login" in second.text
    assert "set-cookie" not in second.headers


def test_a_new_link_signs_its_owner_in(owner, stranger):
    link = owner.post("/api/v1/login-links").json()["url"]

    assert stranger.get(link).status_code == 303
    assert ">ada<" in stranger.get("/").text


def test_an_old_link_and_an_old_session_are_nothing(served, stranger, browser):
    settings, store, _, _ = served
    link, _ = identity.login_link(settings, store, "ada")
    with store.write() as session:
        for row in session.exec(select(CredentialRow).where(CredentialRow.kind != identity.CLIENT)):
            row.expires_at = parts.NOW.replace(year=2020)
            session.add(row)

    assert stranger.get(link).status_code == 401
    assert browser.get("/").status_code == 401


def test_signing_out_ends_the_session_everywhere(browser, stranger):
    name, value = next(iter(browser.cookies.items()))
    assert (
        browser.post("/logout", data={"x": "1"}, headers={"Origin": str(browser.base_url).rstrip("/")}).status_code
        == 200
    )

    stranger.cookies.set(name, value)
    assert stranger.get("/").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "OWN", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_cookie_from_another_site_changes_nothing(browser, headers):
    own = str(browser.base_url).rstrip("/")
    headers = {name: value.replace("OWN", own) for name, value in headers.items()}
    for path in ("/lifecycles/x/cancel", "/approvals/x", "/api/v1/lifecycles", "/api/v1/credentials", "/logout"):
        answer = browser.post(path, headers=headers, data={"verdict": "approve"})
        assert answer.status_code == 403, path
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_of_ours_may_use_its_cookie(browser):
    own = str(browser.base_url).rstrip("/")
    for headers in (
        {"Origin": own},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin"},
    ):
        assert browser.post("/approvals/nothing", data={"verdict": "approve"}, headers=headers).status_code == 404


def test_no_origin_is_given_access_to_answers(owner):
    for origin in ("http://localhost:3000", "null", "https://evil.test"):
        answer = owner.get("/api/v1/lifecycles", headers={"Origin": origin})
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert owner.options("/api/v1/lifecycles", headers={"Access-Control-Request-Method": "POST"}).status_code == 405


def test_every_answer_carries_the_security_headers(owner, stranger):
    for answer in (
        owner.get("/"),
        owner.get("/api/v1/lifecycles"),
        owner.get("/nothing"),
        stranger.get("/"),
        stranger.get("/static/everloop.css"),
    ):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "script-src" not in answer.headers["content-security-policy"]  # default-src 'self'
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"  # without it a form's Origin is "null"
        assert answer.headers["cache-control"] == "no-store"
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "server" not in answer.headers or "uvicorn" in answer.headers["server"]


def test_keys_are_private_and_only_their_digests_are_stored(served):
    settings, store, _, _ = served
    for name in ("client.key", "login.url", "signing.key"):
        assert stat.S_IMODE((settings.keys_dir / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.keys_dir.stat().st_mode) == 0o700
    with store.read() as session:
        rows = session.exec(select(CredentialRow)).all()
    stored = json.dumps([row.model_dump(mode="json") for row in rows])
    assert parts.key_of(settings) not in stored
    assert all(re.fullmatch(r"[0-9a-f]{64}", row.digest) for row in rows)


def test_the_key_survives_a_new_start_and_the_link_does_not(served):
    settings, store, _, _ = served
    key, link = parts.key_of(settings), (settings.keys_dir / "login.url").read_text()

    identity.prepare(settings, store)

    assert parts.key_of(settings) == key
    assert (settings.keys_dir / "login.url").read_text() != link


def test_a_new_key_stands_for_another_person(owner, stranger):
    made = owner.post("/api/v1/credentials", json={"person": "demo approver"}).json()

    home = stranger.get("/", headers={"Authorization": f"Bearer {made['key']}"})

    assert ">demo approver<" in home.text
    assert owner.post("/api/v1/credentials", json={"person": "x" * 200}).json()["field"] == "person"


def test_each_unsafe_call_is_noted_with_who_and_how_it_ended(served, owner, stranger):
    owner.post("/api/v1/lifecycles", json={}, headers={"Idempotency-Key": "k"})
    refused = stranger.post("/api/v1/login-links")

    with served[1].read() as session:
        last, before = session.exec(select(AuditRow).order_by(AuditRow.id.desc()).limit(2)).all()

    assert (last.person, last.status, last.request_id) == ("", 401, refused.headers["x-request-id"])
    assert (before.person, before.status, before.subject) == ("ada", 422, "/api/v1/lifecycles")


def test_methods_that_mean_nothing_here_are_refused(owner):
    for method in ("TRACE", "PUT", "DELETE", "PATCH"):
        answer = owner.request(method, "/api/v1/lifecycles", headers={"X-HTTP-Method-Override": "POST"})
        assert answer.status_code == 405
        assert answer.json()["code"] == "method_not_allowed"
    assert owner.get("/api/v1/approvals/x/decision").status_code in (404, 405)  # a link preview decides nothing


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd"]
)
def test_static_files_and_logs_lead_nowhere_else(owner, name):
    assert owner.get(f"/static/{name}").status_code in (401, 404)


def test_a_log_path_that_leads_outside_is_not_followed(served, owner, tmp_path):
    settings, store, _, _ = served
    secret = tmp_path / "secret.log"
    secret.write_text("secret")
    inside = settings.logs_dir / "jobs/run-of-evil/train.1"
    inside.mkdir(parents=True)
    (inside / "1.log").symlink_to(secret)
    named = ["../keys/client.key", str(secret), "jobs/run-of-evil/train.1/1.log", "jobs/\x00", "../../../../etc/passwd"]
    with store.write() as session:
        session.add(parts.lifecycle("evil", status="needs_attention"))
        for position, name in enumerate(named):
            session.add(parts.stage(f"s{position}", position, "failed", lifecycle="evil", error={"log": name}))

    for position in range(len(named)):
        assert owner.get("/api/v1/lifecycles/evil/logs", params={"stage": f"s{position}"}).status_code == 404
