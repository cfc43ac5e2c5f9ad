"""The queue tree of a pool as people write it: read, checked as a whole, and written back.

    queues:
      research:                       # of the parent's quota it has 6 cores whenever it wants them
        quota: {cores: 6, gpus: 2}
        queues:
          vision: {quota: {cores: 4, gpus: 2}, limit: {cores: 8}, weight: 2}
          text:   {quota: {cores: 2}}
      nightly: {weight: 1, priority: -1}    # no quota: it has its part, by its weight, of what quotas leave

Requests are in queues without others below them. A queue may also say `parent: NAME` instead of standing in it.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation, Overflow
from typing import Any, NamedTuple

from everloop.amounts import COUNTED, NO_LIMIT, UNLIMITED, Counted
from everloop.errors import Invalid

NONE = "none"
DEFAULT = "default"
"""The queue of whoever names none. A tree always has it."""
MOST_QUEUES = 1000
MOST_DEPTH = 16
MOST_TOLD = 8
MOST = 2**31 - 1
MOST_WEIGHT = 1_000_000
KEYS = ("parent", "quota", "limit", "weight", "priority", "queues")
RESOURCES = ("cores", "gpus")
WHOLE = re.compile(r"-?[0-9]{1,18}")
TOP_KEYS = ("queues",)


class Queue(NamedTuple):
    """A node of the tree; requests are in leaves only."""

    id: str
    parent: str = ""
    """Empty: below the pool itself."""
    quota: Counted = UNLIMITED
    """What it gets whenever it wants it. Work that is not preemptible stays within it."""
    limit: Counted = UNLIMITED
    """What it never gets more of."""
    weight: int = 1
    """Of what is left when all quotas are served; 0: none of it."""
    priority: int = 0
    """Higher ones are served first from what is left."""
    usage: Counted = Counted()
    """Decayed, in resource-milliseconds, at `usage_at_ms`. No part of what people set."""
    usage_at_ms: int = 0


def read(given: object) -> tuple[Queue, ...]:
    """The queues of a file's or a request's content, parents first. Raises `Invalid` with the field.

    What the file leaves out: no quota, no limit, weight 1, priority 0. `check` looks at the tree as a whole.
    """
    document = _mapping(given, "the file")
    _known(document, TOP_KEYS, "")
    if "queues" not in document:
        raise Invalid("queues: is missing", field="queues", hint="queues: {NAME: {quota: {cores: 2}}}")
    found: dict[str, Queue] = {}
    _read_below(document["queues"], "", "queues", found, 1)
    if not found:
        raise Invalid("queues: names no queue", field="queues")
    return in_order(found.values())


def _read_below(given: object, parent: str, where: str, found: dict[str, Queue], depth: int) -> None:
    if depth > MOST_DEPTH:  # an alias of YAML may also stand in itself
        raise Invalid(f"{where[:200]}: queues are nested deeper than {MOST_DEPTH} levels", field="queues")
    for name, content in _mapping(given, where).items():
        place = f"{where}.{name}"
        check_name(name, place)
        entry = _mapping(content if content is not None else {}, place)
        _known(entry, KEYS, place)
        if name in found:
            raise Invalid(f"{place}: there is a queue {name} already", field=place, hint="a name is of one queue alone")
        if len(found) >= MOST_QUEUES:
            raise Invalid(f"queues: more than {MOST_QUEUES} queues", field="queues")
        found[name] = _queue(name, parent, entry, place)
        if "queues" in entry:
            _read_below(entry["queues"], name, f"{place}.queues", found, depth + 1)


def _queue(name: str, inside: str, entry: Mapping[str, Any], place: str) -> Queue:
    parent = entry.get("parent", inside)
    if not isinstance(parent, str) or (inside and parent != inside):
        raise Invalid(
            f"{place}.parent: the queue stands in {inside or 'no other'}, and is to be below {parent!r}",
            field=f"{place}.parent",
            hint="leave out `parent`, or write the queue at the top level",
        )
    return Queue(
        id=name,
        parent=parent,
        quota=resources(entry.get("quota", {}), f"{place}.quota"),
        limit=resources(entry.get("limit", {}), f"{place}.limit"),
        weight=whole(entry.get("weight", 1), f"{place}.weight", 0, MOST_WEIGHT),
        priority=whole(entry.get("priority", 0), f"{place}.priority", -1000, 1000),
    )


def resources(given: object, place: str, otherwise: Counted = UNLIMITED) -> Counted:
    """`{cores: 4, gpus: 0.5}` as numbers; `none` is none, of one or of both. What is left out is as in *otherwise*.

    Raises `Invalid`.
    """
    if given == NONE:
        return UNLIMITED
    values = _mapping(given, place)
    _known(values, RESOURCES, place)
    cores, milli_gpu = otherwise
    if "cores" in values:
        cores = NO_LIMIT if values["cores"] == NONE else whole(values["cores"], f"{place}.cores", 0, MOST)
    if "gpus" in values:
        milli_gpu = NO_LIMIT if values["gpus"] == NONE else _thousandths(values["gpus"], f"{place}.gpus")
    return Counted(cores, milli_gpu)


def _thousandths(value: object, place: str) -> int:
    try:
        exact = Decimal(str(value)) * 1000 if isinstance(value, int | float | str) else Decimal("NaN")
    except (InvalidOperation, Overflow):
        exact = Decimal("NaN")
    if isinstance(value, bool) or not exact.is_finite() or abs(exact) > MOST or exact != exact.to_integral_value():
        raise Invalid(f"{place}: {value!r} is no number of GPUs", field=place, hint="in steps of 0.001, or `none`")
    return whole(int(exact), place, 0, MOST)


def whole(value: object, place: str, least: int, most: int) -> int:
    """*value* as a whole number from *least* to *most*. Raises `Invalid`."""
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid(f"{place}: {value!r} is no whole number", field=place)
    if not least <= value <= most:
        raise Invalid(f"{place}: {value} is not from {least} to {most}", field=place)
    return value


def _mapping(given: object, place: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise Invalid(f"{place}: must be a mapping of names", field=place, hint="NAME: {quota: {cores: 2}}")
    return given


def _known(entry: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in entry:
        if key not in known:
            field = f"{place}.{key}" if place else key
            hint = _meant(key, known) or f"known are {', '.join(known)}"
            raise Invalid(f"{field}: is not known here", field=field, hint=hint)


def _meant(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else ""


def check_name(name: str, place: str = "queue") -> None:
    """Raise `Invalid` unless *name* can be a queue's."""
    first, rest = name[:1], name[1:]
    fits = first.isascii() and first.isalnum() and all(c.isascii() and (c.isalnum() or c in "-_.") for c in rest)
    if not fits or len(name) > 63:  # noqa: PLR2004
        raise Invalid(
            f"{place}: {name[:80]!r} cannot be a queue's name",
            field=place,
            hint="a letter or digit first, then letters, digits, dots, dashes and underscores, at most 63",
        )


