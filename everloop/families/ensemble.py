"""ensemble: the weighted mean of what several families answer, in one graph."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from everloop.families.space import Space
from everloop.strict import Strict

STEP = ""


class Member(Strict):
    """A family with its parameters."""

    family: str
    params: dict[str, Any] = {}
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Weights are divided by their sum."""
    iterations: Annotated[int, Field(ge=1)] | None = None
    """Rounds or epochs to learn; left out, validation says."""

    @model_validator(mode="after")
    def _known(self) -> "Member":
        from everloop.families import LEARNERS, check

        if self.family not in LEARNERS:
            raise ValueError(f"{self.family!r} is none of {', '.join(LEARNERS)}")
        check(self.family, self.params)
        return self


class Params(Strict):
    """`params:` of `trainer: ensemble`."""

    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=20)]


def space(task: str, rows: int) -> Space:  # noqa: ARG001
    """None: a search makes an ensemble of the trials that it has."""
    return Space(parameters=(), portfolio=())
