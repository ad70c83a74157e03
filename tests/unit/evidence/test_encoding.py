# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON: against an independent implementation of RFC 8785, and against all that is not it."""

from __future__ import annotations

import hashlib
import json
import uuid

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.evidence.encoding import EncodingError

from .hostile import bounded, damaged, json_values

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
acceptable = st.recursive(
    st.none() | st.booleans() | st.integers(-encoding.MAX_INTEGER, encoding.MAX_INTEGER) | text,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=9), inner, max_size=5)
    ),
    max_leaves=30,
)


@bounded
@given(acceptable)
def test_is_what_rfc8785_says(value: object) -> None:
    assert encoding.canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


def test_string_example_of_rfc8785() -> None:
    value = '\u20ac$\u000f\nA\'B"\\\\"/'
    assert encoding.canonical(value) == b'"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'


@bounded
@given(st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=9), acceptable, max_size=5))
def test_objects_survive(value: dict[str, object]) -> None:
    data = encoding.canonical(value)
    assert encoding.parse(data, len(data)) == value
    with pytest.raises(EncodingError, match="at most"):
        encoding.parse(data, len(data) - 1)


@bounded
@given(json_values)
def test_any_value_is_encoded_or_refused(value: object) -> None:
    try:
        data = encoding.canonical(value)
    except EncodingError:
        return
    assert data == rfc8785.dumps(value)  # type: ignore[arg-type]


@bounded
@given(
    st.binary(max_size=80)
    | damaged(b'{"a":[1,{"b":"c"}],"d":null}')
    | json_values.map(lambda v: json.dumps(v).encode())
)
def test_only_canonical_octets_are_read(data: bytes) -> None:
    try:
        value = encoding.parse(data, 1000)
    except EncodingError:
        return
    assert rfc8785.dumps(value) == data


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    with pytest.raises(EncodingError):
        encoding.parse(opening * 200_000, 1 << 22)


def test_depth_bound_is_the_same_in_both_directions() -> None:
    value: object = 1
    for _ in range(encoding.MAX_DEPTH):
        value = {"a": value}
    data = encoding.canonical(value)
    assert encoding.parse(data, 1000) == value
    with pytest.raises(EncodingError, match="deeper"):
        encoding.canonical({"a": value})
    with pytest.raises(EncodingError, match="deeper"):
        encoding.parse(b'{"a":' + data + b"}", 1000)


def test_long_number_costs_nothing() -> None:
    with pytest.raises(EncodingError, match="2\\^53"):
        encoding.parse(b'{"a":' + b"9" * 1_000_000 + b"}", 1 << 21)


def test_key_that_occurs_twice_is_refused() -> None:
    with pytest.raises(EncodingError, match="twice"):
        encoding.parse(b'{"a":1,"a":1}', 100)


def test_digests() -> None:
    assert encoding.digest({"a": 1}) == hashlib.sha256(b'{"a":1}').digest()
    tagged = hashlib.sha256(b'nova-vmi-attest thing v1\0{"a":1}').digest()
    assert encoding.tagged_digest("thing v1", {"a": 1}) == tagged


@bounded
@given(st.binary(max_size=70))
def test_base64url_has_one_form(data: bytes) -> None:
    value = encoding.base64url(data)
    assert encoding.from_base64url(value, len(data)) == data
    for other in (value + "=", value + "\n", " " + value):
        with pytest.raises(EncodingError):
            encoding.from_base64url(other, 100)
    if data:
        with pytest.raises(EncodingError):
            encoding.from_base64url(value, len(data) - 1)


@pytest.mark.parametrize("value", ["AB", "A", "A+==", "\u00e9\u00e9", "AA=="])
def test_other_base64_is_refused(value: str) -> None:
    with pytest.raises(EncodingError):
        encoding.from_base64url(value, 10)


ACCESSORS = {
    "text": lambda d: encoding.text(d, "x", 8),
    "integer": lambda d: encoding.integer(d, "x", 0, 9),
    "octets": lambda d: encoding.octets(d, "x", 8, 1),
    "hexdigest": lambda d: encoding.hexdigest(d, "x"),
    "address": lambda d: encoding.address(d, "x"),
    "uuid": lambda d: encoding.uuid(d, "x"),
    "items": lambda d: encoding.items(d, "x", 2),
    "exact_keys": lambda d: encoding.exact_keys(d["x"], ("a",), "x"),
}
GOOD = {
    "text": ("caf\u00e9", "caf\u00e9"),
    "integer": (9, 9),
    "octets": ("AAE", b"\0\1"),
    "hexdigest": ("0a" * 32, b"\n" * 32),
    "address": ("0xffffffffffffffff", 2**64 - 1),
    "uuid": (str(uuid.UUID(int=7)), uuid.UUID(int=7)),
    "items": ([1, 2], [1, 2]),
    "exact_keys": ({"a": 1}, {"a": 1}),
}
BAD = {
    "text": ["123456789", "a\nb", "\u202e", 1, None],
    "integer": [-1, 10, True, 1.0, "1", None],
    "octets": ["", "AAAAAAAAAAAA", "AA=", 1],
    "hexdigest": ["0A" * 32, "0a" * 31, "0a" * 33, "0a" * 32 + "\n", 1, "\u0661" * 64],
    "address": ["0x00", "1", "0xA", "0x1" + "0" * 16, "-0x1", 5, "0x\u0661"],
    "uuid": [str(uuid.UUID(int=7)).replace("-", ""), "{" + str(uuid.UUID(int=7)) + "}", 7, None, []],
    "items": [[1, 2, 3], {}, "ab"],
    "exact_keys": [{}, {"a": 1, "b": 2}, {"b": 1}, [], None],
}


@pytest.mark.parametrize("name", ACCESSORS)
def test_accessors_take_good_values(name: str) -> None:
    value, expected = GOOD[name]
    assert ACCESSORS[name]({"x": value}) == expected


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD.items() for value in bad])
def test_accessors_refuse_bad_values(name: str, value: object) -> None:
    with pytest.raises(EncodingError, match="x"):
        ACCESSORS[name]({"x": value})


@bounded
@given(json_values, st.sampled_from(sorted(ACCESSORS)))
def test_accessors_raise_nothing_else(value: object, name: str) -> None:
    try:
        result = ACCESSORS[name]({"x": value})
    except EncodingError:
        return
    assert result is not None


@pytest.mark.parametrize(
    "character", ["\0", "\n", "\x7f", "\x9b", "\u200f", "\u2028", "\u202e", "\ud800", "\U000e0041"]
)
def test_characters_that_hide_or_move_text(character: str) -> None:
    assert not encoding.visible(f"a{character}b")


def test_everything_printable_is_visible() -> None:
    hidden = [chr(n) for n in range(0x110000) if encoding._HIDDEN.search(chr(n))]
    assert [character for character in hidden if character.isprintable()] == []


def test_characters_of_a_later_unicode_are_visible() -> None:
    """U+50000 was not assigned when this was written."""
    assert encoding.visible("a\u00a0\ufffd\U00050000")


def test_missing_member_is_named() -> None:
    with pytest.raises(EncodingError, match="x is missing"):
        encoding.integer({}, "x")


def test_an_input_of_very_many_small_values_is_refused_before_it_takes_memory() -> None:
    for piece in (b"[],", b"{},", b"1,", b'"",'):
        data = b'{"a":[' + piece * ((8 << 20) // len(piece)) + b"0]}"
        with pytest.raises(EncodingError, match="values"):
            encoding.parse(data * 2, len(data) * 2)
