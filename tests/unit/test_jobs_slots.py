"""What jobs run on: certificates, slots and their workers, and what each may use."""

import os
import signal
import ssl
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from activities.jobs.security import security
from everloop import engine
from everloop import settings as configuration
from everloop.errors import Invalid, Unavailable
from everloop.settings import Settings
from workers import cluster, connect, devices


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, temporal_address="127.0.0.1:9", session="s1")


def test_the_certificate_is_ours_alone_made_once_and_good_for_both_ends(settings):
    first = cluster.create_certificates(settings.keys_dir)
    content = first.read_bytes()

    assert cluster.create_certificates(settings.keys_dir).read_bytes() == content
    assert first.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in settings.keys_dir.iterdir()] == ["dask.pem"]
    args = security(settings).get_connection_args("client")
    assert args["require_encryption"]
    assert args["ssl_context"].verify_mode == ssl.CERT_REQUIRED


def test_without_a_certificate_the_error_says_who_makes_it(settings):
    with pytest.raises(Unavailable, match=r"dask\.pem is missing") as caught:
        security(settings)
    assert "everloop up" in caught.value.hint


def test_a_slot_whose_worker_is_killed_starts_another_and_ends_it_when_told(tmp_path):
    pids = tmp_path / "pids"
    code = textwrap.dedent(f"""
        import os, sys, time
        from workers import cluster
        def work():
            with open({str(pids)!r}, "a") as told:
                told.write(f"{{os.getpid()}}\\n")
            time.sleep(600)
            return 0
        sys.exit(cluster._kept_running(work))
    """)
    slot = subprocess.Popen([sys.executable, "-c", code], env=engine.environment())

    def told(count: int) -> int:
        deadline = time.monotonic() + 60
        while not pids.exists() or len(pids.read_text().split()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return int(pids.read_text().split()[-1])

    os.kill(told(1), signal.SIGKILL)
    second = told(2)
    slot.send_signal(signal.SIGTERM)

    assert slot.wait(60) == 0
    assert not Path(f"/proc/{second}").exists()


@pytest.mark.parametrize(("slots", "names", "light"), [(1, ["cpu0"], []), (3, ["cpu0", "cpu1", "cpu2"], ["cpu2"])])
def test_the_last_of_several_cpu_slots_is_for_checks(settings, monkeypatch, slots, names, light):
    monkeypatch.setattr(devices.nvml, "found", tuple)

    assert devices.slot_names(replace(settings, slots=slots)) == names
    assert devices.light_slots(replace(settings, slots=slots)) == light


@pytest.mark.parametrize(
    ("cores", "shares"), [(1, (1, 1)), (2, (1, 1)), (3, (1, 1)), (4, (2, 1)), (16, (14, 1)), (64, (62, 1))]
)
def test_without_a_word_the_default_pool_uses_the_machine(settings, cores, shares):
    assert devices.shares(replace(settings, slots=0), cores) == shares
    assert devices.shares(replace(settings, slots=3, slot_cores=4), cores) == (4, 4, 4)


def test_the_memory_of_the_machine_is_shared_by_the_cores():
    found = devices.CpuDevices((6, 2), 8000).slots()

    assert [(device.name, device.cores, device.memory_mib, device.light) for device in found] == [
        ("cpu0", 6, 6000, False),
        ("cpu1", 2, 2000, True),
    ]


def test_a_gpu_slot_sees_its_own_gpu_and_the_check_slot_none():
    slots = devices.NvmlDevices((devices.Gpu("GPU-1a-2b", 8000),)).slots()

    assert [(slot.name, slot.light) for slot in slots] == [("gpu-1a-2b", False), ("cpu0", True)]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["GPU-1a-2b", ""]


async def test_a_temporal_that_does_not_answer_is_named_with_what_to_do(settings):
    with pytest.raises(Unavailable, match=r"Temporal at 127\.0\.0\.1:9 does not answer") as caught:
        await connect.connect(settings, "test", wait_seconds=0.3)
    assert "everloop up" in caught.value.hint


def test_the_settings_say_what_a_slot_may_use_and_a_wrong_interval_is_named(monkeypatch):
    monkeypatch.setenv("EVERLOOP_SLOT_CORES", "4")
    monkeypatch.setenv("EVERLOOP_CHECKPOINT_SECONDS", "2.5")
    loaded = configuration.load()
    assert (loaded.slot_cores, loaded.checkpoint_seconds) == (4, 2.5)
    assert loaded.environment()["EVERLOOP_CHECKPOINT_SECONDS"] == "2.5"
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("EVERLOOP_CHECKPOINT_SECONDS", wrong)
        with pytest.raises(Invalid, match="EVERLOOP_CHECKPOINT_SECONDS must be a number of seconds"):
            configuration.load()
