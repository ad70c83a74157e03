# SPDX-License-Identifier: Apache-2.0
"""Log records: their form, their chain, and what they do to a PCR."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import evidence_examples as example
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence import encoding, log
from nova_vmi_attest.evidence.log import EntryKind, LogEntry, LogError

from .hostile import bounded, damaged, json_values, mutated

ENTRIES = example.entries(example.octets("root"))
digests = st.binary(min_size=32, max_size=32)
u32 = st.integers(0, 2**32 - 1)
records = st.builds(
    LogEntry,
    recnum=st.integers(0, 2**53 - 1),
    pcr=st.integers(0, 15),
    kind=st.just(EntryKind.BATCH),
    reset_count=u32,
    restart_count=u32,
    previous=digests,
    root=digests,
    guests=st.integers(0, 4096),
)


@bounded
@given(records)
def test_records_survive(entry: LogEntry) -> None:
    assert LogEntry.decode(entry.encode()) == entry


def test_is_a_cel_json_record() -> None:
    record = json.loads(ENTRIES[2].encode())
    assert set(record) == {"recnum", "pcr", "digests", "content_type", "content"}
    content = json.dumps(record["content"], sort_keys=True, separators=(",", ":")).encode()
    assert record["digests"] == [{"hashAlg": "sha256", "digest": hashlib.sha256(content).hexdigest()}]
    assert ENTRIES[2].digest == hashlib.sha256(content).digest()


@bounded
@given(mutated(ENTRIES[2].to_wire()) | json_values)
def test_changed_records_are_refused(value: object) -> None:
    try:
        entry = LogEntry.from_wire(value)
    except LogError:
        return
    # The PCR's index is the one member that no digest covers.
    assert dataclasses.replace(entry, pcr=ENTRIES[2].pcr) == ENTRIES[2]


@bounded
@given(damaged(ENTRIES[1].encode()))
def test_damaged_records_are_refused(data: bytes) -> None:
    try:
        entry = LogEntry.decode(data)
    except LogError:
        return
    assert entry.encode() == data


def test_long_records_are_refused() -> None:
    with pytest.raises(LogError, match="at most"):
        LogEntry.decode(ENTRIES[0].encode() + b" " * 4096)


@pytest.mark.parametrize(
    "change",
    [
        {"recnum": -1},
        {"recnum": 2**53},
        {"recnum": True},
        {"pcr": 16},
        {"kind": "batch"},
        {"kind": "other"},
        {"reset_count": 2**32},
        {"restart_count": -1},
        {"previous": bytes(31)},
        {"root": bytes(33)},
        {"guests": 4097},
        {"kind": EntryKind.BOOT},
        {"kind": EntryKind.RESUME, "root": bytes(32)},
    ],
)
def test_impossible_records_cannot_be_made(change: dict[str, object]) -> None:
    with pytest.raises(LogError):
        dataclasses.replace(ENTRIES[2], **change)


def test_number_inside_must_be_the_one_outside() -> None:
    value = ENTRIES[2].to_wire() | {"recnum": 3}
    with pytest.raises(LogError, match="another number inside"):
        LogEntry.from_wire(value)


def test_extend_is_that_of_the_tpm() -> None:
    assert log.extend(bytes(32), b"\1" * 32) == hashlib.sha256(bytes(32) + b"\1" * 32).digest()
    for pcr, digest in ((bytes(31), bytes(32)), (bytes(32), bytes(20))):
        with pytest.raises(LogError):
            log.extend(pcr, digest)


def test_replay_extends_every_record() -> None:
    value = bytes(32)
    for entry in ENTRIES:
        value = log.extend(value, entry.digest)
    assert log.replay(bytes(32), ENTRIES) == value
    assert log.replay(value, ()) == value


def test_chain() -> None:
    log.check_chain(ENTRIES, bytes(32), 0)
    log.check_chain(ENTRIES[1:], ENTRIES[0].digest, 1)
    log.check_chain((), bytes(32), 0)
    assert ENTRIES[0].epoch == (example.RESET_COUNT, example.RESTART_COUNT)


@pytest.mark.parametrize(
    ("entries", "previous", "recnum"),
    [
        (ENTRIES[1:], bytes(32), 1),
        (ENTRIES[1:], ENTRIES[0].digest, 0),
        (ENTRIES[::2], bytes(32), 0),
        (ENTRIES[::-1], bytes(32), 0),
        ((*ENTRIES, ENTRIES[2]), bytes(32), 0),
    ],
)
def test_broken_chains(entries: tuple[LogEntry, ...], previous: bytes, recnum: int) -> None:
    with pytest.raises(LogError, match="log record"):
        log.check_chain(entries, previous, recnum)


def test_digest_covers_the_content_only_in_canonical_form() -> None:
    assert ENTRIES[0].digest == encoding.digest(ENTRIES[0].content)
