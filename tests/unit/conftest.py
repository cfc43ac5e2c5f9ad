"""What unit tests share."""

from pathlib import Path

import pytest

from tests.job import FolderJob


@pytest.fixture
def job(tmp_path: Path) -> FolderJob:
    return FolderJob(tmp_path)
