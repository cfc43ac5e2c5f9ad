"""A source follows links of root, of ours, and those that show nobody more than they may see; no planted ones."""

import os
from pathlib import Path

import pytest

from activities.compute import data, reach
from everloop.artifacts import Artifacts
from everloop.contracts import SnapshotRequest
from everloop.errors import DatasetMissing, EverloopError, InvalidData
from tests.job import FolderJob
from tests.stages import spec_of

STRANGER, OTHER = 65534, 65533
SECRET = "the-first-line-of-a-secret"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


def link(place: Path, target: Path, owner: int) -> Path:
    place.symlink_to(target)
    os.lchown(place, owner, owner)
    return place


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.csv"
    path.write_text(f"{SECRET}\n1\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """A folder that everybody may write to."""
    folder = tmp_path / "drop"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def read(path: Path) -> str:
    with reach.opened(path) as found:
        return found.read_text()


@needs_root
def test_a_link_that_another_user_planted_to_our_file_is_not_followed(secret, drop, tmp_path):
    planted = link(drop / "data.csv", secret, STRANGER)

    for attempt in (
        lambda: reach.check(planted),
        lambda: read(planted),
        lambda: data.find(planted),
        lambda: data.find(drop),
        lambda: data.sources._keep(planted, Artifacts(str(tmp_path / "artifacts"))),
    ):
        with pytest.raises(DatasetMissing, match=r"link 'data\.csv' of another user") as refused:
            attempt()
        assert SECRET not in f"{refused.value} {refused.value.hint}"


@needs_root
def test_a_planted_link_to_a_folder_or_through_another_link_is_not_followed(secret, drop, tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "open.csv").write_text("a,b\n")
    link(drop / "folder", private, STRANGER)
    link(tmp_path / "ours", secret, 0)
    link(drop / "chain", tmp_path / "ours", STRANGER)
    link(drop / "up", Path("../secret.csv"), STRANGER)

    for path in (drop / "folder", drop / "folder" / "open.csv", drop / "chain", drop / "up"):
        with pytest.raises(DatasetMissing, match="of another user"):
            reach.check(path)


@needs_root
def test_links_that_show_nobody_more_than_they_may_see_are_followed(secret, drop, tmp_path):
    theirs = drop / "theirs.csv"
    theirs.write_text("a,b\n")
    theirs.chmod(0o600)
    os.chown(theirs, STRANGER, STRANGER)
    common = Path("/etc/hostname")  # readable by everybody, and so is the way to it

    assert read(link(drop / "own", Path("theirs.csv"), STRANGER)) == "a,b\n"
    assert read(link(drop / "common", common, STRANGER)) == common.read_text()
    with pytest.raises(DatasetMissing):
        reach.check(link(drop / "third", Path("theirs.csv"), OTHER))


def test_links_of_root_and_of_ours_are_followed_also_in_the_middle_and_to_elsewhere(secret, tmp_path):
    (tmp_path / "data").symlink_to(tmp_path / "mnt")
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "table.csv").symlink_to("../secret.csv")

    assert SECRET in read(tmp_path / "data" / "table.csv")
    assert SECRET in read(tmp_path / "data" / ".." / "mnt" / "table.csv")


def test_what_is_not_there_is_said_as_the_system_says_it(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()

    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for path, kind in (("none", FileNotFoundError), ("file/x", NotADirectoryError), ("loop", OSError)):
        with pytest.raises(kind):
            reach.check(tmp_path / path)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_a_file_that_is_swapped_for_another_while_it_is_open_is_not_read(tmp_path, secret):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n")
    with reach.opened(path) as found:
        path.unlink()
        path.symlink_to(secret)
        assert found.read_text() == "a,b\n"


@pytest.mark.parametrize(
    "content",
    [
        f"{SECRET}\n",
        f"{SECRET}:x:0:0\nother:x:1:1\n",
        f"-----BEGIN {SECRET}-----\nMIIE\n-----END-----\n",
        f"{SECRET},{SECRET}\n",
        f'{{"password": "{SECRET}", "user": 1}}\n',
        f"{SECRET} = a, b\nc\nd, e, f\n",
        f"{SECRET}\0{SECRET}\n",
        f'"{SECRET}\n',
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_errors_quote_nothing_of_a_file_that_is_no_table(tmp_path, capfd, content, suffix):
    path = tmp_path / f"table{suffix}"
    path.write_text(content)

    with pytest.raises(EverloopError) as refused:
        data.snapshot(SnapshotRequest(spec=spec_of(path, "binary", "y")), FolderJob(tmp_path))

    said = f"{refused.value} {refused.value.hint} {refused.value.field} {capfd.readouterr()}"
    assert SECRET not in said
    assert path.name in said or "rows" in said
    assert isinstance(refused.value, InvalidData)
