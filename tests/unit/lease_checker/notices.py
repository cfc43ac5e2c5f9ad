"""Who is told to let go: by right, past the minimum run time, and for somebody whom it helps."""

from collections.abc import Sequence

from activities.lease_policy import standing
from activities.lease_policy.state import Decision, Held, Notice, Policy, PoolState, Request, Standing
from tests.unit.lease_checker.shares import share_problems
from tests.unit.lease_checker.sums import BOTH, loses, need, path, quota_of, stays


def notices(
    steps: Sequence[tuple[Decision, PoolState, PoolState]],
    shares: dict[str, Standing],
    promised: set[str],
    now: int,
    policy: Policy,
) -> list[str]:
    found: list[str] = []
    groups: dict[str, list[tuple[Notice, PoolState, PoolState]]] = {}
    for one, state, following in steps:
        if isinstance(one, Notice):
            groups.setdefault(one.beneficiary, []).append((one, state, following))
    for beneficiary, group in groups.items():
        first, last = group[0][1], group[-1][2]
        for one, state, _ in group:
            lease = next(h for h in state.held if h.token == one.token)
            if one.reason == "drain":
                ok = any(d.drain_by_ms > 0 and any(p.device == d.name for p in lease.members) for d in state.devices)
                found += [] if ok and not beneficiary else [f"I23: {one} without a drain"]
                continue
            asks = next((r for r in state.waiting if r.id == beneficiary), None)
            if asks is None:
                found.append(f"I18: {one} is for nobody")
                continue
            found += _victim(one, lease, asks, now, policy)
            if one.reason == "over_runtime" or lease.request.queue == asks.queue:
                continue
            wrong = _reclaimed(one, lease, asks, first, last, shares, promised, now)
            if wrong:  # what the same decision has killed before is no demand any more: shares are others then
                later = standing(first, now, policy)
                told = {each.queue: each for each in later}
                wrong = share_problems(first, later, policy)
                wrong += _reclaimed(one, lease, asks, first, last, told, promised, now)
            found += wrong
    return found


def _victim(one: Notice, lease: Held, asks: Request, now: int, policy: Policy) -> list[str]:
    found = []
    if not lease.request.preemptible:
        found.append(f"I12: {one} to a lease that is not preemptible")
    if lease.request.preempted >= policy.most_preemptions_a_day:
        found.append(f"I19: {one} to a lease that was preempted too often")
    if now - lease.granted_ms < policy.min_runtime_s * 1000:
        found.append(f"I19: {one} before the minimum run time")
    if lease.state != "active":
        found.append(f"{one} to a lease that is {lease.state}")
    overrun = 0 < lease.request.max_runtime_ms < now - lease.granted_ms
    waited = now - asks.submitted_ms
    if one.reason == "over_runtime" and not (overrun and waited >= policy.reserve_after_s * 1000):
        found.append(f"I20: {one} to a lease within its time, or for who does not starve")
    elif one.reason == "preempt" and not (lease.request.queue == asks.queue and lease.request.priority < asks.priority):
        found.append(f"{one}: not of strictly lower priority in its queue")
    elif one.reason == "shrink" and lease.request.queue == asks.queue and lease.request.priority > asks.priority:
        found.append(f"{one}: above it")
    return found


def _reclaimed(
    one: Notice,
    lease: Held,
    asks: Request,
    first: PoolState,
    last: PoolState,
    shares: dict[str, Standing],
    promised: set[str],
    now: int,
) -> list[str]:
    found = []
    takers, givers = path(first, asks.queue), path(first, lease.request.queue)
    lost = loses(last, next(h for h in last.held if h.token == one.token))
    earlier = promised - {asks.id}
    for queue in (q for q in givers if q not in takers):
        for r in BOTH:
            if not lost[r]:
                continue
            left, had = stays(last, queue, promised, now)[r], stays(first, queue, earlier, now)[r]
            if quota_of(first, queue, r) >= 0 and left < quota_of(first, queue, r):
                found.append(f"I16: {one} takes {queue} below its quota ({left})")
            if need(asks)[r] and had <= shares[queue].share[r]:
                found.append(f"I16: {one} takes from {queue}, which is not over its share")
    for queue in (q for q in takers if q not in givers):
        for r in BOTH:
            total = stays(first, queue, earlier, now, regrown=False)[r] + need(asks)[r]
            quota = quota_of(first, queue, r)
            if need(asks)[r] and not total <= max(quota, shares[queue].share[r]):
                found.append(f"I16: {one} for {queue}, which has no right to more")
    return found
