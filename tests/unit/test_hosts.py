"""What a job needs where hosts share no disk: checkpoints on the store, its own folders, its log sent back."""

import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from activities.drift import DriftCompute
from activities.jobs import gang, home, lent
from activities.jobs.checkpoints import Checkpoints, newest_of
from activities.jobs.depot import kept_in
from activities.jobs.disk import LAST
from activities.jobs.gang import LOOPBACK, interface_of
from activities.jobs.mark import MARK
from activities.jobs.order import Order
from activities.jobs.security import security
from activities.jobs.submit import Jobs
from everloop import settings as configuration
from everloop.contracts import DriftRequest
from everloop.errors import ComputeLost, Invalid, LeaseLost, Unavailable
from everloop.predictions.refusals import Refusals, refused_in
from everloop.records import Blob, Champion, DriftReport, Slot, Window
from everloop.settings import Settings
from tests import stores
from workers import cluster, compute, devices

STATE = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "round": 3}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of one question, on a store that is no path to us."""
    return f"file://{tmp_path / 'store'}/checkpoints/chain/stage/question"


def on(host: Path, token: int, url: str) -> Checkpoints:
    return Checkpoints(host / "checkpoints" / "chain" / "stage" / "question", token, depot=url)


def test_a_checkpoint_of_one_host_is_gone_on_from_on_another(tmp_path, url):
    first = on(tmp_path / "alpha", 1, url)
    for step in (1, 2, 3):
        first.write(step, STATE | {"round": step})

    second = on(tmp_path / "bravo", 2, url)
    kept = second.newest()
    assert kept is not None
    assert (kept.token, kept.step, kept.state["round"]) == (1, 3, 3)
    assert kept.state["weights"].tobytes() == STATE["weights"].tobytes()
    told = second.resumed(kept)
    assert told is not None
    assert (told["times"], told["step"], told["token"]) == (1, 3, 1)
    with pytest.raises(LeaseLost):
        first.write(4, STATE)  # the old holder lives on: it sees who has come
    assert newest_of(tmp_path / "nowhere", 1, 0, url)[0] > 0
    second.write(4, STATE)
    second.forget()
    assert on(tmp_path / "alpha", 3, url).newest() is None


def test_a_checkpoint_without_its_last_file_is_none(tmp_path, url):
    first = on(tmp_path / "alpha", 1, url)
    first.write(1, STATE)
    first.write(2, STATE)
    place = Path(url.removeprefix("file://")) / "1"
    (place / f"{2:012d}" / "digests.json").unlink()
    kept = on(tmp_path / "bravo", 1, url).newest()
    assert kept is not None
    assert kept.step == 1


def test_a_store_that_is_away_keeps_nothing_and_fences_nobody(tmp_path, url):
    checkpoints = on(tmp_path / "alpha", 1, url)
    checkpoints.write(1, STATE)
    store = tmp_path / "store"
    store.rename(tmp_path / "elsewhere")
    store.write_text("no folder")
    with pytest.raises(OSError, match=r"."):
        checkpoints.write(2, STATE)
    assert not checkpoints.fenced()
    store.unlink()
    (tmp_path / "elsewhere").rename(store)
    checkpoints.write(3, STATE)
    assert [step for _, step in checkpoints._place.places()] == [3, 1]


@pytest.mark.parametrize("far", [False, True])
def test_the_disk_and_the_store_answer_alike(tmp_path, url, far):
    folder = tmp_path / "a" / "b" / "c"
    place = kept_in(folder, url if far else "")
    assert (place.tokens(), place.places(), place.resumes(), list(place.written(1))) == ([], [], b"", [])
    for token, step in ((1, 5), (1, 6), (2, 3)):
        place.claim(token)
        staged = folder / str(token) / ".new"
        staged.mkdir()
        (staged / "state.json").write_text(f"{token} {step}")
        (staged / LAST).write_text(f"last {step}")
        place.put(token, step, staged)
        shutil.rmtree(staged, ignore_errors=True)
    place.claim(3)
    place.note_resumes(b"one\n")

    assert place.tokens() == [3, 2, 1]
    assert place.places() == [(2, 3), (1, 6), (1, 5)]
    assert {digests for _, digests in place.written(1)} == {b"last 5", b"last 6"}
    assert all(at > 0 for at, _ in place.written(1))
    with place.opened(1, 6) as there:
        assert (there / "state.json").read_text() == "1 6"
        assert sorted(each.name for each in there.iterdir()) == [LAST, "state.json"]
    assert place.resumes() == b"one\n"
    place.drop(1, 6)
    assert place.places() == [(2, 3), (1, 5)]
    place.drop(1, 6)
    place.forget()
    assert (place.tokens(), place.places(), place.resumes()) == ([], [], b"")
    assert not (tmp_path / "a").exists()


def test_a_rank_that_does_not_reach_rank_0_says_so_and_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(gang, "REACHED", timedelta(seconds=1))
    with socket.socket() as nobody:  # bound and not listening: nobody else gets the port
        nobody.bind((LOOPBACK, 0))
        address = f"{LOOPBACK}:{nobody.getsockname()[1]}"
        (tmp_path / gang.ADDRESS).write_text(address)
        with pytest.raises(ComputeLost, match=f"rank 1 does not reach rank 0 at {address}"):
            gang.Gang(1, 2, LOOPBACK, str(tmp_path)).store()


def order(control: Path) -> Order:
    return {  # type: ignore[return-value]  # of those fields alone that are looked at
        "folder": f"{control}/scratch/jobs/run/train.1", "logs_dir": f"{control}/logs", "log": "jobs/run/train.1/1.log",
        "slots_dir": f"{control}/scratch/slots", "checkpoints": f"{control}/scratch/checkpoints/a/b/c",
        "predictions_dir": f"{control}/predictions", "artifacts": "s3://bucket/artifacts", "data_dir": str(control),
        "disk": home.disk(control), "environment": {"EVERLOOP_DATA_DIR": str(control), MARK: f"{control}/scratch/cpu0"},
    }  # fmt: skip


def test_an_order_from_another_disk_is_carried_out_in_the_hosts_own_folders(tmp_path):
    control, own = tmp_path / "control", tmp_path / "own"
    asked = order(control)
    assert home.at_home(asked, control) is asked
    placed = home.at_home(asked, own)
    assert placed["away"]
    assert placed["folder"] == f"{own}/scratch/jobs/run/train.1"
    assert placed["environment"] == {"EVERLOOP_DATA_DIR": str(own), MARK: f"{own}/scratch/cpu0"}
    assert placed["artifacts"] == asked["artifacts"]
    assert str(control) not in str({**placed, "data_dir": ""})


def test_two_disks_of_one_path_are_told_apart(tmp_path):
    """As `~/.everloop` on every host."""
    control = tmp_path / "control"
    asked = order(control)
    (control / home.DISK).write_text("another")
    assert home.at_home(asked, control)["away"]


def test_a_log_is_sent_back_from_where_the_attempt_began(tmp_path):
    own, here = tmp_path / "own", tmp_path / "here.log"
    asked = home.at_home(order(tmp_path / "control"), own)
    path = own / "logs" / asked["log"]
    path.parent.mkdir(parents=True)
    path.write_text("of before\n")
    sent = home.SentLog(asked)
    with path.open("a") as log:
        log.write("x" * home.PIECE_BYTES + "\n")
    for piece in sent.pieces():
        home.keep_log(here, piece)
    assert here.stat().st_size == home.PIECE_BYTES
    for piece in sent.pieces(whole=True):
        home.keep_log(here, piece)
    assert here.read_text() == "x" * home.PIECE_BYTES + "\n"
    assert list(sent.pieces(whole=True)) == []


def test_files_that_are_lent_are_copies_that_go_again(tmp_path):
    log = tmp_path / "predictions"
    (log / "project/model/live").mkdir(parents=True)
    (log / "project/model/live/1.jsonl").write_text("{}\n")
    url = f"file://{tmp_path}/store/jobs/run/lent/1"
    lent.lend(url, log, ["project/model/live/1.jsonl", "project/model/live/gone.jsonl"])
    lent.borrow(url, tmp_path / "own")
    assert (tmp_path / "own/project/model/live/1.jsonl").read_text() == "{}\n"
    assert not (tmp_path / "own/project/model/live/gone.jsonl").exists()
    lent.take_back(url)
    assert not (tmp_path / "store/jobs/run/lent/1").exists()


async def test_a_drift_job_on_another_host_hears_of_what_was_refused(tmp_path: Path) -> None:
    start = datetime(2026, 1, 5, tzinfo=UTC)
    window = Window(start=start, end=start + timedelta(days=1))
    settings = Settings(data_dir=tmp_path / "control")
    noted = Refusals(settings.predictions_dir / "default" / "churn")
    noted.note("rows[0].income", [start] * 120)
    noted.flush()
    url, away = f"file://{tmp_path}/store/jobs/run/lent/1", tmp_path / "away"

    class Away:
        """A job where the compute worker's disk is not: it has what it is lent."""

        async def run(self, _function: str, request: DriftRequest, _result: type, reads: Sequence[str]) -> DriftReport:
            lent.lend(url, settings.predictions_dir, reads)
            lent.borrow(url, away)
            seen = refused_in(away / request.project / request.model, request.window)
            return DriftReport(
                window=request.window, rows=0, reference_rows=0, columns=(), share=0, insufficient=str(seen)
            )

    store = stores.migrated(f"sqlite:///{tmp_path / 'everloop.db'}")
    blob = Blob(sha256="0" * 64, size_bytes=1)
    champion = Champion(version=1, model_digest="0" * 64, model=blob, signature=blob, seen=blob, release_seq=1)
    asked = DriftRequest(
        project="default", model="churn", champion=champion, reference_sha256="", window=window, minimum_rows=100,
        seed=0, slot=Slot(device="cpu0-far", token=1, holder="w/r"),
    )  # fmt: skip
    report = await DriftCompute(cast("Jobs", Away()), store, settings).measure(asked)
    store.close()

    assert report.insufficient == "{'income': 120}"


