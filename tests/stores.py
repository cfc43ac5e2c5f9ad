"""Migrated stores, quickly: the migrations run once per test process, each store is a copy of what they made."""

import functools
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Dialect

from everloop.store import Store

SQLITE = "sqlite:///"
_COMPILED: dict[Any, Any] = {}


def migrated(url: str) -> Store:
    """A new SQLite store at *url*, as `Store.migrate` leaves it. Tests of the migrations themselves run them."""
    path = Path(url.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert not path.exists(), f"{path} is there already"
    tables, dialect = _template()
    path.write_bytes(tables)
    made = Store(url)
    # SQLAlchemy keeps compiled statements per engine, and by dialect: each new store would compile all of them again.
    made.engine.dialect = dialect
    made.engine.update_execution_options(compiled_cache=_COMPILED)
    return made


@functools.cache
def _template() -> tuple[bytes, Dialect]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "everloop.db"
        made = Store(f"{SQLITE}{path}")
        made.migrate()
        made.close()  # its write-ahead log is in the file then
        assert not path.with_name("everloop.db-wal").exists()
        return path.read_bytes(), made.engine.dialect
