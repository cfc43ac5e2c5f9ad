"""Explain: for each request that still waits, the one reason that is true of the state as it now is.

In this order: what nobody can mend by waiting, what a limit or a quota refuses, for what was promised or is reserved,
and, where only room is wanting, whether the queue has a right to more.
"""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import partial

from activities.lease_policy.evict import in_turn
from activities.lease_policy.pool import Line, Pool, Shape
from activities.lease_policy.room import MANY, NOTHING, Four, fit, most, plus, times
from activities.lease_policy.sentence import said
from activities.lease_policy.state import Explain, Request
from activities.lease_policy.tree import BOTH, Node, over_firm, over_limit, over_quota

ROOM = ("no_room", "behind", "over_quota")
"""Codes of those that want nothing but room."""
Detail = tuple[tuple[str, str], ...]
Reason = tuple[str, Detail]
FUEL: Reason = ("fuel", ())
_told = partial(tuple.__new__, Explain)
"""Of a tuple; the class itself takes twice as long, and there are ten thousand."""


def explain(pool: Pool) -> list[Explain]:
    """One for each request that waits: those that nothing helps first, the others in the order of their turns."""
    told = [_odd(pool, request, code) for request, code in pool.odd]
    free = _Free(pool)
    before = 0
    for line in in_turn(pool):
        told += _of_line(pool, line, free, before)
        before += len(line.waiting)
    return told


def _of_line(pool: Pool, line: Line, free: "_Free", before: int) -> list[Explain]:
    names = [request.id for request, _ in line.waiting]
    reasons = _reasons(pool, line, free)
    reasons += [FUEL] * (len(names) - len(reasons))
    codes, details = zip(*reasons, strict=True)
    end = len(names)
    return list(map(_told, zip(names, codes, range(1, end + 1), range(before, before + end), details, strict=True)))


def _reasons(pool: Pool, line: Line, free: "_Free") -> list[Reason]:
    """Of those who were asked, in their order."""
    special: AbstractSet[str] = free.kept_for_some if line in free.lines else frozenset()
    looked = line.waiting[: line.asked]
    known: dict[int, Reason] = {}
    reasons: list[Reason] = []
    for request, shape in looked:
        reason = known.get(shape.alike) or known.setdefault(shape.alike, _reason(line, shape, free, ""))
        reasons.append(_own_reason(pool, request, reason, free.wants(shape)) if request.id in special else reason)
        if reasons[-1][0] in ("no_room", "over_quota", "waits_for_notice"):
            break
    rest = looked[len(reasons) :]
    if not rest:
        return reasons
    first = looked[len(reasons) - 1][0].id  # from here on others may be behind it
    known = {alike: one for alike, one in known.items() if one[0] != "no_room"}
    for shape in {shape.alike: shape for _, shape in rest}.values():
        if shape.alike not in known:
            known[shape.alike] = _reason(line, shape, free, first)
    if not special:
        return reasons + [known[shape.alike] for _, shape in rest]
    return reasons + [
        _own_reason(pool, request, known[shape.alike], free.wants(shape))
        if request.id in special
        else known[shape.alike]
        for request, shape in rest
    ]


def _own_reason(pool: Pool, request: Request, reason: Reason, wants: Detail) -> Reason:
    """Of one for whom others were told to let go, or something is reserved."""
    if request.id in pool.beneficiaries:
        number, until_ms = pool.beneficiaries[request.id]
        return "waits_for_notice", (*wants, ("victims", str(number)), ("until_ms", str(until_ms)))
    if reason[0] in ROOM:
        return "no_room", (*wants, ("start_ms", str(pool.reserved[request.id].start_ms)))
    return reason


def _reason(line: Line, shape: Shape, free: "_Free", wanting: str) -> Reason:
    leaf = line.leaf
    if leaf is None:
        return ("behind" if wanting else "no_room"), free.wants(shape)
    node = over_limit(leaf, shape.need)
    if node:
        return "over_limit", free.wants(shape) + free.bound("limit", node, shape) + _alone(node.limit, shape)
    node = None if shape.preemptible else over_firm(leaf, shape.need)
    if node:
        return "not_preemptible_over_quota", free.wants(shape) + free.bound("firm", node, shape) + _alone(
            node.queue.quota, shape
        )
    kept = free.kept_for(shape)
    if kept:
        return "reserved_for", free.wants(shape) + kept
    node = over_quota(leaf, shape.need)
    if node:
        return "over_quota", free.wants(shape) + free.bound("quota", node, shape)
    return ("behind", (*free.wants(shape), ("first", wanting))) if wanting else ("no_room", free.wants(shape))


