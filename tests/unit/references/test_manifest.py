# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.references.manifest import Blob, Manifest, ManifestError, ModuleBlob, Source
from tests.unit.kernel.mutation import mutated, refusal

MANIFEST = Manifest(
    release="6.1.0-test",
    build_id="00" * 20,
    banner_digest="11" * 32,
    image=Blob("22" * 32, 1000),
    modules=(ModuleBlob("a_mod", "33" * 32, 10), ModuleBlob("b", "44" * 32, 20)),
    source=Source("linux-image-test", "6.1-1", "55" * 32),
)


def _changed(**fields: Any) -> bytes:
    value = json.loads(MANIFEST.encode())
    value.update(fields)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_round_trip() -> None:
    assert Manifest.decode(MANIFEST.encode()) == MANIFEST


def test_digest_is_of_the_encoding() -> None:
    assert MANIFEST.digest == hashlib.sha256(MANIFEST.encode()).hexdigest()


def test_encoding_is_canonical() -> None:
    value = json.loads(MANIFEST.encode())
    assert MANIFEST.encode() == json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    assert value["format"] == 1
    with pytest.raises(ManifestError):
        Manifest.decode(json.dumps(value).encode())


MODULE = {"digest": "33" * 32, "name": "a", "size": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 2},
        {"format": True},
        {"architecture": "aarch64"},
        {"extra": 1},
        {"release": "a b"},
        {"release": ""},
        {"release": 6},
        {"build_id": "xyz"},
        {"banner_digest": "11" * 31},
        {"banner_digest": "AA" * 32},
        {"image": {"digest": "22" * 32, "size": -1}},
        {"image": {"digest": "22" * 32, "size": 1 << 40}},
        {"image": {"digest": "../etc", "size": 1}},
        {"image": None},
        {"modules": {}},
        {"modules": [1]},
        {"modules": [{**MODULE, "name": "a-b"}]},
        {"modules": [{**MODULE, "name": "../a"}]},
        {"modules": [MODULE, MODULE]},
        {"modules": [{**MODULE, "name": "b"}, MODULE]},
        {"modules": [MODULE] * 40000},
        {"source": {"digest": "55" * 32, "package": "x" * 300, "version": ""}},
        {"source": {"digest": "55" * 32, "package": "\x1b[2J", "version": ""}},
    ],
)
def test_malformed(fields: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        Manifest.decode(_changed(**fields))


def test_what_cannot_be_read_back_is_not_written() -> None:
    swapped = dataclasses.replace(MANIFEST, modules=tuple(reversed(MANIFEST.modules)))
    for manifest in (
        swapped,
        dataclasses.replace(MANIFEST, release="a b"),
        dataclasses.replace(MANIFEST, release="\udcff"),
        dataclasses.replace(MANIFEST, image=Blob("22" * 32, 1 << 60)),
    ):
        with pytest.raises(ManifestError):
            manifest.encode()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=100))
def test_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.decode(data)


@settings(max_examples=100, deadline=None)
@given(mutated(MANIFEST.encode()))
def test_mutated(data: bytes) -> None:
    assert refusal(lambda: Manifest.decode(data)) != ""
