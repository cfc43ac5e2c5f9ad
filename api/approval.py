"""Gates: what is asked, on what evidence, and one person's signed answer."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse

from api import pages
from api.bodies import body_schema, json_body, read_form, validated
from api.dependencies import RPC_TIMEOUT, Here, Parts, Person, ask, soon
from api.lifecycle import approval_url, page_url, temporal_url
from everloop import names
from everloop.errors import EvidenceChanged, GateClosed, Invalid, NotFound
from everloop.records import Claim, Decision, Evidence, Verdict, Version
from everloop.signing import canonical, digest_of
from everloop.specs import HIGHER_IS_BETTER, METRICS
from everloop.store import ApprovalRow, DriftRow, LifecycleRow, VersionRow
from everloop.views import OPEN_STATUSES

router = APIRouter(tags=["approvals"])
page = APIRouter(include_in_schema=False)

DECISION_LASTS = timedelta(days=7)
"""How long a signed decision may be used to release; a gate that was not closed by then must be decided again."""
COMMENT_LIMIT = 2000


class DecisionRequest(BaseModel):
    """A person's answer at a gate."""

    model_config = ConfigDict(extra="forbid")

    verdict: Verdict
    comment: Annotated[str, StringConstraints(max_length=COMMENT_LIMIT)] = ""
    """Required when the verdict is reject: it is the reason that everybody reads."""
    evidence_digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """What was looked at; when given, it must be what the gate holds now."""


class Decided(BaseModel):
    """The decision as it was signed and accepted."""

    gate: str
    lifecycle: str
    person: str
    verdict: Verdict
    comment: str
    decided_at: datetime
    evidence_digest: str
    self_approved: bool


class ApprovalView(BaseModel):
    """A gate."""

    id: str
    lifecycle: str
    project: str
    model: str
    version: int
    status: str
    reason: str
    opened_at: datetime
    deadline: datetime
    closed_at: datetime | None
    evidence: dict[str, Any]
    evidence_digest: str
    decisions: list[dict[str, Any]]
    links: dict[str, str]


class ApprovalList(BaseModel):
    items: list[ApprovalView]


