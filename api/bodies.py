"""A request's body, read strictly and in one place: what is not plain JSON in UTF-8 is refused, with the field."""

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
import pydantic
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect

from api import problems
from everloop import errors
from everloop.errors import Invalid, InvalidSpec, Malformed, TooLarge, UnsupportedMedia

SPEC_BYTES = 1 << 20
DRAIN_BYTES = 64 << 20
"""How much of a body that is too large is read away, so that the sender hears our answer at all."""
READ_SECONDS = 900.0
"""A body must have arrived after this long. Who sends too slowly is let go much earlier, by `api.connections`."""
MAX_DEPTH = 32
INT_LIMIT = 2**63

Model = TypeVar("Model", bound=pydantic.BaseModel)


def json_body(kind: type[Model], limit_bytes: int = SPEC_BYTES, *, optional: bool = False) -> Callable[..., Any]:
    """A dependency that reads the body as strict JSON into *kind*."""
    wrong: type[errors.EverloopError] = InvalidSpec if kind.__name__ == "LifecycleSpec" else Invalid

    async def read(request: Request) -> pydantic.BaseModel:
        data = await read_body(request, limit_bytes)
        if optional and not data:
            return kind()
        require_json(request)
        return validated(kind, parse(data), wrong)

    return read


def validated(kind: type[Model], value: Any, wrong: type[errors.EverloopError] = Invalid) -> Model:  # noqa: ANN401
    """*value* as a *kind*. Raises *wrong* with the field."""
    if not isinstance(value, dict):
        raise Malformed("the body must be a JSON object", hint="send {...}")
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        raise problems.invalid(error, wrong) from None


def body_schema(kind: type[pydantic.BaseModel], *examples: dict[str, Any], required: bool = True) -> dict[str, Any]:
    """What OpenAPI says about a body that `json_body` reads."""
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    if examples:
        content["examples"] = {f"example {n}": {"value": value} for n, value in enumerate(examples, 1)}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


def describe(app: FastAPI, kinds: Iterable[type[pydantic.BaseModel]]) -> None:
    """Add the bodies that `json_body` reads to what *app* says of itself: FastAPI does not know them."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for kind in kinds:
            schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {}) | {kind.__name__: schema}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


async def read_form(request: Request, limit_bytes: int = 1 << 16) -> dict[str, str]:
    """The fields of a page's form (urlencoded only: there are no uploads here)."""
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media != "application/x-www-form-urlencoded":
        raise UnsupportedMedia("a form must be sent as application/x-www-form-urlencoded")
    data = await read_body(request, limit_bytes)
    try:
        pairs = parse_qsl(data.decode("ascii"), keep_blank_values=True, max_num_fields=50, errors="strict")
    except ValueError:
        raise Malformed("the form is not readable") from None
    for name, value in pairs:
        if "\x00" in value:
            raise Malformed(f"{name}: must not contain NUL", field=name)
    return {name: value.replace("\r\n", "\n") for name, value in pairs}


