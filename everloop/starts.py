"""The start of a lifecycle, signed by the API: who reaches Temporal's port can start one, but not as somebody."""

from typing import Any

from everloop import signing
from everloop.contracts import LifecycleRequest
from everloop.signing import Signer


def signed(signer: Signer, lifecycle: str, request: LifecycleRequest) -> LifecycleRequest:
    """*request* with the API's word that this person asked for this, to be started under the id *lifecycle*."""
    signature = signer.sign_bytes(_claim(lifecycle, request.model_dump(mode="json")))
    return request.model_copy(update={"key_id": signer.key_id, "signature": signature})


def check(lifecycle: str, sent: dict[str, Any], keys: dict[str, str]) -> None:
    """Raise `BadSignature` unless one of *keys* signed this start; *sent* is its input as the bytes say it."""
    signing.verify_bytes(_text(sent, "key_id"), _text(sent, "signature"), _claim(lifecycle, sent), keys)


def _claim(lifecycle: str, sent: dict[str, Any]) -> bytes:
    """What is signed. The spec counts as it was sent: a later version's new fields change nothing."""
    forks = {"fork": signing.digest(sent["fork"])} if sent.get("fork") else {}  # starts of before have none
    return signing.canonical(
        forks
        | {
            "statement": "everloop: start a lifecycle",
            "lifecycle": lifecycle,
            "spec": signing.digest(sent.get("spec")),
            "body_digest": _text(sent, "body_digest"),
            "submitted_by": _text(sent, "submitted_by"),
            "trigger": _text(sent, "trigger"),
        }
    )


def _text(sent: dict[str, Any], name: str) -> str:
    return str(sent.get(name, ""))
