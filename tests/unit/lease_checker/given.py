"""What is given: once each, whole, on devices that are open and have it, within limits and quota."""

from collections.abc import Sequence

from activities.lease_policy.state import Decision, Grant, Policy, PoolState, Resize
from tests.unit.lease_checker.sums import BOTH, allocated, free, in_light_lane, is_open, need, path


def once_each(before: PoolState, decisions: Sequence[Decision]) -> list[str]:
    granted = [one.request_id for one in decisions if isinstance(one, Grant)]
    waiting = {request.id for request in before.waiting}
    live = {h.request.id for h in before.held if h.state != "killing"}
    found = [f"I4: {name} was granted twice" for name in granted if granted.count(name) > 1]
    found += [f"I4: {name} does not wait" for name in granted if name not in waiting]
    return found + [f"I4: {name} has a lease already" for name in granted if name in live]


def given(one: Grant | Resize, state: PoolState, following: PoolState, now: int, policy: Policy) -> list[str]:
    if isinstance(one, Grant):
        request = next(r for r in state.waiting if r.id == one.request_id)
        fresh = one.members
    else:
        lease = next(h for h in state.held if h.token == one.token)
        request, fresh = lease.request, one.members[len(lease.members) :]
        if one.members[: len(lease.members)] != lease.members:
            return [f"I9: {one} takes parts away"]
        if now - lease.granted_ms < policy.min_runtime_s * 1000:
            return [f"I19: {one} restarts a lease too soon"]
    found = []
    if not request.members_min <= len(one.members) <= request.members_max:
        found.append(f"I9: {one} has {len(one.members)} members")
    if any(part.amount != request.member for part in one.members):
        found.append(f"I9: {one} is not what was asked for")
    lane = in_light_lane(state, request)
    for part in fresh:
        device = next(d for d in state.devices if d.name == part.device)
        if not is_open(state, part.device):
            found.append(f"I23: {one} is on a device that is not open")
        if device.light != lane:
            found.append(f"{one}: the light slot is for checks, and they for it")
        asked = [left for left, amount in zip(free(following, part.device), part.amount, strict=True) if amount]
        if min(asked, default=0) < 0:
            found.append(f"I1: {one} uses more of {part.device} than there is")
    for queue in path(state, request.queue) if not lane else ():
        limits = next(q for q in state.queues if q.id == queue)
        for r in BOTH:
            more = need(request)[r] > 0
            if more and 0 <= limits.limit[r] < allocated(following, queue)[r]:
                found.append(f"I11: {one} takes {queue} over its limit")
            if more and not request.preemptible and 0 <= limits.quota[r] < allocated(following, queue, firm=True)[r]:
                found.append(f"I12: {one} is not preemptible and over the quota of {queue}")
    return found


def gang(after: PoolState) -> list[str]:
    found = []
    waiting = {request.id for request in after.waiting}
    for held in after.held:
        if not held.request.members_min <= len(held.members) <= held.request.members_max:
            found.append(f"I9: {held.token} has {len(held.members)} members")
        if held.request.id in waiting and held.state != "killing":
            found.append(f"I10: {held.request.id} waits and holds")
    return found
