"""`decide` holds its invariants whatever happens to a pool (gpu.md 2.5), by a checker that shares no code with it."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from activities.lease_ledger import reservations
from activities.lease_policy import apply, decide, sentence, standing, unblocks
from activities.lease_policy.state import (
    VERSION,
    Amount,
    Counted,
    Device,
    Explain,
    Grant,
    Held,
    Kill,
    Notice,
    Part,
    Policy,
    PoolState,
    Queue,
    Request,
    Reserve,
    Withdraw,
)
from tests.faults.proof_leases import PLANTS, planted
from tests.unit.lease_machine import Pool
from tests.unit.lease_records import digest, plain

NOW = 1_700_000_000_000
LATER = NOW + 700_000
ONE = Amount(1)
QUIET = list(HealthCheck)


def request(name: str, queue: str = "a", member: Amount = ONE, **more: object) -> Request:
    return Request(name, int(name.strip("abcdefghijklmnopqrstuvwxyz") or 0), NOW, queue, member)._replace(**more)


def lease(token: int, asked: Request, *devices: str, state: str = "active", **more: object) -> Held:
    parts = tuple(Part(name, asked.member) for name in devices)
    return Held(token, asked, parts, state, NOW)._replace(**more)


def devices(*cores: int) -> tuple[Device, ...]:
    return tuple(Device(f"d{i}", "n", Amount(number, 1000)) for i, number in enumerate(cores))


def of(made: tuple, kind: type) -> list:
    return [one for one in made if isinstance(one, kind)]


def code(made: tuple, name: str) -> str:
    return next(one.code for one in made if isinstance(one, Explain) and one.request_id == name)


TWO = (Queue("a"), Queue("b"))


def test_whatever_happens_the_invariants_hold() -> None:
    run_state_machine_as_test(
        Pool,
        settings=settings(
            max_examples=300,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=QUIET,
        ),
    )


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_planted_fault_is_found(plant: str) -> None:
    with planted(plant), pytest.raises(AssertionError, match=PLANTS[plant].shows):
        PLANTS[plant].scene()


def test_the_starved_queue_gets_its_share_and_the_work_with_the_newest_checkpoint_makes_way() -> None:
    held = tuple(lease(i + 1, request(f"h{i}"), "d0", checkpoint_ms=NOW + 1000 * i) for i in range(4))
    state = PoolState(devices(4), TWO, (request("r9", "b"),), held)

    early = decide(state, NOW + 1000, Policy(), 100)
    made = decide(state, LATER, Policy(), 100)

    assert of(early, Notice) == []
    assert of(made, Notice) == [Notice(4, "r9", "reclaim", LATER + 60_000)]
    assert code(made, "r9") == "waits_for_notice"


def test_a_notice_is_withdrawn_when_its_beneficiary_fits_without_it() -> None:
    noticed = lease(1, request("h1"), "d0", state="noticed", beneficiary="r9", deadline_ms=LATER + 50_000)
    state = PoolState(devices(1, 1), TWO, (request("r9", "b"),), (noticed,))

    made = decide(state, LATER, Policy(), 100)

    assert [one.token for one in of(made, Withdraw)] == [1]
    assert [one.request_id for one in of(made, Grant)] == ["r9"]


def test_who_ignores_its_notice_is_killed_and_its_part_is_not_free_before_the_proof() -> None:
    noticed = lease(1, request("h1"), "d0", state="noticed", beneficiary="r9", deadline_ms=LATER - 1)
    state = PoolState(devices(1), TWO, (request("r9", "b"),), (noticed,))

    made = decide(state, LATER, Policy(), 100)
    after = apply(state, made, LATER, 2)

    assert [one.token for one in of(made, Kill)] == [1]
    assert of(decide(after, LATER + 1000, Policy(), 100), Grant) == []
    proven = after._replace(held=())
    assert [one.request_id for one in of(decide(proven, LATER + 2000, Policy(), 100), Grant)] == ["r9"]


def test_a_kill_does_not_change_whose_promise_is_kept_first_so_no_notice_is_given_and_withdrawn_at_once() -> None:
    held = (
        lease(1, request("h1"), "d0", state="killing", beneficiary="r30", deadline_ms=LATER - 1),  # its proof is late
        lease(2, request("h2"), "d1", state="noticed", beneficiary="r29", deadline_ms=LATER - 60_000),
        lease(3, request("h3"), "d1"),
        lease(4, request("h4"), "d1"),
    )
    asking = tuple(request(name, "a", Amount(2), priority=75) for name in ("r29", "r30"))
    state = PoolState(devices(1, 4), TWO[:1], asking, held)

    made = decide(state, LATER, Policy(), 100)

    assert [one.token for one in of(made, Kill)] == [2]
    assert [(one.token, one.beneficiary) for one in of(made, Notice)] == [(3, "r30"), (4, "r30")]
    assert of(made, Withdraw) == []
    again = decide(apply(state, made, LATER, 5), LATER, Policy(), 100)
    assert again == tuple(of(made, Explain))


def test_a_promise_that_needs_less_and_so_comes_first_is_kept_before_anybody_else_is_told_to_let_go() -> None:
    late, later = (
        {"state": "noticed", "deadline_ms": LATER + 8_000},
        {"state": "noticed", "deadline_ms": LATER + 20_000},
    )
    held = (
        lease(1, request("h1", member=Amount(2)), "d0", beneficiary="r1", **late),
        lease(2, request("h2"), "d1", beneficiary="r2", **later),
        lease(3, request("h3"), "d1", beneficiary="r2", **late),
        lease(4, request("h4"), "d2"),
        lease(5, request("h5"), "d2", state="killing", beneficiary="r2", deadline_ms=LATER + 29_000),
    )
    pairs = {"member": Amount(2), "members_min": 2, "members_max": 2, "priority": 75}
    pair = {"members_min": 2, "members_max": 2, "priority": 75}
    asking = (
        request("r0", **pair),
        request("r1", **pairs),
        request("r2", priority=75),
        request("r3", priority=75),
        request("r4", priority=75),
    )
    state = PoolState(devices(4, 2, 2), TWO[:1], asking, held)

    made = decide(state, LATER, Policy(), 100)

    assert [one.token for one in of(made, Withdraw)] == [2, 3, 1]
    assert [one.request_id for one in of(made, Grant)] == ["r2", "r3"]
    assert [(one.token, one.beneficiary) for one in of(made, Notice)] == [(2, "r0"), (3, "r0"), (4, "r4")]
    assert decide(apply(state, made, LATER, 6), LATER, Policy(), 100) == tuple(of(made, Explain))


def test_small_work_does_not_pass_a_starving_gang_for_ever_and_what_ends_before_its_start_passes() -> None:
    running = lease(1, request("h1", max_runtime_ms=3_600_000), "d0")
    gang = request("r2", "a", Amount(2), members_min=2, members_max=2, submitted_ms=NOW - 20_000_000)
    long, short = request("r3", "a"), request("r4", "a", max_runtime_ms=600_000)
    state = PoolState(devices(2, 2), TWO[:1], (gang, long, short), (running,))

    made = decide(state, LATER, Policy(), 100)

    assert of(made, Reserve) == [Reserve("r2", ("d0", "d1"), NOW + 3_600_000, (1,))]
    assert [one.request_id for one in of(made, Grant)] == ["r4"]
    assert code(made, "r3") == "reserved_for"
    kept = reservations.kept(state, made, LATER)  # r4 runs on the core beside h1, and ends before
    assert [(one.device, one.amount.cores, one.idle.cores, one.waits_for) for one in kept] == [
        ("d0", 2, 0, (1,)),
        ("d1", 2, 2, ()),
    ]


def test_who_fits_but_for_a_reservation_takes_nothing_from_anybody_and_so_does_not_pass_it() -> None:
    """Found by the proof: the small one was promised a lease's end, and then given what was reserved for the first."""
    running = lease(1, request("h1", "b", max_runtime_ms=3_600_000, preempted=9), "d0")
    low = lease(2, request("h2", "b"), "d1")
    first = request("r3", "b", Amount(2), priority=75)
    small = request("r4", "b", priority=75, submitted_ms=LATER)

    queues = (Queue("b", quota=Counted(4, 0)),)

    made = decide(PoolState(devices(2, 1), queues, (first, small), (running, low)), LATER, Policy(), 100)

    assert [one.request_id for one in of(made, Reserve)] == ["r3"]
    assert code(made, "r4") == "reserved_for"
    assert [*of(made, Notice), *of(made, Withdraw), *of(made, Grant)] == []