def _alone(bound: Sequence[int], shape: Shape) -> Detail:
    """It asks for more than that by itself, so that nothing that ends helps it."""
    return (("alone", "1"),) if any(0 <= bound[r] < shape.need[r] for r in BOTH) else ()


class _Free:
    """What is free when all is decided: to everybody, and with what is kept or reserved for some."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        room = pool.room
        self._kept = Counter(
            (plus(room.free[name], pool.held_back.get(name, NOTHING)), room.open_to_all(name))
            for name in {*pool.held_back, *room.spare}
        )
        """What is free with what is kept, and without: of so many devices."""
        self.kept_for_some = pool.beneficiaries.keys() | pool.reserved.keys()
        self.lines = {pool.asking[name][1] for name in self.kept_for_some}
        self._amounts: dict[bool, tuple[Four, Four]] = {}
        self._wants: dict[int, Detail] = {}
        self._kept_for: dict[int, Detail] = {}
        self._bounds: dict[tuple[str, str, bool, bool], Detail] = {}

    def kept_for(self, shape: Shape) -> Detail:
        """For whom that is kept in which it would fit, one of them where there are several. Empty: it fits in none."""
        if not self._kept:
            return ()
        if shape.alike not in self._kept_for:
            self._kept_for[shape.alike] = self._whose(shape)
        return self._kept_for[shape.alike]

    def _whose(self, shape: Shape) -> Detail:
        room, member = self._pool.room, shape.member
        shown = room.count(member, MANY)
        kept = sum((fit(free, member) - fit(open_, member)) * number for (free, open_), number in self._kept.items())
        if shown + kept < shape.count:
            return ()
        reserved = {name: fit(room.free[name], member) - fit(room.open_to_all(name), member) for name in room.spare}
        if shown + sum(reserved.values()) >= shape.count:
            whose = (name for name, one in sorted(self._pool.reserved.items()) if any(map(reserved.get, one.devices)))
            return (("for", next(whose, "")),)
        return ("for", min(self._pool.beneficiaries, default="")), ("promised", "1")

    def bound(self, which: str, node: Node, shape: Shape) -> Detail:
        """The queue whose limit or quota it is, for the resources that are asked for."""
        key = (which, node.id, shape.need[0] > 0, shape.need[1] > 0)
        if key not in self._bounds:
            like = (int(key[2]), 0, int(key[3]), 0)
            most_of_it = {"limit": node.limit, "quota": node.quota, "firm": node.queue.quota}[which]
            used = node.firm if which == "firm" else node.allocated
            of, has = (max(most_of_it[0], 0), 0, max(most_of_it[1], 0), 0), (used[0], 0, used[1], 0)
            self._bounds[key] = (("of", node.id), ("bound", said(of, like=like)), ("used", said(has, like=like)))
        return self._bounds[key]

    def wants(self, shape: Shape) -> Detail:
        """What it needs, and what of that is free."""
        if shape.alike not in self._wants:
            total, on_one = self._free_of(light=shape.light and bool(self._pool.light.free))
            members = (("members", str(shape.count)),) if shape.count > 1 else ()
            self._wants[shape.alike] = (
                ("needs", said(times(shape.member, shape.count))),
                *members,
                ("free", said(total, like=shape.member)),
                ("free_on_one_device", said(on_one, like=shape.member)),
            )
        return self._wants[shape.alike]

    def _free_of(self, *, light: bool) -> tuple[Four, Four]:
        """Free in all, and per resource the most on one device."""
        if light not in self._amounts:
            room = self._pool.light if light else self._pool.room
            total = NOTHING
            for name in room.free:
                total = plus(total, most(room.open_to_all(name), NOTHING))
            self._amounts[light] = (total, room.most_on_one())
        return self._amounts[light]


def _odd(pool: Pool, request: Request, code: str) -> Explain:
    """Whom nothing that is free would help."""
    if code != "infeasible":
        return Explain(request.id, code, 1, 0, (("queue", request.queue),))
    member = request.member
    largest = NOTHING
    for device in pool.devices.values():
        largest = most(largest, device.whole)
    away = sum(not device.open for device in pool.devices.values())
    detail = (
        ("needs", said(times(member, max(request.members_min, 1)))),
        ("members", str(request.members_min)),
        ("largest", said(largest, like=member)),
        *((("devices_away", str(away)),) if away else ()),
    )
    return Explain(request.id, code, 1, 0, detail)
