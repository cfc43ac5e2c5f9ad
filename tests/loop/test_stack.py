"""The whole stack as `everloop up` starts it: real processes, a small table, kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.errors import Invalid
from everloop.settings import Settings
from everloop.store import DeviceTimeRow, LifecycleRow, Store
from tests.conftest import free_port_base

READY_SECONDS = 180
"""For a busy CI machine; an idle one needs less than 10."""


def everloop(here: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = [] if arguments[0] == "init" else ["--data-dir", str(here.data_dir)]  # `init` needs no stack
    command = [sys.executable, "-m", "everloop.cli", *arguments, *place]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)


class Launcher:
    """`everloop up` in a process group of its own, as a terminal would have it."""

    def __init__(self, here: Settings, *arguments: str) -> None:
        self.here = here
        self.output = here.data_dir.parent / "up.out"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "everloop.cli", "up", "--data-dir", str(here.data_dir), "--port-base",
                 str(here.port_base), *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> str:
        deadline = time.monotonic() + READY_SECONDS
        while "/login" not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)
        return self.output.read_text()

    def kill_everything(self) -> None:
        """kill -9 of the launcher and of every process below it, at one moment."""
        for process in [*stack.members(self.here), stack.Alive(self.process.pid, 0, "")]:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("stack")
    made = configuration.load(data_dir=folder / "data", port_base=free_port_base())
    yield made
    stack.down(made)


@pytest.fixture(scope="module")
def running(here: Settings) -> Launcher:
    """A ready stack for the tests down to Ctrl-C, which ends it: a start costs what ten requests do not."""
    launcher = Launcher(here)
    launcher.ready()
    return launcher


@pytest.fixture(scope="module")
def spec(here: Settings) -> Path:
    """A small table with something to learn, and its spec beside it."""
    numbers = random.Random(0)
    rows = ["age,plan,left"]
    for _ in range(600):
        age, plan = numbers.randint(18, 80), numbers.choice(["basic", "gold"])
        left = int(age + (20 if plan == "basic" else 0) + numbers.gauss(0, 10) > 60)
        rows.append(f"{age},{plan},{left}")
    folder = here.data_dir.parent
    (folder / "churn.csv").write_text("\n".join(rows) + "\n")
    path = folder / "churn.yaml"
    path.write_text("model: churn\ntask: binary\ntarget: left\nsource: {path: churn.csv}\nmonitor: null\n")
    return path


def test_a_table_is_submitted_approved_and_answers_by_the_command_line_alone(running, here, spec):
    submitted = everloop(here, "submit", str(spec), "--key", "first", "--wait", "--json")
    assert submitted.returncode == 0, submitted.stderr
    assert json.loads(submitted.stdout)["status"] == "waiting_approval"

    assert everloop(here, "approve", "first").returncode == 1  # no terminal and no --yes: nobody was asked
    approved = everloop(here, "approve", "first", "--yes", "--comment", "fine")
    assert approved.returncode == 0, approved.stderr
    watched = everloop(here, "watch", "first")
    assert "released" in watched.stdout

    with Client(data_dir=here.data_dir) as client:
        deadline = time.monotonic() + 60
        while not any(model["version"] for model in client.serving()["models"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    answer = everloop(here, "predict", "churn", '{"age": 79, "plan": "basic"}', "--json")
    assert json.loads(answer.stdout)["predictions"][0]["label"] == 1, answer.stderr
    wrong = everloop(here, "predict", "churn", '{"age": "old", "plan": "basic"}')
    assert wrong.returncode == 1
    assert "age" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert everloop(here, "journal", "verify").returncode == 0


def test_the_same_key_is_the_same_lifecycle_and_another_body_is_refused(running, here, spec):
    other = spec.with_name("other.yaml")
    other.write_text(spec.read_text() + "training: {rounds: 7}\n")

    again = everloop(here, "submit", str(spec), "--key", "first", "--json")
    mismatch = everloop(here, "submit", str(other), "--key", "first")

    assert json.loads(again.stdout)["id"] == "first"
    assert mismatch.returncode == 1
    assert "the key first" in mismatch.stderr


def test_people_decide_on_the_pages_without_javascript(running, here, spec, browser):
    """Every button is pressed in a real browser: what a page says of itself is not what a browser sends."""
    paged = spec.with_name("paged.yaml")
    paged.write_text(spec.read_text().replace("model: churn", "model: paged"))
    assert everloop(here, "submit", str(paged), "--key", "paged", "--wait").returncode == 0
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(json.loads(everloop(here, "login", "--json").stdout)["url"])

    page.get_by_role("link", name="Look and decide").click()
    page.get_by_role("button", name="Reject").click()
    assert "comment" in page.get_by_role("alert").inner_text()
    page.get_by_label("Comment").fill("fine by me")
    page.get_by_role("button", name="Approve and release").click()

    assert "fine by me" in page.inner_text("main")
    assert "released" in everloop(here, "watch", "paged").stdout
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{here.api_url}/lifecycles/paged")
    assert "fine by me" not in page.content()


def test_a_parked_lifecycle_is_retried_and_aborted_on_its_page(running, here, spec, browser):
    constant = spec.with_name("constant.csv")
    constant.write_text("age,left\n" + "\n".join(f"{n},1" for n in range(200)) + "\n")
    parked = spec.with_name("constant.yaml")
    parked.write_text("model: constant\ntask: binary\ntarget: left\nsource: {path: constant.csv}\n")
    assert everloop(here, "submit", str(parked), "--key", "parked", "--wait").returncode == 1
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(json.loads(everloop(here, "login", "--json").stdout)["url"])

    page.get_by_role("link", name="See the log, retry or abort").click()
    page.get_by_role("button", name="Retry").click()
    with Client(data_dir=here.data_dir) as client:
        again = client.wait("parked", until=lambda now: now["status"] == "needs_attention" and len(now["stages"]) > 2)
        page.goto(f"{here.api_url}/lifecycles/parked")
        page.get_by_role("button", name="Abort the lifecycle").click()
        ended = client.wait("parked")

    assert "left" in again["error"]["message"]
    assert ended["status"] == "aborted"


def test_a_lifecycle_is_paused_followed_and_resumed_from_the_command_line(running, here, spec):
    slow = spec.with_name("slow.yaml")
    slow.write_text(
        spec.read_text().replace("model: churn", "model: slow")
        + "training: {rounds: 5000, early_stopping: 1000, learning_rate: 0.0001}\n"
    )
    assert everloop(here, "submit", str(slow), "--key", "slow").returncode == 0
    with Client(data_dir=here.data_dir) as client:
        client.wait("slow", until=lambda now: now["stage"] in ("prepare", "train"), timeout=120, every=0.05)
        assert everloop(here, "pause", "slow", "--reason", "lunch").returncode == 0
        paused = client.wait("slow", until=lambda now: bool(now["paused"]), timeout=60)
        assert "paused it: lunch" in paused["wait"]
        assert paused["help"] == "everloop resume slow"

        command = [sys.executable, "-m", "everloop.cli", "logs", "-f", "slow", "--stage", "snapshot"]
        command += ["--data-dir", str(here.data_dir)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            first = following.stdout.readline()  # then it waits: a paused lifecycle goes on some time
            following.send_signal(signal.SIGINT)
            _, said = following.communicate(timeout=30)
        assert first.startswith("kept ")
        assert following.returncode == 130
        assert "Traceback" not in said

        assert everloop(here, "resume", "slow").returncode == 0
        followed = everloop(here, "logs", "-f", "slow", "--tail", "1")
        found, curves = client.show("slow"), client.curves("slow")
    shown = everloop(here, "curves", "slow")

    assert followed.returncode == 0, followed.stderr
    assert "--- train" in followed.stderr and "--- export" in followed.stderr
    assert followed.stderr.splitlines()[-1].startswith("--- waiting approval. Waiting for a decision on version 1")
    assert "rounds; validation" in followed.stdout
    assert found["status"] == "waiting_approval"
    assert [(curve["metric"], curve["unit"]) for curve in curves] == [("binary_logloss", "round")]
    assert all(value is not None for value in curves[0]["train"])
    assert "binary_logloss" in shown.stdout


def test_an_operator_looks_changes_the_queues_and_takes_a_lease_back(running, here, spec):
    slow = spec.with_name("revoked.yaml")
    slow.write_text(
        spec.read_text().replace("model: churn", "model: revoked")
        + "training: {rounds: 4000, early_stopping: 1000, learning_rate: 0.0001}\n"
    )
    tree = spec.with_name("queues.yaml")
    tree.write_text("queues: {vision: {weight: 2}}\n")
    assert everloop(here, "submit", str(slow), "--key", "revoked").returncode == 0
    with Client(data_dir=here.data_dir) as client:
        client.wait("revoked", until=lambda now: now["stage"] == "train", timeout=120, every=0.05)
        (held,) = (lease for lease in client.leases() if lease["lifecycle"] == "revoked")
        assert held["queue"] == "default"
        applied = json.loads(everloop(here, "queue", "apply", str(tree), "--yes", "--json").stdout)
        assert applied["changes"] == ["queue vision is added: quota none, limit none, weight 2"]

        told = everloop(here, "lease", "revoke", str(held["token"]), "--reason", "a test", "--grace", "20")
        assert told.returncode == 0, told.stderr
        token = next_lease(client, "revoked", held["token"])

        rules = everloop(here, "pool", "policy", "--grace", "30s", "--minimum-run-time", "20m")
        assert rules.stdout == "the policy of pool default: grace 1 min -> 30 s, minimum run time 10 min -> 20 min\n"
        assert "no: 1 min" in everloop(here, "pool", "policy").stdout
        with pytest.raises(Invalid, match="grace: 'soon' is no time"):
            client.set_policy({"grace": "soon"})
        client.set_policy({each["name"]: "default" for each in client.policy()["rules"]})

        assert everloop(here, "budget", "prices", "--core-hour", "0.04").returncode == 0
        spent = everloop(here, "budget", "set", "--lifecycle", "revoked", "--core-hours", "0")
        assert spent.stdout == "lifecycle revoked may spend 0.000 core-hours\n", spent.stderr
        client.wait("revoked", until=lambda now: "the budget of lifecycle revoked is spent" in now["wait"], timeout=90)
        assert client.show("revoked")["wait"].startswith("Waiting for more budget in queue default")
        assert "spent: it waits" in everloop(here, "budget", "list").stdout
        raised = everloop(here, "budget", "set", "--lifecycle", "revoked", "--core-hours", "none")
        assert raised.stdout == "lifecycle revoked has no budget any more\n", raised.stderr
        next_lease(client, "revoked", token)
        client.cancel("revoked")
        assert everloop(here, "advice").returncode == 0
        assert "EUR" in everloop(here, "cost", "--by", "lifecycle").stdout
        assert {queue["id"] for queue in client.pool()["queues"]} == {"default", "vision"}
        with pytest.raises(Invalid, match="below each other"):
            client.apply_queues({"queues": {"a": {"parent": "b"}, "b": {"parent": "a"}}})
    shown = everloop(here, "pool")
    assert "held now" in shown.stdout and "vision" in shown.stdout, shown.stderr
    assert "a test" in everloop(here, "lease", "explain", str(held["token"])).stdout


def next_lease(client: Client, lifecycle: str, than: int) -> int:
    """The token of its lease, once it has a newer one *than* that."""
    found: list[int] = []

    def taken(_: dict[str, Any]) -> bool:
        found[:] = [
            each["token"] for each in client.leases() if each["lifecycle"] == lifecycle and each["token"] > than
        ]
        return bool(found)

    client.wait(lifecycle, until=taken, timeout=90)
    return found[0]


def test_a_second_up_is_refused_with_the_url_of_the_first(running, here):
    second = everloop(here, "up")

    assert second.returncode == 1
    assert here.api_url in second.stderr
    assert "everloop down" in second.stderr
    assert everloop(here, "reset", "--yes").returncode == 1


def test_a_killed_child_is_started_again(running, here):
    victim = next(process for process in stack.members(here) if process.command.endswith("-m api"))

    os.kill(victim.pid, signal.SIGKILL)

    with Client(data_dir=here.data_dir) as client:
        assert client.list() is not None  # the client waits out the restart
    assert "api ended (killed by SIGKILL)" in running.output.read_text()


def test_what_an_ended_lifecycle_kept_for_a_second_attempt_is_removed_and_its_logs_stay(running, here):
    store = Store(here.database)
    with store.read() as session:
        run_id = session.exec(select(LifecycleRow.run_id).where(LifecycleRow.id == "first")).one()
    store.close()
    assert list((here.logs_dir / "jobs" / run_id).glob("train.*/1.log"))

    deadline = time.monotonic() + 60
    while (here.scratch_dir / "jobs" / run_id).exists():
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.2)

    assert list((here.logs_dir / "jobs" / run_id).glob("train.*/1.log"))
    assert everloop(here, "logs", "first").returncode == 0


def test_ctrl_c_ends_everything_in_order(running, here):
    members = stack.members(here)

    os.killpg(running.process.pid, signal.SIGINT)
    code = running.process.wait(60)

    assert code == 0
    assert len(members) >= 8
    assert all(process.gone() for process in members)
    assert not (here.data_dir / "up.json").exists()
    assert "nothing runs" in everloop(here, "down").stdout


def test_after_kill_9_of_everything_the_next_up_goes_on_with_the_same_lifecycle(here, spec):
    killed = Launcher(here)
    killed.ready()
    with Client(data_dir=here.data_dir) as client:
        lifecycle = client.submit(spec, "killed")["id"]
        client.wait(lifecycle, until=lambda now: now["stage"] in ("prepare", "train"), timeout=60, every=0.05)
        assert client.show(lifecycle)["status"] == "running"
    killed.kill_everything()

    launcher = Launcher(here, "--json")
    up = json.loads(launcher.ready().splitlines()[-1])  # before it, a line for each attempt taken over
    with Client(data_dir=here.data_dir) as client:
        found = client.wait(lifecycle, until="gate", timeout=60)

    assert up["login_url"].startswith(here.api_url)
    assert up["temporal_ui_url"] == here.temporal_ui_url
    assert found["status"] == "waiting_approval"
    finished = [stage["stage"] for stage in found["stages"] if stage["status"] == "done"]
    assert len(finished) == len(set(finished))  # no stage was done twice
    assert everloop(here, "journal", "verify").returncode == 0


def test_after_all_of_it_what_the_time_was_for_sums_up_to_all_there_was(here):
    """Real runs, one of them killed with everything else by kill -9: capacity times time, to the millisecond."""
    with Client(data_dir=here.data_dir) as client:
        found = client.cost("lifecycle", "1d")
        cores = {device["name"]: device["whole"]["cores"] for device in client.pool()["devices"]}
    store = Store(here.database)
    with store.read() as session:
        rows = session.exec(select(DeviceTimeRow).where(DeviceTimeRow.kind == "there")).all()
    store.close()

    until, since = found["to_ms"], found["from_ms"]
    there = sum(row.cores * (min(row.to_ms or until, until) - max(row.from_ms, since)) for row in rows)
    assert found["problem"] == ""
    assert found["capacity"]["core_ms"] == there > 0
    assert sum(kind["core_ms"] for kind in found["kinds"].values()) == there
    assert found["kinds"]["useful"]["core_ms"] > 0
    assert {"first", "killed", "revoked"} <= {row["name"] for row in found["rows"]}
    assert sum(cores.values()) == sum(row.cores for row in rows if not row.to_ms)


def test_kill_9_of_the_launcher_alone_leaves_nothing_and_down_says_so(here):
    up = stack.read(here)
    assert up is not None  # the stack of the test above
    members = stack.members(here)

    os.kill(up.pid, signal.SIGKILL)

    assert not stack.wait_gone(members, 60)
    assert "nothing runs" in everloop(here, "down").stdout
    assert everloop(here, "reset", "--yes").returncode == 0
    assert list(here.data_dir.iterdir()) == []
