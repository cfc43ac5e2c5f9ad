"""What the lease ledger takes: grants committed per second by the pool's step on SQLite, and the full path of a lease.

    python bench/lease_ledger.py [PENDING]

The step reads the state, decides, and commits it with its record; the full path is request, step, accept, release, one
after the other. Neither has Temporal in it.
"""

import sys
import tempfile
import time
from pathlib import Path

from activities import lease_ledger as ledger
from activities.caller import Caller
from everloop import names
from everloop.contracts import AcceptRequest, LeaseRequest
from everloop.store import LeaseRow, Store

PENDING = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
GOAL = 200
DEVICES, CORES = 64, 8
PATHS = 100


def who(name: str) -> Caller:
    return Caller(name, "run", names.LIFECYCLE)


def main() -> int:
    pool = names.DEFAULT_POOL
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'l.db'}")
        store.migrate()
        ledger.note_inventory(store, pool, [f"d{n:03}:cores={CORES}:memory_mib=64000" for n in range(DEVICES)])
        for number in range(PENDING):
            ledger.enqueue(store, LeaseRequest(id=f"r{number}"), who(f"w{number}"))
        granted, seconds = 0, 0.0
        while granted < PENDING:
            began = time.perf_counter()
            made = ledger.grant(store, pool)
            seconds += time.perf_counter() - began
            granted += made
            for row in ledger.offers(store, pool):
                ledger.end(store, pool, row.token, "released")
            assert made, "the pool stands still"
        rate = granted / seconds
        print(f"{PENDING:,} pending, {DEVICES} devices of {CORES} cores: {rate:,.0f} grants/s (goal {GOAL})")
        began = time.perf_counter()
        for number in range(PATHS):
            _path(store, pool, f"p{number}")
        print(f"request, step, accept, release: {(time.perf_counter() - began) / PATHS * 1000:.1f} ms each")
        store.close()
    return int(rate < GOAL)


def _path(store: Store, pool: str, name: str) -> None:
    ledger.enqueue(store, LeaseRequest(id=name), who(name))
    ledger.grant(store, pool)
    row: LeaseRow
    (row,) = ledger.offers(store, pool)
    ledger.accept(store, AcceptRequest(request_id=name, token=row.token), who(name))
    ledger.end(store, pool, row.token, "released")


if __name__ == "__main__":
    sys.exit(main())
