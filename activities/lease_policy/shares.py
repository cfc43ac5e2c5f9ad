"""Shares: what each queue is to have of each resource, from its quota, its weight and what it has used lately.

Level by level from the top, what a parent gets is divided among its children (gpu.md 1.1 e).
"""

from collections.abc import Sequence
from typing import NamedTuple

from activities.lease_policy.pool import Pool
from activities.lease_policy.state import NO_LIMIT
from activities.lease_policy.tree import BOTH, Node
from activities.lease_policy.usage import millionths


class Child(NamedTuple):
    """One that has a part, of one resource; in the order of their ids."""

    quota: int
    demand: int
    weight: int
    priority: int
    used: int
    """Decayed, in millionths of the pool."""


def divide_all(pool: Pool) -> None:
    """Demand from the leaves up, then shares from the pool down."""
    for node in reversed(pool.tree.nodes):
        for r in BOTH:
            wanted = node.asked[r]
            for child in node.children:
                wanted += child.demand[r]
            node.demand[r] = wanted if node.limit[r] == NO_LIMIT else min(wanted, node.limit[r])
    wishes = [(*node.demand, *node.usage) for node in pool.tree.nodes]
    if wishes == pool.tree.wishes:  # as in the round before: so are the shares
        return
    pool.tree.wishes = wishes
    for node in pool.tree.nodes:
        node.scaled = False
    for r in BOTH:
        _divide_among(pool, pool.tree.tops, pool.capacity[r], r)
        for node in pool.tree.nodes:
            if node.children:
                _divide_among(pool, node.children, node.share[r], r)


def _divide_among(pool: Pool, nodes: Sequence[Node], capacity: int, r: int) -> None:
    children = [
        Child(
            quota=max(node.quota[r], 0),
            demand=node.demand[r],
            weight=max(node.queue.weight, 0),
            priority=node.queue.priority,
            used=millionths(node.usage[r], pool.capacity[r], pool.policy.half_life_s),
        )
        for node in nodes
    ]
    shares, scaled = divide(capacity, children, pool.policy.usage_weight)
    for node, share in zip(nodes, shares, strict=True):
        node.share[r] = share
        node.scaled |= scaled


def divide(capacity: int, children: Sequence[Child], k: int) -> tuple[list[int], bool]:
    """Whole shares, at most *capacity* together, none above its demand; True when quotas were cut to fit.

    First each one's quota, as far as it wants it. The rest by priority, high first, in proportion to the weights,
    less *k* thousandths of what each has used; who wants less than its part leaves the rest to the others.
    """
    quotas = [min(child.quota, child.demand) for child in children]
    if sum(quotas) > capacity:
        return _in_proportion(capacity, quotas), True
    shares = quotas
    left = capacity - sum(quotas)
    for priority in sorted({child.priority for child in children}, reverse=True):
        wants = [
            i for i, one in enumerate(children) if one.priority == priority and one.weight and one.demand > shares[i]
        ]
        while wants and left:
            weights = sum(children[i].weight for i in wants)
            parts = [_part(children[i], weights, k) for i in wants]
            whole = sum(parts)
            content = [
                i
                for i, part in zip(wants, parts, strict=True)
                if (children[i].demand - shares[i]) * whole <= left * part
            ]
            if not content:
                for i, more in zip(wants, _in_proportion(left, parts), strict=True):
                    shares[i] += more
                left = 0
            for i in content:
                left -= children[i].demand - shares[i]
                shares[i] = children[i].demand
            wants = [i for i in wants if i not in content]
    return shares, False


def _part(child: Child, weights: int, k: int) -> int:
    """Never 0: who has a weight is never without any share."""
    return max(1, (10**6 * child.weight * (1000 + k) // weights - k * child.used) // 1000)


def _in_proportion(amount: int, parts: Sequence[int]) -> list[int]:
    """*amount* divided like *parts*; what whole numbers leave goes to the largest remainders, then in order."""
    whole = sum(parts)
    if not whole:  # less than nothing is there: no sensible state has that, and decide never raises
        return [0] * len(parts)
    shares = [amount * part // whole for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda i: (-(amount * parts[i] % whole), i))
    for i in by_remainder[: amount - sum(shares)]:
        shares[i] += 1
    return shares
