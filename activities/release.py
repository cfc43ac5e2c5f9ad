"""The route: which version takes a model's traffic. It changes only for a signed, still fitting approval."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from sqlmodel import Session
from temporalio import activity
from temporalio.client import Client

from activities.registry import champion, evidence_of
from everloop import names, signing, views
from everloop.contracts import ObserveRequest, ReleaseActivities, ReleaseRequest, RollBackRequest
from everloop.errors import BadSignature, EvidenceChanged, IntegrityError, NotFound, Unavailable
from everloop.records import Route, Verdict
from everloop.settings import Settings
from everloop.store import LifecycleRow, RouteRow, Store, VersionRow

ANSWER_SECONDS = 5


class ReleaseOnControl(ReleaseActivities):
    """Changes routes and looks at what serve makes of them."""

    def __init__(self, store: Store, settings: Settings, client: Client) -> None:
        self._store = store
        self._client = client
        self._settings = settings

    @activity.defn(name="everloop.release.route")
    async def route(self, request: ReleaseRequest) -> Route:
        """Send the model's traffic to the version. The same request again finds its own route and returns it.

        Raises `BadSignature` when no approval is signed by this deployment for exactly these bytes, and
        `EvidenceChanged` when the champion or the evidence is another than the people saw.
        """
        await self._asked_by_its_lifecycle(request)
        return await asyncio.to_thread(_route, self._store, self._settings.keys_dir, request)

    @activity.defn(name="everloop.release.observe")
    async def observe(self, request: ObserveRequest) -> None:
        """Return once serve answers with this release (or a later one).

        Raises `Unavailable` (retried) while it does not, `IntegrityError` when serve refuses the bytes.
        """
        status = await self._serve_status()
        for model in status.get("models", []):
            if (model.get("project"), model.get("model")) != (request.project, request.model):
                continue
            if int(model.get("release_seq") or 0) >= request.release_seq:
                return
            if model.get("error") and int(model.get("refused_seq") or 0) >= request.release_seq:
                raise IntegrityError(f"serve refuses the release: {model['error']}")
        raise Unavailable(
            "serve has not loaded the release yet", hint="it does so by itself; is `everloop serve` running?"
        )

    @activity.defn(name="everloop.release.roll_back")
    async def roll_back(self, request: RollBackRequest) -> None:
        """Put the route before back, unless the route has moved on."""
        await asyncio.to_thread(_roll_back, self._store, request)

    async def _asked_by_its_lifecycle(self, request: ReleaseRequest) -> None:
        """Only the lifecycle of the version may roll it out: a Release started by hand is refused."""
        info = activity.info()
        assert info.workflow_id  # noqa: S101  # only a Release routes
        handle = self._client.get_workflow_handle(info.workflow_id, run_id=info.workflow_run_id)
        parent = (await handle.describe()).parent_id
        if parent != request.version.lifecycle or request.gate != names.approval_id(request.version.lifecycle):
            raise BadSignature("this rollout was not started by the lifecycle of the version")

    async def _serve_status(self) -> dict[str, Any]:
        key = self._settings.keys_dir / "client.key"
        headers = {"Authorization": f"Bearer {key.read_text().strip()}"} if key.exists() else {}
        try:
            async with httpx.AsyncClient(timeout=ANSWER_SECONDS, headers=headers) as client:
                answer = await client.get(f"{self._settings.serve_url}/status")
                answer.raise_for_status()
                return dict(answer.json())
        except httpx.HTTPError as error:
            raise Unavailable(f"serve does not answer: {error}", hint="is `everloop serve` running?") from None


def _route(store: Store, keys_dir: Path, request: ReleaseRequest) -> Route:
    version = request.version
    _check_approved(request, signing.trusted_keys(keys_dir))
    now = champion(store, version.project, version.model)
    with store.write() as session:
        row = session.get(RouteRow, (version.project, version.model))
        if row is not None and (row.lifecycle, row.version) == (version.lifecycle, version.number):
            return Route.model_validate_json(row.record)
        _check_version(session, request)
        _check_lifecycle(session, request)
        if (row.model_digest if row else "") != request.champion_digest:
            raise EvidenceChanged("another version has become champion since the approval", hint="decide again")
        evidence = evidence_of(version, now, request.trigger, request.submitted_by)
        if signing.digest(evidence) != request.evidence_digest:
            raise EvidenceChanged("the evidence is not what was approved", hint="decide again")
        route = Route(
            project=version.project,
            model=version.model,
            version=version.number,
            model_digest=version.model_digest,
            release_seq=(row.release_seq if row else 0) + 1,
            lifecycle=version.lifecycle,
            decisions=request.decisions,
            released_at=datetime.now(UTC),
        )
        session.merge(_row(route, row.record if row else ""))
    return route


def _check_approved(request: ReleaseRequest, keys: dict[str, str]) -> None:
    """Raise `BadSignature` unless a signed approval of exactly this version at exactly this gate is there."""
    approved = False
    for decision in request.decisions:
        signing.verify(decision, keys)
        claim = decision.claim
        fits = (claim.gate, claim.nonce, claim.evidence_digest, claim.model_digest, claim.champion_digest) == (
            request.gate,
            request.nonce,
            request.evidence_digest,
            request.version.model_digest,
            request.champion_digest,
        )
        if fits and claim.verdict is Verdict.APPROVE:
            approved = True
    if not approved:
        raise BadSignature("no signed approval fits this version", hint="decide on the approval page")


def _check_version(session: Session, request: ReleaseRequest) -> None:
    version = request.version
    known = session.get(VersionRow, (version.project, version.model, version.number))
    if known is None:
        raise NotFound(f"version {version.number} of {version.model} is not registered")
    if known.record != version.model_dump_json():
        raise IntegrityError("the registered version is another than the approved one")


def _check_lifecycle(session: Session, request: ReleaseRequest) -> None:
    """The lifecycle is open, and was submitted by whom the evidence says: self-approval hangs on it."""
    row = session.get(LifecycleRow, request.version.lifecycle)
    if row is None or row.status not in views.OPEN_STATUSES:
        raise BadSignature("the lifecycle of this version has ended: nothing of it is released any more")
    if (row.submitted_by, row.trigger) != (request.submitted_by, request.trigger):
        raise BadSignature("the rollout names another submitter than the lifecycle has")


def _row(route: Route, previous: str) -> RouteRow:
    return RouteRow(
        project=route.project,
        model=route.model,
        version=route.version,
        release_seq=route.release_seq,
        model_digest=route.model_digest,
        lifecycle=route.lifecycle,
        record=route.model_dump_json(),
        previous=previous,
        released_at=route.released_at,
    )


def _roll_back(store: Store, request: RollBackRequest) -> None:
    with store.write() as session:
        row = session.get(RouteRow, (request.project, request.model))
        if row is None or row.release_seq != request.release_seq:
            return
        if not row.previous:
            session.delete(row)
            return
        before = Route.model_validate_json(row.previous)
        # The sequence only grows: serve must see that the route has changed again.
        session.merge(_row(before.model_copy(update={"release_seq": row.release_seq + 1}), ""))
