"""Several prediction servers on one port: who dies loses nothing that was answered, and a rollout hears them all."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from temporalio.testing import ActivityEnvironment

from activities.release import ReleaseOnControl
from everloop.artifacts import Artifacts
from everloop.contracts import ObserveRequest
from everloop.errors import Unavailable
from tests import api_parts as parts
from tests.faults import log_harness
from tests.faults.log_harness import WORKERS, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("processes"))
    try:
        made.wait(lambda: made.status() == 1)
        yield made
    finally:
        code = made.end()
    assert code == 0


def test_a_release_counts_only_once_every_process_serves_it(server):
    stopped = server.processes()[1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        server.release(2)
        heard = set()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            with server.client() as client:
                try:
                    heard.add(client.get("/status", timeout=1.5).json()["models"][0]["release_seq"])
                except httpx.TimeoutException:  # the stopped one took the connection
                    continue
        assert heard == {None}
        with pytest.raises(Unavailable):  # so the rollout's step does not count either
            observed(server, 2)
    finally:
        os.kill(stopped, signal.SIGCONT)

    server.wait(lambda: server.status() == 2)
    observed(server, 2)


def observed(server, seq):
    """The rollout's own look at the server. It is tried again where a stopped process took its connection."""
    release = ReleaseOnControl(server.store, Artifacts(server.settings.artifacts), server.settings, None)
    request = ObserveRequest(project="default", model="credit", release_seq=seq)
    asyncio.run(ActivityEnvironment().run(release.observe, request))


def test_metrics_are_those_of_every_process_whichever_is_asked(server):
    text = server.ask("/metrics").text

    assert text.startswith("# HELP everloop_predict_requests_total ")
    for place in range(WORKERS):
        line = f'everloop_served_release{{project="default",model="credit",process="{place}"}} 2'
        assert line in text.splitlines()
    assert text.count("# TYPE everloop_predict_seconds histogram") == 1


def test_kill_9_of_servers_and_of_the_keeper_loses_no_answered_row_and_none_counts_twice(server):
    wrong, load, _ = log_harness.run(server, kills=3, seed=7)

    assert wrong == []
    assert len(load.answered) > 50
    assert len(load.failed) <= 12  # a connection each time for those that hung on the one that was killed
    assert any(part.kind == "parquet" for part in server.index.parts().parts)


def test_a_process_that_cannot_stay_up_ends_the_server(tmp_path):
    settings = parts.settings_in(tmp_path)
    environment = os.environ | settings.environment() | {"EVERLOOP_SERVE_WORKERS": "2"}  # there is no database
    environment["EVERLOOP_DATABASE_URL"] = "nonsense://"

    command = [sys.executable, "-m", "api", "serve"]
    ended = subprocess.run(command, env=environment, timeout=120, capture_output=True, check=False)

    assert ended.returncode == 1
    assert b"all end" in ended.stderr
