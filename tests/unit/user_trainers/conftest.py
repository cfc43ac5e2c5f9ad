"""What tests of users' functions share."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from tests.unit.user_trainers.functions import NUMBERS, Stages, Write, small


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a slot has it: threads that wait for each other on a busy machine spin."""
    importlib.import_module("sklearn.ensemble")  # what is loaded later would not be limited
    with threadpool_limits(1):
        yield


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a user's module and says its name."""
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()

    def write(text: str) -> str:
        name = f"of_a_user_{next(NUMBERS)}"
        (tmp_path / "code" / f"{name}.py").write_text(
            "import numpy as np\nfrom everloop.trainer import Learned\n" + text
        )
        importlib.invalidate_caches()
        return name

    return write


@pytest.fixture(scope="module")
def small_stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A small table, prepared once for those that only call a function."""
    folder = tmp_path_factory.mktemp("small")
    return Stages(folder, small(), target="y", task="binary", trainer="nobody:fit", inputs="features")
