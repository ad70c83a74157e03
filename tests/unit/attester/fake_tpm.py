# SPDX-License-Identifier: Apache-2.0
"""A PCR and counters that tests can crash, reboot and tamper with, and what must hold of a log after that."""

from __future__ import annotations

import hashlib

from nova_vmi_attest.attester.journal import Journal
from nova_vmi_attest.evidence.log import check_chain, replay
from nova_vmi_attest.tpm.device import PcrRights
from nova_vmi_attest.tpm.sessions import TpmError

PCR = 13
ZERO = bytes(32)
ROOT = b"\x11" * 32


class FakeTpm:
    """PCR and counters of a TPM; ``fail`` makes the next extend fail before or after it took place."""

    def __init__(self) -> None:
        self.counts = (1, 0)
        self.value = ZERO
        self.fail = ""

    def extend(self, pcr: int, digest: bytes) -> None:
        fail, self.fail = self.fail, ""
        if fail == "before":
            raise TpmError("crash")
        self.value = hashlib.sha256(self.value + digest).digest()
        if fail == "after":
            raise TpmError("crash")

    def read_pcrs(self, indices: tuple[int, ...]) -> dict[int, bytes]:
        return dict.fromkeys(indices, self.value)

    def epoch(self) -> tuple[int, int]:
        return self.counts

    def pcr_rights(self) -> PcrRights:
        return PcrRights(frozenset(range(16)) | {16, 23}, frozenset({16, 23}))

    def reboot(self) -> None:
        self.counts, self.value = (self.counts[0] + 1, 0), ZERO

    def restart(self) -> None:
        self.counts, self.value = (self.counts[0], self.counts[1] + 1), ZERO

    def resume(self) -> None:
        self.counts = (self.counts[0], self.counts[1] + 1)


def kinds(journal: Journal) -> str:
    return " ".join(entry.kind for entry in journal.entries(0))


def check(journal: Journal, tpm: FakeTpm) -> None:
    """What a verifier would compute from the entries is what the PCR holds."""
    entries = journal.entries(0)
    check_chain(entries, ZERO, 0)
    assert replay(ZERO, entries[journal.epoch_start :]) == tpm.value == journal.value
    assert journal.head == entries[-1].digest
