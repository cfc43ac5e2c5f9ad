"""One stack for the attacks that need all of it: they leave it as it was."""

from collections.abc import Iterator

import pytest

from everloop import settings as configuration
from everloop import stack
from everloop.settings import Settings
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A ready stack on a data folder that an earlier version had made for everybody to read."""
    folder = tmp_path_factory.mktemp("attacked") / "data"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    here = configuration.load(data_dir=folder, port_base=free_port_base())
    stack.claim(here)
    (folder / "logs").mkdir(mode=0o755)
    old = folder / "logs" / "old.log"
    old.write_text("an old line\n")
    old.chmod(0o644)
    Launcher(here).ready()
    yield here
    stack.down(here)
