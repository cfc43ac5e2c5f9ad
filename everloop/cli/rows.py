"""Rows to ask a model about: from JSON text, a file or stdin."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from everloop.cli.options import Json
from everloop.errors import Invalid


def rows_of(text: str, schema: Callable[[], Json]) -> list[Json]:
    """Rows from JSON text, a file or stdin. *schema* answers the model's: a CSV alone does not say what it means."""
    if text.lstrip()[:1] in ("{", "["):
        return _parsed(text, "the argument")
    if text == "-":
        return _parsed(sys.stdin.read(), "stdin")
    path = Path(text)
    table = path.suffix.lower() in (".csv", ".tsv")
    known: Json = {}
    if table and path.is_file():
        known = schema()
    content = content_of(path, known)
    if table:
        from everloop import rows

        return rows.from_csv(content, path.name, known)
    return _parsed(content, str(path))


def content_of(path: Path, known: Json) -> str:
    """The text of the file at *path*, where *known* is the model's schema. Raises `Invalid`."""
    try:
        return _decoded(path.read_bytes(), known)
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}",
            field="rows",
            hint="give JSON, or a .json, .jsonl, .csv or .tsv file",
        ) from None


def _decoded(content: bytes, known: Json) -> str:
    """A file's text in the encoding that training found, or was told. Raises `Invalid`, `UnicodeDecodeError`."""
    from everloop import dialect

    try:
        content.decode()
    except UnicodeDecodeError:
        utf8 = False
    else:
        utf8 = True
    head = content[: dialect.HEAD]
    encoding = dialect.encoding_of(head, ascii_or_utf8=utf8)
    if encoding == "cp1252":
        names = [str(field["name"]) for field in known.get("fields", ())]
        encoding = known.get("encoding") or dialect.encoding_by_names(head, names) or encoding
        if encoding == "cp1252" and not dialect.is_western(content):
            message = "the file is not UTF-8, and its letters are not those of western languages (cp1252)"
            raise Invalid(message, field="rows", hint="save it as UTF-8")
    return content.decode(encoding or "utf-8").removeprefix("\ufeff")


def _parsed(text: str, where: str) -> list[Json]:
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise Invalid(f"{where} is not JSON: {error}", field="rows") from None
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise Invalid(f"{where} must hold one row ({{...}}) or a list of rows", field="rows")
    return rows
