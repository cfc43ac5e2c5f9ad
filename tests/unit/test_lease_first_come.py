"""`decide` is a pure function: these hold for every state."""

from hypothesis import given
from hypothesis import strategies as st

from activities.lease_policy.first_come import Device, Policy, PoolState, Waiting, decide

devices = st.lists(
    st.builds(
        Device,
        name=st.sampled_from([f"cpu{n}" for n in range(8)]),
        light=st.booleans(),
        present=st.booleans(),
        taken=st.booleans(),
    ),
    unique_by=lambda device: device.name,
    max_size=8,
)
waiting = st.lists(
    st.builds(
        Waiting,
        id=st.uuids().map(str),
        arrival=st.integers(1, 20),
        kind=st.sampled_from(["batch", "check"]),
    ),
    unique_by=lambda request: request.id,
    max_size=12,
)
states = st.builds(PoolState, devices=devices.map(tuple), waiting=waiting.map(tuple))


def grants(state: PoolState, fuel: int = 1000) -> dict[str, str]:
    return {grant.request_id: grant.device for grant in decide(state, 0, Policy(), fuel)}


@given(states)
def test_a_device_is_granted_once_and_only_when_it_is_there_and_free(state: PoolState) -> None:
    made = grants(state)

    free = {device.name for device in state.devices if device.present and not device.taken}
    assert len(set(made.values())) == len(made)
    assert set(made.values()) <= free


@given(states)
def test_the_light_slot_is_never_granted_to_a_batch_request(state: PoolState) -> None:
    light = {device.name for device in state.devices if device.light}
    batch = {request.id for request in state.waiting if request.kind == "batch"}

    assert not any(device in light for request, device in grants(state).items() if request in batch)


@given(states)
def test_while_there_is_a_light_slot_no_check_takes_another(state: PoolState) -> None:
    light = {device.name for device in state.devices if device.light}
    there = any(device.light and device.present for device in state.devices)
    checks = {request.id for request in state.waiting if request.kind == "check"}

    taken = {device for request, device in grants(state).items() if request in checks}
    assert taken <= light or not there


@given(states)
def test_within_a_kind_nobody_is_served_before_who_came_earlier(state: PoolState) -> None:
    made = grants(state)

    for kind in ("batch", "check"):
        order = sorted((r for r in state.waiting if r.kind == kind), key=lambda r: (r.arrival, r.id))
        served = [request.id in made for request in order]
        assert served == sorted(served, reverse=True)


@given(states)
def test_a_free_slot_and_a_fitting_request_are_never_both_left(state: PoolState) -> None:
    made = grants(state)

    left = [d for d in state.devices if d.present and not d.taken and d.name not in made.values()]
    unserved = {request.kind for request in state.waiting if request.id not in made}
    there = any(device.light and device.present for device in state.devices)
    assert not ("check" in unserved and any(device.light or not there for device in left))
    assert not ("batch" in unserved and any(not device.light for device in left))


@given(states, st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_nothing(state: PoolState, random: object) -> None:
    shuffled_devices, shuffled_waiting = list(state.devices), list(state.waiting)
    random.shuffle(shuffled_devices)  # type: ignore[attr-defined]
    random.shuffle(shuffled_waiting)  # type: ignore[attr-defined]
    shuffled = PoolState(devices=tuple(shuffled_devices), waiting=tuple(shuffled_waiting))

    assert decide(shuffled, 0, Policy(), 1000) == decide(state, 0, Policy(), 1000)


@given(states, st.integers(0, 12))
def test_no_more_requests_are_examined_than_there_is_fuel(state: PoolState, fuel: int) -> None:
    assert len(grants(state, fuel)) <= fuel
