"""The log of every process: lines of JSON on stderr, and the end of such a log."""

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LAST_WORDS = 20
TAIL_BYTES = 16384


class OneLine(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_lines(role: str, level: int = logging.INFO) -> None:
    """Log to stderr, one line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(role))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def last_words(log: Path, lines: int = LAST_WORDS) -> str:
    """The end of a log file, indented, or that there is none."""
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (the log is empty)"
