# SPDX-License-Identifier: Apache-2.0
"""Verification of one TPM2_Quote: the only way to a :class:`VerifiedQuote`.

The steps follow each other as a reader would check them by hand. PCR values count only when the quote covers
exactly them: a PCR that was supplied but not quoted would be believed for nothing, and one that was quoted
but not supplied could hide what was measured.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.tpm.structures import ALG_ECDSA, ALG_SHA256, Attest, Signature, StructureError

MAX_PCR = 23
_HASHES = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}
_SEAL = object()


class QuoteError(AttestError):
    """A quote does not prove the PCR values; the message begins with the number of the step that failed."""


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """What a quote proves. Only :func:`verify_quote` makes one.

    ``pcrs`` are the SHA-256 bank's values, 32 bytes each. ``clock`` is the TPM's, in milliseconds; ``safe``
    is false when the clock may have gone back at the last power loss.
    """

    qualified_signer: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    pcrs: Mapping[int, bytes]
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise QuoteError("a verified quote comes from verify_quote only")

    @property
    def epoch(self) -> tuple[int, int]:
        """``(reset_count, restart_count)``."""
        return self.reset_count, self.restart_count


def verify_quote(
    public_key: object, attest: bytes, signature: bytes, qualifying_data: bytes, pcrs: Mapping[int, bytes]
) -> VerifiedQuote:
    """Check a quote and return what it proves.

    :param public_key: the attestation key, RSA or P-256 / P-384, from a certificate that the caller verified.
    :param attest: TPMS_ATTEST octets.
    :param signature: TPMT_SIGNATURE octets.
    :param qualifying_data: what the quote must carry as extraData.
    :param pcrs: the claimed values of the SHA-256 bank, 32 bytes each, indices 0 to 23.
    :raises QuoteError: beginning with the number of the step that failed. NOT checked: whose key it is,
        whether the PCR values are good, whether clock and counters went forward.
    """
    # 1. The attestation key signed these octets.
    try:
        parsed = Signature.parse(signature)
        _verify_signature(public_key, parsed, attest)
    except StructureError as error:
        raise QuoteError(f"step 1, signature: {error.message}") from error

    # 2. They are a TPM-made structure of type quote, whole and with nothing behind it.
    try:
        quote = Attest.parse(attest)
    except StructureError as error:
        raise QuoteError(f"step 2, structure: {error.message}") from error

    # 3. It answers this question.
    if not hmac.compare_digest(quote.extra_data, qualifying_data):
        raise QuoteError("step 3, extraData: the quote answers another question")

    # 4. It covers exactly the PCRs that were supplied: the SHA-256 bank, no more and no fewer.
    supplied = tuple(sorted(pcrs))
    if not supplied or supplied[0] < 0 or supplied[-1] > MAX_PCR or any(len(pcrs[i]) != 32 for i in supplied):
        raise QuoteError(
            f"step 4, selection: the values supplied are not of PCRs 0 to {MAX_PCR}, 32 bytes each"
        )
    if len(quote.pcr_selection) != 1 or quote.pcr_selection[0][0] != ALG_SHA256:
        raise QuoteError("step 4, selection: the quote is not over the SHA-256 bank alone")
    quoted = quote.pcr_selection[0][1]
    if quoted != supplied:
        raise QuoteError(
            f"step 4, selection: PCRs {list(quoted)} were quoted, {list(supplied)} were supplied"
        )

    # 5. Their values are the quoted ones. The scheme's hash makes the digest (Part 3, TPM2_Quote).
    values = b"".join(pcrs[index] for index in supplied)
    if not hmac.compare_digest(hashlib.new(parsed.hash_name, values).digest(), quote.pcr_digest):
        raise QuoteError("step 5, digest: the values supplied are not the quoted ones")

    return VerifiedQuote(
        quote.qualified_signer,
        quote.clock,
        quote.reset_count,
        quote.restart_count,
        quote.safe,
        quote.firmware_version,
        MappingProxyType({index: bytes(pcrs[index]) for index in supplied}),
        _SEAL,
    )


def _verify_signature(public_key: object, signature: Signature, message: bytes) -> None:
    algorithm = _HASHES[signature.hash_name]
    try:
        if isinstance(public_key, ec.EllipticCurvePublicKey) and signature.algorithm == ALG_ECDSA:
            if not isinstance(public_key.curve, (ec.SECP256R1, ec.SECP384R1)):
                raise QuoteError(f"step 1, signature: a key on {public_key.curve.name} is not accepted")
            der = encode_dss_signature(signature.r, signature.s)
            public_key.verify(der, message, ec.ECDSA(algorithm))
        elif isinstance(public_key, rsa.RSAPublicKey) and signature.algorithm != ALG_ECDSA:
            if public_key.key_size < 2048:
                raise QuoteError(f"step 1, signature: an RSA key of {public_key.key_size} bits is too short")
            public_key.verify(signature.rsa, message, padding.PKCS1v15(), algorithm)
        else:
            raise QuoteError("step 1, signature: the scheme is not one of the attestation key's type")
    except InvalidSignature as error:
        raise QuoteError("step 1, signature: not made by this attestation key") from error
