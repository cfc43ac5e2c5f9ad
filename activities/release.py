"""The route: which version takes a model's traffic. It changes only for a signed, still fitting approval."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
from sqlalchemy import func
from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.client import Client

from activities.execution import Execution, Executions
from activities.registry import champion_in, evidence_of, signature_of
from everloop import names, signing, views
from everloop.artifacts import Artifacts
from everloop.contracts import ObserveRequest, ReleaseActivities, ReleaseRequest, RollBackRequest
from everloop.errors import BadSignature, Conflict, EvidenceChanged, IntegrityError, NotFound, Unavailable
from everloop.records import Claim, Evidence, Route, RouteChange, Verdict, Version
from everloop.settings import Settings
from everloop.store import ApprovalRow, JournalRow, LifecycleRow, RouteChangeRow, RouteRow, Store, VersionRow

ANSWER_SECONDS = 5


class ReleaseOnControl(ReleaseActivities):
    """Changes routes and looks at what serve makes of them."""

    def __init__(self, store: Store, artifacts: Artifacts, settings: Settings, client: Client) -> None:
        self._store = store
        self._artifacts = artifacts
        self._settings = settings
        self._executions = Executions(client)

    @activity.defn(name=views.ROUTE)
    async def route(self, request: ReleaseRequest) -> Route:
        """Send the model's traffic to the version. The same request again finds its own route and returns it.

        Raises `BadSignature` when no approval is signed by this deployment for exactly these bytes or when it was
        used before, and `EvidenceChanged` when it has expired, or the champion or the evidence is another than the
        people saw.
        """
        rollout = await self._asked_by_its_lifecycle(request)
        return await asyncio.to_thread(self._route, request, rollout)

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

    @activity.defn(name=views.ROLL_BACK)
    async def roll_back(self, request: RollBackRequest) -> RouteChange | None:
        """Put the route before back. None, and nothing changed, when the route has moved on.

        Only the rollout that made the release may undo it, or a person's signed order. Raises `BadSignature`,
        `Conflict` when a person wants back to before the first release.
        """
        rollout = await self._executions.caller()
        if rollout.workflow_id != names.release_id(request.project, request.model):
            raise BadSignature("a rollout undoes releases of its own model only")
        if request.order is not None:
            _must_be_ordered(request, signing.present_key(self._settings.keys_dir))
        elif rollout.workflow_type != names.RELEASE:
            raise BadSignature("a roll back that a person wants must be signed", hint="use `everloop roll-back`")
        return await asyncio.to_thread(_roll_back, self._store, request, rollout)

    async def _asked_by_its_lifecycle(self, request: ReleaseRequest) -> Execution:
        """Only the lifecycle of the version may roll it out: a rollout started by hand or by another is refused."""
        version = request.version
        rollout = await self._executions.caller()
        if (rollout.workflow_type, rollout.workflow_id, rollout.parent_id, request.gate) != (
            names.RELEASE,
            names.release_id(version.project, version.model),
            version.lifecycle,
            names.approval_id(version.lifecycle),
        ):
            raise BadSignature("this rollout was not started by the lifecycle of the version")
        parent = await self._executions.of(rollout.parent_id, rollout.parent_run_id)
        known = await asyncio.to_thread(_journaled_runs, self._store, parent.workflow_id)
        ours = parent.ours and parent.workflow_type == names.LIFECYCLE
        if not ours or not known & {parent.run_id, parent.first_run_id}:
            raise BadSignature("this rollout was started by a run that is not of the version's lifecycle")
        if parent.run_id not in known:  # a Reset made it, and it has written nothing of its own yet
            raise Unavailable(
                "the run that a Reset made of the lifecycle is not in the journal yet",
                hint="control's sweep brings it there within seconds",
            )
        return rollout

    def _route(self, request: ReleaseRequest, rollout: Execution) -> Route:
        version = request.version
        claim = _approval(request, signing.trusted_keys(self._settings.keys_dir))
        signature = signature_of(self._artifacts, version)
        with self._store.write() as session:
            row = session.get(RouteRow, (version.project, version.model))
            if row is not None and (row.lifecycle, row.version) == (version.lifecycle, version.number):
                route = Route.model_validate_json(row.record)
                _spend(session, claim.nonce, route, rollout, again=True)
                return route
            _check_version(session, request)
            _check_lifecycle(session, request)
            _check_unspent(session, claim)
            if claim.expires_at <= datetime.now(UTC):
                raise EvidenceChanged("the approval expired before the release", hint="decide again")
            if (row.model_digest if row else "") != request.champion_digest:
                raise EvidenceChanged("another version has become champion since the approval", hint="decide again")
            now = champion_in(session, version.project, version.model)
            text = _shown(session, request)
            expected = evidence_of(version, signature, now, request.trigger, request.submitted_by)
            shown = Evidence.model_validate_json(text)
            if shown != expected.as_format(shown.format) or shown.format < claim.format:
                raise EvidenceChanged("the evidence is not what was approved", hint="decide again")
            route = Route(
                project=version.project,
                model=version.model,
                version=version.number,
                model_digest=version.model_digest,
                release_seq=_next_number(session, version.project, version.model),
                lifecycle=version.lifecycle,
                decisions=request.decisions,
                released_at=datetime.now(UTC),
                evidence=text if shown.format > 1 else "",
            )
            session.merge(_row(route, row.record if row else ""))
            _spend(session, claim.nonce, route, rollout)
        return route

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


# --- what is approved -----------------------------------------------------------------------------


def _approval(request: ReleaseRequest, keys: dict[str, str]) -> Claim:
    """The signed approval of exactly this version at exactly this gate. Raises `BadSignature` when there is none."""
    found = None
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
            found = claim
    if found is None:
        raise BadSignature("no signed approval fits this version", hint="decide on the approval page")
    return found


def _shown(session: Session, request: ReleaseRequest) -> str:
    """The text of the evidence that the approval is about. Raises `EvidenceChanged` when its digest is another.

    A gate that an earlier Everloop opened did not send the text along: its canonical JSON is in the read model.
    """
    text = request.evidence
    if not text:
        gate = session.get(ApprovalRow, request.gate)
        text = signing.canonical(gate.evidence).decode() if gate else ""
    if signing.digest_of(text) != request.evidence_digest:
        raise EvidenceChanged("the evidence is not what was approved", hint="decide again")
    return text


def _check_version(session: Session, request: ReleaseRequest) -> None:
    version = request.version
    known = session.get(VersionRow, (version.project, version.model, version.number))
    if known is None:
        raise NotFound(f"version {version.number} of {version.model} is not registered")
    if Version.model_validate_json(known.record) != version:
        raise IntegrityError("the registered version is another than the approved one")


def _check_lifecycle(session: Session, request: ReleaseRequest) -> None:
    """The lifecycle is open, and was submitted by whom the evidence says: self-approval hangs on it."""
    row = session.get(LifecycleRow, request.version.lifecycle)
    if row is None or row.status not in views.OPEN_STATUSES:
        raise BadSignature("the lifecycle of this version has ended: nothing of it is released any more")
    if (row.submitted_by, row.trigger) != (request.submitted_by, request.trigger):
        raise BadSignature("the rollout names another submitter than the lifecycle has")


def _journaled_runs(store: Store, workflow_id: str) -> set[str]:
    with store.read() as session:
        return set(session.exec(select(JournalRow.run_id).where(JournalRow.workflow_id == workflow_id).distinct()))


# --- the ledger of changes ------------------------------------------------------------------------


def _check_unspent(session: Session, claim: Claim) -> None:
    """An approval releases once. When its rollout undid itself, a person's retry may use it again."""
    used = session.exec(
        select(RouteChangeRow).where(RouteChangeRow.nonce == claim.nonce).order_by(col(RouteChangeRow.id).desc())
    ).first()
    if used is None:
        return
    undone = _undone(session, used)
    if used.kind != "release" or undone is None or undone.person:
        raise BadSignature(
            "this approval was used for an earlier release", hint="submit again: a new version needs a new decision"
        )


