"""Several prediction servers on one port: who dies loses nothing that was answered, and a rollout hears them all."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import httpx
import psutil
import pytest

from everloop.artifacts import Artifacts
from everloop.predictions import PredictionLog
from everloop.records import Window
from everloop.settings import SERVE
from tests import api_parts as parts

WORKERS = 3
ALWAYS = Window(start=datetime(1970, 1, 1, tzinfo=UTC), end=datetime(2100, 1, 1, tzinfo=UTC))
ROW = {"age": 40, "purpose": "car"}


class Server:
    """`python -m api serve` with several processes, and what it reads."""

    def __init__(self, folder):
        self.settings, self.store, self.signer = parts.deployed(folder)
        self.release(1)
        environment = os.environ | self.settings.environment() | {"EVERLOOP_SERVE_WORKERS": str(WORKERS)}
        self.parent = subprocess.Popen([sys.executable, "-m", "api", "serve"], env=environment)

    def release(self, seq):
        return parts.release(self.store, Artifacts(self.settings.artifacts), self.signer, seq=seq)

    def client(self):
        return parts.client_of(self.settings, f"http://127.0.0.1:{self.settings.port(SERVE)}")

    def ask(self, path):
        """Over a connection of its own: whichever process takes it."""
        with self.client() as client:
            return client.get(path)

    def status(self):
        """The release that /status says, None where not all serve one."""
        try:
            models = self.ask("/status").json()["models"]
        except httpx.HTTPError:
            return None
        return models[0]["release_seq"] if models else None

    def processes(self):
        return [child.pid for child in psutil.Process(self.parent.pid).children()]

    def wait(self, look, seconds=90):
        deadline = time.monotonic() + seconds
        while not look():
            assert self.parent.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, self.ask("/status").text
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("processes"))
    try:
        made.wait(lambda: made.status() == 1)
        yield made
    finally:
        made.parent.terminate()
        code = made.parent.wait(60)
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
    finally:
        os.kill(stopped, signal.SIGCONT)

    server.wait(lambda: server.status() == 2)


def test_kill_9_of_a_process_loses_no_answered_row_and_another_takes_its_place(server):
    answered, failed, over = [], [], threading.Event()

    def load(number):
        at = 0
        with server.client() as client:
            while not over.is_set():
                name = f"kill-{number}-{at}"
                at += 1
                try:
                    client.post("/models/credit/predict", json={"row": ROW, "request_id": name}).raise_for_status()
                except httpx.TransportError:  # its connection died with the process: not answered
                    failed.append(name)
                else:
                    answered.append(name)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.7)
        victim = server.processes()[0]
        os.kill(victim, signal.SIGKILL)
        server.wait(lambda victim=victim: victim not in server.processes() and len(server.processes()) == WORKERS)
    over.set()
    for thread in threads:
        thread.join()
    server.wait(lambda: server.status() == 2)

    logged = [
        row["request_id"] for row in PredictionLog(server.settings.predictions_dir / "default" / "credit").read(ALWAYS)
    ]
    assert len(answered) > 50
    assert set(answered) <= set(logged)
    assert len(logged) == len(set(logged))
    assert len(failed) <= 12  # a connection each time for those that hung on the one that was killed


def test_metrics_are_those_of_every_process_whichever_is_asked(server):
    text = server.ask("/metrics").text

    assert text.startswith("# HELP everloop_predict_requests_total ")
    for place in range(WORKERS):
        line = f'everloop_served_release{{project="default",model="credit",process="{place}"}} 2'
        assert line in text.splitlines()
    assert text.count("# TYPE everloop_predict_seconds histogram") == 1


def test_a_process_that_cannot_stay_up_ends_the_server(tmp_path):
    settings = parts.settings_in(tmp_path)
    environment = os.environ | settings.environment() | {"EVERLOOP_SERVE_WORKERS": "2"}  # there is no database
    environment["EVERLOOP_DATABASE_URL"] = "nonsense://"

    command = [sys.executable, "-m", "api", "serve"]
    ended = subprocess.run(command, env=environment, timeout=120, capture_output=True, check=False)

    assert ended.returncode == 1
    assert b"all end" in ended.stderr
