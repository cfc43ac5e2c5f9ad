"""`decide` holds its invariants whatever happens to a pool (gpu.md 2.5), by a checker that shares no code with it."""

from hypothesis import HealthCheck, settings

from tests.unit.lease_machine import Pool

TestAnythingHappens = Pool.TestCase
TestAnythingHappens.settings = settings(
    max_examples=300,
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