def _undone(session: Session, release: RouteChangeRow) -> RouteChangeRow | None:
    """The roll back of *release*, if there was one."""
    return session.exec(
        select(RouteChangeRow).where(
            RouteChangeRow.project == release.project,
            RouteChangeRow.model == release.model,
            RouteChangeRow.undoes == release.release_seq,
            col(RouteChangeRow.id) > (release.id or 0),
        )
    ).first()


def _spend(session: Session, nonce: str, route: Route, rollout: Execution, *, again: bool = False) -> None:
    """Write the change down; *again*: the route is there already, only the approval or the rollout may be new."""
    same = select(RouteChangeRow.id).where(RouteChangeRow.nonce == nonce, RouteChangeRow.run_id == rollout.run_id)
    if again and session.exec(same.limit(1)).first() is not None:
        return
    session.add(
        RouteChangeRow(
            **route.change().model_dump(exclude={"undoes"}),
            kind="release",
            nonce=nonce,
            workflow_id=rollout.workflow_id,
            run_id=rollout.run_id,
            at=datetime.now(UTC),
        )
    )


def _next_number(session: Session, project: str, model: str) -> int:
    """One more than any number that a route of the model has had, also of one that was deleted."""
    last = session.exec(
        select(func.max(RouteChangeRow.release_seq)).where(
            RouteChangeRow.project == project, RouteChangeRow.model == model
        )
    ).one()
    row = session.get(RouteRow, (project, model))
    return max(last or 0, row.release_seq if row else 0) + 1


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


