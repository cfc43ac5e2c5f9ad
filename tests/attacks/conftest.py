"""The stacks that attacks are made on: the temporal tests', and a whole one, which they leave as it was."""

from collections.abc import Iterator

import pytest

from everloop import settings as configuration
from everloop import stack as launched
from everloop.settings import Settings
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher
from tests.temporal.conftest import stack
from tests.temporal.test_api_temporal import api

__all__ = ["api", "attacked", "stack"]


@pytest.fixture(scope="package")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A ready stack on a data folder that an earlier version had made for everybody to read."""
    folder = tmp_path_factory.mktemp("attacked") / "data"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    here = configuration.load(data_dir=folder, port_base=free_port_base())
    launched.claim(here)
    (folder / "logs").mkdir(mode=0o755)
    old = folder / "logs" / "old.log"
    old.write_text("an old line\n")
    old.chmod(0o644)
    Launcher(here).ready()
    yield here
    launched.down(here)
