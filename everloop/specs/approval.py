"""Who must say yes."""

from datetime import timedelta
from typing import Literal

from pydantic import field_validator

from everloop.strict import Strict


class Gate(Strict):
    """Who must say yes before a release. Quorum 1 for now: one signed decision settles it."""

    quorum: Literal[1] = 1
    deadline: timedelta = timedelta(days=14)
    """After this long without a decision the gate expires and the version is not released."""

    @field_validator("deadline")
    @classmethod
    def _bounded(cls, value: timedelta) -> timedelta:
        if not timedelta(minutes=1) <= value <= timedelta(days=365):
            raise ValueError("must be between 1 minute and 365 days")
        return value