def test_what_is_being_killed_for_a_request_counts_when_more_is_taken_for_it() -> None:
    """Found by the proof: seven of six cores were held, one of them being killed, and another one was taken."""
    held = (
        lease(1, request("h1"), "away", state="killing", beneficiary="r9", deadline_ms=LATER + 60_000),
        *(lease(i, request(f"h{i}"), "d0") for i in range(2, 5)),
    )
    queues = (Queue("a", quota=Counted(3, 0)), Queue("b", quota=Counted(1, 0)))

    made = decide(PoolState(devices(3), queues, (request("r9", "b"),), held), LATER, Policy(), 100)

    assert of(made, Notice) == []


def test_a_reservation_does_not_keep_its_own_request_from_what_it_has_a_right_to() -> None:
    """Found by the proof: one core was free and one could be taken, but the free one was reserved for the same two."""
    held = (
        lease(1, request("h1", "b", max_runtime_ms=3_600_000), "d0"),
        lease(2, request("h2", "b", Amount(2), preemptible=False), "d0"),
    )
    first = request("r3", "b", Amount(2), priority=75)

    made = decide(PoolState(devices(4), TWO[1:], (first,), held), LATER, Policy(), 100)

    assert [(one.token, one.beneficiary) for one in of(made, Notice)] == [(1, "r3")]


