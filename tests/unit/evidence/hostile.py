# SPDX-License-Identifier: Apache-2.0
"""Hostile input for decoders: arbitrary JSON values, and valid objects with one thing changed in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

bounded = settings(max_examples=80, deadline=None)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(
        ["", "0x0", "0x00", "-1", "AA", "A", "=", "00" * 32, "AA" * 32, 2**53, -1, 2**64, 1e400]
    )
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: Callable[..., Any], valid: Any) -> Any:
    """``valid`` with one member, at any depth, replaced, removed, added, doubled or cut."""
    value = copy.deepcopy(valid)
    node = value
    while True:
        if isinstance(node, dict):
            places: list[Any] = sorted(node)
        else:
            places = list(range(len(node)))
        if not places:
            break
        place = draw(st.sampled_from(places))
        child = node[place]
        if not isinstance(child, (dict, list)) or draw(st.integers(0, 3)) == 0:
            break
        node = child
    change = draw(st.sampled_from(["replace", "remove", "add", "cut"]))
    if change == "add" or not places:
        if isinstance(node, dict):
            node[draw(st.text(max_size=8))] = draw(json_values)
        else:
            node.append(draw(json_values))
    elif change == "remove":
        del node[place]
    elif change == "cut" and isinstance(child, (str, list)):
        node[place] = child[: draw(st.integers(0, max(len(child) - 1, 0)))]
    else:
        node[place] = draw(json_values)
    return value


@st.composite
def damaged(draw: Callable[..., Any], valid: bytes) -> bytes:
    """``valid`` cut, lengthened, or with a few octets changed."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from(["cut", "insert", "set"]))
        place = draw(st.integers(0, len(data)))
        if change == "cut":
            del data[place : place + draw(st.integers(1, 16))]
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif place < len(data):
            data[place] = draw(st.integers(0, 255))
    return bytes(data)
