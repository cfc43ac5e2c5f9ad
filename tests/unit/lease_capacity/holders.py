"""Who asks the ledger, and what it says of them."""

from datetime import UTC, datetime

from activities import lease_ledger as ledger
from activities.caller import Caller
from everloop import names
from everloop.contracts import AcceptRequest, LeaseRequest
from everloop.records import Slot
from everloop.store import DeviceRow, LeaseRow, PoolPolicyRow, Store

POOL = names.DEFAULT_POOL
FOUR = ("cpu0:node=here:cores=4:memory_mib=8000", "cpu1:light:node=here:cores=1:memory_mib=2000")


def who(name: str, run: str = "run") -> Caller:
    return Caller(name, run, names.LIFECYCLE)


def ask(store: Store, name: str, **wants: object) -> str:
    ledger.enqueue(store, LeaseRequest(id=name, **wants), who(name))  # type: ignore[arg-type]
    return name


def take(store: Store, name: str) -> Slot:
    """Accept what was offered to *name*."""
    (row,) = [row for row in ledger.offers(store, POOL) if row.workflow_id == name]
    return ledger.accept(store, AcceptRequest(request_id=row.request_id, token=row.token), who(name))


def used(store: Store, device: str = "cpu0") -> tuple[int, int]:
    with store.read() as session:
        row = session.get_one(DeviceRow, (POOL, device))
        return row.used_cores, row.used_memory_mib


def state(store: Store, token: int) -> str:
    with store.read() as session:
        return session.get_one(LeaseRow, (POOL, token)).state


def rules(store: Store, **policy: int) -> None:
    with store.write() as session:
        session.merge(PoolPolicyRow(pool=POOL, policy=policy, at=datetime.now(UTC)))
