# SPDX-License-Identifier: Apache-2.0
"""One round: challenges in, one evidence batch out, with one TPM quote for all guests of the host.

The order is what makes the evidence worth something. The nonces are known before the guests are measured
and are in every leaf, so no measurement is older than the challenge; the root is in the log before it is in
the PCR, so no extend is without an entry; and the quote comes last, so it covers both.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from nova_vmi_attest.attester.journal import Journal
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.batch import MAX_ENTRIES, Batch, GuestEvidence, Quote, batch_root
from nova_vmi_attest.evidence.challenge import Challenge, binding
from nova_vmi_attest.evidence.log import ZERO_DIGEST
from nova_vmi_attest.evidence.measurement import Measurement
from nova_vmi_attest.tpm.device import Tpm

# How many records are sent to a verifier that knows none of this host: an agent that runs for months has far
# more of them than a batch may hold.
_NEWEST = 4096


class RoundError(AttestError):
    """A verifier asks for more than an answer can hold."""


class RoundRunner:
    """Runs rounds, one at a time.

    :param host: this host's name in Nova.
    :param measure: measures the guests that run on this host now, in any order.
    :param pcrs: indices of the host's PCRs that every quote covers, the log's PCR among them.
    :param certificate: gives the current AK certificate (DER).
    """

    def __init__(
        self,
        host: str,
        measure: Callable[[], Sequence[Measurement]],
        tpm: Tpm,
        journal: Journal,
        pcrs: Sequence[int],
        certificate: Callable[[], bytes],
    ) -> None:
        self._host = host
        self._measure = measure
        self._tpm = tpm
        self._journal = journal
        self._pcrs = tuple(sorted(pcrs))
        self._certificate = certificate

    def run(self, verifier: bytes, challenges: Sequence[Challenge]) -> Batch:
        """Answer all challenges of one verifier key with one quote.

        :param verifier: RFC 7638 thumbprint of the key that signed them.
        :raises HypervisorError: it is not known which guests there are.
        :raises RoundError: more log records were asked for than a batch may hold.
        :raises JournalError: the entry could not be made durable, or the PCR was extended by somebody else.
        :raises TpmError: the TPM refused, or the PCRs kept changing.
        """
        nonces = tuple(sorted({challenge.nonce for challenge in challenges}))
        bound = binding(self._host, verifier, nonces)
        guests = tuple(
            GuestEvidence(measurement.guest, secrets.token_bytes(32), measurement)
            for measurement in sorted(self._measure(), key=lambda found: found.guest.bytes)
        )
        with self._journal.frozen():
            first = self._first_record(challenges)
            entry = self._journal.append_batch(batch_root(guests, bound), len(guests))
            attest, signature, values = self._tpm.quote_with_values(self._pcrs, bound)
            self._journal.mark_quoted(entry.recnum + 1)
            entries = self._journal.entries(first)
            log_start = self._journal.value_before(first) if entries else ZERO_DIGEST
        return Batch(
            host=self._host,
            verifier=verifier,
            nonces=nonces,
            entries=entries,
            log_start=log_start,
            quote=Quote(attest, signature, values),
            ak_certificate=self._certificate(),
            guests=guests,
        )

    def _first_record(self, challenges: Sequence[Challenge]) -> int:
        """The number of the first record to send, so that it suits everybody who asked."""
        length = self._journal.next_recnum
        wanted = [challenge.since for challenge in challenges if challenge.since]
        if len(wanted) < len(challenges):
            wanted.append(max(self._journal.epoch_start, length - _NEWEST))
        first = min(wanted)
        # A boot, a resume and the round's own record may come on top.
        if length + 3 - first > MAX_ENTRIES:
            raise RoundError(
                f"a verifier lacks {length - first} log records of host {self._host}, and a batch holds "
                f"{MAX_ENTRIES}",
                f"have the verifiers begin anew: nova-vmi-attest-manage host forget {self._host}",
            )
        return first
