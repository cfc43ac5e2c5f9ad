"""Stored states and the digests of what is decided about them, for another process: nothing heavy is loaded."""

import ast
import hashlib

from activities.lease_policy import decide
from activities.lease_policy.state import Amount, Counted, Device, Held, Part, Policy, PoolState, Queue, Request

LATER = 1_700_000_700_000


def replayed(text: str) -> str:
    """In the other process: the states from their texts, and the digest of all decisions."""
    states_ = [read(ast.literal_eval(line)) for line in text.splitlines()]
    return hashlib.sha256("\n".join(digest(state) for state in states_).encode()).hexdigest()


def digest(state: PoolState) -> str:
    return hashlib.sha256(repr(decide(state, LATER, Policy(), 1000)).encode()).hexdigest()


def plain(value: object) -> object:
    return tuple(plain(each) for each in value) if isinstance(value, tuple) else value


def read(text: tuple) -> PoolState:
    devices_, queues, waiting, held = text
    return PoolState(
        tuple(Device(*one)._replace(whole=Amount(*one[2])) for one in devices_),
        tuple(
            Queue(*one)._replace(quota=Counted(*one[2]), limit=Counted(*one[3]), usage=Counted(*one[6]))
            for one in queues
        ),
        tuple(_request(one) for one in waiting),
        tuple(
            Held(*one)._replace(
                request=_request(one[1]), members=tuple(Part(name, Amount(*amount)) for name, amount in one[2])
            )
            for one in held
        ),
    )


def _request(one: tuple) -> Request:
    return Request(*one)._replace(member=Amount(*one[4]))
