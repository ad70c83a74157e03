# SPDX-License-Identifier: Apache-2.0
"""What a round costs: one quote, and a whole round from the nonce to the signed result."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from lab.deployment import Deployment
from lab.tpm import TPM_CC_QUOTE, SoftwareTpm

from bench.harness import Row, compare, row, timed
from nova_vmi_attest.tpm.device import Tpm

ROUNDS = 15
PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 13)


def quote(tpm: SoftwareTpm) -> Iterator[Row]:
    """One quote of nine PCRs by a P-256 key over a protected session, on the software TPM."""
    key = ec.generate_private_key(ec.SECP256R1())
    with Tpm(tpm.tcti) as device:
        device.provision_ak(0x81010040)
        yield compare(
            "quote",
            lambda: device.quote(PCRS, b"\0" * 32),
            "a bare ECDSA P-256 signature in software",
            lambda: key.sign(b"\0" * 128, ec.ECDSA(hashes.SHA256())),
        )


def rounds(deployment: Deployment, tpm: SoftwareTpm, guests: int) -> Iterator[Row]:
    """Whole rounds, all services in one process, from the challenge to the stored result."""
    deployment.round()
    before = tpm.count(TPM_CC_QUOTE)
    spent = [timed(deployment.round) for _ in range(ROUNDS)]
    quotes = (tpm.count(TPM_CC_QUOTE) - before) / ROUNDS
    yield row(f"round_{guests}_guests", spent, "ms")
    yield row(
        f"quotes_per_round_{guests}_guests", [quotes], "quotes", "one quote for each guest", quotes / guests
    )
