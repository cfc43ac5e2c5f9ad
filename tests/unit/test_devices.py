"""Cards, MIG slices and simulated GPUs as the pool sees them; the NVML path over a library that is compiled here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from activities.jobs import gpu
from everloop import isolation
from everloop import settings as configuration
from everloop.errors import ComputeLost, Invalid
from everloop.records import Member
from tests import nvml
from workers import devices

ASK = """
import json, sys
from workers import devices
from everloop import settings
found = devices.find(settings.load(data_dir="/tmp/none"))
print(json.dumps([[d.name, d.environment, d.milli_gpu, d.gpu_mib, d.light,
                   [sorted(p.cores) for p in found.plugins(d)]] for d in found.slots()]))
"""
CARDS = "GPU GPU-bb 81920\nGPU GPU-aa 81920 lost\nGPU GPU-cc 81920 mig\nMIG MIG-c2 20480\nMIG MIG-c1 40960\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return nvml.compiled(tmp_path_factory.mktemp("nvml"))


def run(library: Path, folder: Path, code: str, cards: str = CARDS, **more: str) -> subprocess.CompletedProcess[str]:
    (folder / "cards").write_text(cards)
    return subprocess.run(
        [sys.executable, "-c", code], env=nvml.environment(library, folder / "cards") | more,
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def test_cards_are_found_by_uuid_slices_instead_of_their_card_and_one_that_is_lost_hides_no_other(library, tmp_path):
    told = run(library, tmp_path, ASK)

    found = {name: rest for name, *rest in json.loads(told.stdout)}
    assert list(found) == ["gpu-bb", "mig-c1", "mig-c2", "cpu0"]
    visible = {name: rest[0]["CUDA_VISIBLE_DEVICES"] for name, rest in found.items()}
    assert visible == {"gpu-bb": "GPU-bb", "mig-c1": "MIG-c1", "mig-c2": "MIG-c2", "cpu0": ""}
    amounts = {name: rest[1:3] for name, rest in found.items()}
    assert amounts == {"gpu-bb": [1000, 81408], "mig-c1": [500, 40448], "mig-c2": [250, 19968], "cpu0": [0, 0]}
    assert found["gpu-bb"][4] == [[0]]  # dask_cuda's plugin, with the cores that NVML says
    assert "GPU 1 is left out, it does not answer" in told.stderr


def test_without_cards_there_are_cores_and_nothing_is_simulated(library, tmp_path):
    assert [name for name, *_ in json.loads(run(library, tmp_path, ASK, cards="").stdout)] == ["cpu0", "cpu1"]
    told = run(library, tmp_path, ASK, cards="", EVERLOOP_DEVICES="nvml")
    assert "NVML finds no GPU here" in told.stderr
    (told,) = json.loads(run(library, tmp_path, ASK, EVERLOOP_DEVICES="cpu", EVERLOOP_SLOTS="1").stdout)
    assert told[0] == "cpu0"


def test_dask_cuda_runs_unmodified_with_one_worker_for_each_card(library, tmp_path):
    code = """
from dask_cuda import LocalCUDACluster
from distributed import Client
import os
if __name__ == "__main__":
    asked = {"device_memory_limit": 1 << 30, "dashboard_address": None, "memory_limit": None, "protocol": "tcp"}
    with LocalCUDACluster(CUDA_VISIBLE_DEVICES=["GPU-bb", "GPU-dd"], **asked) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        names = sorted(str(each["name"]) for each in client.scheduler_info(n_workers=-1)["workers"].values())
        seen = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], sorted(os.sched_getaffinity(0))))
        print(names, sorted(seen.values()))
"""
    (tmp_path / "dask.py").write_text(code)
    runner = f"import runpy; runpy.run_path({str(tmp_path / 'dask.py')!r}, run_name='__main__')"
    told = run(library, tmp_path, runner, cards="GPU GPU-bb 81920\nGPU GPU-dd 81920\n")

    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("['GPU-bb', 'GPU-dd']"), told.stdout
    assert "('GPU-bb,GPU-dd', [0])" in told.stdout  # it sees both cards: why a slot of ours is a process of one card


SEES = """
from activities.jobs import gpu
from everloop.records import Member
gpu.check(Member(device="gpu-bb", milli_gpu=500, gpu_mib=1000))
print("sees it")
"""


def test_a_job_sees_the_card_of_its_lease_before_any_code_of_a_user_runs(library, tmp_path):
    assert run(library, tmp_path, SEES, CUDA_VISIBLE_DEVICES="GPU-bb").stdout == "sees it\n"
    other = run(library, tmp_path, SEES, CUDA_VISIBLE_DEVICES="GPU-bb,GPU-cc").stderr
    assert "the lease is of GPU-bb, and this process sees GPU-bb,GPU-cc" in other
    gone = run(library, tmp_path, SEES, cards="GPU GPU-cc 81920\n", CUDA_VISIBLE_DEVICES="GPU-bb").stderr
    assert "ComputeLost: the driver does not know GPU-bb here: Not Found" in gone


def test_a_job_without_a_gpu_sees_none_of_its_device(monkeypatch):
    monkeypatch.setenv(gpu.VISIBLE, "GPU-bb")
    gpu.check(Member(device="gpu-bb"))
    assert gpu.os.environ[gpu.VISIBLE] == ""
    with pytest.raises(ComputeLost, match="sees no GPU"):
        gpu.check(Member(device="gpu-bb", milli_gpu=1000))


def test_simulated_gpus_are_there_when_asked_for_and_named_so(monkeypatch, tmp_path):
    monkeypatch.setenv("EVERLOOP_DEVICES", "sim:2x16000")
    found = devices.find(configuration.load(data_dir=tmp_path)).slots()
    assert [(one.name, one.milli_gpu, one.gpu_mib) for one in found] == [
        ("sim-0", 1000, 16000), ("sim-1", 1000, 16000), ("cpu0", 0, 0),
    ]  # fmt: skip
    assert {one.environment["CUDA_VISIBLE_DEVICES"] for one in found} == {""}
    for wrong in ("sim:none", "sim:0x1", "cuda"):
        monkeypatch.setenv("EVERLOOP_DEVICES", wrong)
        with pytest.raises(Invalid, match="EVERLOOP_DEVICES"):
            devices.find(configuration.load(data_dir=tmp_path))


@pytest.mark.parametrize(
    ("device", "milli_gpu", "whole", "level", "words"),
    [
        ("gpu-a", 500, 1000, "E1", "shared, not fenced"),
        ("gpu-a", 1000, 1000, "E1", "the whole GPU, nobody else is on it"),
        ("mig-a", 142, 142, "E4", "a MIG slice of its own"),
        ("mig-a", 70, 142, "E1", "shared, not fenced"),
        ("gpu-a", 0, 1000, "", ""),
    ],
)
def test_the_level_of_a_lease_is_what_it_has_and_not_what_was_hoped_for(device, milli_gpu, whole, level, words):
    assert isolation.granted(device, milli_gpu, whole) == (level, words)


@pytest.mark.parametrize("level", ["E2", "E3"])
def test_levels_that_nobody_has_run_are_refused_with_the_reason(level):
    assert "is not verified on hardware" in isolation.refused(level)