def test_devices_of_a_node_carry_its_name_and_are_reported_with_it(tmp_path):
    here = Settings(data_dir=tmp_path, devices="cpu", slots=2, node="alpha")
    assert devices.slot_names(here) == ["cpu0-alpha", "cpu1-alpha"]
    assert devices.light_slots(here) == ["cpu1-alpha"]
    assert devices.slot_names(replace(here, node="")) == ["cpu0", "cpu1"]
    told = {"name": "cpu0-alpha", "host": "10.0.0.2", "resources": {"slot": 4, "cores": 1}, devices.NODE: "alpha"}
    assert compute._as_reported(told) == "cpu0-alpha:node=alpha:cores=1"
    assert compute._as_reported(told | {devices.NODE: ""}) == "cpu0-alpha:node=10.0.0.2:cores=1"


@pytest.mark.parametrize("name", ["a b", "a:b", "-a", "a" * 64])
def test_a_node_name_that_could_be_no_devices_is_refused(monkeypatch, name):
    monkeypatch.setenv("EVERLOOP_NODE", name)
    with pytest.raises(Invalid, match="EVERLOOP_NODE"):
        configuration.load()


def test_the_certificates_that_settings_name_are_dasks(tmp_path):
    ours = Settings(data_dir=tmp_path)
    with pytest.raises(Unavailable, match=r"dask\.pem"):
        security(ours)
    pem = str(cluster.create_certificates(tmp_path / "theirs"))
    named = security(replace(ours, dask_ca=pem, dask_cert=pem))
    assert {named.tls_ca_file, named.tls_client_cert, named.tls_client_key, named.tls_worker_key} == {pem}
    with pytest.raises(Unavailable, match=r"none\.pem"):
        security(replace(ours, dask_ca=pem, dask_cert=str(tmp_path / "none.pem")))


def test_the_interface_of_an_address_is_found():
    assert interface_of(LOOPBACK) == "lo"
    assert interface_of("192.0.2.1") == ""
