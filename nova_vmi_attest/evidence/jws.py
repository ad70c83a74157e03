# SPDX-License-Identifier: Apache-2.0
"""Signed objects: compact JWS (RFC 7515) of one algorithm, with a type of its own for every kind of object.

The header is exactly ``{"alg": "ES256", "kid": thumbprint, "typ": kind}``. The caller says which kind it
expects and which keys it trusts, so neither the algorithm nor the meaning of a token is the sender's choice.
Nothing here looks at the claims or the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding, keys
from nova_vmi_attest.evidence.encoding import EncodingError

ALGORITHM = "ES256"
_HEADER_BYTES = 512
_SIGNATURE_BYTES = 64
_JWS = jwt.PyJWS(algorithms=[ALGORITHM])


class SignatureError(AttestError):
    """A token is malformed, of another kind, or not signed by a trusted key."""


def sign(claims: dict[str, Any], key: ec.EllipticCurvePrivateKey, kind: str) -> str:
    """The compact JWS of the canonical encoding of ``claims``.

    :param kind: the ``typ`` header.
    :raises EncodingError: if the claims have no canonical form.
    :raises KeyFileError: if the key is not on P-256.
    """
    headers = {"typ": kind, "kid": keys.key_id(key.public_key())}
    return _JWS.encode(encoding.canonical(claims), key, algorithm=ALGORITHM, headers=headers)


def verify(
    token: str, public_keys: Iterable[ec.EllipticCurvePublicKey], kind: str, limit: int
) -> tuple[dict[str, Any], ec.EllipticCurvePublicKey]:
    """The claims of a token and the trusted key that signed it.

    :param limit: the most octets that the claims may have.
    :raises SignatureError: naming what is wrong. NOT checked: audience, times, the meaning of any claim.
    """
    try:
        header, claims = _split(token, limit)
        if header != {"alg": ALGORITHM, "kid": header.get("kid"), "typ": kind}:
            raise SignatureError(f"the token's header is not that of a {kind}")
        key = _find(header["kid"], public_keys)
        _JWS.decode(token, key, algorithms=[ALGORITHM])
        return encoding.parse(claims, limit), key
    except EncodingError as error:
        raise SignatureError(f"malformed {kind}: {error.message}") from error
    except jwt.InvalidTokenError as error:
        raise SignatureError(f"the signature of the {kind} is wrong: {error}") from error


def _split(token: str, limit: int) -> tuple[dict[str, Any], bytes]:
    if not isinstance(token, str) or len(token) > (limit + _HEADER_BYTES + _SIGNATURE_BYTES) * 4 // 3 + 8:
        raise SignatureError(f"the token is not text for at most {limit} octets of claims")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise SignatureError("the token is not a compact JWS")
    header = encoding.parse(encoding.from_base64url(parts[0], _HEADER_BYTES), _HEADER_BYTES)
    if len(encoding.from_base64url(parts[2], _SIGNATURE_BYTES)) != _SIGNATURE_BYTES:
        raise SignatureError("the token has not a signature of 64 octets")
    return header, encoding.from_base64url(parts[1], limit)


def _find(identifier: object, public_keys: Iterable[ec.EllipticCurvePublicKey]) -> ec.EllipticCurvePublicKey:
    for key in public_keys:
        if keys.key_id(key) == identifier:
            return key
    raise SignatureError(f"the token is signed by an unknown key {str(identifier)[:48]!r}")
