"""The data folder is its owner's alone, and no log fills the disk."""

import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

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
    time.sleep(0.5)  # one more look of the launcher's

    last = logs.last_words(log, 1)
    assert max(sizes) < done * 0.7  # how often the launcher looks depends on the machine
    assert log.stat().st_size <= logs.LIMIT_BYTES + MIB
    assert "x" * 2000 in last
    log.unlink()


def _written(path: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith("wchar"))


def test_a_log_that_is_too_large_keeps_its_last_lines(tmp_path):
    log = tmp_path / "one.log"
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))

    assert logs.bound(log, limit=MIB, kept=MIB // 2)
    assert not logs.bound(log, limit=MIB, kept=MIB // 2)

    text = log.read_text()
    assert len(text) < MIB
    assert text.startswith("[older lines were dropped")
    assert text.endswith("line 99998\nline 99999\n")


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