@router.get("/approvals")
def listed(
    here: Here,
    status: Literal["open", "approved", "rejected", "expired", "cancelled", "terminated", "failed"] | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> ApprovalList:
    """Gates, newest first; `status=open` are those that wait for a person."""
    with here.store.read() as session:
        query = select(ApprovalRow).order_by(col(ApprovalRow.opened_at).desc()).limit(limit)
        query = query.where(ApprovalRow.status == status) if status else query
        return ApprovalList(items=[_view(here, row) for row in session.exec(query)])


@router.get("/approvals/{lifecycle:path}")
def shown(lifecycle: str, here: Here) -> ApprovalView:
    """The gate of a lifecycle, with the evidence that a decision is about."""
    with here.store.read() as session:
        return _view(here, _row(session, lifecycle))


@router.post(
    "/approvals/{lifecycle:path}/decision",
    openapi_extra=body_schema(
        DecisionRequest,
        {"verdict": "approve", "comment": "looks right"},
        {"verdict": "reject", "comment": "the target leaks", "evidence_digest": "0" * 64},
    ),
)
async def decide(
    lifecycle: str,
    here: Here,
    person: Person,
    body: Annotated[DecisionRequest, Depends(json_body(DecisionRequest))],
) -> Decided:
    """Sign a decision and bring it to the gate. The same decision again answers the same.

    503 after 5 s without an answer: it may still be recorded when the worker is back, and the same request tells.
    """
    return await settle(here, lifecycle, person, body)


@page.get("/approvals/{lifecycle:path}")
def approval_page(lifecycle: str, here: Here, person: Person) -> HTMLResponse:
    """The evidence against the champion, and the two buttons."""
    with here.store.read() as session:
        return _page(here, session, _row(session, lifecycle), person=person)


@page.post("/approvals/{lifecycle:path}")
async def decide_by_form(lifecycle: str, request: Request, here: Here, person: Person) -> Response:
    """One of the two buttons was pressed. What is missing is said on the page itself."""
    form = await read_form(request)
    given = {name: form[name] for name in ("verdict", "comment", "evidence_digest") if name in form}
    try:
        await settle(here, lifecycle, person, validated(DecisionRequest, given))
    except (Invalid, EvidenceChanged) as error:
        return await run_in_threadpool(_again, here, lifecycle, person, error, given.get("comment", ""))
    await soon(lambda: bool(_read(here, lifecycle).decisions))
    return RedirectResponse(approval_url(lifecycle), 303)


# --- deciding -----------------------------------------------------------------------------------


async def settle(here: Parts, lifecycle: str, person: str, body: DecisionRequest) -> Decided:
    """Sign *person*'s decision and wait until the gate has accepted it."""
    if body.verdict is Verdict.REJECT and not body.comment.strip():
        raise Invalid("comment: a rejection needs a comment", field="comment", hint="say why; everybody reads it")
    row = await run_in_threadpool(_read, here, lifecycle)
    earlier = _earlier(row, person, body)
    if earlier is not None:
        return earlier
    _must_fit(row, body)
    submitted_by = await run_in_threadpool(_submitter, here, row)
    await _must_be_the_lifecycles(here, row)
    decision = here.signer.sign(_claim(row, person, body, submitted_by))
    update = here.temporal.get_workflow_handle(row.id).execute_update(
        names.DECIDE, decision, id=update_id(decision), result_type=dict, rpc_timeout=RPC_TIMEOUT
    )
    try:
        accepted = await ask(update, missing=f"the gate of {lifecycle} is closed")
    except NotFound as error:
        raise GateClosed(str(error), hint="look at the page again") from None
    return _decided(row, Claim.model_validate(accepted) if accepted else decision.claim)


def update_id(decision: Decision) -> str:
    """The same for the same decision of the same person, whenever it was signed: repeats settle."""
    claim = decision.claim
    parts = (claim.gate, claim.nonce, claim.evidence_digest, claim.person, claim.verdict.value, claim.comment)
    return f"decide-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:40]}"


def _earlier(row: ApprovalRow, person: str, body: DecisionRequest) -> Decided | None:
    """The accepted decision that this one repeats."""
    for decision in row.decisions:
        claim = Claim.model_validate(decision)
        if (claim.person, claim.verdict, claim.comment) == (person, body.verdict, body.comment):
            return _decided(row, claim)
    return None


def _must_fit(row: ApprovalRow, body: DecisionRequest) -> None:
    if row.status != "open":
        raise GateClosed(
            f"the gate of {row.lifecycle} is {row.status}" + (f": {row.reason}" if row.reason else ""),
            hint="nothing is left to decide; submit again for a new version",
        )
    if body.evidence_digest is not None and body.evidence_digest != row.evidence_digest:
        raise EvidenceChanged(field="evidence_digest", hint="look at the evidence again, then decide")


def _submitter(here: Parts, row: ApprovalRow) -> str:
    """Who submitted the lifecycle. Nothing is signed for one that has ended, or about evidence that does not add up."""
    with here.store.read() as session:
        lifecycle = session.get(LifecycleRow, row.lifecycle)
    if lifecycle is None or lifecycle.status not in OPEN_STATUSES:
        raise GateClosed(f"lifecycle {row.lifecycle} has ended", hint="submit again for a new version")
    if lifecycle.stage != "approve":
        raise GateClosed(
            f"{row.lifecycle} was reset and is at {lifecycle.stage}: it will ask anew",
            hint=f"follow it: `everloop watch {row.lifecycle}`",
        )
    if _text(row) != canonical(row.evidence).decode() or digest_of(_text(row)) != row.evidence_digest:
        raise EvidenceChanged(
            "the evidence is not what its digest says", hint="reject it: somebody made this gate by hand"
        )
    return lifecycle.submitted_by


def _text(row: ApprovalRow) -> str:
    """The bytes that the evidence's digest is over."""
    return row.evidence_text or canonical(row.evidence).decode()


async def _must_be_the_lifecycles(here: Parts, row: ApprovalRow) -> None:
    """A gate that somebody started by hand in Temporal is nobody's gate."""
    missing = f"the gate of {row.lifecycle} is closed"
    try:
        described = await ask(
            here.temporal.get_workflow_handle(row.id).describe(rpc_timeout=RPC_TIMEOUT), missing=missing
        )
    except NotFound as error:
        raise GateClosed(str(error), hint="look at the page again") from None
    if described.parent_id != row.lifecycle:
        raise GateClosed("this gate was not opened by its lifecycle", hint="somebody started it by hand in Temporal")


def _claim(row: ApprovalRow, person: str, body: DecisionRequest, submitted_by: str) -> Claim:
    evidence = Evidence.model_validate(row.evidence)
    now = datetime.now(UTC)
    return Claim(
        gate=row.id,
        nonce=row.nonce,
        evidence_digest=row.evidence_digest,
        model_digest=evidence.model_digest,
        champion_digest=evidence.champion_digest,
        person=person,
        verdict=body.verdict,
        comment=body.comment,
        decided_at=now,
        expires_at=now + DECISION_LASTS,
        self_approved=person == submitted_by,
        format=evidence.format if row.evidence_text else 1,
    )


def _decided(row: ApprovalRow, claim: Claim) -> Decided:
    return Decided(
        gate=row.id, lifecycle=row.lifecycle, **claim.model_dump(include=set(Decided.model_fields) - {"gate"})
    )


# --- looking ------------------------------------------------------------------------------------


def _read(here: Parts, lifecycle: str) -> ApprovalRow:
    with here.store.read() as session:
        return _row(session, lifecycle)


def _row(session: Session, lifecycle: str) -> ApprovalRow:
    row = session.get(ApprovalRow, names.approval_id(lifecycle))
    if row is None:
        raise NotFound(
            f"lifecycle {lifecycle[:200]} has no gate (yet)",
            field="lifecycle",
            hint="`everloop list --status waiting_approval` shows what waits for a person",
        )
    return row


def _view(here: Parts, row: ApprovalRow) -> ApprovalView:
    return ApprovalView(
        **row.model_dump(include=set(ApprovalView.model_fields) - {"links"}),
        links={
            "self": f"/api/v1/approvals/{quote(row.lifecycle)}",
            "page": approval_url(row.lifecycle),
            "lifecycle": page_url(row.lifecycle),
            "temporal": temporal_url(here, row.id),
        },
    )


def _again(here: Parts, lifecycle: str, person: str, error: Invalid | EvidenceChanged, comment: str) -> HTMLResponse:
    status = 409 if isinstance(error, EvidenceChanged) else 422
    with here.store.read() as session:
        return _page(
            here, session, _row(session, lifecycle), person=person, status=status, fault=str(error), comment=comment
        )


def _page(
    here: Parts,
    session: Session,
    row: ApprovalRow,
    *,
    person: str,
    status: int = 200,
    fault: str = "",
    comment: str = "",
) -> HTMLResponse:
    evidence = Evidence.model_validate(row.evidence)
    return pages.render(
        "approval.html",
        status,
        person=person,
        gate=row,
        evidence=evidence,
        decisions=[Claim.model_validate(decision) for decision in row.decisions],
        table=_table(session, evidence),
        version=_version(session, evidence),
        drift=_drift(session, row.lifecycle),
        view=_view(here, row),
        own=person == evidence.submitted_by,
        fault=fault,
        comment=comment,
        comment_limit=COMMENT_LIMIT,
    )


def _version(session: Session, evidence: Evidence) -> Version | None:
    """What is to be released, as it was registered."""
    row = session.get(VersionRow, (evidence.project, evidence.model, evidence.version))
    return Version.model_validate_json(row.record) if row else None


def _table(session: Session, evidence: Evidence) -> list[dict[str, Any]]:
    """Metric by metric against the champion: the compared one first, on the rows that neither has seen.

    The other figures are each version's own evaluation, on its own test rows.
    """
    comparison = evidence.comparison
    before = _champion_metrics(session, evidence)
    rows = []
    if comparison.champion is not None and comparison.challenger is not None:
        rows.append(_line(comparison.metric, comparison.challenger, comparison.champion, "same fresh rows"))
    order = [name for name in METRICS[evidence.task] if name in evidence.metrics]
    order += sorted(set(evidence.metrics) - set(order))
    rows += [_line(name, evidence.metrics[name], before.get(name), "own test rows") for name in order]
    return rows


def _line(metric: str, challenger: float, champion: float | None, rows: str) -> dict[str, Any]:
    difference = None if champion is None else challenger - champion
    better = None
    if difference:
        better = (difference > 0) == (metric in HIGHER_IS_BETTER)
    return {
        "metric": metric,
        "challenger": challenger,
        "champion": champion,
        "difference": difference,
        "better": better,
        "rows": rows,
    }


def _champion_metrics(session: Session, evidence: Evidence) -> dict[str, float]:
    if evidence.champion_version is None:
        return {}
    version = session.get(VersionRow, (evidence.project, evidence.model, evidence.champion_version))
    row = session.get(LifecycleRow, version.lifecycle) if version else None
    return row.metrics if row else {}


def _drift(session: Session, lifecycle: str) -> DriftRow | None:
    """The check that started this lifecycle, when drift did."""
    return session.exec(select(DriftRow).where(DriftRow.lifecycle == lifecycle)).first()
