# SPDX-License-Identifier: Apache-2.0
"""What a person gives in order to check a proof: a nonce, certificates, and a moment, as text."""

from __future__ import annotations

import datetime
import time

from cryptography import x509

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.challenge import NONCE_SIZE


class GivenError(AttestError):
    """What was given cannot be understood."""


def nonce(text: str) -> bytes:
    """A nonce of 32 octets from 64 hex digits.

    :raises GivenError: it is something else.
    """
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != NONCE_SIZE:
        raise GivenError(f"the nonce is not of {2 * NONCE_SIZE} hex digits")
    return found


def moment(text: str | None) -> float:
    """A time in ISO 8601, UTC where it names no zone, as seconds since 1970; now for ``None``.

    :raises GivenError: it is no time, or one that cannot be counted in seconds.
    """
    if text is None:
        return time.time()
    try:
        found = datetime.datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise GivenError(f"{text!r:.64} is not a time like 2026-01-31T12:00:00Z") from error


def certificates(data: bytes, source: object) -> list[x509.Certificate]:
    """The certificates in a PEM file, at least one; nothing is verified.

    :param source: where they come from, for the message.
    :raises GivenError: there is none that can be read.
    """
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise GivenError(f"{source} holds no readable certificate: {error}") from error
