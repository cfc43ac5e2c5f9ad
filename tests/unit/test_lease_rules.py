"""What an operator sets of a pool's policy is what the next decision goes by, and a record names it."""

import json

import pytest
from sqlmodel import col, select

from activities import lease_ledger as ledger
from activities import lease_rules
from activities.caller import Caller
from everloop import names, pool_rules
from everloop.contracts import LeaseRequest
from everloop.errors import Invalid
from everloop.store import PoolDecisionRow, PoolPolicyRow, Store

POOL = names.DEFAULT_POOL


def set_rules(store: Store, **given: object) -> str:
    with store.write() as session:
        return lease_rules.change(session, POOL, pool_rules.read(given, lease_rules.DEFAULTS), person="ada")


def decided(store: Store, name: str) -> dict[str, object]:
    """The policy of the record of the decision that serves *name*."""
    ledger.enqueue(store, LeaseRequest(id=name), Caller(name, "run", names.LIFECYCLE))
    assert ledger.grant(store, POOL) == 1
    with store.read() as session:
        newest = select(PoolDecisionRow).order_by(col(PoolDecisionRow.version).desc()).limit(1)
        return json.loads(session.exec(newest).one().policy)


def test_the_next_decision_goes_by_what_was_set_and_its_record_says_so(store: Store) -> None:
    ledger.note_inventory(store, POOL, ("cpu0:cores=4", "cpu1:light"))
    usual = decided(store, "before")

    said = set_rules(store, grace="30s", preemptions_a_day="5", starving="default")

    assert said == "the policy of pool default: grace 1 min -> 30 s, preemptions a day 3 -> 5"
    assert decided(store, "after") == usual | {"grace_s": 30, "most_preemptions_a_day": 5}
    with store.read() as session:
        row = session.get_one(PoolPolicyRow, POOL)
        assert (row.policy, row.person) == ({"grace_s": 30, "most_preemptions_a_day": 5}, "ada")


def test_what_is_not_given_stays_and_default_takes_back_what_was_set(store: Store) -> None:
    set_rules(store, grace="2min", usage_weight="0.25")

    assert set_rules(store, grace="default") == "the policy of pool default: grace 2 min -> 1 min"
    with store.read() as session:
        assert session.get_one(PoolPolicyRow, POOL).policy == {"usage_weight": 250}


def test_every_field_of_the_policy_but_its_version_is_a_rule_within_its_bounds() -> None:
    assert {rule.field for rule in pool_rules.RULES.values()} == set(lease_rules.DEFAULTS)
    pool_rules.check(lease_rules.DEFAULTS)


@pytest.mark.parametrize("fields", [{"version": 9}, {"grace_s": -1}, {"saturation_percent": 99}])
def test_an_order_with_fields_out_of_bounds_changes_nothing(store: Store, fields: dict[str, int]) -> None:
    with pytest.raises(Invalid), store.write() as session:
        lease_rules.change(session, POOL, fields, person="ada")
    with store.read() as session:
        assert session.get(PoolPolicyRow, POOL) is None
