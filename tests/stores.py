"""Migrated stores, quickly: the migrations run once per test process, each store is a copy of what they made."""

import functools
import tempfile
from pathlib import Path

from everloop.store import Store

SQLITE = "sqlite:///"


def migrated(url: str) -> Store:
    """A new SQLite store at *url*, as `Store.migrate` leaves it. Tests of the migrations themselves run them."""
    path = Path(url.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert not path.exists(), f"{path} is there already"
    path.write_bytes(_template())
    return Store(url)


@functools.cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "everloop.db"
        made = Store(f"{SQLITE}{path}")
        made.migrate()
        made.close()  # its write-ahead log is in the file then
        assert not path.with_name("everloop.db-wal").exists()
        return path.read_bytes()
