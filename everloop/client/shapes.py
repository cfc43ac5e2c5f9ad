"""What calls send and answer: parts of addresses, and the API's JSON as plain dicts and lists."""

from typing import Any
from urllib.parse import quote

Json = dict[str, Any]
Rows = list[Json]


def part(name: str) -> str:
    """A lifecycle id may contain slashes, which stay as they are in the path."""
    return quote(name, safe="/")


def given(**values: Any) -> Json:  # noqa: ANN401
    return {name: value for name, value in values.items() if value is not None}


def items(answer: Any) -> Rows:  # noqa: ANN401
    return list(answer["items"] if isinstance(answer, dict) else answer)


def one(answer: Any) -> Json:  # noqa: ANN401
    return answer if isinstance(answer, dict) else {"answer": answer}
