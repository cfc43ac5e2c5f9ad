"""What takes weeks, in no time: Temporal skips the clock of a run while nothing happens in it."""

from pathlib import Path

from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.journal import JournalOnControl
from everloop import names, signing, starts
from everloop.artifacts import Artifacts
from everloop.contracts import LifecycleAnswer, LifecycleRequest
from everloop.payloads import converter
from everloop.settings import Settings
from everloop.specs import LifecycleSpec
from everloop.store import ApprovalRow, LifecycleRow, Store
from tests.fakes import QuickCompute
from tests.temporal.conftest import SPEC
from workers import control, temporal


async def test_a_gate_that_nobody_decides_for_two_weeks_expires_and_releases_nothing(
    store: Store, artifacts: Artifacts, tmp_path: Path
) -> None:
    skipping = ["--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true"]
    environment = await WorkflowEnvironment.start_time_skipping_v2(
        dev_server_existing_path=str(temporal.binary()),
        dev_server_extra_args=skipping,
        data_converter=converter,
        search_attributes=names.SEARCH_ATTRIBUTES,
    )
    async with environment:
        settings = Settings(data_dir=tmp_path, session="test")
        signing.create_keys(settings.keys_dir)
        client = environment.client
        journal = JournalOnControl(store, artifacts, client)
        light = control.activities(client, store, artifacts, settings, journal)
        jobs = Worker(client, task_queue=names.COMPUTE, activities=QuickCompute(artifacts).all())
        async with control.worker(client, light), jobs:
            with environment.with_time_skipping_disabled():  # the pool lives in real time
                await client.start_workflow(
                    names.GPU_POOL,
                    names.DEFAULT_POOL,
                    id=names.pool_id(names.DEFAULT_POOL),
                    task_queue=names.CONTROL,
                    start_signal=names.POOL_INVENTORY,
                    start_signal_args=[["cpu0"]],
                )
            spec = LifecycleSpec.model_validate(SPEC)
            answer = await client.execute_workflow(
                names.LIFECYCLE,
                starts.signed(
                    signing.Signer(settings.keys_dir),
                    "two-weeks",
                    LifecycleRequest(spec=spec, body_digest="0", submitted_by="ada"),
                ),
                id="two-weeks",
                task_queue=names.CONTROL,
                result_type=LifecycleAnswer,
            )

    assert (answer.outcome, answer.reason) == ("expired", "nobody decided before the deadline")
    with store.read() as session:
        gate = session.get_one(ApprovalRow, names.approval_id("two-weeks"))
        assert gate.status == session.get_one(LifecycleRow, "two-weeks").status == "expired"
        assert gate.closed_at is not None
        assert (gate.closed_at - gate.opened_at).days >= 13
