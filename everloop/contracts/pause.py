"""A lifecycle that holds still."""

from typing import Literal

from pydantic import Field

from everloop.contracts.short import Short
from everloop.records import Record


class PauseRequest(Record):
    """A person wants a lifecycle to hold still, or to go on."""

    action: Literal["pause", "resume"]
    person: Short
    reason: str = Field(default="", max_length=2000)
