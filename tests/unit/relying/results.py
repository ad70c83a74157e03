# SPDX-License-Identifier: Apache-2.0
"""Signed results for the tests of relying parties."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import evidence_examples as examples

from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    Verdict,
    sign_result,
)
from nova_vmi_attest.relying.trust import TrustCache

KEY = examples.key("verifier")
NOW = 1_000_000
LIFETIME = 300
BAD = Reason("text", "f", 1, 2, "patched")


def signed(
    host: str,
    verdict: Verdict = Verdict.TRUSTED,
    guests: Mapping[uuid.UUID, Verdict] | None = None,
    *,
    issued: int = NOW,
    sequence: int = 1,
) -> str:
    """A result of a host; what is not trusted has a reason."""
    shown = tuple(
        GuestResult(guest, judged, () if judged is Verdict.TRUSTED else (BAD,), release="6.1.0-9")
        for guest, judged in sorted((guests or {}).items())
    )
    result = AttestationResult(HostResult(host, verdict), shown, issued, issued + LIFETIME, sequence)
    return sign_result(result, KEY, "cloud")


def cache(*tokens: str, now: int = NOW) -> TrustCache:
    """A cache that took these results in."""
    made = TrustCache([KEY.public_key()], "cloud")
    for token in tokens:
        made.ingest(token, now)
    return made
