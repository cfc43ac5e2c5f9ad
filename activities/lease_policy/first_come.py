"""Who gets which slot: a pure function of integers. The same state gives the same decisions anywhere.

The simplest policy that keeps the final path: first come, first served; a slot may be reserved for checks.
No clock, randomness, floats, sets or dict order; every sort key ends in an id; work is bounded by fuel.
"""

from everloop.records import Record


class Device(Record):
    """A slot of the pool."""

    name: str
    light: bool
    """Reserved for checks."""
    present: bool
    """Its Dask worker is there."""
    taken: bool
    """A live lease holds it."""


class Waiting(Record):
    """A request in the queue."""

    id: str
    arrival: int
    kind: str


class PoolState(Record):
    """Everything that `decide` may look at."""

    devices: tuple[Device, ...] = ()
    waiting: tuple[Waiting, ...] = ()


class Grant(Record):
    """Give *device* to *request_id*. Its token is taken when the decision is committed."""

    request_id: str
    device: str


class Policy(Record):
    """What an operator may set: nothing yet."""


def decide(state: PoolState, _now_ms: int, _policy: Policy, fuel: int) -> tuple[Grant, ...]:
    """Grants in order of arrival, at most *fuel* requests examined.

    A batch request that finds no slot holds back the batch requests behind it (first come, first served),
    but not checks: they have the light slot, which no batch request may take. Only a pool without one gives them
    another: a backlog of checks must not keep a person's training waiting.
    """
    has_light = any(device.light and device.present for device in state.devices)
    free = [device for device in sorted(state.devices, key=lambda device: device.name) if _usable(device)]
    grants: list[Grant] = []
    blocked: list[str] = []
    for request in sorted(state.waiting, key=lambda request: (request.arrival, request.id))[:fuel]:
        if request.kind in blocked:
            continue
        device = _choose(free, wants_light=request.kind == "check" and has_light)
        if device is None:
            blocked.append(request.kind)
            continue
        free.remove(device)
        grants.append(Grant(request_id=request.id, device=device.name))
    return tuple(grants)


def _usable(device: Device) -> bool:
    return device.present and not device.taken


def _choose(free: list[Device], *, wants_light: bool) -> Device | None:
    return next((device for device in free if device.light == wants_light), None)
