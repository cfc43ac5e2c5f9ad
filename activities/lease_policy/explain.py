"""Explain: for each request that still waits, the one reason that is true of the state as it now is.

In this order: what nobody can mend by waiting, what a limit or a quota refuses, for what was promised or is reserved,
and, where only room is wanting, whether the queue has a right to more.
"""

from collections.abc import Sequence

from activities.lease_policy.evict import in_turn
from activities.lease_policy.pool import Line, Pool, Shape
from activities.lease_policy.room import MANY, NOTHING, Four, fit, most, plus, times
from activities.lease_policy.sentence import said
from activities.lease_policy.state import Explain, Request
from activities.lease_policy.tree import Node, over_firm, over_limit, over_quota

ROOM = ("no_room", "behind", "over_quota")
"""Codes of those that want nothing but room."""
Detail = tuple[tuple[str, str], ...]
FUEL: tuple[str, Detail] = ("fuel", ())


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
    told = []
    asked, beneficiaries, reserved = line.asked, pool.beneficiaries, pool.reserved
    known: dict[int, tuple[str, Detail]] = {}
    wanting = ""
    for place, (request, shape) in enumerate(line.waiting):
        name = request.id
        if place >= asked:
            code, detail = FUEL
        elif name in beneficiaries:
            number, until_ms = beneficiaries[name]
            code, detail = "waits_for_notice", (("victims", str(number)), ("until_ms", str(until_ms)))
        else:
            found = known.get(shape.alike)
            if found is None:
                found = known[shape.alike] = _reason(line, shape, free, wanting)
            code, detail = found
            if name in reserved and code in ROOM:
                code, detail = "no_room", (*free.wants(shape), ("start_ms", str(reserved[name].start_ms)))
        if not wanting and code in ("no_room", "over_quota", "waits_for_notice"):
            wanting = name
            known.clear()  # from here on others may be behind it
        told.append(Explain(name, code, place + 1, before + place, detail))
    return told


def _reason(line: Line, shape: Shape, free: "_Free", wanting: str) -> tuple[str, Detail]:
    leaf = line.leaf
    if leaf is None:
        return ("behind" if wanting else "no_room"), free.wants(shape)
    node = over_limit(leaf, shape.need)
    if node:
        return "over_limit", (*free.wants(shape), *_bound(node, node.limit, node.allocated, shape))
    node = None if shape.preemptible else over_firm(leaf, shape.need)
    if node:
        return "not_preemptible_over_quota", (*free.wants(shape), *_bound(node, node.queue.quota, node.firm, shape))
    if free.without_those_kept(shape):
        return "reserved_for", (*free.wants(shape), ("for", free.kept_for()))
    node = over_quota(leaf, shape.need)
    if node:
        return "over_quota", (*free.wants(shape), *_bound(node, node.quota, node.allocated, shape))
    return ("behind", (*free.wants(shape), ("first", wanting))) if wanting else ("no_room", free.wants(shape))


class _Free:
    """What is free when all is decided: to everybody, and with what is kept or reserved for some."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept = {
            name: plus(pool.room.free[name], pool.held_back.get(name, NOTHING))
            for name in sorted({*pool.held_back, *pool.room.spare})
        }
        self._amounts: dict[bool, tuple[Four, Four]] = {}
        self._wants: dict[int, Detail] = {}
        self._fits: dict[tuple[Four, int], bool] = {}

    def without_those_kept(self, shape: Shape) -> bool:
        """Would it fit, were nothing kept for others?"""
        key = (shape.member, shape.count)
        if self._kept and key not in self._fits:
            room = self._pool.room
            total = room.count(shape.member, MANY)
            for name, free in self._kept.items():
                total += fit(free, shape.member) - fit(room.open_to_all(name), shape.member)
            self._fits[key] = total >= shape.count
        return self._fits.get(key, False)

    def kept_for(self) -> str:
        """Whom it is kept for: one of them, where there are several."""
        return min([*self._pool.reserved, *self._pool.beneficiaries], default="")

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


def _bound(node: Node, bound: Sequence[int], used: Sequence[int], shape: Shape) -> Detail:
    """The queue whose limit or quota it is, for the resources that are asked for."""
    like = (shape.need[0], 0, shape.need[1], 0)
    of, has = (max(bound[0], 0), 0, max(bound[1], 0), 0), (used[0], 0, used[1], 0)
    return (("of", node.id), ("bound", said(of, like=like)), ("used", said(has, like=like)))


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
