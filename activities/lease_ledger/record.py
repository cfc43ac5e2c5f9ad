"""Decision records: what `decide` was given and what it said, so that it can be decided again anywhere.

A record holds the digest of the state and how it differs from that of the record before: the whole state only where
this process knows no such record, and every so often. They are kept for 7 days.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from activities.lease_ledger import rows
from activities.lease_ledger.state import decisions_text, difference, followed, of_plain, plain, text
from activities.lease_policy.state import VERSION, Decision, Explain, Policy, PoolState
from everloop import signing
from everloop.store import PoolDecisionRow

KEPT_MS = 7 * 24 * 3600 * 1000
WHOLE_EVERY = 200
"""So often a record has the whole state: whoever decides again begins there."""

Kept = tuple[int, dict[str, list[Any]]]
_last: dict[str, Kept] = {}
"""Of each pool, the version and the state of the last record that this process has written."""


class Decided(NamedTuple):
    """A decision that is to be committed."""

    state: PoolState
    rules: Policy
    now_ms: int
    decisions: Sequence[Decision]


def keep(session: Session, pool: str, version: int, made: Decided) -> Kept:
    """Write the record of *version* into the transaction that does the decisions. Returns what to remember after it."""
    now = plain(made.state)
    whole_text = text(now)
    before = _before(session, pool, version)
    session.add(
        PoolDecisionRow(
            pool=pool,
            version=version,
            input_digest=signing.digest_of(whole_text),
            input=whole_text if before is None else signing.canonical(difference(before, now)).decode(),
            decisions=decisions_text(one for one in made.decisions if not isinstance(one, Explain)),
            at=rows.moment(made.now_ms),
            whole=before is None,
            policy=signing.canonical(made.rules._asdict()).decode(),
            now_ms=made.now_ms,
        )
    )
    if before is None:
        old = rows.moment(made.now_ms - KEPT_MS)
        session.exec(delete(PoolDecisionRow).where(col(PoolDecisionRow.pool) == pool, col(PoolDecisionRow.at) < old))
    return version, now


def remember(pool: str, kept: Kept) -> None:
    """The transaction is committed."""
    _last[pool] = kept


def _before(session: Session, pool: str, version: int) -> dict[str, list[Any]] | None:
    known = _last.get(pool)
    # Not every version is a decision's: the one that can be divided may be another's.
    if known is None or known[0] // WHOLE_EVERY != version // WHOLE_EVERY or known[0] >= version:
        return None
    row = session.get(PoolDecisionRow, (pool, known[0]))  # another process may have written one since, or a restore
    last = _newest(session, pool)
    if row is None or last != known[0] or row.input_digest != signing.digest_of(text(known[1])):
        return None
    return known[1]


def _newest(session: Session, pool: str) -> int | None:
    return session.exec(select(func.max(PoolDecisionRow.version)).where(PoolDecisionRow.pool == pool)).one()


def replayed(records: Iterable[PoolDecisionRow]) -> Iterator[tuple[PoolDecisionRow, PoolState, Policy]]:
    """Of each of a pool's records, in order, what `decide` was given. Begins at the first whole one.

    Left out are records of before this format, and those that another version of the policy decided: it need not
    decide as today's does. Raises `ValueError` for one whose digest is not its state's.
    """
    state: dict[str, list[Any]] | None = None
    for row in records:
        if not row.policy:
            continue
        if row.whole:
            state = json.loads(row.input)
        elif state is not None:
            state = followed(state, json.loads(row.input))
        if state is None:
            continue
        if signing.digest_of(text(state)) != row.input_digest:
            raise ValueError(f"record {row.version} of pool {row.pool} does not follow from the one before")
        rules = Policy(**json.loads(row.policy))
        if rules.version == VERSION:
            yield row, of_plain(state), rules


def said(decisions: Iterable[Decision]) -> str:
    """What a record keeps of *decisions*: all but the explanations, which follow from the state."""
    return decisions_text(one for one in decisions if not isinstance(one, Explain))
