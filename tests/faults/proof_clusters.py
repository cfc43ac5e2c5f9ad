"""`make proof-clusters`: hosts whose disks are not ours, on a Dask scheduler of somebody else, with Postgres and S3."""

import random
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.settings import Settings
from tests.conftest import free_port_base
from tests.faults.hosts import Cluster, Host, Network, cluster_of_two, until
from tests.faults.test_gang_elastic import spec_of as gang_of
from tests.faults.test_kill_each_stage import spec_of, write_table
from tests.loop.test_stack import Launcher, everloop
from tests.postgres import postgres
from tests.seaweed import seaweed

SECONDS = 900
"""On a machine that is shared with others a minute takes ten."""
DEVICES = {"cpu0-alpha": "alpha", "cpu0-bravo": "bravo"}


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    made = Network()
    made.make()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[tuple[Settings, Cluster]]:
    """A control plane, and two hosts that it shares nothing with but the network and the folder of the tables."""
    folder = tmp_path_factory.mktemp("cluster")
    here = configuration.load(data_dir=folder / "control", port_base=free_port_base())
    with (
        postgres() as server,
        seaweed(folder / "s3", network.address) as store,
        cluster_of_two(folder, here.data_dir, store, network) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        database = f"{server}postgres"
        until(lambda: answers(database), 60, "Postgres does not answer")
        told = {"EVERLOOP_DATABASE_URL": database, "EVERLOOP_CHECKPOINT_SECONDS": "0.4", "EVERLOOP_AWAY_SECONDS": "3"}
        for name, value in (cluster.environment | told).items():
            patch.setenv(name, value)
        for host in cluster.hosts.values():
            host.start()
        try:
            launch(here)
            yield here, cluster
        finally:
            stack.down(here)


def launch(here: Settings) -> None:
    """`everloop up`; again where the machine was too busy for it to be ready in its time."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        launcher = Launcher(here)
        while launcher.process.poll() is None:
            if "/login" in launcher.output.read_text():
                return
            time.sleep(0.2)
    raise AssertionError(launcher.output.read_text())


def answers(database: str) -> bool:
    try:
        with sa.create_engine(database).connect():
            return True
    except OperationalError:
        return False


def leased(client: Client, lifecycle: str) -> list[str]:
    """Devices on which the lifecycle has a part now."""
    leases = [each for each in client.leases() if each["lifecycle"] == lifecycle]
    return [member["device"] for lease in leases for member in lease["members"]]


def kept(cluster: Cluster) -> list[str]:
    """The whole checkpoints of trainings on the store."""
    url = f"{cluster.environment['EVERLOOP_ARTIFACTS_URL']}/checkpoints"
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return [path for path in files.find(root) if "/training.train/" in path and path.endswith("/digests.json")]


def trained(client: Client, lifecycle: str) -> dict[str, Any]:
    done = [each for each in client.show(lifecycle)["stages"] if each["stage"] == "train" and each["status"] == "done"]
    return dict(done[-1])


def jobs_on(host: Host, name: str) -> list[psutil.Process]:
    """The job *name* there, its reaper not counted."""
    found = [psutil.Process(pid) for pid in host.running()]
    return [each for each in found if each.name() == name[:15]]


@pytest.mark.timeout(1800)
def test_a_lifecycle_whose_host_dies_in_training_goes_on_from_its_checkpoint_on_the_other(there, tmp_path):
    here, cluster = there
    spec = spec_of(write_table(tmp_path, random.Random(0)), "far") | {"monitor": None}
    spec |= {"training": {"rounds": 800, "early_stopping": 1000, "learning_rate": 0.001, "leaves": 31}}
    with Client(data_dir=here.data_dir) as client:
        until(
            lambda: {each["node"] for each in client.nodes()} == {"alpha", "bravo"}, 90, "the hosts are not in the pool"
        )
        client.submit(spec, "far")
        until(lambda: kept(cluster), SECONDS, "no checkpoint on the store")
        (device,) = leased(client, "far")
        died = cluster.hosts[DEVICES[device]]
        assert died.kill() > 2
        client.wait("far", until="gate", timeout=SECONDS)
        train, log = trained(client, "far"), client.logs("far", "train")
        client.approve("far", "far away")
        client.wait("far", timeout=SECONDS)
        answer = until(lambda: served(client), 60, "the version is not served")
        died.start()
        until(lambda: all(each["present"] for each in devices(client)), 90, "the host is not back")

    (member,) = train["ran"]["members"]
    assert {device, member["device"]} == set(DEVICES)
    assert train["ran"]["resumed"]["step"] > 0
    assert train["ran"]["resumed"]["times"] == 1
    assert "resumed at round" in log  # written on the other host, read here
    assert answer["predictions"][0]["label"] in (0, 1)
    assert kept(cluster) == []
    assert everloop(here, "journal", "verify").returncode == 0


def served(client: Client) -> dict[str, Any] | None:
    if not any(model["version"] for model in client.serving()["models"]):
        return None
    return dict(client.predict("far", {"age": 79, "plan": "basic", "spend": 1.0, "since": "2026-05-01T00:00:00Z"}))


def devices(client: Client) -> list[dict[str, Any]]:
    return [device for node in client.nodes() for device in node["devices"]]


@pytest.mark.timeout(1800)
def test_a_gang_across_two_hosts_goes_on_when_a_rank_is_killed(there, tmp_path):
    here, cluster = there
    spec = gang_of(tmp_path) | {"resources": {"members": 2}}
    spec["params"] = {"epochs": 60, "width": 32, "rate": 0.001}
    with Client(data_dir=here.data_dir) as client:
        client.submit(spec, "gang")
        until(lambda: kept(cluster), SECONDS, "no checkpoint on the store")
        ranks = until(lambda: found if len(found := ranks_of(cluster)) == 2 else None, 60, "no two ranks")
        began = time.monotonic()
        ranks["bravo"].kill()
        until(lambda: not any(each.is_running() for each in ranks.values()), 30, "the other rank lives on")
        print(f"the other rank ended after {time.monotonic() - began:.2f} s")
        client.wait("gang", timeout=SECONDS)
        train = trained(client, "gang")
        logs = [client.logs("gang", "train", rank=rank) for rank in (0, 1)]

    assert {each["device"] for each in train["ran"]["members"]} == set(DEVICES)
    assert train["metrics"]["accuracy"] > 0.9
    assert train["ran"]["resumed"]["step"] > 0
    assert "resumed at epoch" in logs[0]
    assert logs[1] != logs[0]


def ranks_of(cluster: Cluster) -> dict[str, psutil.Process]:
    found = {name: jobs_on(host, "training.train") for name, host in cluster.hosts.items()}
    return {name: jobs[0] for name, jobs in found.items() if jobs}
