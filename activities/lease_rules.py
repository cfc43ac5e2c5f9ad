"""The policy of a pool in SQL: what an operator has set of it, and who did."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlmodel import Session

from activities.lease_ledger.state import policy
from activities.lease_policy.state import Policy
from everloop import pool_rules
from everloop.store import PoolPolicyRow

DEFAULTS: dict[str, int] = {name: value for name, value in Policy()._asdict().items() if name != "version"}


def current(session: Session, pool: str) -> dict[str, int]:
    """All fields, as the next decision goes by them."""
    return {name: value for name, value in policy(session, pool)._asdict().items() if name in DEFAULTS}


def change(session: Session, pool: str, fields: Mapping[str, int], *, person: str) -> str:
    """Set *fields*; the others stay. Returns what was and is. Raises `Invalid`."""
    pool_rules.check(fields)
    before = current(session, pool)
    after = before | dict(fields)
    said = pool_rules.told(before, after)
    if not said:
        return f"the policy of pool {pool} is as it was"
    row = session.get(PoolPolicyRow, pool) or PoolPolicyRow(pool=pool)
    row.policy = {name: value for name, value in after.items() if value != DEFAULTS[name]}
    row.person, row.at = person, datetime.now(UTC)
    session.add(row)
    return f"the policy of pool {pool}: {', '.join(said)}"
