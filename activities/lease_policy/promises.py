"""What others were told to let go for: kept for whom it was promised to, and taken back when it is not needed.

The free part of what a beneficiary waits for is kept for it until its victims have let go. When it fits without them,
it is granted and their notices are withdrawn; a notice that has become needless is withdrawn as well, and so are all
of a beneficiary that has gone or would not fit even so.
"""

from collections.abc import Iterable, Sequence

from activities.lease_policy.allocate import grant
from activities.lease_policy.pool import Line, Pool, Shape
from activities.lease_policy.room import NOTHING, Four, fit, minus, most, plus, times
from activities.lease_policy.state import Held, Request, Withdraw
from activities.lease_policy.tree import add
from activities.lease_policy.victims import freed, gives_counted, put_back, stands

Age = tuple[bool, int, str]


def keep(pool: Pool) -> None:
    """Look at each beneficiary, who was promised first before the others."""
    victims: dict[str, list[Held]] = {}
    for held in pool.held:
        if held.beneficiary and held.state in ("noticed", "killing") and _counts(pool, held):
            victims.setdefault(held.beneficiary, []).append(held)
    kept: list[Age] = []
    for name in sorted(victims, key=lambda name: _age(pool, name, victims[name])):
        if name not in pool.asking:
            _withdraw(pool, victims[name])
            continue
        left = _keep_one(pool, *pool.asking[name], victims[name])
        if left:
            kept.append(_age(pool, name, left))
    pool.unsettled = kept != sorted(kept)


def _age(pool: Pool, name: str, victims: Iterable[Held]) -> Age:
    """Was promised after all that are less. It does not change when those whose time is up are killed.

    Who waits for nobody but those was promised before all whose victims still have time. The last promise counts.
    """
    killed, told = [0], [0]
    for held in victims:
        if held.state == "killing":
            killed.append(held.deadline_ms)
        elif held.token in pool.overdue:
            killed.append(pool.overdue[held.token].deadline_ms)
        else:
            told.append(held.deadline_ms)
    return len(told) > 1, max(told) or max(killed), name


def _counts(pool: Pool, held: Held) -> bool:
    """A lease whose end cannot be proven for too long is counted on no more."""
    return held.state == "noticed" or pool.now_ms <= held.deadline_ms


def _keep_one(pool: Pool, request: Request, line: Line, shape: Shape, victims: list[Held]) -> list[Held]:
    """Who is still to let go for it."""
    if stands(pool, line, shape, ()):
        _withdraw(pool, victims)
        grant(pool, line, request, shape)
        return []
    if not stands(pool, line, shape, victims):
        _withdraw(pool, victims)
        pool.coming[request.id] = [held for held in victims if held.state == "killing"]
        return pool.coming[request.id]
    needed = put_back(pool, line, shape, victims)
    _withdraw(pool, [held for held in victims if held not in needed])
    promise(pool, request.id, needed, max(held.deadline_ms for held in needed))
    return needed


def _withdraw(pool: Pool, victims: Iterable[Held]) -> None:
    pool.withdrawn += [Withdraw(held.token) for held in victims if held.state == "noticed"]


def promise(pool: Pool, name: str, victims: Sequence[Held], until_ms: int) -> None:
    """Keep for it what it will use of what is free, first on the devices where its victims are."""
    _, line, shape = pool.asking[name]
    pool.beneficiaries[name] = (len(victims), until_ms)
    for held in victims:
        node = pool.tree.by_id.get(held.request.queue)
        for each in node.path if node else ():
            add(each.leaving, gives_counted(pool, held))
    if line.leaf is None:
        return
    for each in line.leaf.path:
        add(each.promised, shape.need)
        if not shape.preemptible:
            add(each.firm, shape.need)
    _hold(pool, shape, freed(pool, victims))


def _hold(pool: Pool, shape: Shape, extra: dict[str, Four]) -> None:
    room, left = pool.room, shape.count
    for name in sorted(extra):
        number = min(fit(plus(room.open_to_all(name), extra[name]), shape.member), left)
        left -= number
        _hold_back(pool, name, most(minus(times(shape.member, number), extra[name]), NOTHING))
    if left:
        for name in room.place(shape.member, left, besides=extra) or ():
            _hold_back(pool, name, shape.member)


def _hold_back(pool: Pool, name: str, amount: Four) -> None:
    if amount != NOTHING:
        pool.room.take(name, amount)
        pool.held_back[name] = plus(pool.held_back.get(name, NOTHING), amount)
