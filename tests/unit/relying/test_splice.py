# SPDX-License-Identifier: Apache-2.0
"""A document is changed where it is meant to be, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.relying import splice
from nova_vmi_attest.relying.splice import Document, SpliceError

EXAMPLES = settings(max_examples=100, deadline=None)

SPACE = st.text(" \t\n\r", max_size=2)
NAMES = st.sampled_from(["metadata", "trust:verdict", "role", "", 'a"metadata', "id", "metadata\\"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def strings(draw: st.DrawFn, value: str) -> str:
    """One of the ways to write a string in JSON."""
    plain = json.dumps(value, ensure_ascii=draw(st.booleans()) or not value.isprintable())
    if value and draw(st.booleans()):
        escaped = f"\\u{ord(value[0]):04x}" if ord(value[0]) < 0x10000 else json.dumps(value[0])[1:-1]
        plain = f'"{escaped}{json.dumps(value[1:])[1:]}'
    return plain


@st.composite
def texts(draw: st.DrawFn, value: Any) -> str:
    """One of the ways to write a value in JSON, with white space wherever it may be."""
    before, after = draw(SPACE), draw(SPACE)
    if isinstance(value, str):
        return before + draw(strings(value)) + after
    if isinstance(value, list):
        return before + "[" + ",".join(draw(texts(item)) for item in value) + "]" + after if value else "[ ]"
    if isinstance(value, dict):
        members = [
            f"{draw(SPACE)}{draw(strings(name))}{draw(SPACE)}:{draw(texts(item))}"
            for name, item in value.items()
        ]
        return f"{before}{{{','.join(members) or draw(SPACE)}}}{after}"
    return before + json.dumps(value) + after


@st.composite
def documents(draw: st.DrawFn, values: st.SearchStrategy[Any] = VALUES) -> tuple[Any, str]:
    """A value and a text that stands for it."""
    value = draw(values)
    return value, draw(texts(value))


def walk(document: Document) -> Any:
    """Read a document member by member, without a look at more than one value at a time."""
    if document.at("{"):
        return {name: walk(document) for name, _ in document.members()}
    if document.at("["):
        return [walk(document) for _ in document.elements()]
    return document.value()


def amended(text: str, unwanted: set[str], added: dict[str, str]) -> str:
    document = Document(text.encode())
    document.amend(unwanted.__contains__, added)
    return document.result().decode()


@EXAMPLES
@given(documents())
def test_reading_changes_nothing(item: tuple[Any, str]) -> None:
    value, text = item
    document = Document(text.encode())
    assert walk(document) == value
    assert document.result() == text.encode()


@EXAMPLES
@given(documents())
def test_what_is_not_read_is_skipped(item: tuple[Any, str]) -> None:
    value, text = item
    body = f'{{"a":{text},"b":[{text},{text}]}}'.encode()
    document = Document(body)
    assert [name for name, _ in document.members()] == ["a", "b"]
    assert document.result() == body
    document = Document(f"[{text},{text}]".encode())
    assert len(list(document.elements())) == 2
    assert json.loads(document.result()) == [value, value]


@EXAMPLES
@given(
    documents(st.dictionaries(NAMES | st.text(), VALUES, max_size=6)),
    st.sets(NAMES),
    st.dictionaries(st.sampled_from(["trust:new", "x\x00\N{SNOWMAN}"]), st.text(), max_size=2),
)
def test_members_are_left_out_and_added(
    item: tuple[Any, str], unwanted: set[str], added: dict[str, str]
) -> None:
    value, text = item
    changed = amended(text, unwanted, added)
    expected = [(name, kept) for name, kept in value.items() if name not in unwanted]
    assert json.loads(changed, object_pairs_hook=list) == json.loads(
        json.dumps(dict(expected)), object_pairs_hook=list
    ) + list(added.items())


@EXAMPLES
@given(documents(st.dictionaries(NAMES | st.text(), VALUES, max_size=6)), st.sets(NAMES))
def test_what_stays_keeps_its_bytes(item: tuple[Any, str], unwanted: set[str]) -> None:
    value, text = item
    left = amended(text, unwanted, {})
    if not unwanted & value.keys():
        assert left == text
    # Adding behind, and taking that out again, is no change either.
    assert amended(amended(text, set(), {"new": "1"}), {"new"}, {}) == text or "new" in value


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("{}", '{"t": "1"}'),
        ("{ }", '{"t": "1" }'),
        ('{"a":1}', '{"a":1, "t": "1"}'),
        ('{ "a" : 1 }', '{ "a" : 1, "t": "1" }'),
        ('{"x":1}', '{"t": "1"}'),
        ('{ "x":1 }', '{ "t": "1" }'),
        ('{"x":1,"a":2}', '{"a":2, "t": "1"}'),
        ('{"a":1 , "x":2 }', '{"a":1, "t": "1" }'),
        ('{"a":1,"x":2,"x":3}', '{"a":1, "t": "1"}'),
        ('{"x":0,"x":1,"a":2,"x":3,"a":4,"x":5,"x":6}', '{"a":2,"a":4, "t": "1"}'),
        ('{"\\u0078":1,"a":2}', '{"a":2, "t": "1"}'),
    ],
)
def test_commas_and_space(text: str, changed: str) -> None:
    assert amended(text, {"x"}, {"t": "1"}) == changed


@EXAMPLES
@given(documents(st.fixed_dictionaries({"metadata": VALUES}, optional={"id": VALUES, 'a"metadata': VALUES})))
def test_a_member_is_found_again(item: tuple[Any, str]) -> None:
    value, text = item
    name = "metadata"
    document = Document(f"[{text},1]".encode())
    found = []
    for number, _ in enumerate(document.elements()):
        start = document.position
        whole = document.value()
        if number == 0:
            assert whole == value
            found = [document.value() for _ in document.again(start, name)]
    assert found == [value[name]]
    assert json.loads(document.result()) == [value, 1]


@pytest.mark.parametrize(
    "text",
    [
        '{"note": "\\"metadata", "\\u006detadata": {}, "b": 1}',
        '{"note": "metadata", "metadata": {}}',
        '{"deep": {"metadata": 1}, "metadata": {}}',
        '{"metadata": {"metadata": 1}}',
        '{"metadata": {}, "note": "a\\"metadata\\"b"}',
        '{"metadata" \n: {} }',
        '{"note": "\\\\", "metadata": {}}',
        '{"note": "\\\\\\"metadata", "metadata": {}}',
        '{"a": "\\u00e9\\n\\u001b", "metadata": {}}',
        '{"a": "metadat\\u0061", "metadata": {}}',
        '{"metadat\\u0061": {}, "a": "metadata"}',
        '{"metadat\\u0061": {}, "a": ["metadata"]}',
    ],
)
def test_look_alikes_are_not_the_member(text: str) -> None:
    document = Document(text.encode())
    document.value()
    for _ in document.again(0, "metadata"):
        assert document.at("{")
        document.amend(lambda name: False, {"here": "1"})
    expected = json.loads(text)
    expected["metadata"]["here"] = "1"
    assert json.loads(document.result()) == expected


def test_every_one_of_several_is_found() -> None:
    document = Document(b'{"metadata":{"x":1},"a":[],"metadata":{"x":2}}')
    document.value()
    for _ in document.again(0, "metadata"):
        document.amend({"x"}.__contains__, {"t": "1"})
    assert document.result() == b'{"metadata":{"t": "1"},"a":[],"metadata":{"t": "1"}}'


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("depth", [2_000, 1_000_000])
def test_depth_is_bounded(opening: str, depth: int) -> None:
    document = Document((opening * depth).encode())
    with pytest.raises(SpliceError):
        document.value()


def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "MAX_BYTES", 10)
    assert Document(b" " * 10).position == 10
    with pytest.raises(SpliceError, match="11 bytes"):
        Document(b" " * 11)


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"{}}", b"{} {}", b"[1,]", b'{"a":1,}', b'{"a" 1}', b"{a:1}", b"{1:1}",
        b'{"a":1 "b":2}',
        b"[1 2]", b'{"a":1]', b"[1}", b"nul", b"NaN", b"[Infinity]", b"'a'", b'"\n"',
        b'"\\x"', b'"a', b"\xff",
        b'"\xc3"', b'\xef\xbb\xbf{}', b'{"a"\xc2\xa0:1}', b"\x00", b"01", b"9" * 5000, '"a"'.encode("utf-16"),
        b"/**/{}", b'{"a":\x0b1}',
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(SpliceError):
        walk_all(body)


@EXAMPLES
@given(st.binary(max_size=60) | st.text('{}[]":,\\ua1 ', max_size=40).map(str.encode))
def test_garbage_is_read_as_json_would_be_or_refused(body: bytes) -> None:
    try:
        value = walk_all(body)
    except AttestError:
        return
    assert json.loads(body, object_pairs_hook=dict) == value


def walk_all(body: bytes) -> Any:
    document = Document(body)
    value = walk(document)
    assert document.result() == body
    return value
