"""What people set of a pool's policy: the rules by name, with their bounds, read and told."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from everloop.errors import Invalid
from everloop.search import span

Kind = Literal["time", "number", "percent", "thousandths"]
DEFAULT = "default"
DAY = 24 * 3600
YEAR = 365 * DAY
UNITS = ((DAY, "d"), (3600, "h"), (60, "min"))


class Rule(NamedTuple):
    """One of them."""

    field: str
    """Of `lease_policy.state.Policy`."""
    kind: Kind
    least: int
    """In the field's unit, as the next one: seconds, a number, percent, thousandths."""
    most: int
    about: str


RULES: dict[str, Rule] = {
    "grace": Rule("grace_s", "time", 1, DAY, "between the notice and the end of a lease"),
    "minimum_run_time": Rule("min_runtime_s", "time", 0, 30 * DAY, "no lease is taken back for others sooner"),
    "preemptions_a_day": Rule(
        "most_preemptions_a_day", "number", 0, 1000, "times that a request is told to let go for others, at most"
    ),
    "reserve_after": Rule(
        "reserve_after_s", "time", 0, 30 * DAY, "who waits longer within its queue's quota gets a reservation"
    ),
    "starving": Rule("starving_s", "time", 1, YEAR, "who waits longer beyond its queue's quota gets one, too"),
    "usage_half_life": Rule("half_life_s", "time", 60, YEAR, "by then half of what a queue has used counts no more"),
    "usage_weight": Rule(
        "usage_weight", "thousandths", 0, 100_000, "how much what a queue has used counts against its share; 0: nothing"
    ),
    "saturation_percent": Rule(
        "saturation_percent", "percent", 100, 10_000,
        "of two queues beyond their quota, one takes from the other only while that is this much more saturated",
    ),
}  # fmt: skip


def read(given: Mapping[str, Any], defaults: Mapping[str, int]) -> dict[str, int]:
    """Fields of the policy with their values, of rules as people write them: `30s`, `10m`, a number, `default`.

    Raises `Invalid` with the rule.
    """
    return {RULES[name].field: _value(name, value, defaults) for name, value in given.items() if value is not None}


def check(fields: Mapping[str, int]) -> None:
    """Raise `Invalid` for a field that is none, or out of its bounds."""
    by_field = {rule.field: name for name, rule in RULES.items()}
    for field, value in fields.items():
        if field not in by_field:
            raise Invalid(f"a pool's policy has no {field[:63]}", field="rules")
        _bounded(by_field[field], value)


def told(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """What differs, in words."""
    return [
        f"{spoken(name)} {words(name, before[rule.field])} -> {words(name, after[rule.field])}"
        for name, rule in RULES.items()
        if before[rule.field] != after[rule.field]
    ]


def spoken(name: str) -> str:
    return name.replace("_", " ")


def words(name: str, value: int) -> str:
    """A value as people say it: `30 s`, `10 min`, `3`, `120 %`, `1.5`."""
    kind = RULES[name].kind
    if kind == "thousandths":
        return f"{Decimal(value) / 1000:f}"
    if kind == "percent":
        return f"{value} %"
    return _time(value) if kind == "time" else str(value)


def _time(seconds: int) -> str:
    for unit, word in UNITS:
        if seconds and seconds % unit == 0:
            return f"{seconds // unit} {word}"
    return f"{seconds} s"


def _value(name: str, given: Any, defaults: Mapping[str, int]) -> int:  # noqa: ANN401  # as it stands in JSON
    rule = RULES[name]
    if given == DEFAULT:
        return defaults[rule.field]
    read_one = _seconds if rule.kind == "time" else _number
    return _bounded(name, read_one(name, given))


def _seconds(name: str, given: Any) -> int:  # noqa: ANN401
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    try:
        found = span(given) if isinstance(given, str) else None
    except ValueError:
        found = None
    if not isinstance(found, timedelta):
        raise Invalid(f"{spoken(name)}: {_short(given)} is no time", field=name, hint="30s, 10m, 2h, 7d, or default")
    if found.microseconds:
        raise Invalid(f"{spoken(name)}: {_short(given)} is no whole number of seconds", field=name)
    return found.days * DAY + found.seconds


def _number(name: str, given: Any) -> int:  # noqa: ANN401
    text = str(given).strip().removesuffix("%").strip()
    whole, _, part = text.partition(".")
    places = 3 if RULES[name].kind == "thousandths" else 0
    digits = f"{whole}{part}"
    if isinstance(given, bool) or not (digits.isascii() and whole.isdecimal() and digits.isdecimal()):
        raise Invalid(f"{spoken(name)}: {_short(given)} is no number", field=name, hint="a number, or default")
    if len(part) > places or (places == 0 and "." in text) or len(whole) > 9:  # noqa: PLR2004
        about = "has more than three places" if places and len(part) > places else "is no whole number"
        raise Invalid(f"{spoken(name)}: {_short(given)} {about}", field=name)
    return int(whole + part.ljust(places, "0"))


def _bounded(name: str, value: int) -> int:
    rule = RULES[name]
    if not rule.least <= value <= rule.most:
        bounds = f"{words(name, rule.least)} to {words(name, rule.most)}"
        raise Invalid(f"{spoken(name)}: must be from {bounds}", field=name)
    return value


def _short(given: Any) -> str:  # noqa: ANN401
    return repr(given)[:40]
