# SPDX-License-Identifier: Apache-2.0
"""One answer of one host: every guest's measurement, the log records that are new, and one quote over it all.

Decoding checks form and bounds only. A batch is a claim until the verifier's appraisal has taken it apart.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import challenge, encoding, merkle
from nova_vmi_attest.evidence.challenge import MAX_HOST, MAX_NONCES, NONCE_SIZE, ChallengeError
from nova_vmi_attest.evidence.encoding import EncodingError
from nova_vmi_attest.evidence.leaf import SALT_SIZE, LeafError, guest_leaf
from nova_vmi_attest.evidence.log import MAX_GUESTS, EntryKind, LogEntry, LogError
from nova_vmi_attest.evidence.measurement import Measurement
from nova_vmi_attest.evidence.measurement_codec import (
    decode_measurement,
    encode_measurement,
    measurement_digest,
)
from nova_vmi_attest.tpm.quote import MAX_PCR
from nova_vmi_attest.tpm.structures import MAX_STRUCTURE

FORMAT = 1
MAX_BATCH_BYTES = 64 << 20
MAX_ENTRIES = 65536
MAX_CERTIFICATE = 16384


class BatchError(AttestError):
    """A batch is malformed, too large, or contradicts itself."""


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote as the TPM gave it, with the PCR values that it is said to cover. Nothing of it is verified.

    :param attest: TPMS_ATTEST octets.
    :param signature: TPMT_SIGNATURE octets.
    :param pcrs: index (0 to 23) to 32-byte value of the SHA-256 bank.
    """

    attest: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]

    def to_wire(self) -> dict[str, Any]:
        """The wire object."""
        return {
            "attest": encoding.base64url(self.attest),
            "pcrs": {str(index): value.hex() for index, value in self.pcrs.items()},
            "signature": encoding.base64url(self.signature),
        }

    @classmethod
    def from_wire(cls, value: Any) -> Quote:
        """The inverse of :meth:`to_wire`.

        :raises EncodingError: if a member is missing, unknown or out of bounds.
        """
        members = encoding.exact_keys(value, ("attest", "pcrs", "signature"), "quote")
        values = encoding.exact_keys(
            members["pcrs"], _PCR_NAMES & set(_keys(members["pcrs"])), "the PCR values"
        )
        pcrs = {int(name): encoding.hexdigest(values, name) for name in values}
        return cls(
            attest=encoding.octets(members, "attest", MAX_STRUCTURE),
            signature=encoding.octets(members, "signature", MAX_STRUCTURE),
            pcrs=MappingProxyType(dict(sorted(pcrs.items()))),
        )


@dataclass(frozen=True, slots=True)
class GuestEvidence:
    """One guest's part of a batch. ``salt`` has 32 random bytes, new for each leaf."""

    guest: uuid.UUID
    salt: bytes
    measurement: Measurement


@dataclass(frozen=True, slots=True)
class Batch:
    """One answer of one host.

    :param host: the host's name, as the AK certificate must state it.
    :param verifier: RFC 7638 thumbprint (32 bytes) of the verifier that asked.
    :param nonces: what is answered, ascending and all different: the verifier's nonce, and those of tenants.
    :param entries: the log records from the one that the verifier asked for; the last batch record is this
        batch's own.
    :param log_start: the value of the log's PCR before the first of these records; zeros for a boot record.
    :param ak_certificate: DER.
    :param guests: ascending by the bytes of their UUID, each once.
    """

    host: str
    verifier: bytes
    nonces: tuple[bytes, ...]
    entries: tuple[LogEntry, ...]
    log_start: bytes
    quote: Quote
    ak_certificate: bytes
    guests: tuple[GuestEvidence, ...]

    @property
    def binding(self) -> bytes:
        """What the quote must carry as extraData, and every leaf as its last part.

        :raises ChallengeError: if host or nonces are not what a binding can be made of.
        """
        return challenge.binding(self.host, self.verifier, self.nonces)

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """The leaf hashes in the order of the guests, recomputed from the measurements."""
        return guest_leaves(self.guests, self.binding)

    @property
    def entry(self) -> LogEntry:
        """The last record of kind batch: the one that must carry the root over :attr:`leaves`.

        :raises BatchError: if there is none.
        """
        for entry in reversed(self.entries):
            if entry.kind is EntryKind.BATCH:
                return entry
        raise BatchError(f"the batch of host {self.host} holds no batch record")

    def encode(self) -> bytes:
        """The canonical bytes.

        :raises BatchError: if :meth:`decode` would refuse them.
        """
        try:
            _check(self)
            data = encoding.canonical(self._to_wire())
        except EncodingError as error:
            raise BatchError(f"the batch of host {self.host} cannot be sent: {error.message}") from error
        if len(data) > MAX_BATCH_BYTES:
            raise BatchError(f"the batch of host {self.host} has {len(data)} bytes: too many")
        return data

    @classmethod
    def decode(cls, data: bytes) -> Batch:
        """Read a batch of at most 64 MiB, 4,096 guests and 65,536 records.

        :raises BatchError: naming what is malformed or out of bounds. NOT checked: certificate, signature,
            nonces, chain, root; that is appraisal.
        """
        try:
            batch = cls._from_wire(encoding.parse(data, MAX_BATCH_BYTES))
        except (EncodingError, LogError) as error:
            raise BatchError(f"malformed batch: {error.message}") from error
        _check(batch)
        return batch

    def _to_wire(self) -> dict[str, Any]:
        return {
            "ak_certificate": encoding.base64url(self.ak_certificate),
            "entries": [entry.to_wire() for entry in self.entries],
            "format": FORMAT,
            "guests": [
                {"measurement": encode_measurement(item.measurement), "salt": encoding.base64url(item.salt)}
                for item in self.guests
            ],
            "host": self.host,
            "kind": "batch",
            "log_start": self.log_start.hex(),
            "nonces": [encoding.base64url(nonce) for nonce in self.nonces],
            "quote": self.quote.to_wire(),
            "verifier": encoding.base64url(self.verifier),
        }

    @classmethod
    def _from_wire(cls, value: dict[str, Any]) -> Batch:
        members = encoding.exact_keys(value, _BATCH_KEYS, "a batch")
        check_header(members, "batch")
        return cls(
            host=encoding.text(members, "host", MAX_HOST),
            verifier=encoding.octets(members, "verifier", 32, 32),
            nonces=nonces_from(members),
            entries=tuple(
                LogEntry.from_wire(item) for item in encoding.items(members, "entries", MAX_ENTRIES)
            ),
            log_start=encoding.hexdigest(members, "log_start"),
            quote=Quote.from_wire(members["quote"]),
            ak_certificate=encoding.octets(members, "ak_certificate", MAX_CERTIFICATE),
            guests=tuple(_guest_from(item) for item in encoding.items(members, "guests", MAX_GUESTS)),
        )


