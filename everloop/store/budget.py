"""What time costs, and who may spend how much of it."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from everloop.amounts import NO_LIMIT
from everloop.store.columns import moment
from everloop.store.lease import big


class PriceRow(SQLModel, table=True):
    """The price list of a pool, from `from_ms` on: what was before is priced as it was."""

    __tablename__ = "price"

    pool: str = Field(primary_key=True)
    from_ms: int = big(primary_key=True)
    currency: str
    core_micros: int = big()
    """Of a core for an hour, in millionths of the currency."""
    gpu_micros: int = big()
    """Of a whole GPU for an hour."""
    person: str = ""
    at: datetime = moment()


class BudgetRow(SQLModel, table=True):
    """What a queue with all below it, or a lifecycle, may spend; -1: as much as it likes. What is over waits."""

    __tablename__ = "budget"

    pool: str = Field(primary_key=True)
    scope: str = Field(primary_key=True)
    """`queue`, `lifecycle`."""
    name: str = Field(primary_key=True)
    core_ms: int = big(NO_LIMIT)
    gpu_ms: int = big(NO_LIMIT)
    """Thousandths of a GPU, for milliseconds."""
    micros: int = big(NO_LIMIT)
    """Money, in millionths of the price list's currency."""
    since_ms: int = big()
    """What is leased from then on counts."""
    used_core_ms: int = big()
    """By leases that have ended, as far as `until_row`."""
    used_gpu_ms: int = big()
    used_micros: int = big()
    until_row: int = big()
    """The last row of `lease_time` that is counted."""
    spent: bool = False
    """Nothing is granted to it any more, and what it holds is told to let go, until somebody raises it."""
    person: str = ""
    updated_at: datetime = moment()