def in_order(queues: Iterable[Queue]) -> tuple[Queue, ...]:
    """The queues, parents before those below them, siblings by name. Raises `Invalid` for a parent that is not there,
    and for a cycle.
    """
    by_name = {queue.id: queue for queue in queues}
    below: dict[str, list[Queue]] = {}
    for queue in sorted(by_name.values()):
        if queue.parent and queue.parent not in by_name:
            raise Invalid(
                f"queue {queue.id}: its parent {queue.parent!r} is not there",
                field=f"{queue.id}.parent",
                hint=_meant(queue.parent, tuple(by_name)) or "add the parent, or leave out `parent`",
            )
        below.setdefault(queue.parent, []).append(queue)
    found: list[Queue] = []
    todo = below.get("", [])[::-1]
    while todo:
        queue = todo.pop()
        found.append(queue)
        todo += below.get(queue.id, [])[::-1]
    if len(found) < len(by_name):
        circle = _circle(by_name, set(by_name) - {queue.id for queue in found})
        raise Invalid(
            f"queues {' > '.join(circle)} are below each other: no queue can be its own parent",
            field=f"{circle[0]}.parent",
        )
    return tuple(found)


def _circle(by_name: Mapping[str, Queue], among: set[str]) -> list[str]:
    """One cycle, from its first name around to it again."""
    path: list[str] = []
    at = min(among)
    while at not in path:
        path.append(at)
        at = by_name[at].parent
    circle = path[path.index(at) :]
    start = circle.index(min(circle))
    turned = circle[start:] + circle[:start]
    return [*turned, turned[0]]


