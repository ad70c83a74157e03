# SPDX-License-Identifier: Apache-2.0
"""Cuts the proof of one guest out of the newest evidence of the host that Nova says it is on.

Another host that shows the guest, be it a decoy, is never asked; where a second one may show it, as in a
migration, its evidence counts only while the first one has none of the guest. The proof names the host, for
the quote in it does; it holds nothing of the other guests but hashes of salted leaves.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from http import HTTPStatus

from oslo_log import log
from sqlalchemy.orm import Session

from nova_vmi_attest.api.problems import Problem, not_found
from nova_vmi_attest.db.models import BatchRow
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.batch import Batch
from nova_vmi_attest.evidence.proof import GuestProof, make_proof

LOG = log.getLogger(__name__)


def find_proof(session: Session, guest: uuid.UUID, hosts: Sequence[str], nonce: str | None) -> bytes:
    """The encoded proof, as it is to be verified byte by byte.

    :param hosts: where the guest may be, the likeliest first.
    :param nonce: 64 hex digits, or ``None`` to take whatever was answered last.
    :raises Problem: there is no evidence of it, or none that answers the nonce.
    """
    found = (proof for host in hosts if (proof := _proof(session, guest, host)) is not None)
    proof = next(found, None)
    if proof is None:
        raise not_found("evidence for the server")
    if nonce is None or bytes.fromhex(nonce) in proof.nonces:
        return proof.encode()
    raise Problem(
        HTTPStatus.CONFLICT,
        "the newest evidence does not answer that nonce",
        "right after a challenge, ask again; later, challenge again with a new nonce",
    )


def _proof(session: Session, guest: uuid.UUID, host: str) -> GuestProof | None:
    row = session.get(BatchRow, host)
    if row is None or row.host != host:
        return None
    try:
        return make_proof(Batch.decode(row.batch), guest, bytes.fromhex(row.pcr_before))
    except AttestError as error:
        LOG.info("no proof of guest %s from host %s: %s", guest, host, error)
        return None
