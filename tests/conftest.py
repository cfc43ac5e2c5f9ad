"""What tests share: real parts. A missing part skips on a laptop and fails in CI."""

import gc
import os
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from everloop import settings as configuration
from everloop import stack
from everloop.artifacts import Artifacts
from everloop.settings import Settings
from everloop.store import Store
from tests import stores
from workers import temporal

if TYPE_CHECKING:
    from playwright.sync_api import Browser


QUICK = {
    "frontend.WorkflowTimeSkippingEnabled": True,
    # A run that has ended can be deleted once this has come round, usually every 30 s. Until then each test would
    # sweep and verify the runs of those before it (tests/temporal/conftest.py: clear).
    "history.transferProcessorUpdateAckInterval": "0.1s",
    "history.visibilityProcessorUpdateAckInterval": "0.1s",
}
"""Of the Temporal server that tests share."""


def pytest_collection() -> None:
    """Without Python's collector, which would look through all that is loaded again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What all tests have loaded stays: the collector need not look at it during each of them."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _bases() -> Iterator[int]:
    """Each test process has ports of its own, and none is given out twice: a closed one lingers in TIME_WAIT."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    first = 12000 + worker * 2500
    while True:
        yield from range(first + os.getpid() % 50 * 10, first + 2500, 10)


_BASES = _bases()


def free_port_base() -> int:
    """The first of ten neighbouring loopback ports that are free now."""
    for base in _BASES:
        if all(_is_free(port) for port in range(base, base + 10)):
            return base
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def missing(part: str) -> None:
    """Say that *part* is not here: a skip on a laptop, a failure in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{part} is missing and CI must have it")
    pytest.skip(f"{part} is missing")


@pytest.fixture(scope="module", autouse=True)
def _now() -> None:
    """Rows that lie "18 minutes back" do so when their test file runs, not when pytest was started."""
    from tests import api_parts

    api_parts.NOW = datetime.now(UTC)


@pytest.fixture(scope="session")
def temporal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[temporal.Server]:
    """A real Temporal server for the session, with time skipping allowed."""
    folder = tmp_path_factory.mktemp("temporal")
    try:
        temporal.binary()
    except temporal.CannotStart as error:
        missing(str(error))
    server = temporal.start(folder / "temporal.db", free_port_base(), None, folder / "temporal.log", more=QUICK)
    yield server
    server.stop()


@pytest.fixture
def browser() -> Iterator["Browser"]:
    """A real Chromium."""
    path = shutil.which("chromium")
    if path is None:
        missing("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--disable-gpu", "--no-first-run"])
        yield opened
        opened.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty, migrated SQLite store."""
    opened = stores.migrated(f"sqlite:///{tmp_path / 'everloop.db'}")
    yield opened
    opened.close()


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """An empty artifact store on local disk."""
    return Artifacts(str(tmp_path / "artifacts"))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Settings]:
    """A data folder and ports for a stack of its own, which is ended afterwards."""
    made = configuration.load(data_dir=tmp_path / "data", port_base=free_port_base())
    yield made
    stack.down(made)