def test_nothing_is_reserved_for_whom_a_limit_refuses_though_another_queue_lacks_room_for_the_same() -> None:
    held = (
        lease(1, request("h1", "b", Amount(2)), "d0"),
        lease(2, request("h2", "a", Amount(3), max_runtime_ms=3_600_000), "d1"),
    )
    refused = request("r3", "b", Amount(4), submitted_ms=NOW - 20_000_000)
    alike = request("r4", "a", Amount(4), submitted_ms=LATER)
    small, other = request("r5", "c", Amount(2)), request("r6", "c", Amount(2))
    queues = (Queue("a"), Queue("b", limit=Counted(2, -1)), Queue("c"))

    made = decide(PoolState(devices(4, 4), queues, (refused, alike, small, other), held), LATER, Policy(), 100)

    assert of(made, Reserve) == []
    assert code(made, "r3") == "over_limit"
    assert [one.request_id for one in of(made, Grant)] == ["r5"]


def test_many_alike_in_one_queue_do_not_keep_another_queue_from_being_asked() -> None:
    gpu = Amount(1, milli_gpu=1000)
    device = Device("d0", "n", Amount(8, 0, 1000))
    held = (lease(1, request("h1", "c", gpu), "d0"), lease(2, request("h2", "b"), "d0"))
    many = tuple(request(f"r{number}", "a", gpu) for number in range(10, 110))
    state = PoolState((device,), (*TWO, Queue("c")), (*many, request("r500", "b")), held)

    made = decide(state, NOW, Policy(), 3)

    assert [one.request_id for one in of(made, Grant)] == ["r500"]
    assert code(made, "r109") == "behind"


@pytest.mark.parametrize(("small", "large"), ["ab", "ba"])
def test_small_work_of_one_queue_does_not_keep_what_is_large_in_another_from_its_quota_for_ever(small, large) -> None:
    """Each hour the small one has ended, and the next one of its queue waits already."""
    queues = (Queue(small, quota=Counted(1, -1)), Queue(large, quota=Counted(7, -1)))
    whole = request("r1", large, Amount(7))
    state, hour = PoolState(devices(7), queues, (whole,)), 3_600_000
    granted: list[str] = []
    for number in range(2, 6):
        now = NOW + number * hour
        asks = request(f"r{number}", small, submitted_ms=now, max_runtime_ms=hour)
        state = state._replace(held=(), waiting=(*state.waiting, asks))
        made = decide(state, now, Policy(), 100)
        granted += [one.request_id for one in of(made, Grant)]
        state = apply(state, made, now, 10 * number)

    assert "r1" in granted


