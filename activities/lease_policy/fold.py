"""A state with decisions done to it, for tests, the simulator and the question what would be if."""

from collections.abc import Iterable

from activities.lease_policy.state import Decision, Grant, Held, Kill, Notice, PoolState, Resize, Usage, Withdraw


def apply(state: PoolState, decisions: Iterable[Decision], now_ms: int, next_token: int) -> PoolState:
    """What the ledger's commit makes of them. Grants and resizes get tokens from *next_token* on, in their order.

    A decision about a request or a lease that is not there changes nothing.
    """
    waiting = {request.id: request for request in state.waiting}
    held = {lease.token: lease for lease in state.held}
    queues = {queue.id: queue for queue in state.queues}
    for one in decisions:
        if isinstance(one, Grant) and one.request_id in waiting:
            request = waiting.pop(one.request_id)
            held[next_token] = Held(next_token, request, one.members, "offered", now_ms)
            next_token += 1
        elif isinstance(one, Resize) and one.token in held:
            lease = held.pop(one.token)
            held[next_token] = lease._replace(token=next_token, members=one.members, granted_ms=now_ms, state="offered")
            next_token += 1
        elif isinstance(one, Usage) and one.queue in queues:
            queues[one.queue] = queues[one.queue]._replace(usage=one.usage, usage_at_ms=one.at_ms)
        elif isinstance(one, Notice | Withdraw | Kill) and one.token in held:
            held[one.token] = _told(held[one.token], one)
    return PoolState(state.devices, tuple(queues.values()), tuple(waiting.values()), tuple(held.values()))


def _told(lease: Held, one: Notice | Withdraw | Kill) -> Held:
    if isinstance(one, Notice):
        return lease._replace(state="noticed", beneficiary=one.beneficiary, deadline_ms=one.deadline_ms)
    if isinstance(one, Withdraw):
        return lease._replace(state="active", beneficiary="", deadline_ms=0) if lease.state == "noticed" else lease
    return lease._replace(state="killing", deadline_ms=one.deadline_ms)
