"""Decayed usage: what a queue has had counts against it, half as much after each half-life.

The same on every host: a fixed table of 2^(-i/64), i < 64, as 32-bit fractions, and shifts for whole half-lives.
A queue's row holds its usage at a step of a 64th of the half-life. What leases have used since then is added when it
is asked for, so no event is missed between two rows; whoever ends a lease adds what it has used (`used_by`).
"""

from collections.abc import Iterable, Sequence

from activities.lease_policy.pool import Pool
from activities.lease_policy.state import COUNTED, Counted, Held, Queue, Usage
from activities.lease_policy.tree import BOTH, Node

STEPS = 64
TABLE = (
    4294967296, 4248701965, 4202935003, 4157661043, 4112874773, 4068570940, 4024744348, 3981389855,
    3938502376, 3896076880, 3854108391, 3812591987, 3771522796, 3730896002, 3690706840, 3650950594,
    3611622603, 3572718252, 3534232978, 3496162267, 3458501653, 3421246719, 3384393094, 3347936457,
    3311872529, 3276197082, 3240905930, 3205994934, 3171459999, 3137297074, 3103502151, 3070071267,
    3037000500, 3004285971, 2971923842, 2939910317, 2908241642, 2876914102, 2845924021, 2815267765,
    2784941738, 2754942382, 2725266179, 2695909648, 2666869345, 2638141863, 2609723834, 2581611923,
    2553802834, 2526293303, 2499080105, 2472160047, 2445529972, 2419186755, 2393127307, 2367348571,
    2341847524, 2316621173, 2291666561, 2266980759, 2242560872, 2218404036, 2194507417, 2170868212,
)  # fmt: skip
"""2^(32 - i/64), rounded."""
MASS = 14427
"""A steady use adds up to this many ten-thousandths of a half-life: 1 / ln 2."""


def decay(pool: Pool) -> None:
    """Each queue's usage now, those of its children with it; a row where a step has passed."""
    step = step_ms(pool.policy.half_life_s)
    of_queue: dict[str, list[Held]] = {}
    for held in pool.held:
        of_queue.setdefault(held.request.queue, []).append(held)
    for node in reversed(pool.tree.nodes):
        if node.id in pool.news:
            _find(pool, node, of_queue.get(node.id, []), step)
        node.usage[:] = node.own_usage
        for child in node.children:
            for r in BOTH:
                node.usage[r] += child.usage[r]
    pool.usages.sort()


def _find(pool: Pool, node: Node, leases: Sequence[Held], step: int) -> None:
    queue = node.queue
    node.own_usage = _at(pool, queue, leases, pool.now_ms, step)
    passed = (pool.now_ms - queue.usage_at_ms) // step
    if passed > 0 and (node.own_usage != (0, 0) or queue.usage != (0, 0)):
        at = queue.usage_at_ms + passed * step
        told = Usage(queue.id, _at(pool, queue, leases, at, step), at)
        pool.usages.append(told)
        node.queue = queue._replace(usage=told.usage, usage_at_ms=told.at_ms)  # what the next round begins with


def used_by(held: Held, since_ms: int, now_ms: int) -> Counted:
    """Resource-milliseconds of a lease since its queue's `usage_at_ms`: added to its row when the lease ends."""
    time = max(now_ms - max(held.granted_ms, since_ms), 0)
    return Counted(*(time * sum(getattr(part.amount, name) for part in held.members) for name in COUNTED))


def step_ms(half_life_s: int) -> int:
    return max(half_life_s * 1000 // STEPS, 1)


def decayed(usage: int, steps: int) -> int:
    """*usage* after so many 64ths of the half-life."""
    halves, rest = divmod(max(steps, 0), STEPS)
    return (max(usage, 0) * TABLE[rest] >> 32) >> min(halves, 4096)


def millionths(usage: int, capacity: int, half_life_s: int) -> int:
    """A usage as a part of what all of the pool would have been by now, used without a pause."""
    whole = capacity * max(half_life_s, 1) * MASS // 10  # in resource-milliseconds
    return min(usage * 10**6 // whole, 10**6) if whole > 0 else 0


def _at(pool: Pool, queue: Queue, leases: Iterable[Held], at_ms: int, step: int) -> Counted:
    """Its own usage at *at_ms*: its row, decayed, and what its leases have used since."""
    total = [decayed(usage, (at_ms - queue.usage_at_ms) // step) for usage in queue.usage]
    for held in leases:
        time = max(at_ms - max(held.granted_ms, queue.usage_at_ms), 0)
        for r, amount in enumerate(pool.counted[held.token]):
            total[r] += amount * time
    return Counted(*total)
