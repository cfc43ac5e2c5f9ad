"""The data folder: who may start on it, what is refused, what `down` and `reset` do."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from everloop import settings as configuration
from everloop import signing, stack
from everloop.errors import Conflict, IntegrityError
from everloop.settings import Settings
from everloop.store import Store
from tests import api_parts as parts
from tests.conftest import free_port_base
from workers import temporal
from workers.dev import checks, children, launcher
from workers.temporal import CannotStart


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    made = configuration.load(data_dir=tmp_path / "data", port_base=free_port_base())
    stack.claim(made)
    return made


def sleeper(environment: dict[str, str], *, deaf: bool = False) -> "subprocess.Popen[bytes]":
    code = "import signal, time; " + ("signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else "")
    process = subprocess.Popen(
        [sys.executable, "-c", code + "print('on', flush=True); time.sleep(60)"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_folder_with_other_files_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(stack.ForeignFolder):
        stack.claim(configuration.load(data_dir=tmp_path))

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_only_holds_another_stacks_folder_is_taken(tmp_path):
    stack.claim(configuration.load(data_dir=tmp_path / "demo"))

    stack.claim(configuration.load(data_dir=tmp_path))

    assert (tmp_path / stack.MARKER).exists()


def test_a_file_is_no_data_folder(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(stack.ForeignFolder, match="is a file"):
        stack.claim(configuration.load(data_dir=tmp_path / "file"))


def test_a_second_launcher_is_refused_while_the_first_holds_the_folder(here):
    held = stack.lock(here)

    with pytest.raises(stack.AlreadyRunning, match="already runs") as refused:
        stack.lock(here)
    owner = stack.owner(here)
    held.close()

    assert "everloop down" in refused.value.hint
    assert owner is not None
    assert owner.pid == os.getpid()
    assert stack.owner(here) is None


def test_up_json_of_a_dead_process_does_not_count(here):
    process = sleeper({})
    up = stack.Up(
        process.pid, stack.start_time(process.pid), "up-1", here.port_base, "a", "b", "c", "d", str(here.data_dir)
    )
    stack.announce(up)
    alive = stack.read(here)
    process.kill()
    process.wait()

    assert alive == up
    assert stack.read(here) is None


def test_up_json_of_a_reused_pid_does_not_count(here):
    stack.announce(stack.Up(os.getpid(), 1, "up-1", here.port_base, "a", "b", "c", "d", str(here.data_dir)))

    assert stack.read(here) is None


def test_down_ends_what_an_earlier_launcher_left_and_nothing_else(here):
    mine = {"EVERLOOP_DATA_DIR": str(here.data_dir)}
    left = sleeper(mine | {"EVERLOOP_SESSION": "up-abc"}, deaf=True)
    other = sleeper({"EVERLOOP_DATA_DIR": f"{here.data_dir}-other", "EVERLOOP_SESSION": "up-abc"})
    shell = sleeper(mine)  # a user's shell has the folder in its environment too
    try:
        said = stack.down(here)

        assert str(left.pid) in said
        assert left.wait(60) == -signal.SIGKILL
        assert other.poll() is None
        assert shell.poll() is None
    finally:
        for process in (left, other, shell):
            process.kill()
            process.wait()


def test_down_without_anything_says_so(here):
    assert "nothing runs" in stack.down(here)


def test_reset_empties_only_a_folder_that_everloop_made(here, tmp_path):
    (here.data_dir / "artifacts").mkdir()
    (here.data_dir / "artifacts" / "blob").write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")

    stack.reset(here)
    with pytest.raises(stack.ForeignFolder):
        stack.reset(configuration.load(data_dir=foreign))

    assert list(here.data_dir.iterdir()) == []
    assert (foreign / "thesis.tex").exists()


def test_reset_leaves_another_stacks_folder_inside_alone(here):
    inner = configuration.load(data_dir=here.data_dir / "demo")
    stack.claim(inner)

    stack.reset(here)

    assert (inner.data_dir / stack.MARKER).exists()
    assert not (here.data_dir / stack.MARKER).exists()


def test_reset_follows_no_link_out_of_the_folder(here, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (here.data_dir / "artifacts").symlink_to(outside)

    stack.reset(here)

    assert (outside / "kept").exists()


def test_reset_is_refused_while_the_stack_runs(here):
    held = stack.lock(here)

    with pytest.raises(Conflict, match="nothing is removed"):
        stack.reset(here)

    held.close()
    assert (here.data_dir / stack.MARKER).exists()


# --- a start that cannot work says what to do


def test_a_taken_port_is_named(here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", here.port(1)))
        taken.listen()

        with pytest.raises(CannotStart, match=str(here.port(1))) as refused:
            checks.check_ports(here)

    assert "--port-base" in refused.value.hint


def test_a_database_of_something_else_is_refused(here):
    with sqlite3.connect(here.data_dir / "everloop.db") as foreign:
        foreign.execute("CREATE TABLE songs (title TEXT)")

    with pytest.raises(CannotStart, match="not a database of Everloop"):
        checks.check_database(here)


def test_a_file_that_is_no_database_is_refused(here):
    (here.data_dir / "everloop.db").write_text("not a database, and long enough to be read as one " * 100)

    with pytest.raises(CannotStart, match="cannot be opened"):
        checks.check_database(here)


def test_a_database_of_a_newer_release_is_refused(here):
    store = Store(here.database)
    store.migrate()
    store.close()
    checks.check_database(here)
    with sqlite3.connect(here.data_dir / "everloop.db") as newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(CannotStart, match="newer release"):
        checks.check_database(here)


def test_too_little_space_is_said(here, monkeypatch):
    usage = shutil.disk_usage(here.data_dir)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage._replace(free=100 << 20))

    with pytest.raises(CannotStart, match="100 MiB are free"):
        checks.check_space(here.data_dir, here.disk_floor_bytes)


def test_a_stack_in_which_a_child_ends_at_once_does_not_come_up_and_says_its_last_words(here, monkeypatch):
    here.logs_dir.mkdir()
    said: list[str] = []
    broken = children.Child("broken", "this_module_is_not_there")
    life = launcher.Stack(here, [broken], say=said.append)
    monkeypatch.setattr(children, "FIRST_PAUSE_SECONDS", 0.01)

    with pytest.raises(CannotStart, match="No module named this_module_is_not_there"):
        life.mind()

    assert len(said) == launcher.GIVE_UP_AFTER - 1


def test_a_slot_that_fails_again_and_again_is_tried_with_back_off_while_the_others_live(here, monkeypatch):
    """As when a job breaks its slot's connection each time that it is tried."""
    here.logs_dir.mkdir()
    said: list[str] = []
    slot = children.Child("cpu0", "slot_that_breaks")
    steady = children.Child("steady", "http.server", (str(here.port(0)), "--bind", "127.0.0.1"))
    mended = here.data_dir / "mended"
    (here.data_dir / "slot_that_breaks.py").write_text(
        f"import pathlib, time\ntime.sleep(60) if pathlib.Path({str(mended)!r}).exists() else print(1 / 0)\n"
    )
    monkeypatch.syspath_prepend(here.data_dir)
    monkeypatch.setattr(children, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(children, "LONGEST_PAUSE_SECONDS", 0.08)
    life = launcher.Stack(here, [steady, slot], is_up=True, say=said.append)
    steady.start(here)
    other = steady.process
    try:
        while slot.quick_ends < launcher.GIVE_UP_AFTER + 2:
            life.tend()
        mended.touch()
        while not slot.alive() or slot.process.exitcode is not None:
            life.tend()
        assert other is steady.process and steady.alive()
    finally:
        life.stop()

    pauses = [float(line.split(" s; ")[0].rpartition(" ")[2]) for line in said if "starting it again in" in line]
    assert pauses[: launcher.GIVE_UP_AFTER + 2] == [0.01, 0.02, 0.04, 0.08, 0.08, 0.08, 0.08]
    (once,) = [line for line in said if "Everything else goes on" in line]
    assert once.startswith(f"cpu0 ended {launcher.GIVE_UP_AFTER} times soon after its start (exit code 1). ")
    assert "ZeroDivisionError" in once


def test_a_child_that_ends_later_is_started_again(here):
    here.logs_dir.mkdir()
    said: list[str] = []
    child = children.Child("steady", "http.server", (str(here.port(0)), "--bind", "127.0.0.1"))
    life = launcher.Stack(here, [child], say=said.append)
    child.start(here)
    first = child.process
    assert first is not None
    try:
        first.kill()
        first.join()
        while child.process is first or child.process is None:
            life.tend()
        assert child.alive()
        assert "SIGKILL" in said[0]
    finally:
        life.stop()
    assert not child.alive()


def test_stopping_leaves_no_process_even_if_one_does_not_listen(here, monkeypatch):
    here.logs_dir.mkdir()
    monkeypatch.setattr(children, "GRACE_SECONDS", 0.3)
    deaf = here.data_dir / "deaf.py"
    deaf.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(here.data_dir)
    child = children.Child("deaf", "deaf", ())
    life = launcher.Stack(here, [child])
    child.start(here)

    life.stop()

    assert not child.alive()
    assert not stack.members(here)


def test_a_temporal_file_that_is_something_else_is_refused_and_kept(here):
    database = here.data_dir / "temporal.db"
    database.write_bytes(b"years of work" * 1000)

    with pytest.raises(CannotStart, match="not a SQLite database") as refused:
        temporal.start(database, here.port(3), None, here.logs_dir / "temporal.log")

    assert "backup" in refused.value.hint
    assert database.read_bytes() == b"years of work" * 1000


def test_a_server_that_ends_at_once_says_its_last_words(here):
    database = here.data_dir / "temporal.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE something_else (a)")
    connection.close()

    with pytest.raises(CannotStart, match="no such table"):
        temporal.start(database, here.port(3), None, here.logs_dir / "temporal.log")