def test_it_is_said_for_whom_that_is_kept_in_which_one_would_fit_and_what_lets_it_pass() -> None:
    held = (
        lease(1, request("h1", "x", Amount(8), max_runtime_ms=3_600_000), "d0"),
        lease(2, request("h2", "x", Amount(2), max_runtime_ms=7_200_000), "d1"),
    )
    old = {"submitted_ms": NOW - 20_000_000}
    waiting = (
        request("r1", "a", Amount(8), **old),
        request("r2", "b", Amount(4), **old),
        request("r3", "c", Amount(2), submitted_ms=LATER),
    )
    queues = (Queue("a", weight=3), Queue("b", priority=-1), Queue("c", priority=-2), Queue("x"))

    made = decide(PoolState(devices(8, 4), queues, waiting, held), LATER, Policy(), 100)

    told = next(one for one in of(made, Explain) if one.request_id == "r3")
    assert sentence(told, "c") == "waits for 2 cores in queue c: next, what is free is kept for r2"
    assert unblocks(told) == (
        "r2 is served or goes away; a declared max_runtime that ends before each reservation lets it pass"
    )

    noticed = lease(1, request("h1", "x", Amount(3)), "d0", state="noticed", deadline_ms=LATER + 9000, beneficiary="r9")
    asks = (request("r9", "a", Amount(4)), request("r10", "c", max_runtime_ms=1000, submitted_ms=LATER))
    made = decide(
        PoolState(devices(4), (Queue("a", quota=Counted(4, -1)), *queues[2:]), asks, (noticed,)), LATER, Policy(), 100
    )
    told = next(one for one in of(made, Explain) if one.request_id == "r10")
    assert (told.code, unblocks(told)) == ("reserved_for", "r9 is served or goes away")


def test_a_queue_is_not_taken_below_its_quota() -> None:
    held = tuple(lease(i + 1, request(f"h{i}"), "d0") for i in range(4))
    queues = (Queue("a", quota=Counted(4, 0)), Queue("b", quota=Counted(0, 0), weight=8))
    state = PoolState(devices(4), queues, (request("r9", "b"),), held)

    assert of(decide(state, LATER, Policy(), 100), Notice) == []


def test_quotas_that_add_up_to_more_than_there_is_are_scaled_and_flagged() -> None:
    queues = (Queue("a", quota=Counted(6, 0)), Queue("b", quota=Counted(6, 0)))
    waiting = tuple(request(f"r{i}", "ab"[i % 2]) for i in range(20))

    told = standing(PoolState(devices(6), queues, waiting), NOW, Policy())

    assert [(one.share.cores, one.scaled) for one in told] == [(3, True), (3, True)]


def test_elastic_work_starts_with_its_fewest_members_and_grows_by_what_is_left() -> None:
    waiting = (request("r1", members_max=4), request("r2"))

    made = decide(PoolState(devices(4), TWO, waiting), NOW, Policy(), 100)

    assert {one.request_id: len(one.members) for one in of(made, Grant)} == {"r1": 3, "r2": 1}


def test_decayed_usage_is_half_after_a_half_life() -> None:
    policy = Policy(half_life_s=6400)
    state = PoolState(devices(1), (Queue("a", usage=Counted(1000, 10), usage_at_ms=NOW),))

    assert standing(state, NOW + 6_400_000, policy)[0].usage == Counted(500, 5)
    assert standing(state, NOW + 3_200_000, policy)[0].usage == Counted(707, 7)


def test_the_sentence_names_what_is_wanted_and_what_would_help() -> None:
    queues = (Queue("vision", quota=Counted(2, 0), limit=Counted(2, 0)), Queue("b"))
    held = (lease(1, request("h1", "vision", Amount(2), preemptible=False), "d0"),)
    state = PoolState(devices(4), queues, (request("r1", "vision", Amount(2)),), held)

    told = of(decide(state, LATER, Policy(), 100), Explain)[0]

    assert sentence(told, "vision") == (
        "waits for 2 cores in queue vision: next, queue vision would go over its limit (2 cores, 2 cores in use)"
    )
    assert unblocks(told) == "a lease in queue vision ends, or an operator raises the limit of queue vision"


