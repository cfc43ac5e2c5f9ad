"""What a change of the queue tree would do: the policy is asked on a copy of the state, before and after."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from sqlmodel import Session, col, select

from activities import lease_time
from activities.lease_ledger.state import policy as policy_of
from activities.lease_ledger.state import read
from activities.lease_policy import decide, sentence, standing
from activities.lease_policy.state import Decision, Explain, Grant, Held, Notice, Policy, PoolState, Standing
from api.pool.answers import Effect
from everloop.amounts import COUNTED, NO_LIMIT, UNLIMITED, Counted
from everloop.queues import Queue, amount
from everloop.store import LeaseRequestRow, LeaseRow

FUEL = 2_000
"""Requests that are looked at: enough for what a person wants to know, and answered at once."""
BOUNDS = ("over_limit", "not_preemptible_over_quota")
"""Why somebody waits whatever is free."""
LIVE = ("offered", "active", "noticed")


class Effects(NamedTuple):
    """What a change does."""

    leases: list[Effect]
    """Running ones that stand otherwise."""
    grants: list[str]
    """Who would be served at once."""
    waits: list[str]
    """Who would wait for another bound than now."""


def tried(session: Session, pool: str, after: tuple[Queue, ...]) -> Effects:
    """What the queues of *after* would do now."""
    now_ms = lease_time.in_ms(datetime.now(UTC))
    effects, served, bound = compared(read(session, pool, now_ms), now_ms, policy_of(session, pool), after)
    holders = dict(
        session.exec(
            select(LeaseRow.token, LeaseRow.workflow_id).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(LIVE))
        ).all()
    )
    asked = {row.id: row for row in (session.get(LeaseRequestRow, each) for each in (*served, *bound)) if row}
    return Effects(
        [each.model_copy(update={"lifecycle": holders.get(each.token, "")}) for each in effects],
        [f"{asked[each].workflow_id} in queue {asked[each].queue} would be served at once" for each in served],
        [f"{asked[each].workflow_id} {says}" for each, says in bound.items()],
    )


def compared(
    state: PoolState, now_ms: int, policy: Policy, after: tuple[Queue, ...]
) -> tuple[list[Effect], list[str], dict[str, str]]:
    """The same of a state, requests by their ids. Pure."""
    then = state._replace(queues=with_usage(after, state.queues))
    now, later = _Look(state, now_ms, policy), _Look(then, now_ms, policy)
    effects = []
    for held in sorted(state.held):
        before, afterwards = now.standing_of(held), later.standing_of(held)
        if held.state in LIVE and before != afterwards:
            effects.append(
                Effect(
                    token=held.token,
                    lifecycle="",
                    queue=held.request.queue,
                    now=before,
                    then=afterwards,
                    sentence=later.why(held, afterwards),
                )
            )
    bound = {
        one.request_id: sentence(one, later.queues[one.request_id]).replace("waits for", "would wait for", 1)
        for one in later.explained.values()
        if one.code in BOUNDS and (now.explained.get(one.request_id) or one._replace(code="")).code != one.code
    }
    return effects, sorted(later.granted - now.granted), bound


def with_usage(after: tuple[Queue, ...], before: tuple[Queue, ...]) -> tuple[Queue, ...]:
    """The tree as the policy reads it. A queue that was there keeps its usage."""
    known = {queue.id: queue for queue in before}
    return tuple(
        queue._replace(usage=known[queue.id].usage, usage_at_ms=known[queue.id].usage_at_ms)
        if queue.id in known
        else queue
        for queue in after
    )


class _Look:
    """A state, and what the policy would do with it now."""

    def __init__(self, state: PoolState, now_ms: int, policy: Policy) -> None:
        decisions: tuple[Decision, ...] = decide(state, now_ms, policy, FUEL)
        self.standings: dict[str, Standing] = {each.queue: each for each in standing(state, now_ms, policy)}
        self.parents = {queue.id: queue.parent for queue in state.queues}
        self.noticed = {one.token for one in decisions if isinstance(one, Notice)}
        self.granted = {one.request_id for one in decisions if isinstance(one, Grant)}
        self.explained = {one.request_id: one for one in decisions if isinstance(one, Explain)}
        self.queues = {request.id: request.queue for request in state.waiting}
        self.limits = {queue.id: queue.limit for queue in state.queues}

    def standing_of(self, held: Held) -> str:
        """`safe`, `reclaimable`, `noticed`, `over_limit`: see `answers.Effect`."""
        if held.token in self.noticed:
            return "noticed"
        if self._over_limit(held):
            return "over_limit"
        return "reclaimable" if held.request.preemptible and self._over(held) else "safe"

    def _over_limit(self, held: Held) -> Standing | None:
        """The queue on the way up from the lease's that has more than its limit of what the lease uses."""
        for found in self._path(held):
            bounds = zip(_used(held), self.limits[found.queue], found.allocated, strict=True)
            if any(mine and NO_LIMIT != limit < has for mine, limit, has in bounds):
                return found
        return None

    def _path(self, held: Held) -> Iterator[Standing]:
        at = held.request.queue
        while at in self.standings:
            yield self.standings[at]
            at = self.parents.get(at, "")

    def _over(self, held: Held) -> Standing | None:
        """The queue on the way up from the lease's that has more than its quota of what the lease uses."""
        for found in self._path(held):
            for mine, quota, has in zip(_used(held), found.quota, found.allocated, strict=True):
                if mine and (has > quota if quota != NO_LIMIT else found.queue == held.request.queue):
                    return found
        return None

    def why(self, held: Held, then: str) -> str:
        limited = self._over_limit(held) if then == "over_limit" else None
        if limited is not None:
            limit = self.limits[limited.queue]
            return (
                f"goes on; once it gives back what it has, it waits: queue {limited.queue} has "
                f"{_words(limited.allocated, limited)} in use, its limit would be {_words(limit, limited)}"
            )
        over = self._over(held)
        if then == "safe" and over is not None:  # or it would be reclaimable
            return f"is not preemptible: it goes on, {_beyond(over)}"
        if then == "safe":
            return f"would be within the quota of queue {held.request.queue}: no other queue takes it back"
        if over is None:
            return "would be told to let go at once, with a grace for its checkpoint"
        beyond = f"queue {over.queue} has {_words(over.allocated, over)} in use, its quota would be "
        beyond += _words(over.quota, over)
        if then == "noticed":
            return f"would be told to let go at once, with a grace for its checkpoint: {beyond}"
        return f"could be taken back when another queue is owed: {beyond}"


def _beyond(over: Standing) -> str:
    if over.quota == UNLIMITED:
        return f"though queue {over.queue} has no quota"
    return f"beyond the quota of queue {over.queue}"


def _used(held: Held) -> list[int]:
    return [sum(getattr(part.amount, name) for part in held.members) for name in COUNTED]


def _words(values: Counted, of: Standing) -> str:
    return " and ".join(amount(name, getattr(values, name)) for name in COUNTED[: _gpus(of)])


def _gpus(standing: Standing) -> int:
    """How many resources are worth a word."""
    return 2 if standing.allocated.milli_gpu or standing.quota.milli_gpu > 0 else 1
