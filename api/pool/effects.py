"""What a change of the queue tree would do: the policy is asked on a copy of the state, before and after."""

from datetime import UTC, datetime

from sqlmodel import Session, col, select

from activities import lease_time
from activities.lease_ledger.state import policy as policy_of
from activities.lease_ledger.state import read
from activities.lease_policy import decide, standing
from activities.lease_policy.state import Decision, Grant, Held, Notice, Policy, PoolState, Standing
from api.pool.answers import Effect
from everloop.amounts import COUNTED, NO_LIMIT
from everloop.queues import Queue, amount
from everloop.store import LeaseRequestRow, LeaseRow

FUEL = 2_000
"""Requests that are looked at: enough for what a person wants to know, and answered at once."""
LIVE = ("offered", "active", "noticed")


def tried(session: Session, pool: str, after: tuple[Queue, ...]) -> tuple[list[Effect], list[str]]:
    """Running leases that stand otherwise with the queues of *after*, and who would be served at once."""
    now_ms = lease_time.in_ms(datetime.now(UTC))
    effects, served = compared(read(session, pool, now_ms), now_ms, policy_of(session, pool), after)
    holders = dict(
        session.exec(
            select(LeaseRow.token, LeaseRow.workflow_id).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(LIVE))
        ).all()
    )
    asked = [row for row in (session.get(LeaseRequestRow, each) for each in served) if row is not None]
    return (
        [each.model_copy(update={"lifecycle": holders.get(each.token, "")}) for each in effects],
        [f"{row.workflow_id} in queue {row.queue} would be served at once" for row in asked],
    )


def compared(state: PoolState, now_ms: int, policy: Policy, after: tuple[Queue, ...]) -> tuple[list[Effect], list[str]]:
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
    return effects, sorted(later.granted - now.granted)


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

    def standing_of(self, held: Held) -> str:
        """`safe`, `reclaimable`, `noticed`: see `answers.Effect`."""
        if held.token in self.noticed:
            return "noticed"
        return "reclaimable" if held.request.preemptible and self._over(held) else "safe"

    def _over(self, held: Held) -> Standing | None:
        """The queue on the way up from the lease's that has more than its quota of what the lease uses."""
        used = [sum(getattr(part.amount, name) for part in held.members) for name in COUNTED]
        at = held.request.queue
        while at in self.standings:
            found = self.standings[at]
            for mine, quota, has in zip(used, found.quota, found.allocated, strict=True):
                if mine and (has > quota if quota != NO_LIMIT else at == held.request.queue):
                    return found
            at = self.parents.get(at, "")
        return None

    def why(self, held: Held, then: str) -> str:
        over = self._over(held)
        if then == "safe":
            return f"would be within the quota of queue {held.request.queue}: nobody takes it back"
        if over is None:
            return "would be told to let go at once, with a grace for its checkpoint"
        quota = " and ".join(amount(name, getattr(over.quota, name)) for name in ("cores", "milli_gpu")[: _gpus(over)])
        has = " and ".join(
            amount(name, getattr(over.allocated, name)) for name in ("cores", "milli_gpu")[: _gpus(over)]
        )
        beyond = f"queue {over.queue} has {has} in use, its quota would be {quota}"
        if then == "noticed":
            return f"would be told to let go at once, with a grace for its checkpoint: {beyond}"
        return f"could be taken back when another queue is owed: {beyond}"


def _gpus(standing: Standing) -> int:
    """How many resources are worth a word."""
    return 2 if standing.allocated.milli_gpu or standing.quota.milli_gpu > 0 else 1
