"""Bodies: what is not plain JSON is refused with the field, and nothing that was sent comes back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.bodies import parse, parse_plain
from everloop.errors import EverloopError, Invalid, Malformed

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_what_json_may_say_is_read_as_it_was_written(value):
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"training": {"learning_rate": NaN}}', "training.learning_rate"),
        (b'{"a": [1, -Infinity]}', "a.1"),
        (b'{"a": 1e999}', "a"),
        (b'{"a": "\\ud800"}', "a"),
        (b'{"a": ["x\\u0000y"]}', "a.0"),
        (b'{"a": 9223372036854775808}', "a"),
        (b'{"a": -9223372036854775809}', "a"),
        (b'{"a": {"b": ' + b"9" * 5000 + b"}}", "a.b"),
    ],
)
def test_what_others_read_otherwise_is_refused_with_its_field(body, field):
    with pytest.raises(Invalid) as caught:
        parse(body)
    assert caught.value.field == field


def test_a_key_that_is_there_twice_is_refused_by_its_name():
    with pytest.raises(Malformed) as caught:
        parse(b'{"a": {"project": "a", "project": "b"}}')
    assert caught.value.field == "project"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe{\x00", b"\xef\xbb\xbf{}", b"{'a': 1}", b'{"a": 1}{', b'"\x01"'])
def test_what_is_not_json_in_utf_8_is_malformed(body):
    with pytest.raises(Malformed):
        parse(body)


@pytest.mark.parametrize("depth", [33, 400, 100_000])
def test_deep_nesting_is_refused(depth):
    for body in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        with pytest.raises(Invalid, match="nested deeper"):
            parse(body)


def test_thirty_two_levels_are_read():
    assert parse(b"[" * 32 + b"]" * 32)


def test_a_key_of_control_characters_is_shown_harmless():
    with pytest.raises(Malformed) as caught:
        parse(b'{"\\u001b[31m": 1, "\\u001b[31m": 2}')
    assert "\x1b" not in str(caught.value)


def told(read, data):
    """What it returns, with types and signs, or how it is refused."""
    try:
        return repr(read(data))
    except EverloopError as error:
        return type(error), str(error), error.field, error.hint


@given(JSON)
def test_the_faster_reader_reads_the_same(value):
    for ascii_only in (True, False):
        data = json.dumps({"row": value}, ensure_ascii=ascii_only).encode()
        assert told(parse_plain, data) == told(parse, data)


PIECES = st.sampled_from(
    [
        *'{}[]:,"\\ \n',
        '"a"',
        '"b":',
        '"a":1',
        '"a:b"',
        "\\u003a",
        "\\ud800",
        "1e99",
        "1e400",
        "-0",
        "0.1",
        "true",
        "NaN",
        "9223372036854775807",
        "9223372036854775808",
        "123456789012345678901234567890",
        "\ufeff",
        "\x01",
        "\x7f",
        "é",
        "🙂",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_the_faster_reader_refuses_the_same(text):
    for data in (text.encode(), b'{"row": ' + text.encode() + b"}", b"{" + text.encode() + b"}"):
        assert told(parse_plain, data) == told(parse, data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": 1, "a": "x:y"}',
        b'{"a": "x:y", "a": 1}',
        b'{"a:b": 1, "a:b": 2}',
        b'{"row": {"a": 1, "a": 2, "b": "\\u003a"}}',
        b'{"row": {"a": {"b": 1, "b": 2}}}',
        b'{"rows": [{"a": 1}, {"b": 1, "b": 2}]}',
        b'{"a": 9223372036854775808}',
        b'{"a": -9223372036854775809}',
        b'{"a": 1E+0400}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "b\x00"}',
        b"[1]",
        b"7",
        b"",
        b"[" * 2000,
    ],
)
def test_the_faster_reader_refuses_what_it_does_not_know_of(data):
    assert told(parse_plain, data) == told(parse, data)
