"""What a route must prove before a byte of its model is believed."""

import json
from collections.abc import Mapping

from sqlmodel import select

from everloop import names, signing
from everloop.errors import BadSignature, IntegrityError
from everloop.records import Claim, Evidence, Route, Signature, Verdict, Version
from everloop.store import JournalRow, Store

Name = tuple[str, str]
"""Project and model."""


def must_be_approved(route: Route, keys: Mapping[str, str]) -> Claim:
    """The person's signed yes for exactly these bytes at this lifecycle's gate. Raises `BadSignature`."""
    for decision in route.decisions:
        signing.verify(decision, dict(keys))
        claim = decision.claim
        if (claim.verdict, claim.model_digest, claim.gate) == (
            Verdict.APPROVE,
            route.model_digest,
            names.approval_id(route.lifecycle),
        ):
            return claim
    raise BadSignature("no signed approval is for these bytes", hint="decide on the approval page")


def shown_before(store: Store, claim: Claim) -> Evidence:
    """The evidence of a gate that an earlier Everloop opened: its digest is signed, its text is in the journal.

    Raises `IntegrityError` when the journal has none with that digest.
    """
    with store.read() as session:
        opened = session.exec(
            select(JournalRow.body).where(JournalRow.workflow_id == claim.gate, JournalRow.type == "ApprovalOpened")
        ).all()
    for body in opened:
        shown = json.loads(body)["evidence"]
        if signing.digest(shown) == claim.evidence_digest:
            return Evidence.model_validate(shown)
    raise IntegrityError("the journal has no evidence that this approval is about")


def must_be_of_the_model_shown(name: Name, route: Route, shown: Evidence) -> None:
    """Raise `IntegrityError` unless the route is of the model, version and lifecycle that *shown* is about."""
    routed = (*name, route.version, route.model_digest, route.lifecycle)
    if routed != (shown.project, shown.model, shown.version, shown.model_digest, shown.lifecycle):
        raise IntegrityError("the model is another than the approved one")


def must_mean_what_was_shown(name: Name, route: Route, claim: Claim, version: Version, signature: Signature) -> None:
    """Raise `IntegrityError` unless the evidence that was signed is about this model's answers and what they mean.

    The bytes of a model say neither whose they are nor what their outputs stand for.
    """
    if signing.digest_of(route.evidence) != claim.evidence_digest:
        raise IntegrityError("the route's evidence is not what was signed")
    shown = Evidence.model_validate_json(route.evidence)
    must_be_of_the_model_shown(name, route, shown)
    exported = version.exported
    routed = {
        "task": (version.task, signature.task),
        "signature": (exported.signature.sha256, signature.classes),
        "reference": exported.reference.sha256,
    }
    approved = {
        "task": (shown.task, shown.task),
        "signature": (shown.signature_digest, shown.classes),
        "reference": shown.reference_digest,
    }
    for what, value in routed.items():
        if value != approved[what]:
            raise IntegrityError(f"the {what} is another than the approved one")
