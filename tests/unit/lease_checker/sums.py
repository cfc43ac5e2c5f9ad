"""What a state holds, by brute force: who has what, what is free, and what fits."""

from collections.abc import Callable, Iterable
from typing import Any

from activities.lease_policy.state import NO_LIMIT, Held, PoolState, Request

BOTH = (0, 1)
Two = tuple[int, int]


class _Known:
    """What was worked out about a state, by the state itself: they are large, and each is asked the same again."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[PoolState, dict[object, Any]]] = {}

    def get(self, state: PoolState, key: object, work: Callable[[], Any]) -> Any:
        of = self._of.setdefault(id(state), (state, {}))[1]
        if key not in of:
            of[key] = work()
        return of[key]

    def clear(self) -> None:
        self._of.clear()


known = _Known()


def is_open(state: PoolState, name: str) -> bool:
    return any(d.name == name and d.open and d.drain_by_ms <= 0 for d in state.devices)


def path(state: PoolState, queue: str) -> list[str]:
    """From the queue up; empty when it does not lead to the pool."""
    return known.get(state, ("path", queue), lambda: _path(state, queue))


def _path(state: PoolState, queue: str) -> list[str]:
    by_id = {one.id: one for one in state.queues}
    ids: list[str] = []
    while queue:
        if queue not in by_id or queue in ids:
            return []
        ids.append(queue)
        queue = by_id[queue].parent
    return ids


def counted(state: PoolState, held: Held) -> Two:
    light = {d.name for d in state.devices if d.light}
    parts = [part.amount for part in held.members if part.device not in light]
    return sum(a.cores for a in parts), sum(a.milli_gpu for a in parts)


def need(request: Request, members: int | None = None) -> Two:
    number = request.members_min if members is None else members
    return request.member.cores * number, request.member.milli_gpu * number


def in_light_lane(state: PoolState, request: Request) -> bool:
    return request.light and any(d.light and is_open(state, d.name) for d in state.devices)


def allocated(state: PoolState, queue: str, *, firm: bool = False) -> Two:
    return known.get(state, ("allocated", queue, firm), lambda: _allocated(state, queue, firm=firm))


def _allocated(state: PoolState, queue: str, *, firm: bool) -> Two:
    below = [h for h in state.held if queue in path(state, h.request.queue) and not (firm and h.request.preemptible)]
    sums = [counted(state, held) for held in below]
    return sum(one[0] for one in sums), sum(one[1] for one in sums)


def free(state: PoolState, name: str, without: Iterable[Held] = ()) -> list[int]:
    """Of a device; *without*: these leave what they give."""
    whole = list(next(d.whole for d in state.devices if d.name == name))
    for held in state.held:
        gone = gives(held) if any(held.token == one.token for one in without) else ()
        for part in held.members:
            if part.device == name:
                whole = [a - b for a, b in zip(whole, part.amount, strict=True)]
        for part in gone:
            if part.device == name:
                whole = [a + b for a, b in zip(whole, part.amount, strict=True)]
    return whole


def gives(held: Held) -> tuple:
    return held.members[held.request.members_min :] or held.members


def fits(state: PoolState, request: Request, without: Iterable[Held] = (), *, empty: bool = False) -> bool:
    gone = list(without)
    key = ("fits", request.member, request.members_min, request.light, empty, tuple(one.token for one in gone))
    return known.get(state, key, lambda: _fits(state, request, gone, empty=empty))


def _fits(state: PoolState, request: Request, without: list[Held], *, empty: bool) -> bool:
    light = in_light_lane(state, request)
    number = 0
    for device in state.devices:
        if device.light == light and is_open(state, device.name):
            left = list(device.whole) if empty else free(state, device.name, without)
            asked = [(a, b) for a, b in zip(left, request.member, strict=True) if b]
            number += max(0, min((a // b for a, b in asked), default=request.members_min))
    return number >= request.members_min


def beneficiaries_of(state: PoolState, names: Iterable[str]) -> list[Request]:
    return [request for request in state.waiting if request.id in set(names)]


def stays(state: PoolState, queue: str, promised: set[str], now: int, *, regrown: bool = True) -> Two:
    """What a queue will have when everybody has let go who was told to, and got what was promised.

    *regrown*: and when elastic leases have grown again by what was not used. They do so where room is left, so it
    tells what a queue keeps that is taken from, and not what one has no right to that asks now.
    """
    told = [h for h in state.held if h.state == "noticed" or (h.state == "killing" and now <= h.deadline_ms)]
    told = [h for h in told if h.beneficiary in promised]
    here = {h.beneficiary for h in told}
    total = list(allocated(state, queue))
    for held in told:
        if queue in path(state, held.request.queue):
            lost = loses(state, held) if regrown else leaves(state, held)
            total = [total[r] - lost[r] for r in BOTH]
    for request in beneficiaries_of(state, here):
        if queue in path(state, request.queue):
            total = [total[r] + need(request)[r] for r in BOTH]
    return total[0], total[1]


def loses(state: PoolState, held: Held) -> Two:
    """An elastic lease comes back and grows by what its beneficiary does not use."""
    lost = leaves(state, held)
    if len(held.members) <= held.request.members_min:
        return lost
    for request in state.waiting:
        if request.id == held.beneficiary:
            return min(lost[0], need(request)[0]), min(lost[1], need(request)[1])
    return lost


def leaves(state: PoolState, held: Held) -> Two:
    light = {d.name for d in state.devices if d.light}
    parts = [part.amount for part in gives(held) if part.device not in light]
    return sum(a.cores for a in parts), sum(a.milli_gpu for a in parts)


def quota_of(state: PoolState, queue: str, r: int) -> int:
    """Its own, or what those below it have together; -1: none."""
    own = next(one for one in state.queues if one.id == queue)
    if own.quota[r] >= 0:
        return own.quota[r]
    below = [quota_of(state, one.id, r) for one in state.queues if one.parent == queue]
    return sum(one for one in below if one >= 0) if any(one >= 0 for one in below) else NO_LIMIT
