# SPDX-License-Identifier: Apache-2.0
"""What a tenant needs to check one guest for himself, offline: from its measurement up to the host's TPM.

A proof holds the parts of one leaf, the path from it to the root, the log record with that root, and the
quote that covers the record. Of the other guests of the host it holds hashes of salted leaves, and how many
there are; nothing can be learned from those about what was measured.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import challenge, encoding, merkle
from nova_vmi_attest.evidence.batch import (
    FORMAT,
    MAX_CERTIFICATE,
    Batch,
    BatchError,
    Quote,
    check_header,
    nonces_from,
)
from nova_vmi_attest.evidence.challenge import MAX_HOST, ChallengeError
from nova_vmi_attest.evidence.encoding import EncodingError
from nova_vmi_attest.evidence.leaf import SALT_SIZE, LeafError, guest_leaf
from nova_vmi_attest.evidence.log import EntryKind, LogEntry, LogError, extend
from nova_vmi_attest.evidence.measurement import Measurement
from nova_vmi_attest.evidence.measurement_codec import (
    decode_measurement,
    encode_measurement,
    measurement_digest,
)
from nova_vmi_attest.evidence.merkle import MerkleError
from nova_vmi_attest.tpm.ak_certificate import AkCertificateError, verify_ak_certificate
from nova_vmi_attest.tpm.quote import QuoteError, verify_quote

MAX_PROOF_BYTES = 4 << 20


class ProofError(AttestError):
    """A proof is malformed, or a numbered step of its verification failed."""


@dataclass(frozen=True, slots=True)
class GuestProof:
    """The evidence for one guest.

    :param verifier: RFC 7638 thumbprint (32 bytes) of the verifier that asked.
    :param nonces: all that the quote answers, ascending.
    :param index: the place of the guest's leaf among the ``entry.guests`` leaves; ``path`` leads from it to
        ``entry.root``, the lowest sibling first.
    :param pcr_before: the log PCR's value before ``entry`` was extended.
    :param ak_certificate: DER.
    """

    host: str
    verifier: bytes
    nonces: tuple[bytes, ...]
    salt: bytes
    measurement: Measurement
    index: int
    path: tuple[bytes, ...]
    entry: LogEntry
    pcr_before: bytes
    quote: Quote
    ak_certificate: bytes

    @property
    def guest(self) -> uuid.UUID:
        """The guest that the proof is about."""
        return self.measurement.guest

    def encode(self) -> bytes:
        """The canonical bytes, as they stand in a file.

        :raises ProofError: if they have no canonical form or are too many.
        """
        try:
            data = encoding.canonical(self._to_wire())
        except EncodingError as error:
            raise ProofError(f"the proof of guest {self.guest} cannot be written: {error.message}") from error
        if len(data) > MAX_PROOF_BYTES:
            raise ProofError(f"the proof of guest {self.guest} has {len(data)} bytes: too many")
        return data

    @classmethod
    def decode(cls, data: bytes) -> GuestProof:
        """Read a proof of at most 4 MiB.

        :raises ProofError: naming what is malformed. NOT checked: whether it proves anything.
        """
        try:
            return cls._from_wire(encoding.parse(data, MAX_PROOF_BYTES))
        except (EncodingError, LogError) as error:
            raise ProofError(f"malformed proof: {error.message}") from error

    def _to_wire(self) -> dict[str, Any]:
        return {
            "ak_certificate": encoding.base64url(self.ak_certificate),
            "entry": self.entry.to_wire(),
            "format": FORMAT,
            "host": self.host,
            "index": self.index,
            "kind": "proof",
            "measurement": encode_measurement(self.measurement),
            "nonces": [encoding.base64url(nonce) for nonce in self.nonces],
            "path": [node.hex() for node in self.path],
            "pcr_before": self.pcr_before.hex(),
            "quote": self.quote.to_wire(),
            "salt": encoding.base64url(self.salt),
            "verifier": encoding.base64url(self.verifier),
        }

    @classmethod
    def _from_wire(cls, value: dict[str, Any]) -> GuestProof:
        members = encoding.exact_keys(value, _PROOF_KEYS, "a proof")
        check_header(members, "proof")
        return cls(
            host=encoding.text(members, "host", MAX_HOST),
            verifier=encoding.octets(members, "verifier", 32, 32),
            nonces=nonces_from(members),
            salt=encoding.octets(members, "salt", SALT_SIZE, SALT_SIZE),
            measurement=decode_measurement(members["measurement"]),
            index=encoding.integer(members, "index"),
            path=tuple(
                encoding.hexdigest({"path": node}, "path")
                for node in encoding.items(members, "path", merkle.MAX_PATH)
            ),
            entry=LogEntry.from_wire(members["entry"]),
            pcr_before=encoding.hexdigest(members, "pcr_before"),
            quote=Quote.from_wire(members["quote"]),
            ak_certificate=encoding.octets(members, "ak_certificate", MAX_CERTIFICATE),
        )


def make_proof(batch: Batch, guest: uuid.UUID, pcr_before: bytes) -> GuestProof:
    """The proof of one guest out of a batch that was appraised.

    :param pcr_before: the log PCR's value before the batch's own record (:attr:`Batch.entry`) was extended.
    :raises ProofError: if the guest is not in the batch, or record, root and quoted PCR do not belong
        together.
    """
    try:
        leaves, entry = batch.leaves, batch.entry
    except (BatchError, ChallengeError) as error:
        raise ProofError(f"no proof of guest {guest}: {error.message}") from error
    index = next((i for i, item in enumerate(batch.guests) if item.guest == guest), None)
    if index is None:
        raise ProofError(f"the batch of host {batch.host} has no guest {guest}")
    if merkle.tree_root(leaves) != entry.root or len(leaves) != entry.guests:
        raise ProofError(f"log record {entry.recnum} of host {batch.host} is not that of its guests")
    if len(pcr_before) != 32 or batch.quote.pcrs.get(entry.pcr) != extend(pcr_before, entry.digest):
        raise ProofError(f"log record {entry.recnum} does not lead to the quoted value of PCR {entry.pcr}")
    return GuestProof(
        host=batch.host,
        verifier=batch.verifier,
        nonces=batch.nonces,
        salt=batch.guests[index].salt,
        measurement=batch.guests[index].measurement,
        index=index,
        path=merkle.inclusion_path(leaves, index),
        entry=entry,
        pcr_before=pcr_before,
        quote=batch.quote,
        ak_certificate=batch.ak_certificate,
    )


def verify_proof(
    proof: GuestProof, ca_certificates: Sequence[x509.Certificate], nonce: bytes, now: float
) -> Measurement:
    """The measurement of the guest, once every step from it to the host's TPM has held. Works offline.

    :param ca_certificates: the enrolment authority's certificates, from a source that the tenant trusts.
    :param nonce: the tenant's own 32 octets, or the verifier's if he trusts it to be fresh.
    :param now: the moment at which the certificates must be valid, seconds since 1970: that of the quote.
    :raises ProofError: beginning with the number and name of the step that failed.

    NOT checked: whether the host's boot PCRs are good, whether the guest should run on this host, whether the
    record is the newest, whether a certificate was revoked; and above all not the verdict. The measurement
    may hold findings, or say that nothing could be measured: the tenant appraises it himself.
    """
    # 1. The authority certified this attestation key for this host.
    try:
        key = verify_ak_certificate(proof.ak_certificate, ca_certificates, proof.host, now).key
    except AkCertificateError as error:
        raise ProofError(f"step 1, certificate: {error.message}") from error

    # 2. The question was this tenant's, and host, verifier and nonces make up the binding.
    if nonce not in proof.nonces:
        raise ProofError("step 2, nonce: the quote does not answer the nonce that was asked")
    try:
        binding = challenge.binding(proof.host, proof.verifier, proof.nonces)
    except ChallengeError as error:
        raise ProofError(f"step 2, nonce: {error.message}") from error

    # 3. The host's TPM signed a quote of exactly these PCR values for that binding.
    try:
        quote = verify_quote(key, proof.quote.attest, proof.quote.signature, binding, proof.quote.pcrs)
    except QuoteError as error:
        raise ProofError(f"step 3, quote: {error.message}") from error

    # 4. The last extend of the log PCR in this boot was the digest of the log record.
    entry = proof.entry
    try:
        value = extend(proof.pcr_before, entry.digest)
    except LogError as error:
        raise ProofError(f"step 4, log: {error.message}") from error
    if quote.pcrs.get(entry.pcr) != value or entry.epoch != quote.epoch:
        raise ProofError(f"step 4, log: record {entry.recnum} does not lead to the quoted PCR {entry.pcr}")
    if entry.kind is not EntryKind.BATCH:
        raise ProofError(f"step 4, log: record {entry.recnum} is no batch")

    # 5. The record's root is over a leaf of this salt, guest, measurement and binding.
    try:
        leaf = guest_leaf(proof.salt, proof.guest, measurement_digest(proof.measurement), binding)
        merkle.verify_inclusion(leaf, proof.index, entry.guests, proof.path, entry.root)
    except (LeafError, EncodingError, MerkleError) as error:
        raise ProofError(f"step 5, leaf: {error.message}") from error
    return proof.measurement


_PROOF_KEYS = frozenset(
    (
        "ak_certificate", "entry", "format", "host", "index", "kind", "measurement", "nonces", "path",
        "pcr_before", "quote", "salt", "verifier",
    )
)  # fmt: skip
