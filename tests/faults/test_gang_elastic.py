"""A gang on the whole stack that loses a device for good: it goes on from its checkpoint with one rank fewer."""

import json
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from sklearn.datasets import load_digits
from sqlmodel import col, select

from everloop import stack
from everloop.client import Client
from everloop.errors import InvalidSpec
from everloop.store import LeaseMemberRow, LeaseRow, Store
from tests.faults import leases_harness as harness
from tests.faults.leases_harness import eventually
from tests.loop.test_stack import Launcher, everloop

EXAMPLE = Path(__file__).parents[2] / "examples" / "trainers" / "torch_ddp"
LIFECYCLE = "gang"


def spec_of(folder: Path) -> dict:
    """scikit-learn's digits, as a stranger would bring them, and the example as somebody has copied it."""
    digits = load_digits(as_frame=True).frame.rename(columns={"target": "digit"})
    digits.to_csv(folder / "digits.csv", index=False)
    shutil.copytree(EXAMPLE, folder / "ddp")
    return {
        "model": "digits", "task": "multiclass", "target": "digit", "source": {"path": str(folder / "digits.csv")},
        "trainer": "ddp:fit", "code": str(folder / "ddp"), "inputs": "features", "metric": "accuracy",
        "params": {"epochs": 200, "width": 32, "rate": 0.0004}, "until": "train",
        "resources": {"members": {"min": 2, "max": 3}},
    }  # fmt: skip


@pytest.mark.timeout(500)
def test_a_gang_that_loses_a_device_goes_on_with_fewer_ranks(here, tmp_path, monkeypatch):
    for name, value in {"SLOTS": "4", "AWAY_SECONDS": "3", "CHECKPOINT_SECONDS": "0.2"}.items():
        monkeypatch.setenv(f"EVERLOOP_{name}", value)
    Launcher(here).ready()
    store, spec = Store(here.database), spec_of(tmp_path)
    with Client(data_dir=here.data_dir) as client:
        with pytest.raises(InvalidSpec, match=r"lightgbm learns in one process"):
            client.submit(spec | {"trainer": "lightgbm", "code": "", "inputs": "raw", "params": {}})
        client.submit(spec, LIFECYCLE)
        eventually(lambda: list(here.checkpoints_dir.glob("*/training.train/*/[0-9]*/[0-9]*")), 180)
        slot = next(each.pid for each in stack.members(here) if each.command.endswith("slot cpu1"))
        tree = psutil.Process(slot).children(recursive=True)
        os.kill(slot, signal.SIGSTOP)  # nobody starts the Dask worker again
        for process in tree:
            process.kill()
        try:
            found = client.wait(LIFECYCLE, timeout=240)
        finally:
            os.kill(slot, signal.SIGCONT)
        curves = [client.curves(LIFECYCLE, rank) for rank in (0, 1)]
        logs = [client.logs(LIFECYCLE, "train", rank=rank) for rank in (0, 1)]
    shown = everloop(here, "show", LIFECYCLE).stdout

    assert found["status"] == "done", found
    (train,) = [stage for stage in found["stages"] if stage["stage"] == "train" and stage["status"] == "done"]
    assert train["metrics"]["accuracy"] > 0.9
    assert [each["device"] for each in train["ran"]["members"]] == ["cpu0", "cpu2"]
    assert train["ran"]["resumed"]["step"] > 0
    assert "2 processes together (cpu0, cpu2)" in " ".join(shown.split())
    assert len(curves[0][0]["steps"]) > 1
    assert len(curves[1][0]["steps"]) > 1
    assert "resumed at epoch" in logs[0]
    assert logs[1] != logs[0]
    with store.read() as session:
        gangs = [row.token for row in session.exec(select(LeaseRow).order_by(col(LeaseRow.token)))]
        sizes = [len(session.exec(select(LeaseMemberRow).where(LeaseMemberRow.token == one)).all()) for one in gangs]
    assert sizes == [1, 3, 2], sizes  # to prepare, the gang, and the gang without the device
    assert json.loads(everloop(here, "curves", LIFECYCLE, "--rank", "1", "--json").stdout)
    assert eventually(lambda: not harness.leaks(here), 60), harness.leaks(here)
    assert harness.unaccounted(here) == []
    store.close()
