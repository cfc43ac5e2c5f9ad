"""A file is scored while everything is killed: it goes on, and the bytes are those of a score that nobody disturbed."""

import random
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from everloop import signing, stack
from everloop.artifacts import Artifacts
from everloop.client import Client
from everloop.errors import IdempotencyMismatch, NotFound
from everloop.settings import Settings
from everloop.store import Store
from tests import api_parts as parts
from tests.faults.test_kill_each_stage import up

ROWS = 160_000
SECONDS = 240


def write_rows(path: Path) -> Path:
    draw = random.Random(0)
    lines = [f"{place},{draw.randint(18, 80)},{'car' if place % 3 else 'house'}" for place in range(ROWS)]
    lines[77_777] = "77777,old,car"
    path.write_text("\n".join(["account,age,purpose", *lines]) + "\n")
    return path


def ended(here: Settings, key: str) -> dict[str, object]:
    deadline = time.monotonic() + SECONDS
    with Client(data_dir=here.data_dir) as client:
        while (found := client.score_status("credit", key))["status"] == "running":
            assert time.monotonic() < deadline, found
            time.sleep(0.3)
    return found


@pytest.mark.timeout(900)
def test_kill_9_of_everything_while_a_file_is_scored_ends_in_the_same_bytes(here: Settings, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.csv")
    launcher = up(here)
    store = Store(here.database)
    parts.release(store, Artifacts(here.artifacts), signing.Signer(here.keys_dir))
    with Client(data_dir=here.data_dir) as client:
        with pytest.raises(NotFound):
            client.score("nothing", file)
        client.score("credit", file, "parquet", "killed")
        with pytest.raises(IdempotencyMismatch):
            client.score("credit", file, "csv", "killed")
        deadline = time.monotonic() + SECONDS
        while (found := client.score_status("credit", "killed"))["done"] < 1:
            assert time.monotonic() < deadline, found
            assert found["status"] == "running", found
            time.sleep(0.1)
    launcher.kill_everything()
    up(here)
    try:
        killed = ended(here, "killed")
        with Client(data_dir=here.data_dir) as client:
            client.score("credit", file, "parquet", "unhurt")
        unhurt = ended(here, "unhurt")
        assert killed["status"] == unhurt["status"] == "done", (killed, unhurt)
        assert (killed["rows"], killed["rejected"], killed["chunks"]) == (ROWS - 1, 1, 0)
        with Client(data_dir=here.data_dir) as client:
            for key in ("killed", "unhurt"):
                assert client.score_file("credit", key, tmp_path / f"{key}.parquet") == ROWS - 1
                assert client.score_file("credit", key, tmp_path / f"{key}.rejects", rejects=True) == 1
        assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "unhurt.parquet").read_bytes()
        assert (tmp_path / "killed.rejects").read_bytes() == (tmp_path / "unhurt.rejects").read_bytes()
        table = pyarrow.parquet.read_table(tmp_path / "killed.parquet")
        assert table["account"].to_pylist() == [str(place) for place in range(ROWS) if place != 77_777]
    finally:
        stack.down(here)
