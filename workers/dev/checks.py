"""What must be so before the stack starts. Each raises `CannotStart` with what to do."""

import shutil
from pathlib import Path

from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from everloop import stack
from everloop.settings import API, SCHEDULER, SERVE, TEMPORAL, TEMPORAL_UI, UNGUARDED_UI, Settings
from everloop.store import LifecycleRow, Store
from workers import temporal
from workers.temporal import CannotStart

SPACE_BYTES = 256 << 20
"""To run at all, beside the floor below which nothing is written."""


def check_space(folder: Path, floor_bytes: int) -> None:
    """Raise `CannotStart` when there is too little room to run."""
    free, needed = shutil.disk_usage(folder).free, floor_bytes + SPACE_BYTES
    if free < needed:
        raise CannotStart(
            f"{free >> 20} MiB are free at {folder}; {needed >> 20} MiB are needed",
            hint="free some space, or choose another --data-dir",
        )


def check_ports(settings: Settings) -> None:
    """Raise `CannotStart` when one of our ports is taken."""
    offsets = [API, SERVE]
    offsets += [] if settings.dask_address else [SCHEDULER]
    offsets += [] if settings.temporal_address else [TEMPORAL, TEMPORAL_UI, UNGUARDED_UI]
    for offset in offsets:
        temporal.check_port(settings.port(offset))


def check_database(settings: Settings) -> None:
    """Raise `CannotStart` when the store is a file of something else, or of a newer release."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import inspect, text

    if file := store_file(settings):
        if not file.exists():
            return
        with file.open("rb+"):  # a file that may not be written is said as that, and not as a broken one
            pass
    config = Config()
    config.set_main_option("script_location", str(Path(stack.__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    store = Store(settings.database)
    try:
        with store.engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            found = (
                [row[0] for row in connection.execute(text("SELECT version_num FROM alembic_version"))]
                if "alembic_version" in tables
                else []
            )
    except DBAPIError as error:
        raise CannotStart(
            f"the database cannot be opened: {error.orig}",
            hint=f"restore {settings.database} from a backup, choose another --data-dir, or `everloop reset`",
        ) from None
    finally:
        store.close()
    if tables and not found:
        raise CannotStart(
            f"{settings.database} is not a database of Everloop (it has tables, but no revision)",
            hint="choose another --data-dir (or EVERLOOP_DATABASE_URL)",
        )
    if unknown := [revision for revision in found if revision not in known]:
        raise CannotStart(
            f"{settings.database} was made by a newer release of Everloop (revision {unknown[0]})",
            hint="install that release, or choose another --data-dir",
        )


def check_histories(settings: Settings) -> None:
    """Raise `CannotStart` when either the journal or our own server's histories are lost."""
    ours, theirs = store_file(settings), temporal_file(settings)
    if settings.temporal_address or ours is None:
        return
    hint = "restore both from one backup, or `everloop reset` to begin anew, or choose another --data-dir"
    if theirs.exists() and not ours.exists():
        raise CannotStart(f"{theirs} is there, and {ours} with versions, routes and leases is gone", hint=hint)
    if ours.exists() and not theirs.exists() and _knows_lifecycles(settings):
        raise CannotStart(
            f"{ours} is there, and Temporal's histories ({theirs}) are gone: no lifecycle could go on", hint=hint
        )


def store_file(settings: Settings) -> Path | None:
    """The file of the store, or None where the store is a server."""
    url = settings.database
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else None


def temporal_file(settings: Settings) -> Path:
    """The file of our own Temporal server."""
    return settings.data_dir / "temporal.db"


def _knows_lifecycles(settings: Settings) -> bool:
    store = Store(settings.database)
    try:
        with store.read() as session:
            return session.exec(select(LifecycleRow).limit(1)).first() is not None
    except DBAPIError:  # its tables are not made yet
        return False
    finally:
        store.close()
