"""The log of every process: lines of JSON on stderr."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


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
