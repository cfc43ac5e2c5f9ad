"""I13, and the shares themselves by another computation, in fractions."""

from collections.abc import Sequence
from fractions import Fraction

from activities.lease_policy.state import Policy, PoolState, Queue, Standing
from tests.unit.lease_checker.sums import BOTH, is_open, path


def share_problems(state: PoolState, standings: Sequence[Standing], policy: Policy) -> list[str]:
    """I13, and the shares themselves by another computation, in fractions."""
    by_id = {one.queue: one for one in standings}
    found = []
    open_ones = [d.whole for d in state.devices if is_open(state, d.name) and not d.light]
    whole = (sum(max(w.cores, 0) for w in open_ones), sum(max(w.milli_gpu, 0) for w in open_ones))
    queues = {q.id: q for q in state.queues if path(state, q.id)}
    if sorted(queues) != sorted(by_id):
        found.append("I13: a queue without a share")
    for parent in ("", *sorted(queues)):
        below = [queues[name] for name in sorted(queues) if queues[name].parent == parent]
        for r in BOTH:
            capacity = by_id[parent].share[r] if parent else whole[r]
            mine = [by_id[q.id] for q in below]
            if below:
                found += _level(capacity, below, mine, r, whole[r], policy)
    return found


def _level(capacity: int, below: list[Queue], mine: list[Standing], r: int, whole: int, policy: Policy) -> list[str]:
    shares, demands = [one.share[r] for one in mine], [one.demand[r] for one in mine]
    sure = [min(max(one.quota[r], 0), demand) for one, demand in zip(mine, demands, strict=True)]
    found = []
    if sum(shares) > capacity:
        found.append(f"I13: {shares} of {capacity}")
    if any(share > demand for share, demand in zip(shares, demands, strict=True)):
        found.append(f"I13: {shares} above {demands}")
    if sum(sure) <= capacity and any(share < quota for share, quota in zip(shares, sure, strict=True)):
        found.append(f"I13: {shares} below {sure}")
    wants = [s < d and q.weight > 0 for s, d, q in zip(shares, demands, below, strict=True)]
    if sum(shares) < capacity and sum(sure) <= capacity and any(wants):
        found.append(f"I13: {capacity - sum(shares)} left, and {demands} wanted")
    expected = _divided(capacity, below, sure, demands, [_used(one, r, whole, policy) for one in mine], policy)
    if expected != shares:
        found.append(f"1.1 e: {shares}, expected {expected}")
    return found


def _used(one: Standing, r: int, whole: int, policy: Policy) -> int:
    full = whole * policy.half_life_s * 1000 * 14427
    return min(one.usage[r] * 10**4 * 10**6 // full, 10**6) if full else 0


def _divided(
    capacity: int, below: list[Queue], sure: list[int], demands: list[int], used: list[int], policy: Policy
) -> list[int]:
    if sum(sure) > capacity:
        return _whole([Fraction(capacity * one, sum(sure)) for one in sure], capacity)
    shares, left = list(sure), capacity - sum(sure)
    for band in sorted({q.priority for q in below}, reverse=True):
        while left:
            act = [i for i, q in enumerate(below) if q.priority == band and q.weight > 0 and shares[i] < demands[i]]
            if not act:
                break
            total = sum(below[i].weight for i in act)
            k = policy.usage_weight
            parts = {i: max(1, (10**6 * below[i].weight * (1000 + k) // total - k * used[i]) // 1000) for i in act}
            whole = sum(parts.values())
            full = [i for i in act if demands[i] - shares[i] <= Fraction(left * parts[i], whole)]
            for i in full:
                left -= demands[i] - shares[i]
                shares[i] = demands[i]
            if not full:
                more = _whole([Fraction(left * parts[i], whole) for i in act], left)
                for i, amount in zip(act, more, strict=True):
                    shares[i] += amount
                left = 0
    return shares


def _whole(parts: list[Fraction], total: int) -> list[int]:
    shares = [int(one) for one in parts]
    order = sorted(range(len(parts)), key=lambda i: (shares[i] - parts[i], i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares
