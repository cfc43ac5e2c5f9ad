"""A spec as the API takes it, from a file, a mapping or Python."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from everloop.client.encoding import encode
from everloop.client.shapes import Json
from everloop.errors import InvalidSpec

if TYPE_CHECKING:
    from everloop.specs import LifecycleSpec

Spec = Union["LifecycleSpec", Mapping[str, Any], str, Path]


def load_spec(spec: Spec, changes: Mapping[str, Any] | None = None) -> Json:
    """A spec as JSON: from a dict, a `LifecycleSpec`, or a YAML or JSON file; *changes* (dotted names) stand over it.

    A relative `source.path` or `code` in a file is relative to the file's folder, in a dict to the working folder.
    Raises `InvalidSpec` with the field; the API checks it again.
    """
    from everloop.specs import LifecycleSpec

    if isinstance(spec, LifecycleSpec):
        value, folder = spec.model_dump(mode="json"), Path.cwd()
    elif isinstance(spec, Mapping):
        value, folder = dict(spec), Path.cwd()
    else:
        value, folder = _read(Path(spec))
    for name, changed in (changes or {}).items():
        value = _with(value, name, name.split("."), changed)
    return _checked(value, folder)


def _with(value: Json, name: str, path: Sequence[str], changed: Any) -> Json:  # noqa: ANN401
    """*value* with *changed* at *path*. Raises `InvalidSpec` where something else than a mapping is in the way."""
    first, rest = path[0], path[1:]
    if not rest:
        return value | {first: changed}
    inner = value.get(first) or {}
    if not isinstance(inner, dict):
        raise InvalidSpec(f"{name}: {first} holds no fields", field=name)
    return value | {first: _with(inner, name, rest, changed)}


def _read(path: Path) -> tuple[Json, Path]:
    """A file's mapping, and the folder that paths in it are relative to."""
    import yaml

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise InvalidSpec(
            f"cannot read {path}: {why}", field="spec", hint="`everloop init DATA.csv --target COLUMN` writes a spec"
        ) from None
    try:
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise InvalidSpec(f"{path} is not {kind}: {_one_line(error)}", field="spec") from None
    if not isinstance(value, dict):
        raise InvalidSpec(f"{path} must hold a mapping, not {type(value).__name__}", field="spec")
    return value, path.absolute().parent


def _checked(value: Json, folder: Path) -> Json:
    from everloop.specs import checked

    source = value.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str) and source["path"]:
        value = value | {"source": source | {"path": str(folder / Path(source["path"]).expanduser())}}
    code = value.get("code")
    if isinstance(code, str) and code and not code.startswith("sha256:"):
        value = value | {"code": os.path.normpath(folder / Path(code).expanduser())}
    checked(value)
    return json.loads(encode(value))  # type: ignore[no-any-return]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
