"""What a user's trainer requires, as requirements.txt says it: packages by their names, and nothing else."""

import re
from typing import Annotated

from pydantic import StringConstraints

from everloop.errors import TrainerFailed

REQUIREMENTS = "requirements.txt"
REQUIREMENT = r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._, -]*\])?\s*([<>=!~;@(][^\r\n\x00]*)?$"
"""A package by its name, as pip takes it; no option, path or address alone."""
COMMENT = r"(?:^|\s)#"
Requirement = Annotated[str, StringConstraints(strip_whitespace=True, pattern=REQUIREMENT, max_length=300)]
MOST_CHARACTERS = 2000
"""Of all requirements in a spec, which travels in every request; a file may hold more."""


def required(text: bytes) -> tuple[str, ...]:
    """The lines of a requirements.txt. Raises `TrainerFailed` for one that names no package."""
    try:
        lines = [re.split(COMMENT, line, maxsplit=1)[0].strip() for line in text.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise TrainerFailed(f"{REQUIREMENTS} is not UTF-8 text", field="requirements") from None
    found = tuple(filter(None, lines))
    for line in found:
        if not re.match(REQUIREMENT, line):
            hint = "name packages; where they come from is pip's own configuration (pip.conf)"
            raise TrainerFailed(f"{REQUIREMENTS} may not say {line[:80]!r}", field="requirements", hint=hint)
    return found
