"""What people decide is signed by the API and verified wherever it takes effect. Ed25519.

A signature is over the text that was signed, and a digest over the text that was stored: never over a record that
was parsed and dumped again, which a new field of ours would change.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, TypeAdapter, ValidationError

from everloop.errors import BadSignature, IntegrityError
from everloop.records import Claim, Decision, Endorsement, RollBack, SignedRollBack

FIRST_CLAIM = (
    *("gate", "nonce", "evidence_digest", "model_digest", "champion_digest"),
    *("person", "verdict", "comment", "decided_at", "expires_at", "self_approved"),
)
"""The fields of a claim when its text did not travel with the decision yet."""
RETIRED = "retired"
"""Folder of the public keys that were rotated out: what they signed still holds."""
ENDORSEMENTS: TypeAdapter[tuple[Endorsement, ...]] = TypeAdapter(tuple[Endorsement, ...])
HINT = "decide on the approval page or with `everloop approve`"


def canonical(value: BaseModel | Any) -> bytes:  # noqa: ANN401
    """The one JSON text of *value*: sorted keys, no spaces, UTF-8."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: BaseModel | Any) -> str:  # noqa: ANN401
    """SHA-256 of the canonical JSON, in hex. To compare with later, keep the text: see `digest_of`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_of(text: str) -> str:
    """SHA-256 of a text as it is stored, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


# --- keys ---------------------------------------------------------------------------------------


