"""What can go wrong, drawn as a tree. The class says whether retrying helps; its docstring is its sentence.

EverloopError
├── Permanent                    trying again will not help: a person must change something
│   ├── Invalid                  the request itself is wrong
│   │   ├── InvalidSpec
│   │   ├── InvalidData          DatasetMissing, DatasetTooSmall, SchemaMismatch, TargetUnusable
│   │   ├── InvalidPrediction
│   │   ├── TrainerFailed        a user's trainer: cannot be called, raised, or gave what we cannot use
│   │   ├── Malformed            not JSON as we accept it
│   │   ├── UnsupportedMedia
│   │   └── TooLarge
│   ├── NotFound
│   ├── Conflict                 IdempotencyMismatch, GateClosed, EvidenceChanged, NotWaiting
│   ├── Refused                  NotAuthenticated, Forbidden, BadSignature, WrongHost, CrossSite
│   ├── Diverged                 a training's loss is NaN or Inf, also at lower rates
│   ├── IntegrityError
│   ├── ParityFailed
│   ├── GraphTooLarge            the exported model is larger than the spec allows
│   ├── GraphTooSlow             one row takes longer in it than the spec allows
│   ├── OutOfMemory              the job needs more memory than its lease has, also in smaller batches
│   └── JobFailed                the stage's own code raised: the log says why
└── Transient                    trying again helps
    ├── ComputeLost              a Dask worker, scheduler or child went away
    ├── WorkerLost               the process that ran the attempt is gone
    ├── LeaseLost                the lease's token is fenced: take a new lease
    ├── StorageLow
    ├── JournalConflict          an alarm: it goes on when a person has mended the journal
    └── Unavailable              Temporal, the store or a process does not answer
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class EverloopError(Exception):
    """Something went wrong inside Everloop."""

    def __init__(self, message: str = "", *, field: str = "", hint: str = "") -> None:
        """*field* names what is wrong (a column, a path into the spec), *hint* what to do about it."""
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.field = field
        self.hint = hint
        self.kept: list[dict[str, Any]] = []
        """Files that a failed job kept for people, each a `records.Blob`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), str(self), self.field, self.hint))


def _rebuild(kind: type["EverloopError"], message: str, field: str, hint: str) -> "EverloopError":
    return kind(message, field=field, hint=hint)


class Permanent(EverloopError):  # noqa: N818  # the family says what it is
    """Trying again will not help."""


class Transient(EverloopError):  # noqa: N818
    """Trying again helps."""


class Invalid(Permanent):
    """The request is not valid."""


class InvalidSpec(Invalid):
    """The specification is not valid."""


class InvalidData(Invalid):
    """The data is not usable."""


class DatasetMissing(InvalidData):
    """No data is found at that place."""


class DatasetTooSmall(InvalidData):
    """There are too few rows to learn from."""


class SchemaMismatch(InvalidData):
    """A file's columns differ from the others'."""


class TargetUnusable(InvalidData):
    """The target column cannot be learned."""


class InvalidPrediction(Invalid):
    """The rows do not fit the model's schema."""


class TrainerFailed(Invalid):
    """The user's trainer failed."""


class Malformed(Invalid):
    """The body is not valid JSON."""


class UnsupportedMedia(Invalid):
    """The body is of a kind that is not accepted here."""


class TooLarge(Invalid):
    """The request is too large."""


class NotFound(Permanent):
    """There is nothing of that name."""


class Conflict(Permanent):
    """The request does not fit the present state."""


class IdempotencyMismatch(Conflict):
    """The key was used before with another body."""


class GateClosed(Conflict):
    """The gate is not open."""


class EvidenceChanged(Conflict):
    """The evidence or the champion has changed since the page was shown."""


class NotWaiting(Conflict):
    """The lifecycle does not wait for that."""


class Refused(Permanent):
    """You may not do that."""


class NotAuthenticated(Refused):
    """Nobody is signed in."""


class Forbidden(Refused):
    """Your identity does not allow that."""


class BadSignature(Refused):
    """The decision is not signed by the API of this deployment."""


class WrongHost(Refused):
    """The request names a host that this server is not."""


