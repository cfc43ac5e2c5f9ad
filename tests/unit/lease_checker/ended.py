"""What ends, when its time is up and not before; and what is reserved, which is not late."""

from collections.abc import Sequence

from activities.lease_policy.state import Decision, Explain, Held, Kill, Notice, Policy, PoolState, Reserve, Withdraw
from tests.unit.lease_checker.sums import BOTH, allocated, fits, path, quota_of


def ended(before: PoolState, decisions: Sequence[Decision], after: PoolState, now: int, policy: Policy) -> list[str]:
    found = []
    killed = {one.token for one in decisions if isinstance(one, Kill)}
    withdrawn = {one.token for one in decisions if isinstance(one, Withdraw)}
    waiting = {request.id for request in after.waiting}
    for held in before.held:
        drained = any(
            0 < d.drain_by_ms <= now and any(p.device == d.name for p in held.members) for d in before.devices
        )
        overdue = held.state == "noticed" and held.deadline_ms <= now
        if overdue and held.token not in killed | withdrawn:
            found.append(f"I23: {held.token} goes on after its deadline")
        if held.token in killed and not (overdue or drained):
            found.append(f"{held.token} is killed before its time")
        if held.token in withdrawn and held.state != "noticed":
            found.append(f"{held.token} has no notice")
    told_now: list[int] = []
    for one in decisions:
        told_now += [one.token] if isinstance(one, Notice) else []
        if isinstance(one, Withdraw) and one.token in told_now:
            found.append(f"I18: the notice of {one.token} is given and withdrawn at once")
    for held in after.held:
        if held.state == "noticed" and held.beneficiary:
            asks = next((r for r in after.waiting if r.id == held.beneficiary), None)
            told = [h for h in after.held if h.beneficiary == held.beneficiary and h.state in ("noticed", "killing")]
            if asks is None or held.beneficiary not in waiting:
                found.append(f"I18: the notice of {held.token} is for {held.beneficiary}, which does not wait")
            elif not fits(after, asks, told):
                found.append(f"I18: {asks.id} does not fit even when {[h.token for h in told]} have let go")
        if held.state in ("offered", "active", "noticed"):
            by = [
                d.drain_by_ms for d in after.devices if d.drain_by_ms and any(p.device == d.name for p in held.members)
            ]
            if by and min(by) <= now:
                found.append(f"I23: {held.token} is on a drained device after its end")
            if by and min(by) <= now + policy.grace_s * 1000 and held.state == "active":
                found.append(f"I23: {held.token} was not told in time")
    return found


DAY_MS = 24 * 3600 * 1000
"""So long a lease runs that has not declared it."""


def reservations(after: PoolState, decisions: Sequence[Decision], now: int, policy: Policy) -> list[str]:
    found = []
    why = {one.request_id: one.code for one in decisions if isinstance(one, Explain)}
    for one in decisions:
        if not isinstance(one, Reserve):
            continue
        if why.get(one.request_id) in ("over_limit", "not_preemptible_over_quota"):
            found.append(f"I20: {one} keeps a device for whom no room would help")
        asks = next(r for r in after.waiting if r.id == one.request_id)
        left = tuple(held for held in after.held if _goes_on(after, held, one.start_ms, now, policy))
        devices = tuple(d for d in after.devices if d.name in one.devices)
        if not fits(after._replace(held=left, devices=devices), asks):
            found.append(f"I20: {one} would be late")
    return found


def _goes_on(state: PoolState, held: Held, at_ms: int, now: int, policy: Policy) -> bool:
    """Beyond *at_ms*: by its time, and if it may not be taken back by then either."""
    request = held.request
    if now < held.granted_ms + (request.max_runtime_ms or DAY_MS) <= at_ms:
        return False
    if not request.preemptible or request.preempted >= policy.most_preemptions_a_day:
        return True
    if max(held.granted_ms + policy.min_runtime_s * 1000, now) + policy.grace_s * 1000 > at_ms:
        return True
    over = (
        allocated(state, queue)[r] > max(quota_of(state, queue, r), 0)
        for queue in path(state, request.queue)
        for r in BOTH
    )
    return not any(over)
