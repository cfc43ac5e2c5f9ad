"""One reason for each that waits, and it is true of the state."""

from collections.abc import Sequence

from activities.lease_policy.state import Decision, Explain, PoolState, Request, Reserve
from tests.unit.lease_checker.sums import (
    BOTH,
    allocated,
    beneficiaries_of,
    fits,
    in_light_lane,
    known,
    need,
    path,
    quota_of,
)


def explained(
    before: PoolState,
    after: PoolState,
    explains: Sequence[Explain],
    decisions: Sequence[Decision],
    promised: set[str],
    fuel: int,
) -> list[str]:
    names = [one.request_id for one in explains]
    found = []
    if sorted(names) != sorted(request.id for request in after.waiting):
        found.append(f"I24: not one reason each: {names}")
    requests = {request.id: request for request in after.waiting}
    reserved = {one.request_id: one for one in decisions if isinstance(one, Reserve)}
    lines: dict[object, list[Explain]] = {}
    for one in explains:
        if one.request_id in requests:
            asks = requests[one.request_id]
            if one.code not in ("unknown_queue", "infeasible", "has_lease"):
                lines.setdefault("light" if in_light_lane(after, asks) else (asks.queue,), []).append(one)
            why = _untrue(after, asks, one, promised, reserved, len(before.waiting) > fuel)
            found += [f"I24 I14: {one}: {why}"] if why else []
    for line in lines.values():
        ordered = sorted(line, key=lambda one: (-requests[one.request_id].priority, requests[one.request_id].arrival))
        if [one.position for one in ordered] != list(range(1, len(ordered) + 1)):
            found.append(f"I24: places {ordered}")
    return found


def _untrue(
    state: PoolState, asks: Request, one: Explain, promised: set[str], reserved: dict[str, Reserve], short_of_fuel: bool
) -> str:
    """What is wrong with the reason; empty: nothing. Of those of whom nothing else is said, once for all alike."""
    holds = known.get(state, "holds", lambda: {h.request.id for h in state.held})
    if asks.id in promised | reserved.keys() | holds or one.code == "waits_for_notice":
        return _wrong(state, asks, one, promised, reserved, short_of_fuel)
    kind = (asks.queue, asks.member, asks.members_min, asks.members_max, asks.preemptible, asks.light)
    return known.get(
        state,
        ("untrue", kind, one.code, one.position > 1),
        lambda: _wrong(state, asks, one, promised, reserved, short_of_fuel),
    )


def _kept(state: PoolState, asks: Request, one: Explain, promised: set[str], reserved: dict[str, Reserve]) -> str:
    """Is something that it could use kept for the one who is named?"""
    facts = dict(one.detail)
    named = facts["for"]
    if named == asks.id or named not in (promised if "promised" in facts else reserved):
        return f"nothing is kept for {named}"
    if "promised" in facts:
        return ""
    devices = tuple(device for device in state.devices if device.name in reserved[named].devices)
    fits_one = fits(state._replace(devices=devices), asks._replace(members_min=1))
    return "" if fits_one else f"it could use nothing of what is kept for {named}"


def _wrong(
    state: PoolState, asks: Request, one: Explain, promised: set[str], reserved: dict[str, Reserve], short_of_fuel: bool
) -> str:
    queues = path(state, asks.queue)
    others = beneficiaries_of(state, promised - {asks.id})
    lane = in_light_lane(state, asks)
    known = lane or (bool(queues) and not any(q.parent == asks.queue for q in state.queues))
    if one.code == "unknown_queue":
        return "it is known" if known else ""
    if not known:
        return "its queue takes no requests"
    live = any(h.request.id == asks.id and h.state != "killing" for h in state.held)
    if (one.code == "has_lease") != live:
        return f"has a lease: {live}"
    if live:
        return ""
    if (one.code == "infeasible") != (not fits(state, asks, empty=True)):
        return "feasible, or not"
    if one.code == "infeasible":
        return ""
    if one.code == "fuel":
        return "" if short_of_fuel else "there was fuel"
    if one.code == "waits_for_notice":
        told = any(h.beneficiary == asks.id and h.state in ("noticed", "killing") for h in state.held)
        return "" if told else "nobody was told"
    by_limit = by_firm = False
    for queue in queues if not lane else ():
        own = next(q for q in state.queues if q.id == queue)
        with_it = [r for r in (*others, asks) if queue in path(state, r.queue) and not in_light_lane(state, r)]
        for r in BOTH:
            total = allocated(state, queue)[r] + sum(need(each)[r] for each in with_it)
            by_limit |= need(asks)[r] > 0 and 0 <= own.limit[r] < total
            firm = allocated(state, queue, firm=True)[r]
            firm += sum(need(each)[r] for each in with_it if not each.preemptible)
            by_firm |= need(asks)[r] > 0 and not asks.preemptible and 0 <= own.quota[r] < firm
    if one.code == "over_limit":
        return "" if by_limit else "within all limits"
    if one.code == "not_preemptible_over_quota":
        return "" if by_firm else "within its quota"
    if by_limit or by_firm:
        return "a limit or a quota refuses it"
    has_room = fits(state, asks)
    if one.code == "reserved_for":
        return _kept(state, asks, one, promised, reserved) if has_room else "there is no room either"
    if has_room:
        return "it fits in what is free"
    if one.code == "behind":
        return "" if one.position > 1 else "nobody is before it"
    if one.code == "over_quota":
        quotas = [
            (stays_plus(state, queue, promised, asks, r), quota_of(state, queue, r))
            for queue in queues
            for r in BOTH
            if need(asks)[r]
        ]
        return "" if any(0 <= quota < total for total, quota in quotas) else "within its quota"
    return "" if one.code == "no_room" else "not a code"


def stays_plus(state: PoolState, queue: str, promised: set[str], asks: Request, r: int) -> int:
    """With what was promised, and nobody gone yet."""
    others = [one for one in beneficiaries_of(state, promised - {asks.id}) if queue in path(state, one.queue)]
    return allocated(state, queue)[r] + sum(need(one)[r] for one in others) + need(asks)[r]