amounts = st.builds(Amount, *[st.integers(-3, 9)] * 4)
two = st.builds(Counted, st.integers(-3, 9), st.integers(-3, 2000))
ids = st.sampled_from(("", "a", "b", "{0}", "r1", "d0"))
times = st.sampled_from((-5, 0, 1, NOW - 800_000, NOW - 1, NOW, NOW + 10**9))
small = st.integers(-2, 9)
asked = st.builds(
    Request, ids, small, times, ids, amounts, small, st.booleans(), st.booleans(), small, small, times, small
)
parts = st.lists(st.builds(Part, ids, amounts), max_size=3).map(tuple)
states = st.sampled_from(("offered", "active", "noticed", "killing", "?"))
leases = st.builds(Held, small, asked, parts, states, times, times, times, ids)


def several(one: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(one, max_size=5).map(tuple)


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
@given(
    st.builds(
        PoolState,
        several(st.builds(Device, ids, ids, amounts, st.booleans(), st.booleans(), times)),
        several(st.builds(Queue, ids, ids, two, two, small, small, two, times)),
        several(asked),
        several(leases),
    ),
    st.builds(Policy, st.just(VERSION), *[st.integers(-1, 9)] * 8),
    st.integers(0, 9),
)
def test_a_state_that_makes_no_sense_raises_nothing(state: PoolState, policy: Policy, fuel: int) -> None:
    made = decide(state, NOW, policy, fuel)

    assert sorted(one.request_id for one in of((*made, *of(made, Grant)), Explain)) == sorted(
        {one.id for one in state.waiting} - {one.request_id for one in of(made, Grant)}
    )
    for one in of(made, Explain):
        assert sentence(one, "a") and unblocks(one)
    apply(state, made, NOW, 1)


def test_recorded_decisions_come_out_the_same_in_another_process_and_hash_seed() -> None:
    """Digests of a hundred stored states, by this process and by two others."""
    records = [scene(random.Random(number)) for number in range(100)]
    text = "\n".join(repr(tuple(map(tuple, plain(state)))) for state in records)
    mine = hashlib.sha256("\n".join(digest(state) for state in records).encode()).hexdigest()

    for seed in ("1", "4242"):
        code_ = "import sys; from tests.unit.lease_records import replayed; print(replayed(sys.stdin.read()))"
        told = subprocess.run(
            [sys.executable, "-c", code_],
            input=text,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.strip() == mine


DECISIONS = {"3": "ba3c569753163736", "4": "ba3c569753163736", "5": "aebec6433cff3f2a"}
"""Of each version of the policy that was released, the digest of what it decides about a hundred states."""


def test_a_policy_that_decides_otherwise_has_another_version() -> None:
    texts = []
    for number in range(100):
        state = scene(random.Random(number))
        for now in (NOW, LATER, LATER + 125_000):
            made = decide(state, now, Policy(), 1000)
            texts += [repr(one) for one in made if not isinstance(one, Explain)]
            state = apply(state, made, now, 100 + len(texts))

    assert DECISIONS[Policy().version] == hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16], (
        "the policy decides otherwise than its version did: give it another `VERSION`, and its digest here"
    )


def scene(numbers: random.Random) -> PoolState:
    """A pool with more wanted than there is, some of it held."""
    queues = tuple(Queue(f"q{i}", "" if i < 2 else f"q{i % 2}", Counted(numbers.randint(-1, 4), -1)) for i in range(6))
    waiting = tuple(
        request(f"r{i}", f"q{numbers.randint(2, 5)}", Amount(numbers.randint(1, 3)), priority=numbers.choice((50, 75)))
        for i in range(20)
    )
    held = tuple(lease(i + 1, request(f"h{i}", f"q{numbers.randint(2, 5)}"), f"d{i % 4}") for i in range(12))
    return PoolState(devices(4, 4, 4, 4), queues, waiting, held)


def test_who_asks_for_more_than_a_limit_or_a_quota_is_not_told_that_an_end_helps() -> None:
    tree = (Queue("a", quota=Counted(2, -1), limit=Counted(4, -1)),)
    firm, much = request("r1", "a", Amount(3), preemptible=False), request("r2", "a", Amount(5))
    state = PoolState(devices(8), tree, (firm, much))

    told = {one.request_id: one for one in decide(state, NOW, Policy(), 100) if isinstance(one, Explain)}

    assert told["r1"].code == "not_preemptible_over_quota"
    assert sentence(told["r1"], "a").endswith(
        "queue a would have more than its quota of work that is not preemptible (2 cores, 0 cores in use)"
    )
    assert unblocks(told["r1"]) == "it asks for less, the quota of queue a is raised, or it is made preemptible"
    assert told["r2"].code == "over_limit"
    assert unblocks(told["r2"]) == "it asks for less, or an operator raises the limit of queue a"


def test_what_no_device_could_hold_stands_in_no_line() -> None:
    state = PoolState(devices(2), (Queue("a"),), (request("r1", "a", Amount(64)),))

    (told,) = [one for one in decide(state, NOW, Policy(), 100) if isinstance(one, Explain)]

    assert sentence(told, "a") == (
        "waits for 64 cores in queue a: no device or set of devices of the pool could hold it, the largest has 2 cores"
    )


def test_shares_are_those_without_the_demand_of_what_the_same_decision_has_killed() -> None:
    old = {"granted_ms": NOW - 900_000}
    elastic = lease(1, request("h1", "c", members_max=4), "d0", state="noticed", deadline_ms=NOW, **old)
    others = [lease(n, request(f"h{n}", "b"), "d0", **old) for n in (2, 3, 4)]
    asks = request("r9", "a", submitted_ms=NOW - 100_000)
    pool = Pool()
    pool.begin(
        [Amount(4, 2048)], light=False, tree=(("a", ""), ("b", ""), ("c", "")), with_=[Queue("")] * 7, runtime=600
    )
    queues = (Queue("a"), Queue("b"), Queue("c", priority=1))
    pool.now, pool.state = NOW + 1, PoolState(devices(4), queues, (asks,), (elastic, *others))

    assert [one.share.cores for one in standing(pool.state, pool.now, Policy())] == [0, 0, 4]
    pool.decides()  # the checker has nothing to say

    assert [(held.token, held.state, held.beneficiary) for held in pool.state.held if held.state != "active"] == [
        (1, "killing", ""),
        (2, "noticed", "r9"),
    ]


def test_what_an_elastic_lease_leaves_counts_whole_when_others_of_its_queue_are_served_up_to_the_quota() -> None:
    old = {"granted_ms": NOW - 20_000}
    wide = request("h1", "a", members_max=3)
    elastic = Held(
        1, wide, (Part("d0", wide.member), Part("d0", wide.member), Part("d2", wide.member)), "active", **old
    )
    others = [lease(n, request(f"h{n}", "c"), f"d{n % 3}", **old) for n in (3, 4, 5, 6, 7, 8)]
    asks = [request(f"r{n}", "b", priority=75) for n in (7, 8, 9)]
    tree = (
        Queue("x", quota=Counted(4, -1)),
        Queue("a", "x", weight=0),
        Queue("b", "x"),
        Queue("c", quota=Counted(4, -1)),
    )
    away = Device("d2", "n1", Amount(4, 65_536), open=False)
    pool = Pool()
    pool.begin(
        [Amount(4, 2048)],
        light=False,
        tree=(("x", ""), ("a", "x"), ("b", "x"), ("c", "")),
        with_=[Queue("")] * 7,
        runtime=0,
    )
    pool.now, pool.state = NOW, PoolState((*devices(4, 2), away), tree, tuple(asks), (elastic, *others))

    pool.decides()  # x has 3, of which the elastic one leaves 2: three more are its quota of 4

    told = sorted((held.beneficiary, held.request.queue) for held in pool.state.held if held.state == "noticed")
    assert told == [("r7", "a"), ("r8", "c"), ("r9", "c")]


def test_what_comes_free_is_kept_for_a_request_within_its_quota_until_leases_may_be_taken_back_for_it() -> None:
    """Else small work that declares no run time takes each core as it comes free, and no four are ever old enough."""
    now, token, arrivals = NOW, 100, 0
    queues = (Queue("a"), Queue("q", quota=Counted(4, 0)))
    held = [lease(n, request(f"h{n}"), "d0", granted_ms=NOW - n * 450_000) for n in range(1, 5)]
    waiting = [request("r0", "q", Amount(4))]
    while now < NOW + 3_600_000 and any(one.queue == "q" for one in waiting):
        now += 10_000
        if now % 450_000 == 0:
            arrivals += 1
            waiting.append(request(f"r{arrivals}", "a", submitted_ms=now))
        state = PoolState(devices(4), queues, tuple(waiting), tuple(held))
        state = apply(state, decide(state, now, Policy(), 100), now, token)
        token += 100
        held = [one._replace(state="active") if one.state == "offered" else one for one in state.held]
        held = [one for one in held if now - one.granted_ms < 1_800_000 and one.state != "noticed"]  # they obey at once
        waiting = list(state.waiting)

    assert [one.request.id for one in held] == ["r0"]
    assert now - NOW <= 735_000


def test_a_large_request_is_not_passed_for_ever_by_small_ones_that_declare_no_run_time() -> None:
    running = [lease(n, request(f"h{n}"), "d0") for n in (1, 2, 3)]
    large, small = request("r1", member=Amount(4)), request("r2")

    def made(waited_s: int) -> tuple:
        state = PoolState(devices(4), (Queue("a"),), (large, small), tuple(running))
        return decide(state, NOW + waited_s * 1000, Policy(), 100)

    assert [one.request_id for one in of(made(4 * 3600 - 1), Grant)] == ["r2"]
    after = made(4 * 3600)
    assert of(after, Reserve) == [Reserve("r1", ("d0",), NOW + 24 * 3_600_000, (1, 2, 3))]
    assert (of(after, Grant), code(after, "r2")) == ([], "reserved_for")


def test_many_who_look_in_vain_for_leases_to_take_back_do_not_keep_another_queue_or_another_request_from_it() -> None:
    """A hundred of queue a want whole devices, on each of which a core cannot be taken back."""
    old = {"granted_ms": NOW - 3_600_000}
    firm = [lease(n, request(f"h{n}", "a", preemptible=False), f"d{n}", **old) for n in range(4)]
    lent = [lease(10 + n, request(f"h{10 + n}", "c", Amount(7)), f"d{n}", **old) for n in range(4)]
    hopeless = [request(f"r{n}", "a", Amount(8, n)) for n in range(1, 101)]
    queues = (Queue("a", quota=Counted(20, 0)), Queue("b", quota=Counted(8, 0)), Queue("c"))
    small, other = request("r500", "a", Amount(3)), request("r501", "b", Amount(2))
    state = PoolState(devices(8, 8, 8, 8), queues, (*hopeless, small, other), (*firm, *lent))

    told = {
        one.beneficiary for tick in range(20) for one in of(decide(state, NOW + tick * 5000, Policy(), 1000), Notice)
    }

    assert told == {"r500", "r501"}


def test_nobody_is_told_for_whom_fewer_would_do_but_for_a_reservation() -> None:
    """Found by the proof: two were told for r4, and one of them that it may stay: a core was kept for r3 meanwhile."""
    firm = lease(1, request("h1", "b", Amount(3), preemptible=False, max_runtime_ms=3_600_000), "d0")
    low = [lease(n, request(f"h{n}", "b"), "d1") for n in (2, 3)]
    first = request("r3", "b", Amount(4), priority=75)
    gang = request("r4", "b", members_min=2, members_max=2, priority=75)
    queues = (Queue("b", quota=Counted(20, 0)),)

    def made(*waiting: Request) -> tuple:
        return decide(PoolState(devices(4, 2), queues, waiting, (firm, *low)), LATER, Policy(), 100)

    assert [one.request_id for one in of(made(first, gang), Reserve)] == ["r3"]
    assert [*of(made(first, gang), Notice), *of(made(first, gang), Withdraw)] == []
    assert [one.beneficiary for one in of(made(gang), Notice)] == ["r4"]
