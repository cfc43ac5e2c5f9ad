"""What the tests ask of a job, in the product's own words."""

from typing import Any

from everloop.contracts import JobRequest
from everloop.records import Code, Result


class Trial(JobRequest):
    function: str
    values: dict[str, Any] = {}  # noqa: RUF012
    code: Code | None = None


class Tried(Result):
    values: dict[str, Any]
