"""The data folder is its owner's alone, and no log fills the disk."""

import errno
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from everloop import logs, stack

MIB = 1 << 20


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_nothing_in_an_old_open_data_folder_is_readable_by_others(attacked):
    found = {path: mode(path) for path in [attacked.data_dir, *attacked.data_dir.rglob("*")] if not path.is_symlink()}

    names = {path.name for path in found}
    assert {"everloop.db", "everloop.db-wal", "temporal.db", "old.log", "api.log", "dask.pem", "up.json"} <= names
    assert {path: oct(bits) for path, bits in found.items() if bits & 0o077} == {}
    said = (attacked.data_dir.parent / "up.out").read_text()
    assert "could be read by other users: only you can now" in said


def test_links_in_the_data_folder_open_or_close_nothing_elsewhere(attacked, tmp_path):
    here = replace(attacked, data_dir=tmp_path / "data")
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "file").write_text("theirs")
    (outside / "file").chmod(0o644)
    (here.data_dir / "artifacts").mkdir(parents=True)
    (here.data_dir / "artifacts").chmod(0o755)
    (here.data_dir / "artifacts" / "link").symlink_to(outside)

    assert "artifacts" in stack.close_to_others(here)

    assert (mode(outside), mode(outside / "file")) == (0o755, 0o644)
    assert mode(here.data_dir / "artifacts") == 0o700
    assert stack.close_to_others(here) == ""


def test_a_process_that_writes_without_end_keeps_going_and_its_log_stays_small(attacked):
    """The launcher minds every log of a process: here one more, of a program that never stops."""
    log = attacked.logs_dir / "flood.log"
    code = "import itertools, time\nfor n in itertools.count(): print(n, 'x' * 60_000, flush=True); time.sleep(0.002)"
    with log.open("ab") as output:
        flood = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=output)
    written = f"/proc/{flood.pid}/io"
    sizes = []
    deadline = time.monotonic() + 60
    try:
        while (done := _written(written)) < 5 * logs.LIMIT_BYTES:
            assert time.monotonic() < deadline, done
            sizes.append(log.stat().st_blocks * 512)
            time.sleep(0.05)
        assert flood.poll() is None
    finally:
        flood.kill()
        flood.wait()
    while log.stat().st_blocks * 512 > logs.LIMIT_BYTES + MIB:  # one more look of the launcher's
        assert time.monotonic() < deadline + 60
        time.sleep(0.05)

    last = logs.last_words(log, 1)
    assert max(sizes) < done * 0.7  # how often the launcher looks depends on the machine
    assert "x" * 2000 in last
    log.unlink()


def _written(path: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith("wchar"))


def test_a_log_that_is_too_large_keeps_its_last_lines_and_says_what_it_dropped(tmp_path):
    log = tmp_path / "one.log"
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))

    assert logs.bound(log, limit=MIB, kept=MIB // 2)
    assert not logs.bound(log, limit=MIB, kept=MIB // 2)

    text = log.read_text().lstrip("\0")
    assert len(text) < MIB // 2 + 100
    assert log.stat().st_blocks * 512 < MIB
    assert text.startswith("[older lines were dropped")
    assert text.splitlines()[1].startswith("line ")
    assert text.endswith("line 99998\nline 99999\n")


@pytest.mark.parametrize("holes", [True, False], ids=["a disk with holes", "a disk without"])
def test_who_follows_a_log_gets_every_line_once_however_often_it_is_cut(tmp_path, monkeypatch, holes):
    """A writer that appends, a cutter, and a reader that has always read what there was before the cut."""
    log, told, at = tmp_path / "one.log", b"", 0
    if not holes:
        monkeypatch.setattr(logs, "_punch", _no_holes)
    with log.open("ab", buffering=0) as writer:
        for number in range(40_000):
            writer.write(b"line %d\n" % number)
            if number % 500 == 499:
                while True:
                    data, at = logs.piece(log, at, 1 << 16)
                    if not data:
                        break
                    told += data
                logs.bound(log, limit=100_000, kept=50_000)
    lines = [line for line in told.splitlines() if not line.startswith(b"[older")]

    if holes:
        assert lines == [b"line %d" % number for number in range(40_000)]
    else:  # it begins again with what was kept: nothing is lost, and some comes twice
        assert set(lines) == {b"line %d" % number for number in range(40_000)}


def _no_holes(_file, _size):
    raise OSError(errno.EOPNOTSUPP, "not supported")


def test_who_comes_late_is_told_that_lines_are_missing(tmp_path):
    log = tmp_path / "one.log"
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    logs.bound(log, limit=MIB, kept=MIB // 2)

    data, at = logs.piece(log, 70, 200)
    more, end = logs.piece(log, at, MIB)

    assert data.startswith(b"[older lines were dropped here: a log keeps its last 0 MiB]\nline ")
    assert (data + more).endswith(b"line 99999\n")
    assert logs.piece(log, end, MIB) == (b"", end)


def test_the_oldest_logs_of_jobs_go_when_all_together_are_too_large(tmp_path):
    folder = tmp_path / "logs" / "jobs"
    for age in range(5):
        log = folder / f"run{age}" / "train.1" / "1.log"
        log.parent.mkdir(parents=True)
        log.write_text("x" * 1000)
        then = time.time() - age * 100
        os.utime(log, (then, then))

    logs.bound_all(folder, limit=2500)

    assert sorted(path.name for path in folder.iterdir()) == ["run0", "run1"]
