"""Is what `decide` did right? By brute force over the tuples of state.py alone: none of the policy's steps is used.

`problems` names the invariant of gpu.md 2.5 that is broken. It answers for states that the ledger can hold.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from activities.lease_policy.state import (
    NO_LIMIT,
    Decision,
    Explain,
    Grant,
    Held,
    Kill,
    Notice,
    Policy,
    PoolState,
    Queue,
    Request,
    Reserve,
    Resize,
    Standing,
    Usage,
    Withdraw,
)

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


def problems(
    before: PoolState,
    decisions: Sequence[Decision],
    after: PoolState,
    steps: Sequence[tuple[Decision, PoolState, PoolState]],
    standings: Sequence[Standing],
    now: int,
    policy: Policy,
    fuel: int,
) -> list[str]:
    """*steps*: each decision with the state before and after it; *after*: the last of them."""
    known.clear()
    explains = [one for one in decisions if isinstance(one, Explain)]
    promised = {one.request_id for one in explains if one.code == "waits_for_notice"}
    shares = {one.queue: one for one in standings}
    found = once_each(before, decisions)
    for one, state, following in steps:
        if isinstance(one, Grant | Resize):
            found += _given(one, state, following, now, policy)
    found += _notices(steps, shares, promised, now, policy)
    found += _ended(before, decisions, after, now, policy)
    found += _reservations(after, decisions)
    found += _explained(before, after, explains, decisions, promised, fuel)
    found += _gang(after)
    return found


# --- sums -----------------------------------------------------------------------------------------


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


def stays(state: PoolState, queue: str, promised: set[str], now: int) -> Two:
    """What a queue will have when everybody has let go who was told to, and got what was promised."""
    told = [h for h in state.held if h.state == "noticed" or (h.state == "killing" and now <= h.deadline_ms)]
    told = [h for h in told if h.beneficiary in promised]
    here = {h.beneficiary for h in told}
    total = list(allocated(state, queue))
    for held in told:
        if queue in path(state, held.request.queue):
            lost = loses(state, held)
            total = [total[r] - lost[r] for r in BOTH]
    for request in beneficiaries_of(state, here):
        if queue in path(state, request.queue):
            total = [total[r] + need(request)[r] for r in BOTH]
    return total[0], total[1]


def loses(state: PoolState, held: Held) -> Two:
    """An elastic lease comes back and grows by what its beneficiary does not use."""
    light = {d.name for d in state.devices if d.light}
    parts = [part.amount for part in gives(held) if part.device not in light]
    lost = sum(a.cores for a in parts), sum(a.milli_gpu for a in parts)
    if len(held.members) <= held.request.members_min:
        return lost
    for request in state.waiting:
        if request.id == held.beneficiary:
            return min(lost[0], need(request)[0]), min(lost[1], need(request)[1])
    return lost


def quota_of(state: PoolState, queue: str, r: int) -> int:
    """Its own, or what those below it have together; -1: none."""
    own = next(one for one in state.queues if one.id == queue)
    if own.quota[r] >= 0:
        return own.quota[r]
    below = [quota_of(state, one.id, r) for one in state.queues if one.parent == queue]
    return sum(one for one in below if one >= 0) if any(one >= 0 for one in below) else NO_LIMIT


# --- the invariants -------------------------------------------------------------------------------


def once_each(before: PoolState, decisions: Sequence[Decision]) -> list[str]:
    granted = [one.request_id for one in decisions if isinstance(one, Grant)]
    waiting = {request.id for request in before.waiting}
    live = {h.request.id for h in before.held if h.state != "killing"}
    found = [f"I4: {name} was granted twice" for name in granted if granted.count(name) > 1]
    found += [f"I4: {name} does not wait" for name in granted if name not in waiting]
    return found + [f"I4: {name} has a lease already" for name in granted if name in live]


def _given(one: Grant | Resize, state: PoolState, following: PoolState, now: int, policy: Policy) -> list[str]:
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


def _notices(
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
            found += _reclaimed(one, lease, asks, first, last, shares, promised, now)
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
            total = stays(first, queue, earlier, now)[r] + need(asks)[r]
            quota = quota_of(first, queue, r)
            if need(asks)[r] and not total <= max(quota, shares[queue].share[r]):
                found.append(f"I16: {one} for {queue}, which has no right to more")
    return found


def _ended(before: PoolState, decisions: Sequence[Decision], after: PoolState, now: int, policy: Policy) -> list[str]:
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


def _reservations(after: PoolState, decisions: Sequence[Decision]) -> list[str]:
    found = []
    for one in decisions:
        if not isinstance(one, Reserve):
            continue
        asks = next(r for r in after.waiting if r.id == one.request_id)
        left = tuple(
            h
            for h in after.held
            if not (h.request.max_runtime_ms > 0 and h.granted_ms + h.request.max_runtime_ms <= one.start_ms)
        )
        devices = tuple(d for d in after.devices if d.name in one.devices)
        if not fits(after._replace(held=left, devices=devices), asks):
            found.append(f"I20: {one} would be late")
    return found


def _explained(
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
    reserved = {one.request_id for one in decisions if isinstance(one, Reserve)}
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
    state: PoolState, asks: Request, one: Explain, promised: set[str], reserved: set[str], short_of_fuel: bool
) -> str:
    """What is wrong with the reason; empty: nothing. Of those of whom nothing else is said, once for all alike."""
    holds = known.get(state, "holds", lambda: {h.request.id for h in state.held})
    if asks.id in promised | reserved | holds or one.code == "waits_for_notice":
        return _wrong(state, asks, one, promised, reserved, short_of_fuel)
    kind = (asks.queue, asks.member, asks.members_min, asks.members_max, asks.preemptible, asks.light)
    return known.get(
        state,
        ("untrue", kind, one.code, one.position > 1),
        lambda: _wrong(state, asks, one, promised, reserved, short_of_fuel),
    )


def _wrong(
    state: PoolState, asks: Request, one: Explain, promised: set[str], reserved: set[str], short_of_fuel: bool
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
        return "" if has_room and (others or reserved - {asks.id}) else "nothing is kept for others, or no room either"
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


def _gang(after: PoolState) -> list[str]:
    found = []
    waiting = {request.id for request in after.waiting}
    for held in after.held:
        if not held.request.members_min <= len(held.members) <= held.request.members_max:
            found.append(f"I9: {held.token} has {len(held.members)} members")
        if held.request.id in waiting and held.state != "killing":
            found.append(f"I10: {held.request.id} waits and holds")
    return found


# --- shares, in fractions -------------------------------------------------------------------------


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


def usage_of(decisions: Sequence[Decision]) -> list[Usage]:
    return [one for one in decisions if isinstance(one, Usage)]
