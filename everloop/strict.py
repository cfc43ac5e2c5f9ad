"""The base of everything that people write into a spec."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A part of a spec: no unknown fields, no NaN, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
