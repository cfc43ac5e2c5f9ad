"""What an operator orders of a pool: signed by the API, carried out by control, whose the ledger is."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from everloop import names, signing
from everloop.budgets import NO_BOUNDS, Bounds
from everloop.errors import BadSignature
from everloop.queues import Queue
from everloop.records import Record
from everloop.signing import Signer

Action = Literal["queues", "revoke", "drain", "cordon", "undrain", "budget", "prices", "policy"]
HINT = "use `everloop queue`, `lease` or `node`, or the page of the pool"


class PoolOrder(Record):
    """One change of a pool: the bytes that the API signs."""

    type: Literal["pool_order"] = "pool_order"
    action: Action
    pool: Annotated[str, StringConstraints(min_length=1, max_length=names.MOST_CHARACTERS)]
    person: str
    reason: str = ""
    ordered_at: datetime
    expires_at: datetime
    """Not carried out by then, it is void."""
    queues: tuple[Queue, ...] = ()
    """`queues`: the whole tree, as it is to be."""
    before: str = ""
    """`queues`: digest of the tree that the person has seen; another one by then is a conflict."""
    token: int = Field(default=0, ge=0, lt=1 << 63)
    """`revoke`: of the lease."""
    node: str = ""
    """`drain`, `cordon`, `undrain`: a node, or one device of it."""
    grace_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60
    """`revoke`, `drain`: how long holders have to write a checkpoint and let go."""
    scope: Literal["", "queue", "lifecycle"] = ""
    """`budget`: whose."""
    name: Annotated[str, StringConstraints(max_length=names.MOST_CHARACTERS)] = ""
    bounds: Bounds = NO_BOUNDS
    """`budget`: what may be spent; without any it is taken away."""
    restart: bool = False
    """`budget`: what was spent counts no more."""
    currency: Annotated[str, StringConstraints(max_length=8)] = ""
    """`prices`, as the two below."""
    core_micros: int = Field(default=0, ge=0, lt=1 << 62)
    gpu_micros: int = Field(default=0, ge=0, lt=1 << 62)
    rules: dict[str, int] = Field(default_factory=dict)
    """`policy`: fields of the pool's policy that change."""


class SignedPoolOrder(Record):
    """A signed order."""

    order: PoolOrder
    key_id: str
    signature: str
    """Ed25519 over `signed`, base64."""
    signed: str
    """The order's JSON."""


class PoolOrdered(Record):
    """What carrying it out has changed."""

    done: str
    """For people."""
    tokens: tuple[int, ...] = ()
    """Leases that were told to let go."""


def sign(signer: Signer, order: PoolOrder) -> SignedPoolOrder:
    text = signing.canonical(order).decode()
    return SignedPoolOrder(order=order, key_id=signer.key_id, signature=signer.sign_bytes(text.encode()), signed=text)


def verify(signed: SignedPoolOrder, keys: Mapping[str, str], now: datetime) -> PoolOrder:
    """The order. Raises `BadSignature` unless one of *keys* signed exactly it, and it is not too old."""
    try:
        told = PoolOrder.model_validate_json(signed.signed)
    except ValidationError:
        told = None
    if told != signed.order:
        raise BadSignature("the order is not what was signed", hint=HINT)
    signing.verify_bytes(signed.key_id, signed.signature, signed.signed.encode(), keys, HINT)
    if now > signed.order.expires_at:
        raise BadSignature(f"the order of {signed.order.ordered_at:%Y-%m-%d %H:%M} UTC is too old", hint=HINT)
    return signed.order


def tree_digest(queues: tuple[Queue, ...]) -> str:
    """Of a queue tree in order."""
    return signing.digest([list(queue) for queue in queues])
