"""The watch over a released model, and the retrainings that it causes."""

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from everloop.strict import Strict

Also = Literal["predictions", "target", "quality", "performance"]

SPOKEN = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
"""How people write spans of event time: 12h, 30d, 8w."""


class Retrain(Strict):
    """What a retraining that the monitor causes learns from, and how sure its gain must be."""

    data: Literal["all", "trailing"] = "all"
    """all: every row of the source. trailing: those of the last `window` of event time before the drifted window's end.
    """
    window: timedelta | None = None
    """30d, 8w, 12h or ISO 8601 (P30D)."""
    certainty: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The challenger replaces the champion only where a paired test on the same fresh rows is so sure that it is
    better. 0: any gain will do."""

    @field_validator("window", mode="before")
    @classmethod
    def _spoken(cls, value: object) -> object:
        found = re.fullmatch(r"(\d{1,5})([hdw])", value.strip()) if isinstance(value, str) else None
        return int(found[1]) * SPOKEN[found[2]] if found else value

    @model_validator(mode="after")
    def _fits(self) -> "Retrain":
        if (self.data == "trailing") != (self.window is not None):
            raise ValueError("window: say it with `data: trailing`, such as 30d, and only then")
        if self.window is not None and not timedelta(hours=1) <= self.window <= timedelta(days=3660):
            raise ValueError("window: must be from 1 hour to 3660 days")
        return self


class Monitor(Strict):
    """The watch over the released model: one check per closed window of event time."""

    every: timedelta = timedelta(minutes=15)
    """How often to look whether a window has closed."""
    window: Literal["hour", "day", "week", "month"] = "day"
    """Calendar window of event time, UTC; a week starts on Monday."""
    lateness: timedelta = timedelta(0)
    """A window closes when a row this much later than its end has been seen, or `idle` has passed."""
    idle: timedelta = timedelta(minutes=5)
    """A window whose end is past also closes after this long without any new prediction."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Retrain when at least this share of the columns drifted."""
    windows_in_a_row: Annotated[int, Field(ge=1, le=1000)] = 1
    """So many windows over the threshold, one after the other, cause a retraining; 1: the first one does."""
    calm: Annotated[float, Field(gt=0, le=1)] | None = None
    """After a retraining without a release, another is caused only when a window since was below this share."""
    cool_down: timedelta = timedelta(0)
    """Of event time from one retraining's window to the next one's."""
    retrainings_a_month: Annotated[int, Field(ge=0)] | None = 8
    """At most so many in 30 days of event time; null: no limit."""
    breaker: Annotated[int, Field(ge=1)] | None = 3
    """After so many retrainings of one champion without a release the next one waits for as many measured windows, the
    one after it for twice as many, and so on, or until a person says `everloop rearm`; null: none waits."""
    minimum_rows: Annotated[int, Field(ge=1)] = 100
    """A window with fewer rows is `insufficient_data` and triggers nothing. So is one with fewer labelled rows for
    its performance."""
    also: tuple[Also, ...] = ()
    """What causes a retraining too, beside the share of drifted columns: the answers or the labels drifted
    (`predictions`, `target`), more than `quality` of a column's values are missing, new or out of range (`quality`),
    or the labels say that it answers worse than at its evaluation (`performance`). All are measured and shown."""
    quality: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a column's rows, beyond what it was in training, from which missing values, new categories or values
    out of range are over."""
    worse_by: Annotated[float, Field(ge=0)] = 0.0
    """In the metric's own unit: performance is over where its whole interval is worse than at the evaluation by more
    than this."""
    quarantine: bool = True
    """Data that is broken rather than moved (a column without values, in another unit, or unreadable) causes no
    retraining: a person is told, and says when it is mended (`everloop lift-quarantine`)."""

    @field_validator("also")
    @classmethod
    def _once(cls, also: tuple[Also, ...]) -> tuple[Also, ...]:
        if len(set(also)) < len(also):
            raise ValueError("names a measure twice")
        return also

    @field_validator("every")
    @classmethod
    def _not_too_often(cls, value: timedelta) -> timedelta:
        if not timedelta(seconds=1) <= value <= timedelta(days=31):
            raise ValueError("must be from 1 second to 31 days")
        return value

    @model_validator(mode="after")
    def _calm_is_below(self) -> "Monitor":
        if self.calm is not None and self.calm > self.share:
            raise ValueError(f"calm: must not be above share, which is {self.share:g}")
        return self

    @field_validator("lateness", "idle", "cool_down")
    @classmethod
    def _not_negative(cls, value: timedelta) -> timedelta:
        if not timedelta(0) <= value <= timedelta(days=366):
            raise ValueError("must be from 0 to 366 days")
        return value
