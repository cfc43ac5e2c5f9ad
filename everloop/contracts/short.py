"""Names in signals and updates."""

from typing import Annotated

from pydantic import StringConstraints

from everloop import names

Short = Annotated[str, StringConstraints(max_length=names.MOST_CHARACTERS)]
"""A name in a signal or an update: it becomes a summary, which Temporal limits."""