class CrossSite(Refused):
    """The request comes from another site."""


class Diverged(Permanent):
    """The training did not converge: its loss became NaN or Inf."""


class IntegrityError(Permanent):
    """Stored bytes are not what their digest says."""


class ParityFailed(Permanent):
    """The exported model answers differently from the trained one."""


class GraphTooSlow(Permanent):
    """One row takes longer in the exported model than the spec allows."""


class GraphTooLarge(Permanent):
    """The exported model is larger than the spec allows."""


class OutOfMemory(Permanent):
    """The job needs more memory than it has."""


class JobFailed(Permanent):
    """The stage's own code failed; its log says why."""


class JournalConflict(Transient):
    """The journal holds another event under the same key."""


class ComputeLost(Transient):
    """The place that ran the job went away."""


class WorkerLost(Transient):
    """The process that ran this attempt is gone."""


class LeaseLost(Transient):
    """The lease is no longer held."""


class StorageLow(Transient):
    """There is too little space left on the disk."""


class Unavailable(Transient):
    """A part of Everloop does not answer right now."""


AT = "everloop_at"
"""Attribute of an unknown exception: what was worked on when it was raised."""


@contextmanager
def naming(*, column: str = "", file: str = "") -> Iterator[None]:
    """An unknown exception in the block says what was worked on; where blocks are nested, the innermost knows best.

    The exception stays what it is, for those who catch it. An error of ours says such things itself.
    """
    try:
        yield
    except EverloopError:
        raise
    except Exception as error:
        at = {"column": column, "file": file}
        setattr(error, AT, {name: value for name, value in at.items() if value} | getattr(error, AT, {}))
        raise


def text(error: BaseException) -> str:
    """What *error* says. An exception of strangers may raise when it is asked: then that it does."""
    try:
        return str(error)
    except BaseException as fault:  # noqa: BLE001  # whatever it is, the error itself must not get lost
        return f"(its text cannot be shown: __str__ raised {type(fault).__name__})"


def unknown(error: BaseException) -> JobFailed:
    """An exception that nobody expected, with the column and the file that were worked on; one line."""
    at: dict[str, str] = getattr(error, AT, {})
    column, file = at.get("column", ""), at.get("file", "")
    where = " of ".join([*([f"column {column[:80]!r}"] if column else []), *([file] if file else [])])
    said = f"{type(error).__name__}: {text(error)}".splitlines()[0]
    hint = ""
    if where:
        hint = "this is a fault of ours: report it with this log"
        hint += f"; without {'that column (features.exclude)' if column else 'that file'} the rest may go on"
    message = f"{where}: {said}" if where else said
    return JobFailed(message[:500], field=column[:80] or file, hint=hint)


def family(root: type[EverloopError] = EverloopError) -> dict[str, type[EverloopError]]:
    """Every class of the tree under *root*, by its name."""
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= family(child)
    return found


def code(kind: type[EverloopError]) -> str:
    """The machine-readable name of an error class: `GateClosed` is `gate_closed`."""
    return "".join("_" + c.lower() if c.isupper() else c for c in kind.__name__).lstrip("_")


def told(error: EverloopError) -> dict[str, str]:
    """What programs are told about *error*, by HTTP and by `--json` alike."""
    kind = type(error)
    return {
        "code": code(kind),
        "title": (kind.__doc__ or "").strip().rstrip("."),
        "detail": str(error),
        "field": error.field,
        "hint": error.hint,
    }


def sentence(error: EverloopError, *, as_json: bool = False) -> str:
    """What a person reads on stderr: a line and a hint. *as_json*: what a program reads, one line."""
    if as_json:
        return json.dumps({"error": told(error)}, ensure_ascii=False)
    field = f" [{error.field}]" if error.field and error.field not in str(error) else ""
    hint = f"\n  hint: {error.hint}" if error.hint else ""
    return f"error: {error}{field}{hint}"


def by_name(name: str, message: str, *, field: str = "", hint: str = "") -> EverloopError:
    """The error of class *name* (as Temporal carries it), or a plain `EverloopError`."""
    return family().get(name, EverloopError)(message, field=field, hint=hint)
