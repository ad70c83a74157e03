# SPDX-License-Identifier: Apache-2.0
"""A host without a machine: a TPM's counters, clock and PCRs in memory, a log, and quotes that are really
signed.

Tests take an honest answer of it and change one thing, or let the host itself do one thing wrong.
"""

from __future__ import annotations

import datetime
import hashlib
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import evidence_examples as examples
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.authority.ca import CertificateAuthority
from nova_vmi_attest.evidence.batch import Batch, GuestEvidence, Quote, batch_root
from nova_vmi_attest.evidence.challenge import binding
from nova_vmi_attest.evidence.log import ZERO_DIGEST, EntryKind, LogEntry, extend
from nova_vmi_attest.evidence.measurement import CheckResult, Measurement, Module, Outcome
from nova_vmi_attest.verifier.policy import ApprovedReference, Policy

NOW = examples.NOW
HOST = "compute-1"
LOG_PCR = 13
PCRS = {index: examples.octets(f"PCR {index}") for index in range(8)}
VERIFIER = examples.verifier_thumbprint()
NONCE = examples.octets("nonce")
EK = "ab" * 32
CHECKS = ("text", "modules")
GUESTS = tuple(uuid.UUID(int=number) for number in (1, 2, 3))
POLICY = Policy(frozenset(CHECKS), LOG_PCR, frozenset(PCRS))
AUTHORITY = CertificateAuthority(examples.key("authority"), examples.ca_certificate())
AUTHORITIES = (AUTHORITY.certificate,)


def healthy(guest: uuid.UUID) -> Measurement:
    """A guest that passed every required check and whose modules are those of its package."""
    measurement = examples.healthy(guest)
    integrity = replace(
        measurement.integrity,
        checks=tuple(CheckResult(name, Outcome.PASSED, bytes_verified=4096) for name in CHECKS),
        modules=(Module("virtio_net", examples.octets("virtio_net").hex(), 57_344),),
    )
    return replace(measurement, integrity=integrity)


def altered(guest: uuid.UUID) -> Measurement:
    """The same guest with a patched function."""
    measurement = healthy(guest)
    failed = examples.altered(guest).integrity.checks
    integrity = replace(measurement.integrity, checks=(*failed, measurement.integrity.checks[1]))
    return replace(measurement, integrity=replace(integrity, unexplained_bytes=12))


def references() -> dict[str, ApprovedReference]:
    """The kernel of the example guests, approved."""
    kernel = healthy(GUESTS[0]).integrity.kernel
    assert kernel is not None
    modules = {"virtio_net": examples.octets("virtio_net").hex()}
    return {kernel.reference: ApprovedReference(kernel.release, kernel.build_id, modules)}


def certificate(
    host: str = HOST,
    *,
    authority: CertificateAuthority = AUTHORITY,
    key: str = "attestation key",
    ek_digest: str = EK,
    issued: int = NOW - 60,
    lifetime: int = 86400,
) -> bytes:
    """An AK certificate (DER) as the authority issues it."""
    made: x509.Certificate = authority.issue(
        examples.key(key).public_key(),
        host,
        ek_digest,
        datetime.timedelta(seconds=lifetime),
        datetime.datetime.fromtimestamp(issued, datetime.UTC),
    )
    return made.public_bytes(Encoding.DER)


@dataclass
class SimulatedHost:
    """One host; ``boot`` is called when it is made."""

    name: str = HOST
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: examples.key("attestation key"))
    certificate: bytes = field(default_factory=certificate)
    reset_count: int = 7
    restart_count: int = 0
    clock: int = 1000
    pcrs: dict[int, bytes] = field(default_factory=lambda: dict(PCRS))
    log: list[LogEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._record(EntryKind.BOOT)

    def reboot(self) -> None:
        """Power off and on: the PCR starts again, in a new epoch, with a boot record."""
        self.reset_count, self.restart_count, self.clock = self.reset_count + 1, 0, 10
        self.pcrs = dict(PCRS)
        self._record(EntryKind.BOOT)

    def resume(self) -> None:
        """TPM Resume: a new restart count, and the PCR is kept."""
        self.restart_count += 1
        self._record(EntryKind.RESUME)

    def append(self, guests: Sequence[GuestEvidence], bound: bytes) -> None:
        """Log a batch and extend."""
        self._record(EntryKind.BATCH, batch_root(guests, bound), len(guests))

    def quote(self, bound: bytes, pcrs: Mapping[int, bytes] | None = None) -> Quote:
        """A quote over all PCRs that this host has, or over those given."""
        values = dict(sorted((self.pcrs if pcrs is None else pcrs).items()))
        self.clock += 100
        statement = attest(bound, values, self.clock, self.reset_count, self.restart_count)
        return Quote(statement, examples.tpm_signature(self.key, statement), values)

    def answer(
        self,
        measurements: Sequence[Measurement] | None = None,
        *,
        nonces: Sequence[bytes] = (NONCE,),
        since: int = 0,
    ) -> Batch:
        """An honest round."""
        if measurements is None:
            measurements = [healthy(guest) for guest in GUESTS]
        guests = evidence(measurements)
        ordered = tuple(sorted(nonces))
        bound = binding(self.name, VERIFIER, ordered)
        self.append(guests, bound)
        entries = tuple(entry for entry in self.log if entry.recnum >= since)
        return Batch(
            host=self.name,
            verifier=VERIFIER,
            nonces=ordered,
            entries=entries,
            log_start=self._value_before(entries[0]) if entries else ZERO_DIGEST,
            quote=self.quote(bound),
            ak_certificate=self.certificate,
            guests=guests,
        )

    def _value_before(self, first: LogEntry) -> bytes:
        value = ZERO_DIGEST
        for entry in self.log[: first.recnum]:
            value = extend(ZERO_DIGEST if entry.kind is EntryKind.BOOT else value, entry.digest)
        return ZERO_DIGEST if first.kind is EntryKind.BOOT else value

    def _record(self, kind: EntryKind, root: bytes = ZERO_DIGEST, guests: int = 0) -> None:
        previous = self.log[-1].digest if self.log else ZERO_DIGEST
        entry = LogEntry(
            len(self.log), LOG_PCR, kind, self.reset_count, self.restart_count, previous, root, guests
        )
        self.log.append(entry)
        self.pcrs[LOG_PCR] = extend(self.pcrs.get(LOG_PCR, ZERO_DIGEST), entry.digest)


def evidence(measurements: Sequence[Measurement]) -> tuple[GuestEvidence, ...]:
    """Salted evidence in the order of the guests."""
    made = [GuestEvidence(item.guest, examples.octets(f"salt {item.guest}"), item) for item in measurements]
    return tuple(sorted(made, key=lambda item: item.guest.bytes))


def attest(
    bound: bytes, pcrs: Mapping[int, bytes], clock: int, reset_count: int, restart_count: int
) -> bytes:
    """A TPMS_ATTEST of type quote over the SHA-256 bank."""
    digest = hashlib.sha256(b"".join(pcrs[index] for index in sorted(pcrs))).digest()
    return b"".join(
        (
            struct.pack(">IH", 0xFF544347, 0x8018),
            examples.sized(b"\x00\x0b" + examples.octets("qualified signer")),
            examples.sized(bound),
            struct.pack(">QIIBQ", clock, reset_count, restart_count, 1, 1),
            struct.pack(">I", 1),
            examples.selection(tuple(sorted(pcrs))),
            examples.sized(digest),
        )
    )
