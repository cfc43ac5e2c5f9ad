"""Reclaim between queues: who stays within its quota, or clearly below its share, takes from who is over both.

Compared are the queues right below the lowest one that both have in common, and all below those on each side. Nobody
is taken below its quota, nor when it is at or below its share; where the taker is not within a quota of its own, not
below its share either, and only when the taker stays less saturated than the other by the policy's margin.
"""

from collections.abc import Iterable, Iterator

from activities.lease_policy.pool import Pool, Shape
from activities.lease_policy.state import NO_LIMIT, Held
from activities.lease_policy.tree import BOTH, Node, Two, add
from activities.lease_policy.victims import Candidates, Rights, gives_counted, has_surplus

QUOTA, SHARE = "quota", "share"


class Reclaim(Rights):
    """What the queue *taker* may take from other queues for one request of *shape*."""

    def __init__(self, pool: Pool, taker: Node, shape: Shape) -> None:
        self._pool, self._taker, self._need = pool, taker, shape.need
        self._place = {node.id: place for place, node in enumerate(taker.path)}
        self._by_right = [""]
        """Of the first so many queues on the way up, all below the lowest common one, together."""
        for node in taker.path:
            rights = (right_of(node, shape.need), self._by_right[-1] or QUOTA)
            hindered = len(self._by_right) > 1 and not self._by_right[-1]
            self._by_right.append("" if hindered or "" in rights else SHARE if SHARE in rights else QUOTA)
        self._taken: dict[str, list[int]] = {}
        self._known: dict[tuple[str, Two], bool] = {}
        """What may be taken now: leases of one queue that give the same are alike."""
        self._giver: dict[str, tuple[str, tuple[Node, ...]]] = {}

    def may(self, held: Held) -> bool:
        mode, givers = self._of(held.request.queue)
        if not mode:
            return False
        loses = self._loses(held)
        key = (held.request.queue, loses)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = all(self._can_lose(node, loses, mode) for node in givers)
        return known

    def lose(self, held: Held) -> None:
        self._known.clear()
        for node in self._of(held.request.queue)[1]:
            add(self._taken.setdefault(node.id, [0, 0]), self._loses(held))

    def leaves_anyway(self, held: Held) -> None:
        """It is being killed for this request, which it is not enough for: its queues lose it in any case."""
        self._known.clear()
        node = self._pool.tree.by_id.get(held.request.queue)
        for each in node.path if node else ():
            add(self._taken.setdefault(each.id, [0, 0]), self._loses(held))

    def undo(self, held: Held) -> None:
        self._known.clear()
        for node in self._of(held.request.queue)[1]:
            add(self._taken[node.id], self._loses(held), -1)

    def all_of(self, among: Candidates) -> Iterable[Held]:
        """Most queues have nothing that may be taken."""
        for queue, leases in among.of_queue.items():
            if self._of(queue)[0]:
                yield from filter(self.may, leases)

    def in_order(self, among: Candidates) -> Iterator[Held]:
        queues = {queue for queue in among.of_queue if self._of(queue)[0]}
        return filter(self.may, (held for held in among.all if held.request.queue in queues))

    def _loses(self, held: Held) -> Two:
        """An elastic lease comes back, and grows again by what the taker does not use."""
        cores, milli_gpu = gives_counted(self._pool, held)
        if has_surplus(held):
            return min(cores, self._need[0]), min(milli_gpu, self._need[1])
        return cores, milli_gpu

    def _of(self, queue: str) -> tuple[str, tuple[Node, ...]]:
        known = self._giver.get(queue)
        if known is None:
            known = self._giver[queue] = self._between(queue)
        return known

    def _between(self, queue: str) -> tuple[str, tuple[Node, ...]]:
        """By which right it may take from that queue (none: an empty text), and the queues that would lose."""
        giver = self._pool.tree.leaf(queue)
        if giver is None or giver is self._taker:
            return "", ()
        above, common = 0, len(self._by_right) - 1
        for node in giver.path:
            if node.id in self._place:
                common = self._place[node.id]
                break
            above += 1
        right = self._by_right[common]
        if not right or not above:
            return "", ()
        givers = giver.path[:above]
        if right == SHARE and not self._much_less_saturated(self._taker.path[common - 1], givers[-1]):
            return "", ()
        return right, givers

    def _much_less_saturated(self, taker: Node, giver: Node) -> bool:
        percent = max(self._pool.policy.saturation_percent, 100)
        return all(
            (_stays(taker, r) + self._need[r]) * percent * giver.share[r] < _stays(giver, r) * 100 * taker.share[r]
            for r in BOTH
            if self._need[r]
        )

    def _can_lose(self, node: Node, loses: Two, mode: str) -> bool:
        taken = self._taken.get(node.id, (0, 0))
        helps = False
        for r in BOTH:
            if not loses[r]:
                continue
            before = _stays(node, r) - taken[r]
            after = before - loses[r]
            if node.quota[r] != NO_LIMIT and after < node.quota[r]:
                return False
            if self._need[r]:
                helps = True
                if before <= node.share[r] or (mode == SHARE and after < node.share[r]):
                    return False
        return helps


def right_of(node: Node, need: Two) -> str:
    """By which right it may have that much: all within its quota, or else within its share, or none."""
    within = [_within(node, need, r) for r in BOTH if need[r]]
    if not within or "" in within:
        return ""
    return SHARE if SHARE in within else QUOTA


def _within(node: Node, need: Two, r: int) -> str:
    total = _stays(node, r) + need[r]
    if node.quota[r] != NO_LIMIT and total <= node.quota[r]:
        return QUOTA
    return SHARE if total <= node.share[r] else ""


def _stays(node: Node, r: int) -> int:
    """What it will have when all promises are kept."""
    return node.allocated[r] + node.promised[r] - node.leaving[r]
