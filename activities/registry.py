"""The registry: versions, dense per model and one per lifecycle run; the champion; the evidence for a gate."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func
from sqlmodel import Session, col, select
from temporalio import activity

from activities.lease import check_token
from everloop import signing
from everloop.artifacts import Artifacts
from everloop.contracts import (
    ChampionAnswer,
    ChampionRequest,
    EvidenceAnswer,
    EvidenceRequest,
    RegisterRequest,
    RegistryActivities,
)
from everloop.errors import IntegrityError
from everloop.records import Champion, Comparison, Evidence, Signature, Snapshot, Version
from everloop.store import RouteRow, Store, VersionRow


class RegistryOnControl(RegistryActivities):
    """Writes versions and says what an approver must know."""

    def __init__(self, store: Store, artifacts: Artifacts, keys_dir: Path) -> None:
        self._store = store
        self._artifacts = artifacts
        self._keys_dir = keys_dir

    @activity.defn(name="everloop.registry.champion")
    async def champion(self, request: ChampionRequest) -> ChampionAnswer:
        """The version that takes the model's traffic now, if there is one."""
        return ChampionAnswer(champion=await asyncio.to_thread(champion, self._store, request.project, request.model))

    @activity.defn(name="everloop.registry.register")
    async def register(self, request: RegisterRequest) -> Version:
        """Give the exported model its number. The same lifecycle run again gets the same version.

        Raises `LeaseLost` when the lease under which the bytes were made was taken away, `IntegrityError`
        when the bytes are not what the export said.
        """
        await asyncio.to_thread(self._check_bytes, request)
        info = activity.info()
        assert info.workflow_id and info.workflow_run_id  # noqa: S101, PT018  # only a lifecycle registers
        return await asyncio.to_thread(_register, self._store, request, info.workflow_id, info.workflow_run_id)

    @activity.defn(name="everloop.registry.evidence")
    async def evidence(self, request: EvidenceRequest) -> EvidenceAnswer:
        """What the gate shows and what a decision signs, as things are now."""
        return await asyncio.to_thread(self._evidence, request)

    def _evidence(self, request: EvidenceRequest) -> EvidenceAnswer:
        version = request.version
        with self._store.read() as session:
            now = champion_in(session, version.project, version.model)
        signature = signature_of(self._artifacts, version)
        made = evidence_of(version, signature, now, request.trigger, request.submitted_by)
        text = signing.canonical(made).decode()
        keys = signing.present_key(self._keys_dir)
        return EvidenceAnswer(evidence=made, digest=signing.digest_of(text), keys=keys, text=text)

    def _check_bytes(self, request: RegisterRequest) -> None:
        exported = request.exported
        if exported.parity.mismatches or not exported.parity.rows:
            raise IntegrityError("a model without a clean parity check is never registered")
        for blob in (exported.model, exported.signature, exported.reference):
            self._artifacts.get(blob)


def champion(store: Store, project: str, model: str) -> Champion | None:
    """The version on the model's route."""
    with store.read() as session:
        return champion_in(session, project, model)


def champion_in(session: Session, project: str, model: str) -> Champion | None:
    """The version on the model's route, as one transaction sees it."""
    route = session.get(RouteRow, (project, model))
    if route is None:
        return None
    row = session.get_one(VersionRow, (project, model, route.version))
    version = Version.model_validate_json(row.record)
    return Champion(
        version=version.number,
        model_digest=version.model_digest,
        model=version.exported.model,
        signature=version.exported.signature,
        seen=version.refitted.seen,
        trained_until=version.refitted.trained_until,
        release_seq=route.release_seq,
    )


def signature_of(artifacts: Artifacts, version: Version) -> Signature:
    """What the version takes and gives, from its stored bytes. Raises `IntegrityError`."""
    return Signature.model_validate_json(artifacts.get(version.exported.signature))


def evidence_of(
    version: Version, signature: Signature, now: Champion | None, trigger: str, submitted_by: str
) -> Evidence:
    """The evidence for releasing *version* while *now* is the champion."""
    evaluation = version.evaluation
    return Evidence(
        format=3,
        lifecycle=version.lifecycle,
        project=version.project,
        model=version.model,
        version=version.number,
        model_digest=version.model_digest,
        champion_digest=now.model_digest if now else "",
        champion_version=now.version if now else None,
        task=version.task,
        metrics=evaluation.metrics,
        comparison=_comparison_now(evaluation.comparison, now),
        parity=version.exported.parity,
        rows=version.refitted.rows,
        trained_until=version.refitted.trained_until,
        trigger=trigger,
        submitted_by=submitted_by,
        signature_digest=version.exported.signature.sha256,
        reference_digest=version.exported.reference.sha256,
        classes=signature.classes,
        notes=_notes(version.snapshot),
        trainer=version.refitted.family,
        code_digest=version.refitted.code.digest if version.refitted.code else "",
    )


def _notes(snapshot: Snapshot) -> tuple[str, ...]:
    """What an approver should know of the data."""
    missing = snapshot.target_missing
    without = (f"{missing:,} of {snapshot.rows:,} rows have no target and are left out",) if missing else ()
    return (*without, *snapshot.changed)


def _comparison_now(made: Comparison, now: Champion | None) -> Comparison:
    """The comparison as far as it still speaks of the champion: one with an earlier champion proves nothing now."""
    if now is None or made.champion_version == now.version:
        return made
    before = (
        f"it was compared with version {made.champion_version}" if made.champion_version else "there was none before"
    )
    return Comparison(
        verdict="no_fresh_rows",
        reason=f"Version {now.version} became champion after the evaluation ({before}): the two were never compared.",
        champion_version=now.version,
    )


def _register(store: Store, request: RegisterRequest, lifecycle: str, run_id: str) -> Version:
    spec = request.spec
    with store.write() as session:
        known = session.exec(
            select(VersionRow).where(VersionRow.lifecycle == lifecycle, VersionRow.run_id == run_id)
        ).first()
        if known is not None:
            return Version.model_validate_json(known.record)
        check_token(session, request.slot, "version")
        version = Version(
            project=spec.project,
            model=spec.model,
            number=_next_number(session, spec.project, spec.model),
            task=spec.task,
            lifecycle=lifecycle,
            model_digest=request.exported.model.sha256,
            exported=request.exported,
            refitted=request.refitted,
            evaluation=request.evaluation,
            snapshot=request.snapshot,
            registered_at=datetime.now(UTC),
        )
        session.add(_row(version, run_id, request.slot.token))
    return version


def _next_number(session: Session, project: str, model: str) -> int:
    last = session.exec(
        select(func.max(col(VersionRow.number))).where(VersionRow.project == project, VersionRow.model == model)
    ).one()
    return (last or 0) + 1


def _row(version: Version, run_id: str, token: int) -> VersionRow:
    return VersionRow(
        project=version.project,
        model=version.model,
        number=version.number,
        lifecycle=version.lifecycle,
        run_id=run_id,
        token=token,
        model_digest=version.model_digest,
        record=version.model_dump_json(),
        registered_at=version.registered_at,
    )
