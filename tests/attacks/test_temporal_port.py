"""Nobody but this user reaches a port of the stack, and no other origin Temporal's UI."""

import json
import os
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from everloop import stack
from everloop.settings import TEMPORAL, TEMPORAL_UI, UNGUARDED_UI, Settings
from tests.loop.test_stack import everloop
from workers import temporal

NOBODY = 65534
HISTORIES = "/api/v1/namespaces/default/workflows"
LISTEN = "0A"


def listeners(here: Settings) -> dict[tuple[str, int], str]:
    """(address, port) to command, of every listening TCP socket of the stack's processes."""
    owners = {}
    for member in [*stack.members(here), *filter(None, [stack.owner(here)])]:
        for descriptor in Path(f"/proc/{member.pid}/fd").iterdir():
            try:
                owners[str(descriptor.readlink())] = member.command
            except OSError:
                continue
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and f"socket:[{fields[9]}]" in owners:
                address, port = fields[1].split(":")
                found[_address(address), int(port, 16)] = owners[f"socket:[{fields[9]}]"]
    return found


def _address(text: str) -> str:
    words = [struct.pack("=I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))


def answer(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_port_of_the_stack_is_on_loopback(attacked):
    found = listeners(attacked)

    assert {port for _, port in found} >= {attacked.port(offset) for offset in range(6)}
    assert sum("slot" in command or "spawn" in command for command in found.values()) >= 2  # Dask's own are among them
    assert {address for address, _ in found} == {"127.0.0.1"}


def test_dask_answers_nothing_over_http(attacked):
    ours = {attacked.port(offset) for offset in range(6)}
    dask = [
        port
        for (_, port), command in listeners(attacked).items()
        if port not in ours and ("scheduler" in command or "slot" in command or "spawn" in command)
    ]
    assert dask
    for port in dask:
        for path in ("/", "/health", "/metrics", "/info/main/workers.html", "/json/identity.json"):
            try:
                status, _ = answer(f"http://127.0.0.1:{port}{path}")
            except OSError:  # TLS: it does not speak HTTP
                continue
            assert status == 404, (port, path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_cannot_speak_to_temporal(attacked):
    address = f"127.0.0.1:{attacked.port(TEMPORAL)}"
    listed = [str(temporal.binary()), "workflow", "list", "--address", address, "--command-timeout", "5s"]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}

    ours = subprocess.run(listed, env=environment, capture_output=True, text=True, check=False)
    theirs = subprocess.run(
        listed, env=environment, capture_output=True, text=True, check=False, user=NOBODY, group=NOBODY, extra_groups=[]
    )

    assert ours.returncode == 0, ours.stderr
    assert "pool/default" in ours.stdout
    assert theirs.returncode != 0
    assert "pool/default" not in theirs.stdout + theirs.stderr
    assert "failed connecting" in theirs.stderr


def test_the_ui_and_the_http_api_answer_no_browser_directly(attacked):
    server = next(pid for pid in stack.members(attacked) if "start-dev" in pid.command)
    flags = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    ports = [int(flags[flags.index(flag) + 1]) for flag in ("--ui-port", "--http-port", "--metrics-port")]

    assert attacked.port(UNGUARDED_UI) in ports
    for port in ports:
        for path in (HISTORIES, "/", "/metrics"):
            with pytest.raises(OSError):
                answer(f"http://127.0.0.1:{port}{path}", Host="evil.example")


def test_the_ui_asks_for_the_console_s_login_and_knows_its_own_name_only(attacked):
    url = f"http://127.0.0.1:{attacked.port(TEMPORAL_UI)}"
    cookie = _signed_in(attacked)

    assert answer(url + HISTORIES)[0] == 401
    status, page = answer(url + "/")
    assert (status, "everloop login" in page) == (401, True)
    assert answer(url + HISTORIES, Cookie=cookie, Host=f"evil.example:{attacked.port(TEMPORAL_UI)}")[0] == 421
    status, found = answer(url + HISTORIES, Cookie=cookie)
    assert status == 200
    assert "pool/default" in found


def test_the_ui_s_own_page_can_signal_and_a_page_elsewhere_cannot(attacked):
    ui = f"http://127.0.0.1:{attacked.port(TEMPORAL_UI)}"
    session = _signed_in(attacked)
    with urllib.request.urlopen(urllib.request.Request(ui, headers={"Cookie": session}), timeout=5) as page:
        token = page.headers["Set-Cookie"].partition(";")[0]
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]

    def signal(origin: str) -> int:
        headers = {
            "Cookie": f"{session}; {token}",
            "X-CSRF-TOKEN": token.removeprefix("_csrf="),
            "Origin": origin,
            "Content-Type": "application/json",
        }
        body = json.dumps({"signalName": "nobody-listens"}).encode()
        asked = urllib.request.Request(f"{ui}{HISTORIES}/pool%2Fdefault/signal/nobody-listens", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=5) as answered:
                return answered.status
        except urllib.error.HTTPError as error:
            return error.code

    assert signal("http://evil.example") == 403
    assert signal(f"http://127.0.0.1:{attacked.port(0)}") == 403
    assert signal(ui) == 200


def test_the_console_s_link_opens_the_ui_in_a_browser(attacked, browser):
    page = browser.new_page()
    page.goto(json.loads(everloop(attacked, "login", "--json").stdout)["url"])

    page.goto(f"{attacked.temporal_ui_url}/namespaces/default/workflows/pool%2Fdefault")
    page.get_by_text("everloop.GpuPool").first.wait_for(timeout=60_000)


def _signed_in(here: Settings) -> str:
    url = json.loads(everloop(here, "login", "--json").stdout)["url"]

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    try:
        urllib.request.build_opener(Stay).open(url, timeout=5)
    except urllib.error.HTTPError as error:
        return str(error.headers["Set-Cookie"]).partition(";")[0]
    raise AssertionError(sys.exc_info())


def test_where_the_kernel_cannot_tell_who_connects_there_is_no_ui_and_no_http_api(monkeypatch, here):
    monkeypatch.setattr(temporal, "possible", lambda: False)
    server = temporal.start(
        here.data_dir / "temporal.db", here.port(TEMPORAL), here.port(UNGUARDED_UI), here.data_dir / "temporal.log"
    )
    try:
        flags = Path(f"/proc/{server.process.pid}/cmdline").read_text().split("\0")
        api = int(flags[flags.index("--http-port") + 1])
        refused = [answer(f"http://127.0.0.1:{api}{HISTORIES}", Host=name) for name in ("evil.example", "127.0.0.1")]
        with pytest.raises(OSError, match="refused"):
            answer(f"http://127.0.0.1:{here.port(UNGUARDED_UI)}/")
    finally:
        server.stop()

    assert not server.guarded
    assert [status for status, _ in refused] == [403, 403]
