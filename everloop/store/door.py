"""How the database is opened, read, written and migrated."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, create_engine

from everloop import disk
from everloop.errors import StorageLow


class Store:
    """A door to the database. Safe to share between threads; one per process."""

    def __init__(self, url: str) -> None:
        """Open *url* (SQLAlchemy). Creates no table: see `migrate`."""
        self.url = url
        self.engine = _engine(url)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A short write transaction (BEGIN IMMEDIATE on SQLite), committed at the end of the block.

        Raises `StorageLow` when the disk is full.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                session.connection(execution_options={"everloop_write": True})
                yield session
        except DBAPIError as error:
            if disk.is_full(error):
                raise StorageLow("the database's disk is full", hint=disk.HINT) from error
            raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read transaction: one consistent view."""
        with Session(self.engine, expire_on_commit=False) as session:
            if self.engine.dialect.name == "postgresql":  # its default sees what others commit between two questions
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    def migrate(self) -> None:
        """Bring the schema to this release's revision; safe to repeat.

        Raises `EverloopError` subclasses of Alembic untouched: a database of a newer release is refused.
        """
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
        config.attributes["engine"] = self.engine
        command.upgrade(config, "head")

    def close(self) -> None:
        self.engine.dispose()


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:  # noqa: ANN401
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:  # noqa: ANN401
        # A write that begins as a read can fail half-way with SQLITE_BUSY; IMMEDIATE waits its turn instead.
        immediate = connection.get_execution_options().get("everloop_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
