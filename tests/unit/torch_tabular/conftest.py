"""Tables that tests of the network share."""

import numpy as np
import pytest

from tests.stages import table
from tests.unit.torch_tabular.ready import Ready, ready


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    frame = table(600).assign(gap=lambda f: f.x.where(f.index % 5 > 0), noise=lambda f: np.sin(f.index * 7.0))
    return ready(tmp_path_factory.mktemp("classes"), frame, "binary")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return ready(tmp_path_factory.mktemp("numbers"), table(400).assign(y=lambda f: f.x), "regression")
