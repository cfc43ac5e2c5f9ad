"""The prediction log."""

from datetime import timedelta

from pydantic import field_validator

from everloop.strict import Strict


class Log(Strict):
    """The prediction log of the released model."""

    keep: timedelta | None = None
    """How long rows stay, from when they were logged: `90d`, say. Left out: for ever."""

    @field_validator("keep")
    @classmethod
    def _long_enough(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and not timedelta(days=1) <= value <= timedelta(days=36_600):
            raise ValueError("must be from 1 day to 100 years")
        return value
