"""Decisions are signed by the API and verified by the gate and by the release. Ed25519, canonical JSON."""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel

from everloop.errors import BadSignature, IntegrityError
from everloop.records import Claim, Decision


def canonical(value: BaseModel | Any) -> bytes:  # noqa: ANN401
    """The one JSON text of *value*: sorted keys, no spaces, UTF-8."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: BaseModel | Any) -> str:  # noqa: ANN401
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def create_keys(folder: Path) -> None:
    """Make the deployment's signing key once: `signing.key` (0600, the API's) and `signing.pub`, which follows from it.

    Raises `IntegrityError` when the key is there and cannot be read as one.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "signing.key"
    if not path.exists():
        _write_whole(path, base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()), 0o600)
    private = _private_key(path)
    public = base64.b64encode(private.public_key().public_bytes_raw())
    if not _holds(folder / "signing.pub", public):
        _write_whole(folder / "signing.pub", public, 0o644)


def _write_whole(path: Path, data: bytes, mode: int) -> None:
    """All of it or nothing: half a key would lock everybody out."""
    staged = path.with_suffix(".new")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
    staged.replace(path)


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(path.read_bytes()))
    except ValueError:
        raise IntegrityError(
            f"{path} holds no signing key",
            hint="restore it from a backup; without one remove it, and decide open approvals again",
        ) from None


def _holds(path: Path, data: bytes) -> bool:
    return path.exists() and path.read_bytes().strip() == data


def trusted_keys(folder: Path) -> dict[str, str]:
    """Key id to public key (base64) of who may sign decisions here."""
    public = (folder / "signing.pub").read_text().strip()
    return {key_id(base64.b64decode(public)): public}


class Signer:
    """Signs decisions. Only the API has one."""

    def __init__(self, folder: Path) -> None:
        """Read `signing.key` from *folder*."""
        self._private = _private_key(folder / "signing.key")
        self.key_id = key_id(self._private.public_key().public_bytes_raw())

    def sign(self, claim: Claim) -> Decision:
        return Decision(claim=claim, key_id=self.key_id, signature=self.sign_bytes(canonical(claim)))

    def sign_bytes(self, data: bytes) -> str:
        """The signature of *data*, in base64."""
        return base64.b64encode(self._private.sign(data)).decode()


def verify(decision: Decision, keys: dict[str, str]) -> None:
    """Raise `BadSignature` unless one of *keys* signed exactly this claim. Pure: safe in a validator."""
    try:
        verify_bytes(decision.key_id, decision.signature, canonical(decision.claim), keys)
    except BadSignature:
        raise BadSignature(hint="decide on the approval page or with `everloop approve`") from None


def verify_bytes(key: str, signature: str, data: bytes, keys: dict[str, str]) -> None:
    """Raise `BadSignature` unless the one of *keys* with the id *key* signed exactly *data*. Pure."""
    public = keys.get(key)
    if public is None:
        raise BadSignature
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(public)).verify(
            base64.b64decode(signature, validate=True), data
        )
    except (InvalidSignature, ValueError):
        raise BadSignature from None
