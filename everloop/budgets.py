"""Prices and budgets: whole numbers inside, hours and money outside.

Core time is in core-milliseconds, GPU time in thousandths of a GPU for milliseconds, money in millionths.
"""

from collections.abc import Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from itertools import pairwise
from typing import NamedTuple

from everloop import names
from everloop.amounts import NO_LIMIT
from everloop.errors import Invalid

HOUR_MS = 3_600_000
MILLI = 1000
MICRO = 1_000_000
MOST = 2**62
NEVER = 2**62


class Bounds(NamedTuple):
    """What may be spent, or was. As a bound `NO_LIMIT` is none."""

    core_ms: int = 0
    gpu_ms: int = 0
    micros: int = 0


NO_BOUNDS = Bounds(NO_LIMIT, NO_LIMIT, NO_LIMIT)


class Price(NamedTuple):
    """What an hour costs from a moment on, in millionths."""

    from_ms: int
    currency: str
    core_micros: int
    gpu_micros: int


def micros(price: Price | None, core_ms: int, gpu_ms: int) -> int:
    """What that much time costs; nothing without a price list."""
    if price is None:
        return 0
    return (core_ms * price.core_micros * MILLI + gpu_ms * price.gpu_micros) // (HOUR_MS * MILLI)


def periods(prices: Sequence[Price], from_ms: int, to_ms: int) -> Iterator[tuple[int, int, Price | None]]:
    """[from_ms, to_ms) cut where the price list changes. *prices*: in order."""
    edges = [from_ms, *(price.from_ms for price in prices if from_ms < price.from_ms < to_ms), to_ms]
    for begins, ends in pairwise(edges):
        valid = [price for price in prices if price.from_ms <= begins]
        yield begins, ends, valid[-1] if valid else None


def spent(prices: Sequence[Price], from_ms: int, to_ms: int, cores: int, milli_gpu: int) -> Bounds:
    """What *cores* and *milli_gpu* spend in [from_ms, to_ms)."""
    if to_ms <= from_ms:
        return Bounds()
    length = to_ms - from_ms
    money = sum(
        micros(price, cores * (ends - begins), milli_gpu * (ends - begins))
        for begins, ends, price in periods(prices, from_ms, to_ms)
    )
    return Bounds(cores * length, milli_gpu * length, money)


def plus(one: Bounds, other: Bounds) -> Bounds:
    """Never more than `MOST`: a sum that no column holds would end every decision of the pool."""
    return Bounds(*(min(a + b, MOST) for a, b in zip(one, other, strict=True)))


def over(bounds: Bounds, used: Bounds) -> list[str]:
    """Of what all that is allowed is spent."""
    pairs = zip(Bounds._fields, bounds, used, strict=True)
    return [name for name, bound, has in pairs if bound != NO_LIMIT and has >= bound]


def left_ms(bounds: Bounds, used: Bounds, rate: Bounds) -> int | None:
    """Milliseconds until a bound is reached at *rate* (an hour's); None: never."""
    found = [
        max(0, bound - has) * HOUR_MS // each + 1
        for bound, has, each in zip(bounds, used, rate, strict=True)
        if bound != NO_LIMIT and each > 0
    ]
    return min(found, default=None)


# --- as people write and read them


def hours(value: object, place: str, of: int = 1) -> int:
    """Core- or GPU-hours as milliseconds, of so many parts each. Raises `Invalid`."""
    return _whole(value, HOUR_MS * of, place)


def money(value: object, place: str) -> int:
    """An amount of money in millionths. Raises `Invalid`."""
    return _whole(value, MICRO, place)


def _whole(value: object, unit: int, place: str) -> int:
    try:
        exact = Decimal(str(value)) if isinstance(value, int | float | str) else Decimal("NaN")
    except InvalidOperation:
        exact = Decimal("NaN")
    if isinstance(value, bool) or not exact.is_finite() or exact < 0:
        raise Invalid(f"{place}: {str(value)[:40]!r} is no amount", field=place, hint="a number from 0, or `none`")
    found = int((exact * unit).to_integral_value(ROUND_HALF_UP)) if exact < MOST else MOST
    if found >= MOST:
        raise Invalid(f"{place}: {str(value)[:40]} is too much", field=place)
    return found


def words(name: str, value: int, currency: str) -> str:
    """`1.5 core-hours`, `12.00 EUR`."""
    if name == "micros":
        return f"{Decimal(value) / MICRO:.2f} {currency or 'of money'}"
    unit = HOUR_MS if name == "core_ms" else HOUR_MS * MILLI
    return f"{Decimal(value) / unit:.3f} {'core' if name == 'core_ms' else 'GPU'}-hours"


def sentence(scope: str, name: str, bounds: Bounds, used: Bounds, currency: str) -> str:
    """Of a budget that is spent: `the budget of queue vision is spent: 12.00 EUR of 12.00 EUR`."""
    told = [
        f"{words(each, getattr(used, each), currency)} of {words(each, getattr(bounds, each), currency)}"
        for each in over(bounds, used)
    ]
    return f"{names.BUDGET_OF} {scope} {name} is spent: {', '.join(told)}"
