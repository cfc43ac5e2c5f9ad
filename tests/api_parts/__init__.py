"""What the API's tests share: settings on free ports, a served app, and rows such as control writes them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from everloop import names, signing
from everloop.artifacts import Artifacts
from everloop.records import (
    Blob,
    Claim,
    Comparison,
    Evaluation,
    Evidence,
    Exported,
    Parity,
    Refitted,
    Route,
    Signature,
    Snapshot,
    Verdict,
    Version,
)
from everloop.specs import LifecycleSpec
from everloop.store import (
    ApprovalRow,
    DriftRow,
    JournalRow,
    LifecycleRow,
    MonitorRow,
    ReleaseRow,
    RouteRow,
    StageRow,
    Store,
    VersionRow,
)
from tests.api_parts.graph import tiny_model
from tests.api_parts.served import client_of, deployed, key_of, running, settings_in

__all__ = [
    "NOW",
    "SPEC",
    "client_of",
    "deployed",
    "event",
    "evidence",
    "fill",
    "gate",
    "key_of",
    "lifecycle",
    "release",
    "route_row",
    "running",
    "settings_in",
    "stage",
    "tiny_model",
    "version_row",
]

NOW = datetime.now(UTC)
"""When the test file began (tests/conftest.py): a whole run takes long enough for "18 minutes ago" to be wrong."""
SPEC: dict[str, Any] = {"model": "credit", "task": "binary", "target": "status", "source": {"path": "/data/credit.csv"}}


def lifecycle(id: str = "credit-1", **changes: Any) -> LifecycleRow:  # noqa: A002
    values: dict[str, Any] = {
        "id": id,
        "run_id": f"run-of-{id}",
        "project": "default",
        "model": "credit",
        "task": "binary",
        "trigger": "manual",
        "submitted_by": "ada",
        "submitted_at": NOW - timedelta(minutes=7),
        "updated_at": NOW - timedelta(minutes=1),
        "body_digest": "b" * 64,
        "spec": LifecycleSpec.model_validate(SPEC).model_dump_json(),
        "status": "running",
        "stage": "train",
    }
    if changes.get("status") == "waiting_approval":
        values["stage"] = "approve"
    return LifecycleRow(**(values | changes))


def stage(name: str, position: int, status: str = "done", **changes: Any) -> StageRow:
    values: dict[str, Any] = {
        "lifecycle": "credit-1",
        "position": position,
        "stage": name,
        "status": status,
        "started_at": NOW - timedelta(minutes=7 - position / 2),
        "ended_at": None if status == "running" else NOW - timedelta(minutes=7 - position / 2, seconds=-12.4),
    }
    return StageRow(**(values | changes))


def evidence(**changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "lifecycle": "credit-1",
        "project": "default",
        "model": "credit",
        "version": 2,
        "model_digest": "d" * 64,
        "champion_digest": "c" * 64,
        "champion_version": 1,
        "task": "binary",
        "metrics": {"auc": 0.8312, "log_loss": 0.4127, "accuracy": 0.7921},
        "comparison": Comparison(
            verdict="better",
            reason="auc 0.8312 against 0.7954 of version 1 on the same 1,204 fresh rows",
            metric="auc",
            champion=0.7954,
            challenger=0.8312,
            champion_version=1,
            rows=1204,
        ),
        "parity": Parity(rows=50000, edge_rows=412, mismatches=0, max_difference=3.1e-7, tolerance=1e-5),
        "rows": 18204,
        "trained_until": datetime(2024, 3, 1, tzinfo=UTC),
        "trigger": "manual",
        "submitted_by": "ada",
    }
    return Evidence(**(values | changes))


def gate(found: Evidence | None = None, **changes: Any) -> ApprovalRow:
    found = found or evidence()
    values: dict[str, Any] = {
        "id": names.approval_id(found.lifecycle),
        "run_id": "gate-run",
        "lifecycle": found.lifecycle,
        "project": found.project,
        "model": found.model,
        "version": found.version,
        "nonce": "nonce-1",
        "evidence": found.model_dump(mode="json"),
        "evidence_digest": signing.digest(found),
        "status": "open",
        "opened_at": NOW - timedelta(minutes=3),
        "deadline": NOW + timedelta(days=14),
    }
    return ApprovalRow(**(values | changes))


def claim(found: Evidence | None = None, **changes: Any) -> Claim:
    found = found or evidence()
    values: dict[str, Any] = {
        "gate": names.approval_id(found.lifecycle),
        "nonce": "nonce-1",
        "evidence_digest": signing.digest(found),
        "model_digest": found.model_digest,
        "champion_digest": found.champion_digest,
        "person": "grace",
        "verdict": Verdict.APPROVE,
        "comment": "",
        "decided_at": NOW,
        "expires_at": NOW + timedelta(days=7),
        "self_approved": False,
    }
    return Claim(**(values | changes))


def version(model: Blob, signature: Blob, reference: Blob | None = None, /, **changes: Any) -> Version:
    """A registered version whose bytes are *model*."""
    nothing = Blob(sha256="0" * 64, size_bytes=0)
    values: dict[str, Any] = {
        "project": "default",
        "model": "credit",
        "number": 1,
        "task": "binary",
        "lifecycle": "credit-1",
        "model_digest": model.sha256,
        "exported": Exported(
            model=model,
            signature=signature,
            parity=Parity(rows=10, edge_rows=1, mismatches=0, max_difference=0, tolerance=1e-5),
            reference=reference or nothing,
        ),
        "refitted": Refitted(model=nothing, pipeline=nothing, rows=18204, seen=nothing, trained_until=NOW),
        "evaluation": Evaluation(
            metrics={"auc": 0.7954},
            rows=900,
            comparison=Comparison(verdict="no_champion", reason="there is no champion yet"),
            report=nothing,
        ),
        "snapshot": Snapshot(manifest=nothing, rows=18204, files=1, size_bytes=10, columns=(), schema_digest="s" * 64),
        "registered_at": NOW - timedelta(hours=2),
    }
    return Version(**(values | changes))


def version_row(found: Version) -> VersionRow:
    return VersionRow(
        project=found.project,
        model=found.model,
        number=found.number,
        lifecycle=found.lifecycle,
        run_id=f"run-of-{found.lifecycle}-{found.number}",
        token=1,
        model_digest=found.model_digest,
        record=found.model_dump_json(),
        registered_at=found.registered_at,
    )


def route_row(route: Route) -> RouteRow:
    return RouteRow(
        project=route.project,
        model=route.model,
        version=route.version,
        release_seq=route.release_seq,
        model_digest=route.model_digest,
        lifecycle=route.lifecycle,
        record=route.model_dump_json(),
        released_at=route.released_at,
    )


def event(
    kind: str, seq: int, workflow_id: str = "credit-1", run_id: str = "run-of-credit-1", **body: Any
) -> JournalRow:
    at = NOW - timedelta(minutes=7 - seq / 3)
    return JournalRow(
        workflow_id=workflow_id,
        run_id=run_id,
        run_started_at=NOW - timedelta(minutes=7),
        seq=seq,
        type=kind,
        at=at,
        body=signing.canonical({"type": kind, "seq": seq, "at": at.isoformat()} | body).decode(),
    )


def fill(store: Store) -> None:
    """A deployment in the middle of a day: something live, running, parked, waiting and ended."""
    signed_by_grace = claim()
    nothing = Blob(sha256="0" * 64, size_bytes=0)
    before = version(Blob(sha256="c" * 64, size_bytes=1), nothing, lifecycle="credit-0")
    rows: list[Any] = [
        lifecycle(
            "credit-0",
            status="released",
            reason="version 1 answers since 09:12",
            stage="monitor",
            version=1,
            metrics={"auc": 0.7954, "log_loss": 0.4486, "accuracy": 0.7702},
            submitted_at=NOW - timedelta(hours=5),
        ),
        lifecycle(
            "credit-1",
            status="waiting_approval",
            stage="approve",
            version=2,
            metrics=evidence().metrics,
            wait_what="a decision on version 2 of credit",
            wait_since=NOW - timedelta(minutes=3),
            wait_unblocks="`everloop approve credit-1` or `everloop reject credit-1`",
            comparison=evidence().comparison.model_dump(mode="json"),
            trigger="drift:2024-02-01",
        ),
        lifecycle(
            "churn-7f3a",
            model="churn",
            submitted_by="grace",
            stage="train",
            wait_what="a slot in pool default",
            wait_since=NOW - timedelta(seconds=48),
            wait_unblocks="2 before it; it goes on when a slot is free",
        ),
        lifecycle(
            "prices-b2",
            model="prices",
            status="needs_attention",
            stage="validate",
            task="binary",
            error={
                "stage": "validate",
                "error": "TargetUnusable",
                "field": "target",
                "log": "jobs/run-of-prices-b2/validate.1/1.log",
                "message": "the target column `sold` has one row of class `no`: at least 20 of each are needed",
                "hint": "add rows, or choose another target, then retry",
            },
        ),
        lifecycle(
            "credit-x",
            status="not_better",
            reason="auc 0.7911 against 0.7954 of version 1 on 980 fresh rows",
            submitted_at=NOW - timedelta(hours=3),
        ),
        gate(evidence(trigger="drift:2024-02-01")),
        stage(
            "snapshot",
            0,
            summary="18,204 rows in 3 files, 2,104,331 bytes",
            ran={"device": "cpu0", "token": 4, "attempt": 1, "seconds": 1.2},
        ),
        stage(
            "validate",
            1,
            summary="14 checks, 1 warning",
            ran={"device": "cpu0", "token": 4, "attempt": 1, "seconds": 0.8},
        ),
        stage(
            "prepare",
            2,
            summary="21 features; 11,650 train, 2,913 validation, 3,641 test",
            ran={"device": "cpu0", "token": 4, "attempt": 1, "seconds": 2.2},
        ),
        stage(
            "train",
            3,
            summary="312 rounds, stopped early",
            metrics={"auc": 0.8291},
            ran={"device": "cpu0", "token": 4, "attempt": 2, "seconds": 12.2},
        ),
        stage(
            "evaluate",
            4,
            summary="better than version 1",
            metrics={"auc": 0.8312},
            ran={"device": "cpu0", "token": 4, "attempt": 1, "seconds": 1.9},
        ),
        stage("refit", 5, summary="on all 18,204 rows"),
        stage("export", 6, summary="one graph, equal on 50,412 rows"),
        stage("register", 7, summary="version 2"),
        stage("approve", 8, "running"),
        stage("snapshot", 0, lifecycle="churn-7f3a"),
        stage("validate", 1, lifecycle="churn-7f3a"),
        stage(
            "validate",
            1,
            "failed",
            lifecycle="prices-b2",
            error={"message": "one row of class no", "log": "jobs/run-of-prices-b2/validate.1/1.log"},
        ),
        version_row(before),
        version_row(version(Blob(sha256="d" * 64, size_bytes=1), nothing, number=2, lifecycle="credit-1")),
        MonitorRow(
            project="default",
            model="credit",
            cursor=datetime(2024, 3, 1, tzinfo=UTC),
            spec=LifecycleSpec.model_validate(SPEC).model_dump_json(),
            updated_at=NOW,
        ),
        ReleaseRow(
            workflow_id="release/default/credit",
            run_id="r1",
            project="default",
            model="credit",
            lifecycle="credit-0",
            version=1,
            release_seq=1,
            model_digest="c" * 64,
            approved_by=["grace"],
            released_at=NOW - timedelta(hours=4),
        ),
        event("LifecycleSubmitted", 0, submitted_by="ada"),
        event("StageStarted", 1, stage="snapshot"),
        event("StageFinished", 2, stage="snapshot", summary="18,204 rows in 3 files"),
        event("StageFinished", 3, stage="train", summary="312 rounds, stopped early"),
        event("WaitBegan", 4, wait={"what": "a decision on version 2 of credit"}),
    ]
    shares = [0.05, 0.1, 0.0, 0.14, 0.24, 0.33, None, 0.62]
    for number, share in enumerate(shares):
        start = datetime(2024, 1, 5, tzinfo=UTC) + timedelta(days=number)
        rows.append(
            DriftRow(
                workflow_id=f"monitor/default/credit-check-{number}",
                run_id="r",
                seq=0,
                project="default",
                model="credit",
                version=1,
                window_start=start,
                window_end=start + timedelta(days=1),
                rows=0 if share is None else 812 + 17 * number,
                share=share,
                drifted=[] if not share else ["amount", "purpose"][: 1 + (share > 0.2)],
                report="" if share is None else "e" * 64,
                verdict="insufficient_data" if share is None else "retrain" if share > 0.5 else "quiet",
                reason="31 rows, fewer than 100"
                if share is None
                else f"{share:.0%} of 21 columns drifted, the threshold is 50%",
                lifecycle="credit-1" if share and share > 0.5 else "",
                checked_at=start + timedelta(days=1, minutes=2),
            )
        )
    released = Route(
        project="default",
        model="credit",
        version=1,
        model_digest="c" * 64,
        release_seq=1,
        lifecycle="credit-0",
        decisions=(),
        released_at=NOW - timedelta(hours=4),
    )
    signed = {"claim": signed_by_grace.model_dump(mode="json"), "key_id": "k", "signature": "s"}
    rows.append(route_row(Route.model_validate(released.model_dump() | {"decisions": [signed]})))
    with store.write() as session:
        session.add_all(rows)


def release(
    store: Store,
    artifacts: Artifacts,
    signer: signing.Signer,
    *,
    seq: int = 1,
    scale: float = 0.01,
    reference: Blob | None = None,
    model: str = "credit",
    made: tuple[bytes, Signature] | None = None,
    **changes: Any,
) -> Route:
    """Register and route a version of the tiny model (or of *made*), approved and signed, as control does it."""
    data, signature = made or tiny_model(scale)
    graph = artifacts.put(data, "model.onnx")
    described = artifacts.put(signature.model_dump_json().encode(), "signature.json")
    known: dict[str, Any] = {"model": model, "task": signature.task}
    released = version(graph, described, reference, number=seq, lifecycle=f"{model}-{seq}", **known)
    shown = evidence(
        format=2,
        lifecycle=released.lifecycle,
        version=seq,
        model_digest=graph.sha256,
        signature_digest=described.sha256,
        **known,
        reference_digest=released.exported.reference.sha256,
        classes=signature.classes,
    )
    said = claim(shown, format=2)
    values: dict[str, Any] = {
        "project": "default",
        "model": model,
        "version": seq,
        "model_digest": graph.sha256,
        "release_seq": seq,
        "lifecycle": released.lifecycle,
        "decisions": (signer.sign(said),),
        "evidence": signing.canonical(shown).decode(),
        "released_at": datetime.now(UTC),
    }
    route = Route(**(values | changes))
    with store.write() as session:
        session.merge(version_row(released))
        session.merge(route_row(route))
    return route
