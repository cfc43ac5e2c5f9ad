"""Parts of GPUs: never more than a device has by share or by memory, gangs whole or not at all, levels as they are.

Each invariant is shown to see the fault that it is there for: a planted one has to break it.
"""

import random

import pytest
from pydantic import ValidationError
from sqlmodel import select

from activities import lease_ledger as ledger
from activities.caller import Caller
from activities.lease_policy import apply, decide, room
from activities.lease_policy.pool import Pool
from activities.lease_policy.state import Amount, Device, Grant, Policy, PoolState, Queue, Request
from everloop import isolation
from everloop.contracts import LeaseRequest
from everloop.errors import Invalid
from everloop.isolation import Part
from everloop.resources import Resources
from everloop.store import DeviceRow, LeaseMemberRow, LeaseRow
from tests import nvml, stores
from tests.unit import lease_checker as checker
from tests.unit.test_devices import run

CARD = Amount(16, 64_000, 1000, 16_000)
SLICE = Amount(4, 16_000, 250, 4_000)
PARTS = (
    Amount(1, 100, 250, 3000), Amount(1, 100, 250, 9000), Amount(1, 100, 500, 2000), Amount(2, 100, 500, 8000),
    Amount(1, 100, 340, 5000), Amount(4, 100, 1000, 16_000), Amount(1, 100, 100, 0),
)  # fmt: skip
GANGS = ((1, 1), (1, 1), (2, 2), (3, 4), (1, 3), (4, 4))


def broken(seed: int, rounds: int = 40) -> list[str]:
    """What is wrong with the decisions about requests that come and leases that end, on cards and slices."""
    numbers, policy = random.Random(seed), Policy(min_runtime_s=0)
    kinds = [numbers.choice((CARD, CARD, SLICE)) for _ in range(4)]
    state = PoolState(tuple(Device(f"gpu-{n}", f"node{n // 2}", kind) for n, kind in enumerate(kinds)), (Queue("q"),))
    found: list[str] = []
    for number in range(rounds):
        now = 1000 * number
        low, high = numbers.choice(GANGS)
        asked = Request(f"r{number}", number, now, "q", numbers.choice(PARTS), members_min=low, members_max=high)
        gone = {held.token for held in state.held if numbers.random() < 0.25}
        held = tuple(one for one in state.held if one.token not in gone)
        state = state._replace(waiting=(*state.waiting, asked), held=held)
        for one in decide(state, now, policy, 1000):
            before, state = state, apply(state, (one,), now, 1000 * number + len(state.held) + 1)
            if isinstance(one, Grant):
                found += checker.given(one, before, state, now, policy)
        found += checker.gang(state)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_parts_of_gpus_are_never_given_twice_and_gangs_are_whole(seed):
    assert broken(seed) == []


def test_a_planted_over_commit_of_memory_is_seen(monkeypatch):
    real = room.fit
    monkeypatch.setattr(room, "fit", lambda free, member: real(free, (*member[:3], 0)))
    assert any("uses more of" in each for seed in range(12) for each in broken(seed))


def test_a_planted_split_of_a_gang_is_seen(monkeypatch):
    real = Pool.place

    def split(self, line, shape, count, **more):
        found = real(self, line, shape, count, **more)
        return found[:-1] if found and count > 1 else found

    monkeypatch.setattr(Pool, "place", split)
    assert any("members" in each for seed in range(12) for each in broken(seed))


LAYOUTS = """
import os, random, sys
from pathlib import Path
from workers.devices import nvml
if len(sys.argv) > 1:
    real = nvml._of
    nvml._of = lambda pynvml, card: [*real(pynvml, card), nvml.Gpu(str(pynvml.nvmlDeviceGetUUID(card)), 1)]
numbers = random.Random(0)
for layout in range(40):
    lines, parents = [], set()
    for card in range(numbers.randrange(5)):
        mig = numbers.random() < 0.5
        lines.append(f"GPU GPU-{layout}-{card} 40960{' mig' if mig else ''}")
        parents |= {f"GPU-{layout}-{card}"} if mig else set()
        lines += [f"MIG MIG-{layout}-{card}-{n} 5120" for n in range(numbers.randrange(8) if mig else 0)]
    Path(os.environ["FAKE_NVML"]).write_text("\\n".join(lines) + "\\n")
    found = {gpu.uuid for gpu in nvml.found()}
    wrong = found & parents or found ^ {line.split()[1] for line in lines if line.split()[1] not in parents}
    print(*(["WRONG", *sorted(wrong)] if wrong else ["ok"]))
"""


def test_a_card_in_mig_mode_is_no_device_beside_its_slices(tmp_path):
    library = nvml.compiled(tmp_path)
    told = run(library, tmp_path, LAYOUTS)
    assert told.stdout.split() == ["ok"] * 40, told.stdout + told.stderr
    planted = run(library, tmp_path, f"import sys; sys.argv = ['-c', 'planted']\n{LAYOUTS}")
    assert "WRONG" in planted.stdout


# --- levels


def test_a_level_that_nobody_has_verified_is_refused_and_one_that_the_pool_lacks(tmp_path):
    with pytest.raises(ValidationError, match=r"E3 \(memory limits of the driver\) is not verified on hardware"):
        Resources(gpus=0.5, isolation="E3")
    with pytest.raises(ValidationError, match="take whole GPUs each, or none"):
        Resources.model_validate({"members": 2, "stages": {"train": {"gpus": 0.5}}})
    with pytest.raises(ValidationError, match="min: 3 is more than max, which is 2"):
        Resources.model_validate({"members": {"min": 3, "max": 2}})
    assert Resources.model_validate({"members": 2}).of("prepare").members is None
    with pytest.raises(Invalid, match="this pool has none"):
        isolation.slice_for(100, 0, [Part("gpu-a", 1000, 16_000)])
    slices = [Part("mig-a", 250, 4_000), Part("mig-b", 250, 4_000)]
    assert isolation.slice_for(100, 1000, slices) == slices[0]
    with pytest.raises(Invalid, match="more is asked for"):
        isolation.slice_for(500, 0, slices)
    with pytest.raises(Invalid, match="several kinds"):
        isolation.slice_for(100, 0, [*slices, Part("gpu-c", 1000, 16_000)])


def test_who_wants_a_slice_to_itself_gets_all_of_one_and_a_part_of_a_gpu_has_its_part_of_the_memory(tmp_path):
    store = stores.migrated(f"sqlite:///{tmp_path / 'everloop.db'}")
    names = [f"mig-{n}:node=one:cores=4:memory_mib=8000:milli_gpu=250:gpu_mib=4000" for n in range(2)]
    ledger.note_inventory(store, "p", names)
    for place, wants in enumerate(({"isolation": "E4"}, {"milli_gpu": 100}, {"isolation": "E4"})):
        asks = Caller(f"w{place}", "run", "")
        ledger.enqueue(store, LeaseRequest(id=f"r{place}", pool="p", **{"milli_gpu": 50} | wants), asks)
    ledger.grant(store, "p")
    with store.read() as session:
        leases = {lease.token: lease.request_id for lease in session.exec(select(LeaseRow)).all()}
        held = {leases[row.token]: row for row in session.exec(select(LeaseMemberRow)).all()}
        devices = session.exec(select(DeviceRow)).all()
    assert set(held) == {"r0", "r1"}  # no slice is left for the third
    assert held["r0"].milli_gpu == 250
    assert (held["r1"].milli_gpu, held["r1"].gpu_mib) == (100, 1600)
    assert held["r1"].device != held["r0"].device
    assert all(row.used_milli_gpu <= row.milli_gpu for row in devices)
    store.close()
