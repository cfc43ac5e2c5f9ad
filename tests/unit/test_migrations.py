"""Data folders of earlier versions open, and nothing in them is lost."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlmodel import select

import everloop
from everloop.store import RouteChangeRow, Store

AT = "2026-01-01 00:00:00.000000"


@pytest.fixture
def first(tmp_path: Path) -> Store:
    """A store as the first release of Everloop made it."""
    store = Store(f"sqlite:///{tmp_path / 'everloop.db'}")
    config = Config()
    config.set_main_option("script_location", str(Path(everloop.__file__).parent / "migrations"))
    config.attributes["engine"] = store.engine
    command.upgrade(config, "0001")
    return store


def insert(store: Store, table: str, **values: object) -> None:
    """A row with *values*; what is not given is empty, as its type needs it."""
    with store.engine.begin() as connection:
        for _, name, kind, required, _, _ in connection.execute(text(f"PRAGMA table_info({table})")).all():
            if required and name not in {*values, "id"}:
                values[name] = {"DATETIME": AT, "INTEGER": 0, "JSON": "{}"}.get(kind, "")
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join(f":{name}" for name in values)
        connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)


def test_releases_are_in_the_ledger_and_approvals_of_ended_lifecycles_are_spent(first):
    for lifecycle, status in (("one", "released"), ("two", "released"), ("three", "waiting_approval")):
        insert(first, "lifecycle", id=lifecycle, status=status, model="credit", project="default")
        body = {
            "lifecycle": lifecycle,
            "nonce": f"nonce-{lifecycle}",
            "evidence": {"project": "default", "model": "credit"},
        }
        insert(
            first, "journal", workflow_id=f"{lifecycle}/approval", type="ApprovalOpened", body=json.dumps(body),
            run_id=lifecycle,
        )  # fmt: skip
    made = {"project": "default", "model": "credit", "model_digest": "d"}
    insert(first, "release", workflow_id="w", run_id="r1", lifecycle="one", version=1, release_seq=1, **made)
    insert(
        first, "release", workflow_id="w", run_id="r2", lifecycle="two", version=2, release_seq=2,
        rolled_back="refused", **made,
    )  # fmt: skip
    insert(first, "route", lifecycle="one", version=1, release_seq=3, record="{}", **made)

    first.migrate()

    with first.read() as session:
        rows = session.exec(select(RouteChangeRow).order_by(RouteChangeRow.id)).all()
    assert [(row.kind, row.release_seq, row.version, row.undoes) for row in rows if row.release_seq] == [
        ("release", 1, 1, None),
        ("release", 2, 2, None),
        ("roll_back", 3, 0, 2),
    ]
    assert {row.nonce for row in rows if row.kind == "ended"} == {"nonce-one", "nonce-two"}
    assert all(row.at <= datetime.now(UTC) for row in rows)


def test_migrating_twice_changes_nothing(first):
    insert(first, "release", workflow_id="w", run_id="r", project="default", model="m", version=1, release_seq=1)

    first.migrate()
    first.migrate()

    with first.read() as session:
        assert len(session.exec(select(RouteChangeRow)).all()) == 1
