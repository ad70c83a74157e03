# SPDX-License-Identifier: Apache-2.0
"""Batches: form, bounds and what is recomputed from them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import evidence_examples as example
import pytest
from hypothesis import given

from nova_vmi_attest.evidence import batch as module
from nova_vmi_attest.evidence import encoding, merkle
from nova_vmi_attest.evidence.batch import Batch, BatchError, GuestEvidence
from nova_vmi_attest.evidence.leaf import guest_leaf
from nova_vmi_attest.evidence.measurement_codec import measurement_digest

from .hostile import bounded, damaged, json_values, mutated

BATCH = example.batch()
DATA = BATCH.encode()
WIRE = json.loads(DATA)


def encode(value: Any) -> bytes:
    """As a sender would that is bound by nothing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def test_batches_survive() -> None:
    assert Batch.decode(DATA) == BATCH
    empty = example.batch(())
    assert Batch.decode(empty.encode()) == empty
    assert empty.leaves == ()


@bounded
@given(mutated(WIRE) | json_values)
def test_changed_batches_are_read_or_refused(value: Any) -> None:
    try:
        batch = Batch.decode(encode(value))
    except BatchError:
        return
    assert batch.encode() == encode(value)


@bounded
@given(damaged(DATA))
def test_damaged_batches_are_read_or_refused(data: bytes) -> None:
    try:
        batch = Batch.decode(data)
    except BatchError:
        return
    assert batch.encode() == data


def test_leaves_are_in_the_tree_of_the_last_record() -> None:
    leaves = [
        guest_leaf(item.salt, item.guest, measurement_digest(item.measurement), BATCH.binding)
        for item in BATCH.guests
    ]
    assert list(BATCH.leaves) == leaves
    assert BATCH.entry == BATCH.entries[-1]
    assert BATCH.entry.root == merkle.tree_root(leaves)
    assert module.batch_root(BATCH.guests, BATCH.binding) == BATCH.entry.root


def test_a_batch_without_its_record() -> None:
    batch = dataclasses.replace(BATCH, entries=BATCH.entries[:1])
    with pytest.raises(BatchError, match="no batch record"):
        assert batch.entry


@pytest.mark.parametrize(
    "change",
    [
        {"guests": BATCH.guests[::-1]},
        {"guests": (BATCH.guests[0],) * 2},
        {"guests": (dataclasses.replace(BATCH.guests[0], salt=bytes(31)),)},
        {"guests": (GuestEvidence(example.ALTERED, bytes(32), example.healthy()),)},
        {"nonces": ()},
        {"nonces": BATCH.nonces[::-1]},
        {"nonces": (bytes(32), bytes(32))},
        {"nonces": (bytes(31),)},
        {"verifier": bytes(31)},
        {"host": ""},
        {"host": "h" * 254},
        {"entries": BATCH.entries[:1] * 65537},
    ],
)
def test_impossible_batches_are_not_sent(change: dict[str, Any]) -> None:
    with pytest.raises(BatchError):
        dataclasses.replace(BATCH, **change).encode()


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("guests", WIRE["guests"][::-1], "out of order"),
        ("guests", [WIRE["guests"][0]] * 2, "there twice"),
        ("guests", [{}] * 4097, "at most 4096"),
        ("entries", [{}] * 65537, "at most 65536"),
        ("nonces", WIRE["nonces"][::-1], "ascending"),
        ("nonces", [], "different nonces"),
        ("nonces", ["AA"], "nonce"),
        ("nonces", [7], "nonce"),
        ("format", 2, "format 1"),
        ("format", True, "format 1"),
        ("kind", "proof", "not a batch"),
        ("host", "", "host name"),
        ("quote", WIRE["quote"] | {"pcrs": {"24": "00" * 32}}, "PCR values"),
        ("quote", WIRE["quote"] | {"pcrs": {"01": "00" * 32}}, "PCR values"),
        ("quote", WIRE["quote"] | {"pcrs": []}, "PCR values"),
        ("quote", WIRE["quote"] | {"attest": "A" * 6000}, "attest"),
        ("ak_certificate", "A" * 30000, "ak_certificate"),
    ],
)
def test_bounds_are_named(member: str, value: Any, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        Batch.decode(encode(WIRE | {member: value}))


def test_large_input_is_refused_unread() -> None:
    with pytest.raises(BatchError, match="at most 67108864"):
        Batch.decode(bytes((64 << 20) + 1))


def test_a_root_needs_order() -> None:
    with pytest.raises(BatchError, match="out of order"):
        module.batch_root(BATCH.guests[::-1], BATCH.binding)
    with pytest.raises(BatchError, match="no leaf"):
        module.guest_leaves(BATCH.guests, b"short")


def test_pcrs_of_a_decoded_quote_cannot_be_changed() -> None:
    quote = Batch.decode(DATA).quote
    assert list(quote.pcrs) == [*range(8), example.LOG_PCR]
    with pytest.raises(TypeError):
        quote.pcrs[0] = bytes(32)  # type: ignore[index]


def test_encoding_is_canonical() -> None:
    assert encoding.canonical(WIRE) == DATA
