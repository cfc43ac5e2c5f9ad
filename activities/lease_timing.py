"""How long decisions take, and who is refused: counted in the control process, read by workers/metrics.py."""

from prometheus_client import CollectorRegistry, Counter, Histogram

TIMINGS = CollectorRegistry()
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)

DECIDE = Histogram("everloop_decide_seconds", "One decision of the policy.", buckets=SECONDS, registry=TIMINGS)
EXAMINED = Histogram(
    "everloop_decide_examined",
    "Requests that a decision has looked at.",
    buckets=(0, 1, 10, 100, 1000, 10_000),
    registry=TIMINGS,
)
COMMIT = Histogram(
    "everloop_commit_seconds", "The transaction that writes a decision.", buckets=SECONDS, registry=TIMINGS
)
REFUSED = Counter("refused", "Pointers refused to a holder whose token is fenced.", ("store",), registry=None)
"""`result`, `version`. workers/metrics.py puts beside them what compute has refused (lease_refused.py)."""


def refused() -> dict[str, float]:
    """By this process, since its start."""
    samples = (sample for family in REFUSED.collect() for sample in family.samples)
    return {sample.labels["store"]: sample.value for sample in samples if sample.name == "refused_total"}


for _what in ("result", "version"):
    REFUSED.labels(_what)  # 0 is a number, too
