# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.references.streams import Forward, PackageError, Slice, unpack_whole, unpacked
from tests.unit.kernel.mutation import mutated, refusal

from .packages import COMPRESSIONS

DATA = bytes(range(256)) * 5000


@pytest.mark.parametrize("how", sorted(COMPRESSIONS))
def test_every_compression(how: str) -> None:
    packed = COMPRESSIONS[how](DATA)
    assert unpack_whole(packed, len(DATA)) == DATA
    stream = unpacked(io.BytesIO(packed), packed[:6], len(DATA), len(DATA))
    assert stream.read(1000) == DATA[:1000]
    stream.seek(700_000)
    assert stream.tell() == 700_000
    assert stream.read(len(DATA)) == DATA[700_000:]
    assert stream.read(10) == b""


@pytest.mark.parametrize("how", ["gz", "xz", "zst"])
def test_bomb(how: str) -> None:
    bomb = COMPRESSIONS[how](bytes(64 << 20))
    assert len(bomb) < 1 << 20
    with pytest.raises(PackageError, match="more than"):
        unpack_whole(bomb, 1 << 20)


@pytest.mark.parametrize("how", ["gz", "xz"])
def test_cut_off(how: str) -> None:
    packed = COMPRESSIONS[how](DATA)
    with pytest.raises(PackageError, match="damaged"):
        unpack_whole(packed[:-20], len(DATA))


def test_read_is_bounded() -> None:
    stream = Forward(io.BytesIO(DATA), 1 << 30, 100)
    for size in (101, -1):
        with pytest.raises(PackageError, match="more than"):
            stream.read(size)
    assert stream.read(100) == DATA[:100]


def test_no_step_back() -> None:
    stream = Forward(io.BytesIO(DATA), 1 << 30, 100)
    stream.read(10)
    with pytest.raises(PackageError, match="order"):
        stream.seek(9)
    stream.seek(1 << 40)
    assert stream.tell() == len(DATA)


def test_slice() -> None:
    part = Slice(io.BytesIO(DATA), 10, 20)
    assert part.readable()
    assert part.read(5) + part.read() + part.read(1) == DATA[10:30]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(COMPRESSIONS)).flatmap(lambda how: mutated(COMPRESSIONS[how](DATA[:3000]))))
def test_mutated(packed: bytes) -> None:
    assert refusal(lambda: unpack_whole(packed, 1 << 20)) != ""
