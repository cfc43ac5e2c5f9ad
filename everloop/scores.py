"""Scoring a file: what is asked, what each step answers, and the start's signature."""

from typing import Any, Literal

from everloop import signing
from everloop.records import Blob, Champion, Record, Result
from everloop.signing import Signer

Form = Literal["parquet", "csv"]
MOST_CHUNKS = 200
"""Of one file: what each answers is in one history."""
CHUNK_ROWS = 50_000


class ScoreRequest(Record):
    """The input of a `Score` workflow."""

    project: str
    model: str
    path: str
    """Absolute, of a file of rows that the compute worker can read: CSV, TSV or Parquet."""
    form: Form
    """Of the answer."""
    submitted_by: str
    chunk_rows: int = CHUNK_ROWS
    key_id: str = ""
    signature: str = ""


class Opened(Record):
    """Which version answers, for the whole file."""

    champion: Champion


class Cut(Result):
    """A file of rows in pieces, as they were found."""

    rows: int
    chunks: tuple[str, ...]
    """Digests of Parquet."""
    rejected: int
    """Lines that are no rows; the pieces have them too, with the reason."""


class Chunk(Result):
    """One piece, answered."""

    scored: str
    """Digest of Parquet: the raw columns and what the model says."""
    rejects: str
    """Digest of Parquet: row, field, reason and the raw columns; empty where every row was answered."""
    rows: int
    rejected: int


class Joined(Result):
    """All of it."""

    out: Blob
    rejects: Blob | None
    rows: int
    rejected: int


class ScoreAnswer(Record):
    """What a `Score` workflow ends with."""

    version: int
    rows: int
    """Answered."""
    rejected: int
    out: Blob
    rejects: Blob | None


class ScoreProgress(Record):
    """How far it is, as its query tells."""

    version: int = 0
    chunks: int = 0
    done: int = 0
    rows: int = 0
    rejected: int = 0
    sentence: str = ""


def signed(signer: Signer, score: str, request: ScoreRequest) -> ScoreRequest:
    """*request* with the API's word that this person asked for this, to be started under the id *score*."""
    signature = signer.sign_bytes(_claim(score, request))
    return request.model_copy(update={"key_id": signer.key_id, "signature": signature})


def check(score: str, request: ScoreRequest, keys: dict[str, str]) -> None:
    """Raise `BadSignature` unless one of *keys* signed this start: it reads a file with our rights."""
    signing.verify_bytes(request.key_id, request.signature, _claim(score, request), keys)


def _claim(score: str, request: ScoreRequest) -> bytes:
    asked: dict[str, Any] = request.model_dump(mode="json", exclude={"key_id", "signature"})
    return signing.canonical({"statement": "everloop: score a file", "score": score, "asked": asked})
