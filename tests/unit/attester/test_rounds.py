# SPDX-License-Identifier: Apache-2.0
"""A round binds what was measured: nonces, leaves, log and quote belong together."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from nova_vmi_attest.attester.journal import ForeignExtend, Journal
from nova_vmi_attest.attester.rounds import RoundError, RoundRunner
from nova_vmi_attest.evidence.batch import Batch, batch_root
from nova_vmi_attest.evidence.challenge import Challenge, binding
from nova_vmi_attest.evidence.log import EntryKind, replay
from nova_vmi_attest.evidence.measurement import Measurement, Unmeasured
from nova_vmi_attest.introspection.measure import unmeasured
from tests.unit.attester.fake_tpm import PCR, FakeTpm

VERIFIER = b"\x01" * 32
GUESTS = tuple(uuid.UUID(int=number) for number in (3, 1, 2))


class QuotingTpm(FakeTpm):
    """Quotes without a signature: what is tested here is what is asked of the TPM."""

    def __init__(self) -> None:
        super().__init__()
        self.quoted: list[tuple[tuple[int, ...], bytes]] = []

    def quote_with_values(
        self, pcrs: Iterable[int], qualifying_data: bytes
    ) -> tuple[bytes, bytes, dict[int, bytes]]:
        self.quoted.append((tuple(pcrs), qualifying_data))
        return b"attest", b"signature", self.read_pcrs(self.quoted[-1][0])


def measure() -> tuple[Measurement, ...]:
    """Measures nothing, but says for whom, in no order."""
    return tuple(unmeasured(guest, Unmeasured.BOOTING, "still booting") for guest in GUESTS)


def challenge(number: int, since: int = 0) -> Challenge:
    return Challenge("compute-1", number.to_bytes(32, "big"), since, 1, 2)


@pytest.fixture
def tpm() -> QuotingTpm:
    return QuotingTpm()


def run(tpm: QuotingTpm, path: Path, challenges: Sequence[Challenge], rounds: int = 1) -> Batch:
    with Journal(path, tpm, PCR) as journal:
        runner = RoundRunner("compute-1", measure, tpm, journal, [PCR, 0, 7], lambda: b"DER")  # type: ignore[arg-type]
        for _ in range(rounds):
            batch = runner.run(VERIFIER, challenges)
        assert journal.coverage.quoted == journal.next_recnum
    return batch


def test_one_quote_binds_every_guest_and_every_nonce(tpm: QuotingTpm, tmp_path: Path) -> None:
    batch = run(tpm, tmp_path / "log", [challenge(2), challenge(1), challenge(2)])
    bound = binding("compute-1", VERIFIER, batch.nonces)
    assert batch.nonces == (challenge(1).nonce, challenge(2).nonce)
    assert tpm.quoted == [((0, 7, PCR), bound)]
    assert [item.guest for item in batch.guests] == sorted(GUESTS, key=lambda guest: guest.bytes)
    assert len({item.salt for item in batch.guests}) == len(GUESTS)
    entry = batch.entries[-1]
    assert (entry.kind, entry.guests, entry.root) == (
        EntryKind.BATCH,
        len(GUESTS),
        batch_root(batch.guests, bound),
    )
    assert Batch.decode(batch.encode()) == batch


def test_the_log_explains_the_pcr_that_was_quoted(tpm: QuotingTpm, tmp_path: Path) -> None:
    batch = run(tpm, tmp_path / "log", [challenge(1)], rounds=3)
    value = bytes(32)
    for entry in batch.entries:
        value = hashlib.sha256(value + entry.digest).digest()
    assert batch.quote.pcrs[PCR] == value
    assert [entry.recnum for entry in batch.entries] == [0, 1, 2, 3]


def test_only_the_entries_that_a_verifier_lacks_travel(tpm: QuotingTpm, tmp_path: Path) -> None:
    batch = run(tpm, tmp_path / "log", [challenge(1, since=3), challenge(2, since=2)], rounds=3)
    assert [entry.recnum for entry in batch.entries] == [2, 3]


def test_nothing_is_quoted_after_a_foreign_extend(tpm: QuotingTpm, tmp_path: Path) -> None:
    run(tpm, tmp_path / "log", [challenge(1)])
    tpm.extend(PCR, b"\xee" * 32)
    tpm.quoted.clear()
    with pytest.raises(ForeignExtend):
        run(tpm, tmp_path / "log", [challenge(2)])
    assert tpm.quoted == []


def test_who_knows_nothing_gets_the_newest_records_of_this_boot(
    tpm: QuotingTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tpm, tmp_path / "log", [challenge(1)], rounds=3)
    tpm.reboot()
    batch = run(tpm, tmp_path / "log", [challenge(2)], rounds=4)
    assert [entry.recnum for entry in batch.entries] == [4, 5, 6, 7, 8]
    assert (batch.entries[0].kind, batch.log_start) == (EntryKind.BOOT, bytes(32))
    monkeypatch.setattr("nova_vmi_attest.attester.rounds._NEWEST", 2)
    batch = run(tpm, tmp_path / "log", [challenge(3)])
    assert [entry.recnum for entry in batch.entries] == [7, 8, 9]
    assert replay(batch.log_start, batch.entries) == tpm.value
    # Who knows something is sent all that follows, over any number of boots.
    batch = run(tpm, tmp_path / "log", [challenge(4), challenge(5, since=2)])
    assert [entry.recnum for entry in batch.entries] == list(range(2, 11))
    batch = run(tpm, tmp_path / "log", [challenge(6, since=99)])
    assert (batch.entries, batch.log_start) == ((), bytes(32))


def test_more_records_than_a_batch_may_hold_are_an_error_with_a_remedy(
    tpm: QuotingTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nova_vmi_attest.attester.rounds.MAX_ENTRIES", 6)
    monkeypatch.setattr("nova_vmi_attest.attester.rounds._NEWEST", 2)
    run(tpm, tmp_path / "log", [challenge(1)], rounds=5)
    with pytest.raises(RoundError, match="host forget compute-1"):
        run(tpm, tmp_path / "log", [challenge(2, since=1)])
