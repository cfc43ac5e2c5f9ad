"""A ledger on SQLite and on Postgres."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from activities import lease_ledger as ledger
from everloop.store import Store
from tests.postgres import postgres
from tests.unit.lease_capacity.holders import FOUR, POOL


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Of Postgres; each test has a database of its own."""
    with postgres() as url:
        deadline = time.monotonic() + 60
        while True:
            try:
                with sa.create_engine(f"{url}postgres").connect():
                    break
            except OperationalError:
                assert time.monotonic() < deadline, "Postgres does not answer"
                time.sleep(0.1)
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A migrated store with a device of four cores, and a light one."""
    url = f"sqlite:///{tmp_path / 'l.db'}"
    if request.param == "postgres":
        server = request.getfixturevalue("server")
        with sa.create_engine(f"{server}postgres", isolation_level="AUTOCOMMIT").connect() as connection:
            name = f"l{time.time_ns()}"
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        url = f"{server}{name}"
    made = Store(url)
    made.migrate()
    ledger.note_inventory(made, POOL, FOUR)
    yield made
    made.close()
