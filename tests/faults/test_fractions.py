"""Fractions of simulated GPUs on the whole stack: killed, none used twice, none left, and said for what they are."""

import random

import pytest

from everloop.client import Client
from everloop.errors import Invalid
from tests.faults import leases_harness as harness
from tests.faults.test_kill_each_stage import SEED, up, write_table
from tests.loop.test_stack import everloop


@pytest.mark.timeout(300)
def test_parts_of_gpus_are_shared_as_they_are_said_to_be_and_none_is_used_twice(here, tmp_path, monkeypatch):
    print(f"EVERLOOP_TEST_SEED={SEED}")
    monkeypatch.setenv("EVERLOOP_DEVICES", "sim:2x16000")
    up(here)
    records, table = tmp_path / "records", write_table(tmp_path, random.Random(SEED))
    with Client(data_dir=here.data_dir) as client:
        wants = harness.recording(table, "apart", records, cpus=1, seconds=1, gpus=0.5)
        wants["resources"]["stages"]["train"]["isolation"] = "E4"
        with pytest.raises(Invalid, match="isolation E4 is a MIG slice, and this pool has none"):
            client.submit(wants, "apart")
        client.submit(harness.recording(table, "half", records, cpus=1, seconds=8, gpus=0.5, gpu_mib=4000), "half")
        (member,) = harness.eventually(
            lambda: [m for lease in client.leases() for m in lease["members"] if m["amounts"]["milli_gpu"]], 120
        )
        shown = " ".join(everloop(here, "pool").stdout.split())

    assert (member["isolation"], member["fenced"]) == ("E1", "shared, not fenced")
    assert member["amounts"]["gpu_mib"] == 4000
    assert "shared, not fenced" in shown
    assert "Simulated devices: the GPUs of this pool are not there" in shown
    harness.run(here, table, records, lifecycles=4, kills=2, seed=SEED, gpus=True)
    assert harness.overlaps(records, 4, 1000, 16_000) == []
    assert len(harness.spans(records)) >= 5
    assert harness.eventually(lambda: not harness.leaks(here), 60), harness.leaks(here)
    assert harness.unaccounted(here) == []
