# SPDX-License-Identifier: Apache-2.0
"""An API that lies, or repeats what guests say, reaches no terminal and breaks no command."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.osc import rows
from nova_vmi_attest.osc.client import ClientError
from tests.unit.osc.http_api import PlayedApi

TEXT = st.text(max_size=20) | st.just("\x1b[2J\r\n\u202e")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
REASON = st.dictionaries(st.sampled_from(["check", "symbol", "offset", "length", "detail"]), ANYTHING)


def is_plain(shown: Any) -> bool:
    text = shown.human_readable() if hasattr(shown, "human_readable") else str(shown)
    return all(sign.isprintable() or sign == "\n" for sign in text)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXT, ANYTHING, max_size=6), st.lists(REASON | ANYTHING, max_size=4))
def test_whatever_is_shown_has_no_control_characters(item: dict[str, Any], reasons: list[Any]) -> None:
    names, values = rows.record({**item, "reasons": reasons})
    assert all(map(is_plain, [*names, *values]))
    assert all(map(is_plain, rows.table(("a", "reasons"), [{"a": item, "reasons": reasons}])[1][0]))


@pytest.mark.parametrize(
    "document", [b"[" * 100_000, b'{"hosts": [' * 50_000, b"\xff", b'{"hosts": ["x", 1]}']
)
def test_an_answer_that_is_none_is_an_error_of_ours(api: PlayedApi, document: bytes) -> None:
    for status in (200, 500):
        api.answer = lambda method, path, status=status: (status, document)
        with pytest.raises(ClientError):
            list(api.client.list("hosts"))


def test_a_refusal_cannot_paint_the_screen(api: PlayedApi) -> None:
    api.answer = lambda method, path: (409, {"detail": "\x1b[2Jall is well", "remedy": "type\r\nthis"})
    with pytest.raises(ClientError) as caught:
        api.client.show("hosts", "h")
    assert str(caught.value).isprintable()
    assert caught.value.remedy.isprintable()