def test_a_server_that_lost_a_port_to_another_program_is_started_again(here, monkeypatch, tmp_path):
    real, once = temporal.binary(), tmp_path / "once"
    unlucky = tmp_path / "temporal"
    lost = '{"msg":"Failed to start gRPC listener","error":"listen tcp 127.0.0.1:40937: bind: address already in use"}'
    unlucky.write_text(f"#!/bin/sh\nif mkdir {once} 2>/dev/null; then echo '{lost}'; exit 2; fi\nexec {real} \"$@\"\n")
    unlucky.chmod(0o755)
    monkeypatch.setattr(temporal, "binary", lambda: unlucky)

    server = temporal.start(here.data_dir / "temporal.db", here.port(3), None, here.logs_dir / "temporal.log")
    try:
        assert server.process.poll() is None
        assert once.exists()
    finally:
        server.stop()


def test_a_journal_without_its_histories_is_refused_and_so_are_histories_without_their_journal(here):
    store = Store(here.database)
    store.migrate()
    checks.check_histories(here)  # a first start that was cut short

    with store.write() as session:
        session.add(parts.lifecycle())
    with pytest.raises(CannotStart, match=r"temporal\.db") as refused:
        checks.check_histories(here)
    assert "backup" in refused.value.hint

    store.close()
    (here.data_dir / "everloop.db").unlink()
    (here.data_dir / "temporal.db").write_bytes(b"SQLite format 3")
    with pytest.raises(CannotStart, match=r"everloop\.db .* is gone"):
        checks.check_histories(here)


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b"])
def test_a_folder_whose_name_means_something_in_a_database_url_is_refused(tmp_path, name):
    with pytest.raises(stack.ForeignFolder, match="in its path"):
        stack.claim(configuration.load(data_dir=tmp_path / name))

    assert not (tmp_path / name).exists()


def test_a_broken_signing_key_is_said_and_a_missing_public_key_follows_from_it(here):
    signing.create_keys(here.keys_dir)
    public = (here.keys_dir / "signing.pub").read_text()
    (here.keys_dir / "signing.pub").unlink()

    signing.create_keys(here.keys_dir)
    assert (here.keys_dir / "signing.pub").read_text() == public
    assert (here.keys_dir / "signing.key").stat().st_mode & 0o077 == 0

    (here.keys_dir / "signing.key").write_text("")
    with pytest.raises(IntegrityError, match="holds no signing key") as refused:
        signing.create_keys(here.keys_dir)
    assert "backup" in refused.value.hint
    assert (here.keys_dir / "signing.key").read_text() == ""
