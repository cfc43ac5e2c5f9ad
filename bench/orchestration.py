"""What a stage costs: ten control-only stages that do nothing, with their journal, beside ten plain activities.

One run, one server, one worker; the two alternate. Prints milliseconds (median) and the ratio.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

from activities.journal import JournalOnControl
from everloop.artifacts import Artifacts
from everloop.contracts import ChampionAnswer, ChampionRequest, RegistryActivities
from everloop.payloads import converter
from everloop.specs import STAGES
from everloop.store import Store
from tests.conftest import free_port_base
from workers import connect, temporal
from workflows.journal import Journal
from workflows.lease import Lease
from workflows.stage import Stages

QUEUE = "bench"
NOTHING = ChampionRequest(project="default", model="bench")


class Idle(RegistryActivities):
    """The activity that does nothing; both sides call the same one."""

    @activity.defn(name="everloop.registry.champion")
    async def champion(self, _request: ChampionRequest) -> ChampionAnswer:
        return ChampionAnswer(champion=None)

    @activity.defn(name="everloop.registry.register")
    async def register(self, request: object) -> object:  # type: ignore[override]
        raise NotImplementedError

    @activity.defn(name="everloop.registry.evidence")
    async def evidence(self, request: object) -> object:  # type: ignore[override]
        raise NotImplementedError


@workflow.defn
class TenActivities:
    """Ten plain activities, one after the other."""

    @workflow.run
    async def run(self) -> None:
        for _ in range(10):
            await workflow.execute_activity_method(
                RegistryActivities.champion, NOTHING, start_to_close_timeout=timedelta(seconds=10)
            )


@workflow.defn
class TenStages:
    """Ten stages: search attribute, journal, current details, retry policy and all."""

    @workflow.run
    async def run(self) -> None:
        journal = Journal()
        stages = Stages(journal, Lease(journal))
        for stage in STAGES[:10]:
            await stages.run(stage, RegistryActivities.champion, NOTHING, lambda _made: "nothing to say")
        await journal.settle()


async def measure(address: str, folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    client = await Client.connect(address, data_converter=converter)
    store = Store(f"sqlite:///{folder / 'everloop.db'}")
    store.migrate()
    journal = JournalOnControl(store, Artifacts(str(folder / "artifacts")), client)
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[TenActivities, TenStages],
        activities=[Idle().champion, journal.append],
        workflow_runner=connect.sandbox(),
        max_eager_activity_reservations_per_workflow_task=100,
    )
    plain, staged = [], []
    async with worker:
        for number in range(rounds + 2):
            seconds = [await once(client, kind) for kind in (TenActivities, TenStages)]
            if number >= 2:  # the first two warm the caches of both
                plain.append(seconds[0])
                staged.append(seconds[1])
    return plain, staged


async def once(client: Client, kind: type) -> float:
    started = time.perf_counter()
    await client.execute_workflow(kind.run, id=f"bench-{uuid.uuid4().hex}", task_queue=QUEUE)  # type: ignore[attr-defined]
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = temporal.start(folder / "temporal.db", free_port_base(), None, folder / "temporal.log")
        try:
            plain, staged = asyncio.run(measure(server.address, folder, rounds))
        finally:
            server.stop()
    ratio = statistics.median(s / p for s, p in zip(staged, plain, strict=True))
    print(f"ten plain activities       {1000 * statistics.median(plain):7.1f} ms (min {1000 * min(plain):.1f})")
    print(f"ten stages with journal    {1000 * statistics.median(staged):7.1f} ms (min {1000 * min(staged):.1f})")
    print(f"ratio (median of {rounds} pairs)  {ratio:7.2f}     goal: at most 2.5")


if __name__ == "__main__":
    main()