def guest_leaves(guests: Sequence[GuestEvidence], binding: bytes) -> tuple[bytes, ...]:
    """The leaf hash of each guest, in the order given.

    :raises BatchError: if a part has the wrong size or a measurement has no canonical form.
    """
    try:
        return tuple(
            guest_leaf(item.salt, item.guest, measurement_digest(item.measurement), binding)
            for item in guests
        )
    except (LeafError, EncodingError) as error:
        raise BatchError(f"no leaf can be made: {error.message}") from error


def batch_root(guests: Sequence[GuestEvidence], binding: bytes) -> bytes:
    """The Merkle root over the leaves of ``guests``, which must be in ascending order of UUID bytes.

    :raises BatchError: as :func:`guest_leaves`, or if the order is another.
    """
    _check_order(guests)
    return merkle.tree_root(guest_leaves(guests, binding))


def check_header(members: Mapping[str, Any], kind: str) -> None:
    """Check the members ``format`` and ``kind`` of a wire object.

    :raises EncodingError: if they are others.
    """
    if type(members["format"]) is not int or members["format"] != FORMAT or members["kind"] != kind:
        raise EncodingError(f"this is not a {kind} of format {FORMAT}")


def nonces_from(members: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The member ``nonces``: at most 256 of 32 octets each.

    :raises EncodingError: otherwise.
    """
    return tuple(
        encoding.octets({"nonce": item}, "nonce", NONCE_SIZE, NONCE_SIZE)
        for item in encoding.items(members, "nonces", MAX_NONCES)
    )


def _check(batch: Batch) -> None:
    try:
        batch.binding  # noqa: B018 - for its checks of host and nonces
    except ChallengeError as error:
        raise BatchError(f"malformed batch: {error.message}") from error
    if list(batch.nonces) != sorted(batch.nonces):
        raise BatchError(f"the nonces in the batch of host {batch.host} are not in ascending order")
    if len(batch.entries) > MAX_ENTRIES or len(batch.guests) > MAX_GUESTS:
        raise BatchError(f"the batch of host {batch.host} holds too many records or guests")
    _check_order(batch.guests)
    for item in batch.guests:
        if item.guest != item.measurement.guest or len(item.salt) != SALT_SIZE:
            raise BatchError(f"the evidence of guest {item.guest} holds another guest or a bad salt")


def _check_order(guests: Sequence[GuestEvidence]) -> None:
    for before, after in itertools.pairwise(guests):
        if before.guest.bytes >= after.guest.bytes:
            raise BatchError(f"guest {after.guest} is out of order or there twice")


def _guest_from(value: Any) -> GuestEvidence:
    members = encoding.exact_keys(value, ("measurement", "salt"), "a guest's evidence")
    measurement = decode_measurement(members["measurement"])
    return GuestEvidence(
        measurement.guest, encoding.octets(members, "salt", SALT_SIZE, SALT_SIZE), measurement
    )


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


_PCR_NAMES = frozenset(str(index) for index in range(MAX_PCR + 1))
_BATCH_KEYS = frozenset(
    (
        "ak_certificate", "entries", "format", "guests", "host", "kind", "log_start", "nonces", "quote",
        "verifier",
    )
)  # fmt: skip
