# SPDX-License-Identifier: Apache-2.0
"""The verifier's question to one host, and the binding that makes an answer belong to it.

Anybody on the bus could ask a host for a quote, so a challenge is signed and names the host. The binding goes
into the quote and into every leaf: it fixes host, asking verifier and nonces. A host that passes the question
on to another host gets an answer that names the other one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding, jws, keys
from nova_vmi_attest.evidence.encoding import MAX_INTEGER, EncodingError

KIND = "nova-vmi-attest-challenge+jwt"
BINDING_DOMAIN = b"nova-vmi-attest quote v1\0"
NONCE_SIZE = 32
MAX_NONCES = 256
MAX_HOST = 253
MAX_LIFETIME = 3600
# How far the clocks of a verifier and a host may differ, in seconds.
CLOCK_SKEW = 60
_MAX_CLAIMS = 2048


class ChallengeError(AttestError):
    """A challenge is malformed, forged, for another host, or not valid at this time."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One question.

    :param host: the host that is asked, as Nova names it.
    :param nonce: 32 octets that the verifier never used before.
    :param since: the number of the first log record that the verifier lacks.
    :param issued: seconds since 1970, as is ``expires``; at most an hour apart.
    """

    host: str
    nonce: bytes
    since: int
    issued: int
    expires: int


def sign_challenge(challenge: Challenge, private_key: ec.EllipticCurvePrivateKey) -> str:
    """The challenge as a compact JWS (ES256, ``typ`` :data:`KIND`).

    :raises ChallengeError: if no host would accept the challenge.
    """
    claims = {
        "aud": challenge.host,
        "exp": challenge.expires,
        "iat": challenge.issued,
        "nonce": encoding.base64url(challenge.nonce),
        "since": challenge.since,
    }
    try:
        _from_claims(claims)
        return jws.sign(claims, private_key, KIND)
    except EncodingError as error:
        raise ChallengeError(f"the challenge cannot be sent: {error.message}") from error


def verify_challenge(
    token: str, public_keys: Iterable[ec.EllipticCurvePublicKey], host: str, now: float
) -> tuple[Challenge, bytes]:
    """The challenge in a token, and the RFC 7638 thumbprint (32 bytes) of the verifier that signed it.

    :param public_keys: the verifiers that this host answers.
    :param host: the name of this host.
    :param now: seconds since 1970.
    :raises ChallengeError: naming what is wrong. NOT checked: whether the nonce was seen before.
    """
    try:
        claims, key = jws.verify(token, public_keys, KIND, _MAX_CLAIMS)
        challenge = _from_claims(claims)
    except (jws.SignatureError, EncodingError) as error:
        raise ChallengeError(f"challenge refused: {error.message}") from error
    if challenge.host != host:
        raise ChallengeError(f"the challenge is for {challenge.host}, not for {host}")
    if challenge.issued > now + CLOCK_SKEW:
        raise ChallengeError(
            f"the challenge was issued {challenge.issued - now:.0f} s in the future",
            "compare the clocks of this host and the verifier",
        )
    if challenge.expires <= now:
        raise ChallengeError(f"the challenge expired {now - challenge.expires:.0f} s ago")
    return challenge, keys.thumbprint(key)


def binding(host: str, verifier_thumbprint: bytes, nonces: Sequence[bytes]) -> bytes:
    """What ties an answer to its question: the qualifyingData of the quote, and a part of every leaf.

    ``SHA-256("nova-vmi-attest quote v1" ‖ 0x00 ‖ u16 length of host ‖ host in UTF-8 ‖ thumbprint(32) ‖
    u16 number of nonces ‖ the nonces (32 each) in ascending order)``, integers big-endian.

    :raises ChallengeError: if the host name is empty or too long, the thumbprint or a nonce has not 32 bytes,
        or the nonces are none, too many, or not all different.
    """
    name = host_octets(host)
    if len(verifier_thumbprint) != 32:
        raise ChallengeError("the thumbprint of a verifier's key has 32 bytes")
    if not 1 <= len(nonces) <= MAX_NONCES or len(set(nonces)) != len(nonces):
        raise ChallengeError(f"a quote answers 1 to {MAX_NONCES} different nonces")
    if any(len(nonce) != NONCE_SIZE for nonce in nonces):
        raise ChallengeError(f"a nonce has {NONCE_SIZE} bytes")
    parts = [BINDING_DOMAIN, struct.pack(">H", len(name)), name, verifier_thumbprint]
    return hashlib.sha256(b"".join([*parts, struct.pack(">H", len(nonces)), *sorted(nonces)])).digest()


def host_octets(host: str) -> bytes:
    """A host name in UTF-8.

    :raises ChallengeError: unless it is 1 to 253 octets of visible text.
    """
    try:
        name = host.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ChallengeError("the host name is not Unicode text") from error
    if not 1 <= len(name) <= MAX_HOST or not encoding.visible(host):
        raise ChallengeError(f"a host name is 1 to {MAX_HOST} octets of visible text")
    return name


def _from_claims(claims: dict[str, object]) -> Challenge:
    encoding.exact_keys(claims, ("aud", "exp", "iat", "nonce", "since"), "a challenge")
    challenge = Challenge(
        host=encoding.text(claims, "aud", MAX_HOST),
        nonce=encoding.octets(claims, "nonce", NONCE_SIZE, minimum=NONCE_SIZE),
        since=encoding.integer(claims, "since"),
        issued=encoding.integer(claims, "iat"),
        expires=encoding.integer(claims, "exp", 0, MAX_INTEGER),
    )
    host_octets(challenge.host)
    if not 0 < challenge.expires - challenge.issued <= MAX_LIFETIME:
        raise ChallengeError(f"a challenge lives 1 to {MAX_LIFETIME} seconds")
    return challenge
