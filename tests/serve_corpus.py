"""Requests to the prediction server, and what it answered to each when every one of them went through FastAPI.

`python -m tests.serve_corpus` records the answers anew; only a change that is meant may need that. The graphs divide
and clip, and nothing else, so that every machine answers the same digits.
"""

import http.client
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from api import serve
from everloop.artifacts import Artifacts
from everloop.reading import ReadColumn
from everloop.records import Field, Signature
from everloop.settings import SERVE, Settings
from tests import api_parts as parts

RECORDED = Path(__file__).parent / "unit" / "serve_corpus.json"
AHEAD = "@AHEAD@"
"""Stands in a body for a moment 14 hours from now."""
SAID = ("content-type", "retry-after", "www-authenticate", "allow", "location")
"""Headers that belong to an answer's meaning."""


@dataclass(frozen=True)
class Case:
    """One request."""

    name: str
    body: bytes = b""
    model: str = "binary"
    path: str = ""
    method: str = "POST"
    headers: dict[str, str | None] = field(default_factory=dict)
    """Over the usual ones; None takes one away."""


# --- the models ---------------------------------------------------------------------------------


def graph(fields: tuple[Field, ...], number: str, divisors: list[float], *, wide: bool = False) -> bytes:
    """Answers *number* divided by each of *divisors*, clipped to 0 and 1 and rounded to float32 unless *wide*."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info(
            each.name, TensorProto.STRING if each.kind == "category" else TensorProto.DOUBLE, ["rows", 1]
        )
        for each in fields
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array([divisors], np.float64), "divisors"),
        onnx.numpy_helper.from_array(np.array(0.0), "least"),
        onnx.numpy_helper.from_array(np.array(1.0), "most"),
    ]
    nodes = [helper.make_node("Div", [number, "divisors"], ["divided"])]
    if wide:
        nodes.append(helper.make_node("Identity", ["divided"], ["answer"]))
    else:
        nodes.append(helper.make_node("Clip", ["divided", "least", "most"], ["clipped"]))
        nodes.append(helper.make_node("Cast", ["clipped"], ["answer"], to=TensorProto.FLOAT))
    kind = TensorProto.DOUBLE if wide else TensorProto.FLOAT
    output = helper.make_tensor_value_info("answer", kind, ["rows", len(divisors)])
    made = helper.make_graph(nodes, "g", inputs, [output], initializer=constants)
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString())


def models() -> dict[str, tuple[bytes, Signature]]:
    """By name: each kind of task, field and target that serve tells apart."""
    binary = (Field(name="age", kind="number"), Field(name="purpose", kind="category", known=("car", "house")))
    kinds = (
        Field(name="age", kind="number", read=ReadColumn(name="age", type="number")),
        Field(name="member", kind="boolean"),
        Field(name="since", kind="datetime", layouts=("%d.%m.%Y",)),
        Field(name="city", kind="category", known=("Zürich", "Oslo")),
        Field(name="code", kind="category", known=("7", "12")),
    )
    price = (
        Field(
            name="hours",
            kind="number",
            read=ReadColumn(
                name="hours", type="integer", decimal=",", unit="%", missing=("keine", "-1"), declared=True
            ),
        ),
        Field(
            name="region",
            kind="category",
            known=("NA", "EU"),
            read=ReadColumn(name="region", type="category", missing=("NA", "none")),
        ),
        Field(
            name="due",
            kind="datetime",
            read=ReadColumn(name="due", type="datetime", format=("%d.%m.%Y",), missing=("01.01.1900",)),
        ),
        Field(name="open", kind="boolean", read=ReadColumn(name="open", type="boolean", declared=True)),
    )
    flags = (
        Field(name="key", kind="category", known=("a", "b")),
        Field(name="event_time", kind="datetime"),
        Field(name="größe", kind="number"),
    )
    at = ReadColumn(name="at", type="integer", missing=("-1",))
    return {
        "binary": (
            graph(binary, "age", [-1e300, 90.0]),
            Signature(
                task="binary",
                fields=binary,
                target="status",
                classes=("bad", "good"),
                positive="good",
                time="applied_at",
                key="account",
                ignored=("notes",),
            ),
        ),
        "kinds": (
            graph(kinds, "age", [300.0, 90.0, 7e6]),
            Signature(
                task="multiclass",
                fields=kinds,
                target="grade",
                classes=("1", "2.5", "-3"),
                target_type="number",
                time="since",
                time_layouts=("%d.%m.%Y",),
            ),
        ),
        "price": (
            graph(price, "hours", [3e-9], wide=True),
            Signature(
                task="regression",
                fields=price,
                target="price",
                time="at",
                time_layouts=("seconds",),
                time_read=at,
                key="id",
            ),
        ),
        "flags": (
            graph(flags, "größe", [90.0, -1e300]),
            Signature(
                task="binary",
                fields=flags,
                target="ja",
                classes=("false", "true"),
                positive="false",
                target_type="boolean",
            ),
        ),
    }


# --- the requests -------------------------------------------------------------------------------

ROW = '{"age": 40, "purpose": "car"}'
KINDS = '{"age": 30, "member": true, "since": "2020-01-02T03:04:05Z", "city": "Zürich", "code": "7"}'
PRICE = '{"hours": 12, "region": "EU", "due": "31.01.2023", "open": true}'
FLAGS = '{"key": "a", "event_time": "2020-01-02", "größe": 3}'

ROWS: dict[str, list[str]] = {
    "binary": [
        ROW,
        '{"age": 1e-3, "purpose": "car"}',
        '{"age": 4e-7, "purpose": ""}',
        '{"age": 1e300, "purpose": "unseen ☃ 🙂"}',
        '{"age": -0.0, "purpose": "a\\u0020\\"b\\"\\n"}',
        '{"age": null, "purpose": null}',
        '{"purpose": "car", "age": 40.5}',
        '{"age": 9007199254740993, "purpose": "NA"}',
        '{"age": 9223372036854775807, "purpose": "car"}',
        '{"age": 9223372036854775808, "purpose": "car"}',
        '{"age": -9223372036854775809, "purpose": "car"}',
        '{"age": 123456789012345678901234567890, "purpose": "car"}',
        '{"age": 1e20, "purpose": "car"}',
        '{"age": 1e999, "purpose": "car"}',
        '{"age": NaN, "purpose": "car"}',
        '{"age": -Infinity, "purpose": "car"}',
        '{"age": "40", "purpose": "car"}',
        '{"age": true, "purpose": "car"}',
        '{"age": [1], "purpose": "car"}',
        '{"age": {"a": 1}, "purpose": "car"}',
        '{"age": 40, "purpose": 7}',
        '{"age": 40, "purpose": "car", "agee": 1, "zzz": 2}',
        '{"age": 40, "purpose": "car", "notes": {"free": ["x", 1, null]}}',
        '{"age": 40, "purpose": "car", "notes": {"a": 1, "a": 2}}',
        '{"age": 40, "purpose": "car", "notes": 12345678901234567890123}',
        '{"age": 40, "purpose": "car", "status": "good"}',
        '{"age": 40, "age": 41, "purpose": "car"}',
        '{"age": 40, "purpose": "a:b:c"}',
        '{"age": 40, "purpose": "car", "account": "x:1"}',
        '{"age": 40, "purpose": "\\ud800"}',
        '{"age": 40, "purpose": "\\u0000"}',
        '{"age": 40, "purpose": "car", "\\u0000": 1}',
        '{"age": 40, "purpose": "car", "": 1}',
        "{}",
        "null",
        "[]",
        "7",
        '{"age": 40, "purpose": "car", "applied_at": "2024-01-02 03:04:05"}',
        '{"age": 40, "purpose": "car", "applied_at": "2024-01-02T03:04:05+02:00"}',
        '{"age": 40, "purpose": "car", "applied_at": "yesterday"}',
        '{"age": 40, "purpose": "car", "applied_at": 5}',
        '{"age": 40, "purpose": "car", "applied_at": null}',
        '{"age": 40, "purpose": "car", "event_time": "2024-01-03T00:00:00.123456Z", "key": "b"}',
        '{"age": 40, "purpose": "car", "event_time": "1499-01-03T00:00:00Z"}',
        '{"age": 40, "purpose": "car", "event_time": "@AHEAD@"}',
        '{"age": 40, "purpose": "car", "account": 7}',
        '{"age": 40, "purpose": "car", "account": 7.5}',
        '{"age": 40, "purpose": "car", "account": true}',
        '{"age": 40, "purpose": "car", "account": {"a": 1}}',
        '{"age": 40, "purpose": "car", "account": null, "key": "fallback"}',
    ],
    "kinds": [
        KINDS,
        '{"age": 2.1e-6, "member": 0, "since": "02.01.2020", "city": "unseen", "code": 12}',
        '{"age": 700, "member": 1.0, "since": "2020-01-02", "city": "NA", "code": 12.5}',
        '{"age": null, "member": null, "since": null, "city": null, "code": null}',
        '{"age": 30, "member": true, "city": "Oslo", "code": "7"}',
        '{"age": 30, "member": 2, "since": "2020-01-02", "city": "Oslo", "code": "7"}',
        '{"age": 30, "member": "yes", "since": "2020-01-02", "city": "Oslo", "code": "7"}',
        '{"age": 30, "member": true, "since": 1577934245, "city": "Oslo", "code": "7"}',
        '{"age": 30, "member": true, "since": "soon", "city": "Oslo", "code": "7"}',
        '{"age": 30, "member": true, "since": "2020-01-02", "city": "Oslo", "code": true}',
        '{"age": 30, "member": true, "since": "2020-01-02", "city": 5, "code": "7"}',
        '{"age": 30, "since": "2020-01-02", "code": "7"}',
        '{"member": true, "since": "2020-01-02", "code": "7"}',
        '{"age": 30, "member": true, "since": "0001-01-01", "city": "Oslo", "code": "7"}',
        '{"age": 30, "member": true, "since": "@AHEAD@", "city": "Oslo", "code": "7"}',
    ],
    "price": [
        PRICE,
        '{"hours": "12,5 %", "region": "none", "due": "01.01.1900", "open": "no", "at": -1}',
        '{"hours": "keine", "region": "NA", "due": null, "open": "", "at": 1700000000}',
        '{"hours": -1, "region": null, "due": "2023-01-31", "open": 0, "at": "soon", "id": 7}',
        '{"hours": 0, "region": " EU ", "due": "2023-01-31T10:00:00+05:00", "open": null, "at": null, "id": "007"}',
        '{"hours": "12.5x", "region": "EU", "due": "31.01.2023", "open": true}',
        '{"hours": 1, "region": "EU", "due": "31.02.2023", "open": true}',
        '{"hours": 1, "region": "EU", "due": 20230131, "open": true}',
        '{"hours": 1, "region": "EU", "due": "31.01.2023", "open": "maybe"}',
        '{"hours": 1, "region": 3, "due": "31.01.2023", "open": true}',
        '{"hours": 1e300, "region": "EU", "due": "31.01.2023", "open": true}',
        '{"hours": 3e-14, "region": "EU", "due": "31.01.2023", "open": true}',
        '{"hours": 1e-320, "region": "EU", "due": "31.01.2023", "open": true}',
        '{"hours": 123456, "region": "EU", "due": "31.01.2023", "open": true, "at": 99999999999}',
    ],
    "flags": [
        FLAGS,
        '{"key": "c", "event_time": null, "größe": 89.9}',
        '{"key": 5, "event_time": "2020-01-02", "größe": 3}',
        '{"key": "a", "größe": 3}',
        '{"key": "a", "event_time": "2020-01-02", "grosse": 3}',
        '{"key": "a", "event_time": "2020-01-02", "gr\\u00f6\\u00dfe": 3}',
    ],
}

WHOLE: list[tuple[str, str]] = [
    ("no rows", '{"rows": []}'),
    ("nothing", "{}"),
    ("both", f'{{"row": {ROW}, "rows": [{ROW}]}}'),
    ("rows is text", '{"rows": "x"}'),
    ("rows holds text", '{"rows": ["x"]}'),
    ("row is a list", '{"row": [1]}'),
    ("row is null", '{"row": null}'),
    ("row null, rows given", f'{{"row": null, "rows": [{ROW}]}}'),
    ("unknown field", f'{{"row": {ROW}, "version": 3}}'),
    ("two unknown fields", f'{{"row": {ROW}, "version": 3, "more": 4}}'),
    ("request id", f'{{"row": {ROW}, "request_id": "a-1"}}'),
    ("request id of other letters", f'{{"row": {ROW}, "request_id": "ä:\U0001f642\\"\\\\"}}'),
    ("request id empty", f'{{"row": {ROW}, "request_id": ""}}'),
    ("request id of 200", f'{{"row": {ROW}, "request_id": "{"i" * 200}"}}'),
    ("request id of 201", f'{{"row": {ROW}, "request_id": "{"i" * 201}"}}'),
    ("request id a number", f'{{"row": {ROW}, "request_id": 7}}'),
    ("request id null", f'{{"row": {ROW}, "request_id": null}}'),
    ("key", f'{{"row": {ROW}, "key": "k"}}'),
    ("key a number", f'{{"row": {ROW}, "key": 7}}'),
    ("key a fraction", f'{{"row": {ROW}, "key": 7.5}}'),
    ("key a boolean", f'{{"row": {ROW}, "key": true}}'),
    ("key too large", f'{{"row": {ROW}, "key": 9223372036854775808}}'),
    ("keys", f'{{"rows": [{ROW}, {ROW}], "keys": ["a", 2]}}'),
    ("keys too few", f'{{"rows": [{ROW}, {ROW}], "keys": ["a"]}}'),
    ("keys with null", f'{{"rows": [{ROW}, {ROW}], "keys": ["a", null], "key": "z"}}'),
    ("event time", f'{{"row": {ROW}, "event_time": "2024-03-05T12:00:00+01:00"}}'),
    ("event time without a zone", f'{{"row": {ROW}, "event_time": "2024-03-05T12:00:00"}}'),
    ("event time as a day", f'{{"row": {ROW}, "event_time": "2024-03-05"}}'),
    ("event time with a blank", f'{{"row": {ROW}, "event_time": "2024-03-05 12:00:00.5"}}'),
    ("event time in seconds", f'{{"row": {ROW}, "event_time": 1700000000}}'),
    ("event time in seconds as text", f'{{"row": {ROW}, "event_time": "1700000000"}}'),
    ("event time soon", f'{{"row": {ROW}, "event_time": "soon"}}'),
    ("event time too early", f'{{"row": {ROW}, "event_time": "1499-12-31T23:59:59Z"}}'),
    ("event time too late", f'{{"row": {ROW}, "event_time": "9999-12-31T23:59:59Z"}}'),
    ("event time of year 1", f'{{"row": {ROW}, "event_time": "0001-01-01T00:00:00+14:00"}}'),
    ("event time ahead", f'{{"row": {ROW}, "event_time": "{AHEAD}"}}'),
    ("event times", f'{{"rows": [{ROW}, {ROW}], "event_times": ["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"]}}'),
    ("event times too few", f'{{"rows": [{ROW}, {ROW}], "event_times": ["2024-01-01T00:00:00Z"]}}'),
    ("event times, one early", f'{{"rows": [{ROW}, {ROW}], "event_times": ["2024-01-01", "1400-01-01"]}}'),
    ("the second row is wrong", f'{{"rows": [{ROW}, {{"age": {{}}, "purpose": "car"}}]}}'),
    ("the second row lacks one", f'{{"rows": [{ROW}, {{"age": 3}}]}}'),
    ("too many rows", '{"rows": [' + ",".join(["{}"] * 10_001) + "]}"),
    ("300 rows", '{"rows": [' + ",".join(f'{{"age": {n / 7}, "purpose": "car"}}' for n in range(300)) + "]}"),
    (
        "rows of three days",
        '{"rows": ['
        + ",".join(f'{{"age": 1, "purpose": "car", "event_time": "2024-01-0{day}T12:00:00Z"}}' for day in (1, 2, 3, 1))
        + "]}",
    ),
    ("not JSON", '{"row": '),
    ("trailing comma", f'{{"row": {ROW},}}'),
    ("single quotes", "{'row': 1}"),
    ("a list", f"[{ROW}]"),
    ("a number", "7"),
    ("empty", ""),
    ("a key twice", f'{{"row": {ROW}, "row": {ROW}}}'),
    ("a key twice, one escaped", f'{{"row": {ROW}, "r\\u006fw": {ROW}}}'),
    ("a key twice beside an escaped colon", '{"row": {"age": 1, "age": 2, "purpose": "a\\u003ab"}}'),
    ("deep", '{"row": ' + "[" * 40 + "]" * 40 + "}"),
    ("very deep", '{"row": ' + "[" * 5000 + "]" * 5000 + "}"),
    ("deep in what is ignored", '{"row": {"age": 1, "purpose": "c", "notes": ' + "[" * 40 + "]" * 40 + "}}"),
    ("blanks", f' \n\t{{ "row" :\r\n {ROW} }} \n'),
    ("a byte-order mark", "\ufeff" + f'{{"row": {ROW}}}'),
    ("a control character", '{"row": {"age": 1, "purpose": "a\x01b"}}'),
]


def cases() -> Iterator[Case]:
    """Every request, each with a name of its own."""
    for model, rows in ROWS.items():
        for number, row in enumerate(rows):
            yield Case(f"{model} row {number}", f'{{"row": {row}, "request_id": "r-{number}"}}'.encode(), model)
        good = [row for row in rows if not row.startswith(("null", "[", "7"))]
        for number, row in enumerate(good):
            yield Case(f"{model} rows {number}", f'{{"rows": [{rows[0]}, {row}]}}'.encode(), model)
    for name, body in WHOLE:
        yield Case(name, body.encode())
    row = f'{{"row": {ROW}}}'.encode()
    yield Case("not UTF-8", b'{"row": {"age": 1, "purpose": "\xff"}}')
    yield Case("UTF-16", '{"row": {}}'.encode("utf-16"))
    yield Case("too large", b'{"row": ' + b" " * (17 << 20) + b"{}}")
    yield Case("project in the path", row, path="/projects/default/models/binary/predict")
    yield Case("project in the query", row, path="/models/binary/predict?project=default")
    yield Case("another project", row, path="/projects/other/models/binary/predict")
    yield Case("another project in the query", row, path="/models/binary/predict?project=other")
    yield Case("a project too long", row, path="/models/binary/predict?project=" + "p" * 64)
    yield Case("an unknown model", row, path="/models/nobody/predict")
    yield Case("an unknown model, bad body", b"{", path="/models/nobody/predict")
    yield Case("a long model", row, path="/models/" + "m" * 100 + "/predict")
    yield Case("an escaped model", row, path="/models/b%69nary/predict")
    yield Case("an escaped slash", row, path="/models/a%2Fb/predict")
    yield Case("a slash after", row, path="/models/binary/predict/")
    yield Case("GET", path="/models/binary/predict", method="GET")
    yield Case("PUT", row, method="PUT")
    yield Case("another address", row, path="/models/binary/predictions")
    yield Case("no key", row, headers={"Authorization": None})
    yield Case("a wrong key", row, headers={"Authorization": "Bearer " + "x" * 43})
    yield Case("an empty key", row, headers={"Authorization": "Bearer "})
    yield Case("another scheme", row, headers={"Authorization": "Basic eDp5"})
    yield Case("a wrong key, bad body", b"{", headers={"Authorization": "Bearer " + "x" * 43})
    yield Case("another host", row, headers={"Host": "evil.test"})
    yield Case("no media type", row, headers={"Content-Type": None})
    yield Case("another media type", row, headers={"Content-Type": "application/x-npy"})
    yield Case("a charset", row, headers={"Content-Type": 'application/json; charset="UTF-8"'})
    yield Case("another charset", row, headers={"Content-Type": "application/json; charset=latin-1"})
    yield Case("compressed", row, headers={"Content-Encoding": "gzip"})
    yield Case("identity", row, headers={"Content-Encoding": "identity"})


# --- asking -------------------------------------------------------------------------------------


def deployment(folder: Path) -> Settings:
    """Every model, released."""
    settings, store, signer = parts.deployed(folder)
    for name, made in models().items():
        parts.release(store, Artifacts(settings.artifacts), signer, model=name, made=made)
    store.close()
    return settings


def ask(settings: Settings, case: Case) -> dict[str, Any]:
    """What is answered to *case* and what the log keeps of it, without ids and times that are made up."""
    ahead = (datetime.now(UTC) + timedelta(hours=14)).isoformat()
    headers: dict[str, str | None] = {
        "Authorization": f"Bearer {parts.key_of(settings)}",
        "Content-Type": "application/json",
    } | case.headers
    before = len(logged(settings, case.model))
    opened = http.client.HTTPConnection("127.0.0.1", settings.port(SERVE), timeout=60)
    opened.request(
        case.method,
        case.path or f"/models/{case.model}/predict",
        case.body.replace(AHEAD.encode(), ahead.encode()),
        {name: value for name, value in headers.items() if value is not None},
    )
    answer = opened.getresponse()
    body = answer.read().decode()
    opened.close()
    rows = logged(settings, case.model)[before:]
    said = {name: value for name in SAID if (value := answer.getheader(name)) is not None}
    return {
        "status": answer.status,
        "headers": {name: value.replace(f":{settings.port(SERVE)}", ":<port>") for name, value in said.items()},
        "body": _without_ids(body).replace(f":{settings.port(SERVE)}", ":<port>"),
        "logged": [_without_times(row, ahead) for row in rows],
    }


def logged(settings: Settings, model: str) -> list[dict[str, Any]]:
    """Every line, in the order of the answers."""
    files = (settings.predictions_dir / "default" / model).glob("live/*.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: (row["logged_at"], row["row"]))


def _without_ids(text: str) -> str:
    return re.sub(r'("request_id":"|details under )[0-9a-f]{32}"', r'\1<id>"', text)


def _without_times(row: dict[str, Any], ahead: str) -> dict[str, Any]:
    now = row["logged_at"]
    text = json.dumps(row, ensure_ascii=False).replace(now, "<now>").replace(ahead, "<ahead>")
    return dict(json.loads(re.sub(r'"request_id": "[0-9a-f]{32}"', '"request_id": "<id>"', text)))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        settings = deployment(Path(name))
        with parts.running(serve.create_app(settings), settings.port(SERVE)) as url:
            found = {case.name: ask(settings, case) for case in cases()}
            with parts.client_of(settings, url) as client:
                openapi = client.get("/openapi.json").json()
    lines = [
        f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(each, ensure_ascii=False)}"
        for name, each in found.items()
    ]
    lines.append(f'"openapi": {json.dumps(openapi)}')
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(found)} answers in {RECORDED}")


if __name__ == "__main__":
    main()
