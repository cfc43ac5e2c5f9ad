"""Progress, from both ends of its pipe: what a job may report, and what is believed of what comes out."""

import contextlib
import json
import math
import operator
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

from everloop.errors import Invalid

LINE_BYTES = select.PIPE_BUF
"""Of one report: so much goes into a pipe as a whole or not at all."""
MOST_STEP = (1 << 63) - 1
"""What the table of metrics can hold. A number beyond 64 bits would end the slot's connection to the scheduler."""
MOST_NAME = 100
LEAST_VALUE_BYTES = len('"a":1.0,')
MOST_LINES = 500
"""In one message; the last ones are kept."""
SHOWN = 60
KEPT = "kept"


# --- what goes in ---------------------------------------------------------------------------------


def reported(step: object, values: Mapping[str, object]) -> tuple[int, dict[str, float]]:
    """A report as plain numbers. Values that are NaN or infinite are left out: no chart can show them.

    Raises `Invalid`, which names what nobody could take up.
    """
    if len(values) > LINE_BYTES // LEAST_VALUE_BYTES:
        raise _too_long(f"{len(values):,} values")
    known = {_name(name): _number(name, value) for name, value in values.items()}
    return step_of(step), {name: value for name, value in known.items() if math.isfinite(value)}


def line_of(step: int, values: Mapping[str, float]) -> bytes:
    """What `reported` has given, as it goes through the pipe. Raises `Invalid` for too much of it."""
    line = json.dumps({"step": step, "values": values}, separators=(",", ":")).encode() + b"\n"
    if len(line) > LINE_BYTES:
        raise _too_long(f"{len(values):,} values of {len(line):,} bytes")
    return line


def step_of(step: object) -> int:
    """The number of a step. Raises `Invalid` for what is no whole number of 64 bits from 0 on."""
    is_whole = getattr(step, "is_integer", None)
    try:
        number = int(step) if callable(is_whole) and is_whole() else operator.index(step)  # type: ignore[call-overload, arg-type]
    except TypeError:
        raise Invalid(f"a step must be a whole number, not {_shown(step)}", field="step") from None
    if not 0 <= number <= MOST_STEP:
        raise Invalid(f"a step must be 0 or more and have at most 64 bits, unlike {_shown(number)}", field="step")
    return int(number)


def _name(name: str) -> str:
    if not 0 < len(name) <= MOST_NAME or not name.isprintable():
        said = f"{name[:SHOWN]!r}{'...' if len(name) > SHOWN else ''}, {len(name):,} characters"
        raise Invalid(f"a reported value must have a name of 1 to {MOST_NAME} printable characters, not {said}")
    return name


def _number(name: str, value: Any) -> float:  # noqa: ANN401  # whatever the trainer gives
    is_text = isinstance(value, str | bytes | bytearray)
    with contextlib.suppress(Exception):  # an array of many, a number beyond all floats, an object's own refusal
        if not is_text:
            return float(value)
    raise Invalid(f"the reported {name} must be a number, not {_shown(value)}", field=name)


def _too_long(what: str) -> Invalid:
    hint = "report a few figures for each step; `log_artifact` keeps larger things"
    return Invalid(f"a report may take {LINE_BYTES:,} bytes as JSON, this one has {what}", field="values", hint=hint)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # its own, or too many digits
        text = "..."
    cut = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return cut if isinstance(value, int | float) else f"the {type(value).__name__} {cut}"


def kept_line(step: int) -> bytes:
    """Says that a checkpoint of *step* is durable."""
    return json.dumps({"step": step, "values": {}, KEPT: True}, separators=(",", ":")).encode() + b"\n"


# --- what comes out -------------------------------------------------------------------------------


def is_kept(line: Mapping[str, Any]) -> bool:
    """Is it a `kept_line`, and no report?"""
    return line.get(KEPT) is True and not line["values"]


class Progress:
    """The job's progress lines, passed on in batches. A job can write anything into its pipe."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self.partial = b""
        self.lines: list[Any] = []
        self.told = 0.0

    def read(self, events: int) -> bool:
        """Take what is there; False at the end."""
        data = os.read(events, 1 << 16)
        *lines, partial = (self.partial + data).split(b"\n")
        self.partial = partial[: LINE_BYTES + 1]  # the rest of what is no line of ours is not kept
        self.lines += [found for line in lines if (found := _believed(line)) is not None]
        return bool(data)

    def flush(self, every: float = 0.0) -> None:
        if self.lines and time.monotonic() - self.told >= every:
            self._tell(lines=self.lines[-MOST_LINES:])
            self.lines = []
            self.told = time.monotonic()


def _believed(line: bytes) -> dict[str, Any] | None:
    """What `line_of` has written; None for anything else, or torn by a full pipe."""
    try:
        found = json.loads(line) if len(line) <= LINE_BYTES else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or not isinstance(found.get("values"), dict):
        return None
    step, values = found["step"], found["values"]
    named = all(len(name) <= MOST_NAME and name.isprintable() for name in values)  # a lone surrogate cannot be sent on
    finite = all(type(value) is float and math.isfinite(value) for value in values.values())
    if not (0 <= step <= MOST_STEP and named and finite):
        return None
    return {"step": step, "values": values} | ({KEPT: True} if is_kept(found) else {})
