"""Is what `decide` did right? By brute force over the tuples of state.py alone: none of the policy's steps is used.

`problems` names the invariant of gpu.md 2.5 that is broken. It answers for states that the ledger can hold.
"""

from collections.abc import Sequence

from activities.lease_policy.state import Decision, Explain, Grant, Policy, PoolState, Resize, Standing
from tests.unit.lease_checker.ended import ended, reservations
from tests.unit.lease_checker.explained import explained
from tests.unit.lease_checker.given import gang, given, once_each
from tests.unit.lease_checker.notices import notices
from tests.unit.lease_checker.shares import share_problems
from tests.unit.lease_checker.sums import known


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
            found += given(one, state, following, now, policy)
    found += notices(steps, shares, promised, now, policy)
    found += ended(before, decisions, after, now, policy)
    found += reservations(after, decisions, now, policy)
    found += explained(before, after, explains, decisions, promised, fuel)
    found += gang(after)
    return found


__all__ = ["gang", "given", "problems", "share_problems"]
