"""One stack for the tests that only use it: a start costs as much as several lifecycles."""

from collections.abc import Iterator

import pytest

from everloop import settings as configuration
from everloop import stack
from everloop.settings import Settings
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A ready stack that nobody kills. Models and keys of each module have names of their own."""
    here = configuration.load(data_dir=tmp_path_factory.mktemp("shared") / "data", port_base=free_port_base())
    launcher = Launcher(here)
    try:
        launcher.ready()
        yield here
    finally:  # also one that was not ready in time
        stack.down(here)
