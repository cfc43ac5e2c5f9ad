"""What a model takes as JSON Schema (2020-12), with a row that fits it and is answered."""

import re
from datetime import UTC, datetime
from typing import Any

from pydantic import ConfigDict
from pydantic import Field as Named

from activities.compute.inference import takes_numbers, takes_texts
from everloop.records import Field, Signature

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SHOWN_VALUES = 10
EXACT = 2**53
"""Whole numbers below it are the same in every JSON reader."""
ANY_TIME = "2024-01-31T12:00:00Z"

Schema = dict[str, Any]


class SchemaView(Signature):
    """A row as JSON Schema, beside what the version's signature says in words of its own (`fields` and on)."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    dialect: str = Named(default=DIALECT, alias="$schema")
    title: str
    description: str
    type: str = "object"
    properties: dict[str, Schema]
    required: list[str]
    additional_properties: bool = Named(default=False, alias="additionalProperties")
    examples: list[dict[str, Any]]


def view(model: str, version: int, signature: Signature) -> SchemaView:
    """What one row of a predict request holds."""
    known = {field.name for field in signature.fields}
    beside = {name: {"description": text} for name, text in _beside(signature).items() if name not in known}
    return SchemaView(
        **dict(signature),
        title=f"a row for {model}, version {version}",
        description="POST it to /models/NAME/predict as `row`, or up to 10,000 of them as `rows`",
        properties={field.name: _property(field) for field in signature.fields} | beside,
        required=[field.name for field in signature.fields if field.name != signature.time],
        examples=[example(signature)],
    )


def example(signature: Signature) -> dict[str, Any]:
    """A row of usual values."""
    return {field.name: _usual(field) for field in signature.fields}


def _beside(signature: Signature) -> dict[str, str]:
    """Names that a row may have and the model does not look at."""
    found = dict.fromkeys(signature.ignored, "in the table, not in the model: it is not looked at")
    found["key"] = "the row's key in the log: text or a number"
    found["event_time"] = "when it happened, in ISO 8601; left out: now"
    if signature.key:
        found[signature.key] = "the row's key in the log: text or a number"
    if signature.time:
        found[signature.time] = "when it happened, in ISO 8601 or as the table writes it; left out: now"
    found[signature.target] = "the target, where it is known already: it is not looked at"
    return found


def _property(field: Field) -> Schema:
    made: Schema = {"description": _description(field), "examples": [_usual(field)]}
    if field.kind == "boolean":
        plain: Schema = {"enum": [True, False, 0, 1, None]}
        return made | ({"anyOf": [plain, {"type": "string"}]} if takes_texts(field) else plain)
    if field.kind == "number":
        return made | {"type": ["number", "string", "null"] if takes_texts(field) else ["number", "null"]}
    return made | {"type": ["string", "number", "null"] if takes_numbers(field) else ["string", "null"]}


def _description(field: Field) -> str:
    said = [_kind(field), _null(field)]
    if field.read is not None and takes_texts(field):
        said.insert(1, f"also as text, as the table writes it{f', in {field.read.unit}' if field.read.unit else ''}")
    return "; ".join(said)


def _kind(field: Field) -> str:
    if field.kind == "number":
        if field.minimum is None or field.maximum is None:
            return "a number"
        return f"a number, in training from {field.minimum:.6g} to {field.maximum:.6g}; others are answered too"
    if field.kind == "category":
        shown = ", ".join(field.known[:SHOWN_VALUES])
        more = ", ..." if len(field.known) > SHOWN_VALUES else ""
        return f"a text, in training {shown}{more}; others are answered as unseen" if shown else "a text"
    if field.kind == "datetime":
        layouts = field.read.format if field.read else field.layouts
        also = f" or as the table writes it ({', '.join(layouts)})" if layouts else ""
        return f"a time in ISO 8601{also}, UTC unless it says otherwise"
    return "true or false"


def _null(field: Field) -> str:
    """What null means, also where training never had one."""
    if field.nullable:
        return "null: not known"
    if field.usual is None:
        return "null: not known; no value was missing in training, so the model has learned nothing about it"
    usual: object = f"{field.usual:.6g}"
    if field.kind == "boolean":
        usual = "true" if field.usual else "false"
    elif field.kind == "datetime":
        usual = datetime.fromtimestamp(field.usual, UTC).isoformat()
    return f"null: not known; no value was missing in training, so it is answered as {usual}, the median there"


def _usual(field: Field) -> Any:  # noqa: ANN401  # of the field's kind
    if field.kind == "boolean":
        return True
    if field.kind == "datetime":
        return ANY_TIME
    if field.kind == "category":
        return field.known[0] if field.known else "text"
    low, high = field.minimum, field.maximum
    if low is None or high is None:
        return 0
    middle = low + (high - low) / 2
    whole = low.is_integer() and high.is_integer() and abs(middle) < EXACT
    return int(middle) if whole else float(re.sub(r"\.0+$", "", f"{middle:.6g}"))
