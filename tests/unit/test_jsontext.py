"""Strict JSON: what is refused, and that both implementations refuse and write the same."""

from __future__ import annotations

import enum
import math
import pickle
from collections import OrderedDict
from typing import Any

import pytest

from incident_messaging import jsontext
from incident_messaging.errors import SerializationError
from incident_messaging.jsontext import MAX_DEPTH, JsonText


@pytest.fixture(params=["json", "orjson"])
def json(request: pytest.FixtureRequest) -> JsonText:
    return jsontext.select(request.param)


def nested(depth: int, *, arrays: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if arrays else {"a": value}
    return value


def test_the_fastest_implementation_is_the_default_and_each_can_be_asked_for() -> None:
    assert jsontext.select().name == "orjson"
    assert jsontext.select("json").name == "json"
    assert jsontext.loads(jsontext.dumps({"a": [1, None]})) == {"a": [1, None]}


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 1.5, 1e-7, 1e22, 5e-324, 1.7e308,
        "", "text", "\x00\x1f\x7f", "é\u2028\U0001f600", '"\\/', [], {}, [[], {}], {"": 0},
        {"a": {"b": [1, "x", None]}},
    ],
)  # fmt: skip
def test_what_json_can_carry_comes_back_as_it_was(json: JsonText, value: Any) -> None:
    back = json.loads(json.dumps(value))

    assert (back, repr(back)) == (value, repr(value))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "nan is not a JSON number"),
        (math.inf, "inf is not a JSON number"),
        ([{"a": -math.inf}], r"-inf is not a JSON number \(at \[0\]\.a\)"),
        (2**64, "beyond 64 bits"),
        (-(2**63) - 1, "beyond 64 bits"),
        pytest.param(10**5000, "beyond 64 bits", id="huge"),
        ({"a": {1: 2}}, r"the key 1 is not text \(at a\)"),
        ({None: 2}, "the key None is not text"),
        ("\ud800", "surrogate"),
        (["\udc00x"], "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        (b"bytes", "builtins.bytes cannot be written"),
        ({"a": [1, object()]}, r"builtins.object cannot be written as JSON \(at a\[1\]\)"),
        ({1, 2}, "builtins.set cannot be written"),
    ],
)
def test_what_json_cannot_carry_is_refused_on_the_way_out(json: JsonText, value: Any, words: str) -> None:
    with pytest.raises(SerializationError, match=words) as caught:
        json.dumps(value)

    assert caught.value.code == "encode"


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"NaN", b"Infinity", b"-Infinity", b"[1, NaN]", b"1e999", b"-1e999", b'{"a": 1e400}',
        b"18446744073709551616", b"-9223372036854775809", b"[99999999999999999999]", b"1" * 5000, b"-" + b"1" * 5000,
        b'"\\ud800"', b'"\\udc00"', b'"\\uD83D\\uD83D\\uDE00"', b'{"\\udfff": 1}',
        b'"\\\\\\ud800"', b'"\\\\ud83d\\udc00"',
        b'{"a": "\\ud800", "a": 1}', b'"\xff"', b'"\xed\xa0\x80"', b"\xef\xbb\xbf{}", b"\xff\xfe1\x00", b"01",
        b"1.", b".5",
        b"+1", b"[1,]", b'{"a":1,}', b"{'a':1}", b"{a:1}", b"{1:2}", b'"\x01"', b'"\n"', b'"\\x"', b"1 1",
        b"1\x00", b"// c\n1",
        b"\x0c1", b"\xc2\xa01", b"True", b"nul", b'"', b"[", b"\\", b"1_000", b"0x10", b'"\\u12_4"', "１".encode(),
    ],
)  # fmt: skip
def test_what_is_not_strict_json_is_refused_on_the_way_in(json: JsonText, data: bytes) -> None:
    with pytest.raises(SerializationError, match="not readable as JSON") as caught:
        json.loads(data)

    assert caught.value.code == "decode"
    assert caught.value.data == data


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b'["1844674407370955161600", 0.12345678901234567890123]', ["1844674407370955161600", 0.12345678901234568]),
        (b"123456789012345678901234567890.0", 1.2345678901234568e29),
        (b"-0", 0),
        (b"1E5", 100000.0),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'{"a": 1, "b": 2, "a": 3}', {"a": 3, "b": 2}),
        (b' \t\r\n{ "a" : [ ] } \n', {"a": []}),
    ],
)
def test_what_is_strict_json_means_the_same_to_both(json: JsonText, data: bytes, value: Any) -> None:
    back = json.loads(data)

    assert (back, repr(back)) == (value, repr(value))


@pytest.mark.parametrize("arrays", [True, False])
def test_depth_has_the_same_limit_out_and_in(json: JsonText, arrays: bool) -> None:
    deepest = nested(MAX_DEPTH, arrays=arrays)
    assert json.loads(json.dumps(deepest)) == deepest

    with pytest.raises(SerializationError, match="nested more than 127 levels"):
        json.dumps(nested(MAX_DEPTH + 1, arrays=arrays))
    opening, closing = (b"[", b"]") if arrays else (b'{"a":', b"}")
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(SerializationError):
            json.loads(opening * depth + b"1" + closing * depth)


def test_many_brackets_side_by_side_or_in_text_are_not_deep(json: JsonText) -> None:
    value = [[] for _ in range(1000)] + [{"a": "[{" * 1000}]

    assert json.loads(json.dumps(value)) == value


def test_a_value_that_holds_itself_is_refused(json: JsonText) -> None:
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(SerializationError, match="levels deep"):
        json.dumps(loop)


def test_text_keys_of_a_subclass_are_plain_text(json: JsonText) -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    assert json.loads(json.dumps({Colour.RED: 1})) == {"red": 1}


def test_a_tuple_is_an_array_and_a_subclass_of_dict_is_not_guessed(json: JsonText) -> None:
    assert json.dumps((1, (2,))) == b"[1,[2]]"
    with pytest.raises(SerializationError, match=r"collections\.OrderedDict"):
        json.dumps(OrderedDict(a=1))


def test_an_error_that_carries_bytes_pickles_whole(json: JsonText) -> None:
    with pytest.raises(SerializationError) as caught:
        json.loads(b"{")

    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.data, copy.code, str(copy)) == (b"{", "decode", str(caught.value))