def check(queues: Iterable[Queue], there: Counted) -> tuple[Queue, ...]:
    """The tree in order, with `DEFAULT` in it. *there*: what the pool's devices have.

    Raises `Invalid` where quotas promise more than there is, where a limit is less than the quota, and where `DEFAULT`
    has queues below it: whoever names no queue could not wait in it.
    """
    tree = {queue.id: queue for queue in in_order(queues)}
    tree.setdefault(DEFAULT, Queue(DEFAULT))
    ordered = in_order(tree.values())
    if any(queue.parent == DEFAULT for queue in ordered):
        message = f"queue {DEFAULT} has queues below it: whoever names no queue waits in it"
        raise Invalid(message, field=f"queues.{DEFAULT}.queues", hint="put them elsewhere in the tree")
    below: dict[str, list[Queue]] = {}
    for queue in ordered:
        below.setdefault(queue.parent, []).append(queue)
    for name in COUNTED:
        promised: dict[str, int] = {}
        for queue in reversed(ordered):  # those below come before it
            _check_limit(queue, name)
            own, of_others = (
                getattr(queue.quota, name),
                [(each.id, promised[each.id]) for each in below.get(queue.id, ())],
            )
            if own != NO_LIMIT:
                _check_sum(f"queue {queue.id} has a quota of", of_others, name, own)
            promised[queue.id] = sum(value for _, value in of_others) if own == NO_LIMIT else own
        _check_sum("the pool has", [(each.id, promised[each.id]) for each in below[""]], name, getattr(there, name))
    return ordered


def _check_limit(queue: Queue, name: str) -> None:
    quota, limit = getattr(queue.quota, name), getattr(queue.limit, name)
    if NO_LIMIT not in (quota, limit) and limit < quota:
        raise Invalid(
            f"queue {queue.id}: its limit of {amount(name, limit)} is less than its quota of {amount(name, quota)}",
            field=f"{queue.id}.limit",
        )


def _check_sum(there_is: str, each: Sequence[tuple[str, int]], name: str, there: int) -> None:
    """Raise `Invalid` unless what is promised to each, together, is there."""
    promised = sum(value for _, value in each)
    if promised <= there:
        return
    largest = sorted(((queue, value) for queue, value in each if value), key=lambda one: (-one[1], one[0]))
    told = [f"{queue} {amount(name, value)}" for queue, value in largest[:MOST_TOLD]]
    raise Invalid(
        f"quotas promise {amount(name, promised)} ({', '.join([*told, '...'][: len(largest)])}), "
        f"and {there_is} {amount(name, there)}",
        field=f"{largest[0][0]}.quota",
        hint="make quotas smaller; a weight shares what they leave",
    )


def amount(name: str, value: int) -> str:
    """`2 cores`, `0.5 GPU`, `none`."""
    if value == NO_LIMIT:
        return NONE
    if name == "cores":
        return f"{value} core{'s' * (value != 1)}"
    return f"{gpus(value)} GPU{'s' * (value > 1000)}"  # noqa: PLR2004


def gpus(milli_gpu: int) -> str:
    """Thousandths as a number of GPUs: `0.5`, `2`."""
    return f"{Decimal(milli_gpu) / 1000:f}"


def document(queues: Iterable[Queue]) -> dict[str, Any]:
    """The tree as `read` reads it: what `everloop queue list --json` prints can be applied again."""
    ordered = in_order(queues)
    top: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {"": top}
    for queue in ordered:
        entry: dict[str, Any] = {}
        entry |= {"quota": written(queue.quota)} if queue.quota != UNLIMITED else {}
        entry |= {"limit": written(queue.limit)} if queue.limit != UNLIMITED else {}
        entry |= {"weight": queue.weight} if queue.weight != 1 else {}
        entry |= {"priority": queue.priority} if queue.priority else {}
        (inside[queue.parent].setdefault("queues", {}) if queue.parent else top)[queue.id] = entry
        inside[queue.id] = entry
    return {"queues": top}


def written(values: Counted) -> dict[str, Any]:
    """Those that are set, as a file has them."""
    found: dict[str, Any] = {}
    if values.cores != NO_LIMIT:
        found["cores"] = values.cores
    if values.milli_gpu != NO_LIMIT:
        found["gpus"] = float(Decimal(values.milli_gpu) / 1000)
    return found