# --- roll back ------------------------------------------------------------------------------------


def _must_be_ordered(request: RollBackRequest, keys: dict[str, str]) -> None:
    """Raise `BadSignature` unless a person's signed and unexpired order is for exactly this release."""
    assert request.order is not None  # noqa: S101  # the caller looked
    signing.verify_order(request.order, keys)
    order = request.order.order
    if (order.project, order.model, order.release_seq) != (request.project, request.model, request.release_seq):
        raise BadSignature("the order is for another release")
    if order.expires_at <= datetime.now(UTC):
        raise BadSignature("the order has expired", hint="order it again")


def _roll_back(store: Store, request: RollBackRequest, rollout: Execution) -> RouteChange | None:
    with store.write() as session:
        done = _made_before(session, request, rollout)
        if done is not None:
            return done
        row = session.get(RouteRow, (request.project, request.model))
        if row is None or row.release_seq != request.release_seq:
            return None
        if request.order is None:
            _must_be_its_own(session, row, rollout)
        number = _next_number(session, request.project, request.model)
        if row.previous:
            # The sequence only grows: serve must see that the route has changed again.
            before = Route.model_validate_json(row.previous).model_copy(update={"release_seq": number})
            session.merge(_row(before, ""))
            change = before.change()
        elif request.order is not None:
            raise Conflict(
                f"there is no version before release {row.release_seq} of {request.model} to go back to",
                hint="release another version: `everloop submit`",
            )
        else:
            session.delete(row)
            change = RouteChange(project=request.project, model=request.model, release_seq=number, version=0)
        change = change.model_copy(update={"undoes": request.release_seq})
        session.add(
            RouteChangeRow(
                **change.model_dump(),
                kind="roll_back",
                person=request.order.order.person if request.order else "",
                workflow_id=rollout.workflow_id,
                run_id=rollout.run_id,
                at=datetime.now(UTC),
            )
        )
    return change


def _made_before(session: Session, request: RollBackRequest, rollout: Execution) -> RouteChange | None:
    """What an earlier attempt of the same run did, whose answer was lost."""
    row = session.exec(
        select(RouteChangeRow).where(
            RouteChangeRow.project == request.project,
            RouteChangeRow.model == request.model,
            RouteChangeRow.undoes == request.release_seq,
            RouteChangeRow.run_id == rollout.run_id,
        )
    ).first()
    return RouteChange.model_validate(row.model_dump(include=set(RouteChange.model_fields))) if row else None


def _must_be_its_own(session: Session, row: RouteRow, rollout: Execution) -> None:
    """Raise `BadSignature` unless *rollout* made the release that is on the route.

    One that an earlier Everloop began is known by its parent only.
    """
    made = session.exec(
        select(RouteChangeRow).where(
            RouteChangeRow.project == row.project,
            RouteChangeRow.model == row.model,
            RouteChangeRow.release_seq == row.release_seq,
            RouteChangeRow.kind == "release",
        )
    ).all()
    runs = {one.run_id for one in made if one.run_id}
    if rollout.run_id not in runs and (runs or rollout.parent_id != row.lifecycle):
        raise BadSignature("only the rollout that made a release undoes it", hint="use `everloop roll-back`")
