"""The queue tree with what each queue has, has been promised and is about to lose."""

from collections.abc import Iterable

from activities.lease_policy.state import NO_LIMIT, Counted, Queue

Two = tuple[int, int]
"""cores, milli_gpu: a `Counted`."""
ZERO: Two = (0, 0)
BOTH = (0, 1)


class Node:
    """A queue that can be reached from the pool. Amounts are lists of cores and milli-GPU."""

    def __init__(self, queue: Queue, parent: "Node | None") -> None:
        self.id = queue.id
        self.queue = queue
        self.children: list[Node] = []
        self.path: tuple[Node, ...] = (self, *parent.path) if parent else (self,)
        """From itself up to the queue right below the pool."""
        self.rank: tuple[int, ...] = (*(parent.rank if parent else ()), -queue.priority)
        """Queue priorities from the top, high ones first."""
        self.quota: list[int] = [max(each, NO_LIMIT) for each in queue.quota]
        """Its own, or what its children's add up to; `NO_LIMIT` where none is set."""
        self.limit: list[int] = [max(each, NO_LIMIT) for each in queue.limit]
        self.limited: bool = any(each != NO_LIMIT for node in self.path for each in node.limit)
        """By its own limit or one above it."""
        self.demand = [0, 0]
        self.share = [0, 0]
        self.own_usage: Two = ZERO
        """Decayed."""
        self.usage = [0, 0]
        """With that of the queues below it."""
        self.scaled = False
        self.begin_again()

    def begin_again(self) -> None:
        """Nothing is counted yet."""
        self.allocated = [0, 0]
        self.firm = [0, 0]
        """Not preemptible, of what it has or has been promised."""
        self.promised = [0, 0]
        """To requests for which others have been told to let go."""
        self.leaving = [0, 0]
        """Of what it has, what was told to let go for somebody else."""
        self.asked = [0, 0]
        """Wanted beside what it has, with elastic work at its largest."""

    @property
    def top(self) -> "Node":
        return self.path[-1]


class Tree:
    """All queues that can be reached, parents before children, and in the order of their ids below each parent.

    A queue whose parent is unknown, or that is its own ancestor, is not in it: its requests wait with that reason.
    """

    def __init__(self, queues: Iterable[Queue]) -> None:
        below: dict[str, list[Queue]] = {}
        known: dict[str, Queue] = {}
        for queue in sorted(queues):
            if queue.id and known.setdefault(queue.id, queue) is queue:
                below.setdefault(queue.parent, []).append(queue)
        self.tops = [Node(queue, None) for queue in below.get("", ())]
        self.nodes = list(self.tops)
        for node in self.nodes:  # grows as it goes
            node.children = [Node(queue, node) for queue in below.get(node.id, ())]
            self.nodes += node.children
        self.by_id = {node.id: node for node in self.nodes}
        self.wishes: list[tuple[int, ...]] = []
        """Demand and usage of each, for which shares were found last."""
        for node in reversed(self.nodes):
            for r in BOTH:
                if node.quota[r] == NO_LIMIT:
                    below_it = [child.quota[r] for child in node.children if child.quota[r] != NO_LIMIT]
                    node.quota[r] = sum(below_it) if below_it else NO_LIMIT

    def begin_again(self) -> None:
        """Nothing is counted yet."""
        for node in self.nodes:
            node.begin_again()

    def leaf(self, queue: str) -> Node | None:
        node = self.by_id.get(queue)
        return node if node is not None and not node.children else None


def add(where: list[int], amount: Two, sign: int = 1) -> None:
    where[0] += sign * amount[0]
    where[1] += sign * amount[1]


def over_limit(leaf: Node, need: Two, leaving: Two = ZERO) -> Node | None:
    """The queue on the way up whose limit it would go over, with what was promised; less *leaving*."""
    if not leaf.limited:
        return None
    for node in leaf.path:
        for r in BOTH:
            limit = node.limit[r]
            if need[r] and limit != NO_LIMIT and node.allocated[r] + node.promised[r] + need[r] - leaving[r] > limit:
                return node
    return None


def over_firm(leaf: Node, need: Two) -> Node | None:
    """The queue on the way up whose quota work that is not preemptible would go over."""
    for node in leaf.path:
        for r in BOTH:
            quota = node.queue.quota[r]
            if need[r] and quota >= 0 and node.firm[r] + need[r] > quota:
                return node
    return None


def over_quota(leaf: Node, need: Two) -> Node | None:
    """The queue on the way up whose quota it would go over, with what was promised."""
    for node in leaf.path:
        for r in BOTH:
            quota = node.quota[r]
            if need[r] and quota != NO_LIMIT and node.allocated[r] + node.promised[r] + need[r] > quota:
                return node
    return None


def within_quota(leaf: Node, need: Two) -> bool:
    """Has the queue a quota of all that is asked for, and is it enough, there and above?"""
    for r in BOTH:
        if need[r] and leaf.quota[r] == NO_LIMIT:
            return False
    return over_quota(leaf, need) is None


def counted(values: Iterable[int]) -> Counted:
    return Counted(*values)