def create_keys(folder: Path) -> None:
    """Make the deployment's signing key once: `signing.key` (0600, the API's) and `signing.pub`, which follows from it.

    When the private key was lost or removed, the public one before is kept, so that earlier decisions still verify.
    Raises `IntegrityError` when the key is there and cannot be read as one.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "signing.key"
    if not path.exists():
        _retire(folder)
        _write_whole(path, base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()), 0o600)
    public = _public_of(_private_key(path))
    if not _holds(folder / "signing.pub", public):
        _retire(folder)
        _write_whole(folder / "signing.pub", public, 0o644)


def rotate(folder: Path) -> str:
    """Replace the signing key by a new one. Returns the new key's id.

    What the old key signed still verifies, and the old key endorses the new one: gates that are open and know the
    old key only take decisions of the new one. Raises `IntegrityError` when the present key cannot be read.
    """
    create_keys(folder)
    old, new = _private_key(folder / "signing.key"), Ed25519PrivateKey.generate()
    public = _public_of(new)
    endorsement = Endorsement(
        public=public.decode(),
        key_id=key_id(old.public_key().public_bytes_raw()),
        signature=base64.b64encode(old.sign(_endorsed(public.decode()))).decode(),
    )
    endorsements = (*_endorsements(folder), endorsement)
    _write_whole(folder / "endorsements.json", ENDORSEMENTS.dump_json(endorsements), 0o644)
    _retire(folder)
    # A crash here leaves the old key in place; after the next line `create_keys` makes the public key fit it.
    _write_whole(folder / "signing.key", base64.b64encode(new.private_bytes_raw()), 0o600)
    _write_whole(folder / "signing.pub", public, 0o644)
    return key_id(new.public_key().public_bytes_raw())


def present_key(folder: Path) -> dict[str, str]:
    """Key id to public key of who signs now: for what begins now, a key that was rotated out counts no more."""
    public = (folder / "signing.pub").read_text().strip()
    return {key_id(base64.b64decode(public)): public}


def trusted_keys(folder: Path) -> dict[str, str]:
    """Key id to public key (base64) of who may have signed decisions here: the present key and the retired ones."""
    paths = [*sorted((folder / RETIRED).glob("*.pub")), folder / "signing.pub"]
    keys = [path.read_text().strip() for path in paths]
    return {key_id(base64.b64decode(public)): public for public in keys}


def listed(folder: Path) -> list[dict[str, str]]:
    """Each signing key: `id`, `state` (`signs` or `retired`), and `since` when its file is there (ISO 8601, UTC)."""
    present = folder / "signing.pub"
    found = [(path, "retired") for path in sorted((folder / RETIRED).glob("*.pub"))]
    if present.exists():
        found = [(path, state) for path, state in found if not _holds(present, path.read_bytes().strip())]
        found = [(present, "signs"), *found]
    return [
        {
            "id": key_id(base64.b64decode(path.read_bytes())),
            "state": state,
            "since": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"),
        }
        for path, state in found
    ]


def _retire(folder: Path) -> None:
    """Keep the present public key among the retired ones."""
    present = folder / "signing.pub"
    if not present.exists():
        return
    public = present.read_bytes().strip()
    kept = folder / RETIRED / f"{key_id(base64.b64decode(public))}.pub"
    if not kept.exists():
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        _write_whole(kept, public, 0o644)


def _endorsements(folder: Path) -> tuple[Endorsement, ...]:
    path = folder / "endorsements.json"
    return ENDORSEMENTS.validate_json(path.read_bytes()) if path.exists() else ()


def _endorsed(public: str) -> bytes:
    return f"everloop: the next signing key is {public}".encode()


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
            hint="restore it from a backup; without one remove it: earlier decisions still verify, "
            "and lifecycles that wait at a gate must be submitted again",
        ) from None


def _public_of(private: Ed25519PrivateKey) -> bytes:
    return base64.b64encode(private.public_key().public_bytes_raw())


def _holds(path: Path, data: bytes) -> bool:
    return path.exists() and path.read_bytes().strip() == data


class Signer:
    """Signs what people decide. Only the API has one; it follows a rotation of the key."""

    def __init__(self, folder: Path) -> None:
        """Read `signing.key` from *folder*."""
        self._folder = folder
        self._private = _private_key(folder / "signing.key")
        self._read_at = self._stamp()

    @property
    def key_id(self) -> str:
        return key_id(self._key().public_key().public_bytes_raw())

    def sign(self, claim: Claim) -> Decision:
        text, key, signature = self._signed(claim)
        return Decision(
            claim=claim, key_id=key, signature=signature, signed=text, endorsements=_endorsements(self._folder)
        )

    def sign_bytes(self, data: bytes) -> str:
        """The signature of *data*, in base64."""
        return base64.b64encode(self._key().sign(data)).decode()

    def order(self, order: RollBack) -> SignedRollBack:
        text, key, signature = self._signed(order)
        return SignedRollBack(order=order, key_id=key, signature=signature, signed=text)

    def _signed(self, value: BaseModel) -> tuple[str, str, str]:
        text = canonical(value).decode()
        private = self._key()
        signature = base64.b64encode(private.sign(text.encode())).decode()
        return text, key_id(private.public_key().public_bytes_raw()), signature

    def _key(self) -> Ed25519PrivateKey:
        if self._stamp() != self._read_at:
            self._private, self._read_at = _private_key(self._folder / "signing.key"), self._stamp()
        return self._private

    def _stamp(self) -> tuple[int, int]:
        found = (self._folder / "signing.key").stat()
        return found.st_ino, found.st_mtime_ns


# --- verifying: pure, safe in a validator ---------------------------------------------------------


def verify(decision: Decision, keys: Mapping[str, str]) -> None:
    """Raise `BadSignature` unless one of *keys*, or a key that they endorse, signed exactly this claim."""
    verify_bytes(decision.key_id, decision.signature, _text_of(decision).encode(), _with_endorsed(keys, decision))


def verify_order(signed: SignedRollBack, keys: Mapping[str, str]) -> None:
    """Raise `BadSignature` unless one of *keys* signed exactly this order."""
    if _parsed(RollBack, signed.signed) != signed.order:
        raise BadSignature("the order is not what was signed", hint="use `everloop roll-back` or the model's page")
    verify_bytes(signed.key_id, signed.signature, signed.signed.encode(), keys)


def _text_of(decision: Decision) -> str:
    """The text that the signature is over. Raises `BadSignature` when it does not say what the claim says."""
    if not decision.signed:
        return canonical(decision.claim.model_dump(mode="json", include=set(FIRST_CLAIM))).decode()
    if _parsed(Claim, decision.signed) != decision.claim:
        raise BadSignature("the claim is not what was signed", hint=HINT)
    return decision.signed


def _parsed(kind: type[BaseModel], text: str) -> BaseModel | None:
    try:
        return kind.model_validate_json(text)
    except ValidationError:
        return None


def _with_endorsed(keys: Mapping[str, str], decision: Decision) -> Mapping[str, str]:
    known = dict(keys)
    for one in decision.endorsements:  # in order of the rotations
        try:
            verify_bytes(one.key_id, one.signature, _endorsed(one.public), known)
            known[key_id(base64.b64decode(one.public, validate=True))] = one.public
        except (BadSignature, ValueError):
            continue
    return known


def verify_bytes(key: str, signature: str, data: bytes, keys: Mapping[str, str], hint: str = HINT) -> None:
    """Raise `BadSignature` unless the one of *keys* with the id *key* signed exactly *data*. Pure."""
    public = keys.get(key)
    if public is None:
        raise BadSignature(hint=hint)
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(public)).verify(
            base64.b64decode(signature, validate=True), data
        )
    except (InvalidSignature, ValueError):
        raise BadSignature(hint=hint) from None