def require_json(request: Request) -> None:
    """Raise `UnsupportedMedia` unless the body is declared as JSON in UTF-8."""
    media, _, options = request.headers.get("content-type", "").lower().partition(";")
    charset = options.strip().removeprefix("charset=").strip('" ')
    if media.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMedia("the body must be JSON in UTF-8", hint="send Content-Type: application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMedia("the body must not be compressed", hint="leave out Content-Encoding")


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises `TooLarge` after having read the rest away, so that the answer is heard."""
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit_bytes:
                    chunks.append(chunk)
                if size > DRAIN_BYTES:
                    break
    except TimeoutError:
        raise Malformed("the body did not arrive in time") from None
    except ClientDisconnect:  # nobody hears this; it is no error of ours either
        raise Malformed("the body did not arrive") from None
    if size > limit_bytes:
        raise TooLarge(
            f"the body is larger than {limit_bytes:,} bytes",
            field="body",
            hint=f"send at most {limit_bytes >> 20} MiB",
        )
    return b"".join(chunks)


def parse_plain(data: bytes) -> Any:  # noqa: ANN401
    """What `parse` returns or raises, sooner: by a faster reader, where no rule that it does not know can matter."""
    if b"\\" not in data and _LARGE.search(data) is None:
        try:
            value = orjson.loads(data)
            # Of a key that is there twice it keeps the last: then there are more colons than can be accounted for.
            if type(value) is dict and _has_colons(value, data.count(b":")):
                return value
        except (orjson.JSONDecodeError, _DeepError):
            pass  # what is wrong with it is said by the other reader
    return parse(data)


_LARGE = re.compile(rb"[0-9](?:[0-9]{18}|[eE][+-]?[0-9]{3})")
"""Numbers that may be too large. (An escape may be of half a character, or of a colon.)"""
_PLAIN_DEPTH = 4


class _DeepError(Exception):
    """Deeper than any request of ours is."""


def _has_colons(value: dict[str, Any], count: int) -> bool:
    keys = _keys(value, _PLAIN_DEPTH)
    return keys == count or keys + _colons(value) == count


def _keys(value: dict[str, Any] | list[Any], depth: int) -> int:
    """Keys in *value* and all below."""
    if not depth:
        raise _DeepError
    count, inside = (len(value), value.values()) if type(value) is dict else (0, value)
    for each in inside:
        if type(each) is dict or type(each) is list:
            count += _keys(each, depth - 1)
    return count


def _colons(value: Any) -> int:  # noqa: ANN401
    """Colons in the texts and names of *value* and all below."""
    if type(value) is str:
        return value.count(":")
    if type(value) is dict:
        return sum(key.count(":") + _colons(each) for key, each in value.items())
    return sum(map(_colons, value)) if type(value) is list else 0


class _Huge(int):
    """Stands for an integer of more digits than we convert."""


def parse(data: bytes) -> Any:  # noqa: ANN401
    """JSON as everyone reads it: UTF-8, no duplicate keys, no NaN, no lone surrogates, at most 32 levels.

    Raises `Malformed` or `Invalid` with the field (a dotted path) and never with what was sent.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("the body is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise Malformed("the body begins with a byte-order mark", hint="send UTF-8 without it")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=lambda _: math.nan)
    except RecursionError:
        raise _too_deep("") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    _check(value, escapes="\\u" in text)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            name = path_name(key)
            raise Malformed(f"{name}: the key is there twice", field=name, hint="keep one of them")
        seen.add(key)
    return found


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= 20 else _Huge()  # noqa: PLR2004  # 20: a sign and the digits of 2^63


def _check(root: Any, *, escapes: bool) -> None:  # noqa: ANN401
    """Refuse what JSON allows and we do not. Iterative: the input decides the depth."""
    todo: list[tuple[Any, tuple[str, ...]]] = [(root, ())]
    while todo:
        value, path = todo.pop()
        if isinstance(value, dict | list):
            todo.extend(_items(value, path, escapes=escapes))
        elif isinstance(value, float) and not math.isfinite(value):
            raise _refused(path, "must be a finite number (no NaN, no Infinity)")
        elif isinstance(value, _Huge) or (isinstance(value, int) and not -INT_LIMIT <= value < INT_LIMIT):
            raise _refused(path, "the number is out of range (64-bit integers)")
        elif escapes and isinstance(value, str) and _TEXT.search(value):
            raise _refused(path, "must not contain lone surrogates or NUL")


def _items(
    value: dict[str, Any] | list[Any], path: tuple[str, ...], *, escapes: bool
) -> list[tuple[Any, tuple[str, ...]]]:
    if len(path) >= MAX_DEPTH:
        raise _too_deep(dotted(path[:3]))
    if isinstance(value, list):
        return [(item, (*path, str(index))) for index, item in enumerate(value)]
    for key in value if escapes else ():
        if _TEXT.search(key):
            raise _refused((*path, key), "the key must not contain lone surrogates or NUL")
    return [(item, (*path, key)) for key, item in value.items()]


_TEXT = re.compile("[\ud800-\udfff\x00]")


def _refused(path: tuple[str, ...], message: str) -> Invalid:
    field = dotted(path)
    return Invalid(f"{field}: {message}" if field else message, field=field)


def _too_deep(field: str) -> Invalid:
    return Invalid(f"the JSON is nested deeper than {MAX_DEPTH} levels", field=field)


def dotted(path: tuple[str, ...]) -> str:
    """A path into a document as people write it: `features.exclude.0`."""
    return ".".join(path_name(part) for part in path)


def path_name(key: str) -> str:
    """*key* as it may be shown: printable, not endless."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in key)
    return shown if len(shown) <= 100 else shown[:99] + "…"  # noqa: PLR2004
