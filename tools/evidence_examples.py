# SPDX-License-Identifier: Apache-2.0
"""Fixed keys, certificates, quotes and evidence: what the test vectors and the codecs' tests start from.

Everything here is the same in every run: keys are derived from labels, signatures are deterministic (RFC
6979), moments are constants. The keys are public and protect nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import struct
import uuid
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from nova_vmi_attest.evidence import challenge, encoding, keys
from nova_vmi_attest.evidence.batch import Batch, GuestEvidence, Quote, batch_root
from nova_vmi_attest.evidence.log import EntryKind, LogEntry, replay
from nova_vmi_attest.evidence.measurement import (
    CheckResult,
    Finding,
    Integrity,
    Inventory,
    KernelIdentity,
    Measurement,
    Module,
    Observation,
    Outcome,
    Process,
    Status,
    Unmeasured,
)
from nova_vmi_attest.tpm.ak_certificate import AK_CERTIFICATE_USAGE, EK_URN, HOST_URN

NOW = 1_800_000_000
HOST = "compute-1.example.org"
AUDIENCE = "nova-vmi-attest"
LOG_PCR = 13
RESET_COUNT, RESTART_COUNT = 7, 2
HEALTHY, ALTERED, BOOTING = (uuid.UUID(int=0x10000000000040008000000000000000 + n) for n in (1, 2, 3))


def octets(label: str) -> bytes:
    """32 fixed bytes for a label."""
    return hashlib.sha256(label.encode()).digest()


def key(label: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """A fixed key for a label."""
    return ec.derive_private_key(int.from_bytes(octets(label), "big") >> 1, curve or ec.SECP256R1())


def signed(private: ec.EllipticCurvePrivateKey, message: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    """A deterministic ECDSA signature (DER)."""
    return private.sign(message, ec.ECDSA(algorithm, deterministic_signing=True))


def token(claims: Mapping[str, object], private: ec.EllipticCurvePrivateKey, kind: str, **header: str) -> str:
    """A compact JWS with a deterministic signature; ``header`` replaces members of the header."""
    members = {"alg": "ES256", "kid": keys.key_id(private.public_key()), "typ": kind, **header}
    head, body = (encoding.base64url(encoding.canonical(dict(part))) for part in (members, claims))
    r, s = decode_dss_signature(signed(private, f"{head}.{body}".encode(), hashes.SHA256()))
    return f"{head}.{body}.{encoding.base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


# -- the TPM's side ------------------------------------------------------------------------------------------


def sized(data: bytes) -> bytes:
    """A TPM2B: its size in two octets, then the data."""
    return struct.pack(">H", len(data)) + data


def selection(indices: tuple[int, ...], algorithm: int = 0x000B, size: int = 3) -> bytes:
    """A TPMS_PCR_SELECTION."""
    bitmap = sum(1 << index for index in indices).to_bytes(size, "little")
    return struct.pack(">HB", algorithm, size) + bitmap


def attest(
    extra_data: bytes,
    pcrs: Mapping[int, bytes],
    *,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    safe: int = 1,
    selections: tuple[bytes, ...] | None = None,
    hash_name: str = "sha256",
    reset_count: int = RESET_COUNT,
    restart_count: int = RESTART_COUNT,
) -> bytes:
    """A TPMS_ATTEST of a quote over the SHA-256 bank."""
    indices = tuple(sorted(pcrs))
    selected = (selection(indices),) if selections is None else selections
    digest = hashlib.new(hash_name, b"".join(pcrs[index] for index in indices)).digest()
    return b"".join(
        (
            struct.pack(">IH", magic, kind),
            sized(b"\x00\x0b" + octets("qualified signer")),
            sized(extra_data),
            struct.pack(">QIIBQ", 123_456_789, reset_count, restart_count, safe, 0x2019_1023_0016_3636),
            struct.pack(">I", len(selected)),
            *selected,
            sized(digest),
        )
    )


def tpm_signature(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, message: bytes) -> bytes:
    """A TPMT_SIGNATURE: SHA-384 for P-384 keys, SHA-256 for the others."""
    if isinstance(private, rsa.RSAPrivateKey):
        made = private.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return struct.pack(">HH", 0x0014, 0x000B) + sized(made)
    wide = isinstance(private.curve, ec.SECP384R1)
    r, s = decode_dss_signature(signed(private, message, hashes.SHA384() if wide else hashes.SHA256()))
    size = 48 if wide else 32
    parts = sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
    return struct.pack(">HH", 0x0018, 0x000C if wide else 0x000B) + parts


def tpm_public(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, attributes: int = 0x00050472) -> bytes:
    """A TPM2B_PUBLIC of a restricted signing key with the SHA-256 name algorithm."""
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        modulus = numbers.n.to_bytes(public.key_size // 8, "big")
        head = struct.pack(">HHI", 0x0001, 0x000B, attributes) + sized(b"")
        body = struct.pack(">HHHHI", 0x0010, 0x0014, 0x000B, public.key_size, 0) + sized(modulus)
        return sized(head + body)
    wide = isinstance(public.curve, ec.SECP384R1)
    point = public.public_numbers()
    size = 48 if wide else 32
    head = struct.pack(">HHI", 0x0023, 0x000B, attributes) + sized(b"")
    body = struct.pack(">HHHHH", 0x0010, 0x0018, 0x000B, 4 if wide else 3, 0x0010)
    return sized(head + body + sized(point.x.to_bytes(size, "big")) + sized(point.y.to_bytes(size, "big")))


# -- the authority's side ------------------------------------------------------------------------------------


def _moment(offset: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(NOW + offset, datetime.UTC)


def _signed(builder: x509.CertificateBuilder, private: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate whose signature is the same every time (RFC 6979), so that vectors can be made again."""
    tbs = builder.sign(private, hashes.SHA256()).tbs_certificate_bytes
    signature = private.sign(tbs, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    return x509.load_der_x509_certificate(_der(0x30, tbs + ecdsa_with_sha256 + _der(0x03, b"\0" + signature)))


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def ca_certificate(label: str = "authority", ca: bool = True, key_label: str = "") -> x509.Certificate:
    """The self-signed certificate of an enrolment authority, valid for a year around :data:`NOW`.

    ``label`` decides the name, and the key unless ``key_label`` names another.
    """
    private = key(key_label or label)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Example {label}")])
    usage = x509.KeyUsage(False, False, False, False, False, ca, ca, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(_moment(-180 * 86400))
        .not_valid_after(_moment(180 * 86400))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(usage, critical=True)
    )
    return _signed(builder, private)


def ak_certificate(
    *,
    host: str = HOST,
    authority: str = "authority",
    usage: str = AK_CERTIFICATE_USAGE.dotted_string,
    begins: int = -3600,
    ends: int = 7 * 86400,
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | None = None,
) -> bytes:
    """The certificate (DER) of the example AK for a host."""
    uris = (HOST_URN + host, EK_URN + octets("endorsement key").hex())
    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Example {authority}")]))
        .public_key(public or key("attestation key").public_key())
        .serial_number(2)
        .not_valid_before(_moment(begins))
        .not_valid_after(_moment(ends))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)]), critical=False)
        .add_extension(x509.KeyUsage(True, *(False,) * 8), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
    )
    made = _signed(builder, key(authority))
    return made.public_bytes(serialization.Encoding.DER)


# -- the evidence --------------------------------------------------------------------------------------------


def healthy(guest: uuid.UUID = HEALTHY) -> Measurement:
    """A guest whose kernel is what it must be."""
    kernel = KernelIdentity(
        octets("manifest").hex(), "6.1.0-56-cloud-amd64", "0123456789abcdef" * 2 + "01234567"
    )
    return Measurement(
        guest,
        Integrity(
            Status.MEASURED,
            kernel=kernel,
            checks=(
                CheckResult("text", Outcome.PASSED, bytes_verified=14_680_064),
                CheckResult(
                    "modules", Outcome.INCOMPLETE, 4096, detail="module list changed while it was read"
                ),
            ),
            modules=(Module("virtio_net", octets("virtio_net").hex(), 57_344), Module("odd", "", 4096)),
            code_bytes=14_741_504,
        ),
        Inventory(
            (
                Process(1, "init", 0, "/usr/lib/systemd/systemd"),
                Process(2, "kthreadd", 0, ""),
                Process(731, 'caf\u00e9 "\\\U0001f980', 1000, "/home/\u00fc/a b"),
            ),
            truncated=3,
        ),
        Observation("ram_file", 33_554_432, 21_500),
    )


def altered(guest: uuid.UUID = ALTERED) -> Measurement:
    """A guest with a patched kernel function."""
    sound = healthy(guest)
    finding = Finding(
        check="text",
        symbol="__x64_sys_getdents64",
        offset=5,
        length=12,
        address=0xFFFFFFFF_A1234565,
        expected=bytes.fromhex("554889e541574156415541"),
        actual=bytes.fromhex("48b8efbeaddeefbeaddeffe0"),
        detail="differs from the replayed text",
    )
    text = CheckResult("text", Outcome.FAILED, 14_680_064, (finding,), truncated=1)
    return Measurement(
        guest,
        Integrity(Status.MEASURED, None, "", sound.integrity.kernel, (text,), (), 14_741_504, 12),
        Inventory(),
        Observation("process", 33_554_432, 23_750),
    )


def booting(guest: uuid.UUID = BOOTING) -> Measurement:
    """A guest that could not be measured yet."""
    integrity = Integrity(Status.UNMEASURED, Unmeasured.BOOTING, "the kernel has not freed its init memory")
    return Measurement(guest, integrity, Inventory(), Observation("libvmi", 65_536, 900))


VERIFIER_NONCE, TENANT_NONCE = octets("nonce of the verifier"), octets("nonce of a tenant")
NONCES = tuple(sorted((VERIFIER_NONCE, TENANT_NONCE)))


def verifier_thumbprint() -> bytes:
    """The name of the example verifier's key."""
    return keys.thumbprint(key("verifier").public_key())


def guests() -> tuple[GuestEvidence, ...]:
    """The three example guests with their salts."""
    return tuple(
        GuestEvidence(item.guest, octets(f"salt of {item.guest}"), item)
        for item in (healthy(), altered(), booting())
    )


def entries(root: bytes, count: int = 3) -> tuple[LogEntry, ...]:
    """The log of the example host: its boot, an empty batch, and the batch with ``root``."""
    epoch = (RESET_COUNT, RESTART_COUNT)
    boot = LogEntry(0, LOG_PCR, EntryKind.BOOT, *epoch, bytes(32))
    empty = LogEntry(1, LOG_PCR, EntryKind.BATCH, *epoch, boot.digest, hashlib.sha256(b"").digest(), 0)
    return boot, empty, LogEntry(2, LOG_PCR, EntryKind.BATCH, *epoch, empty.digest, root, count)


def quote(binding: bytes, log_value: bytes) -> Quote:
    """The host's quote over PCRs 0 to 7 and the log PCR."""
    pcrs = {index: octets(f"PCR {index}") for index in range(8)} | {LOG_PCR: log_value}
    statement = attest(binding, pcrs)
    return Quote(statement, tpm_signature(key("attestation key"), statement), pcrs)


def batch(evidence: tuple[GuestEvidence, ...] | None = None) -> Batch:
    """The example host's answer, in which every digest and signature is right."""
    evidence = guests() if evidence is None else evidence
    binding = challenge.binding(HOST, verifier_thumbprint(), NONCES)
    log = entries(batch_root(evidence, binding), len(evidence))
    return Batch(
        host=HOST,
        verifier=verifier_thumbprint(),
        nonces=NONCES,
        entries=log,
        log_start=bytes(32),
        quote=quote(binding, replay(bytes(32), log)),
        ak_certificate=ak_certificate(),
        guests=evidence,
    )


def pem(private: ec.EllipticCurvePrivateKey) -> str:
    """The key as PKCS #8, for the vectors."""
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def public_pem(public: ec.EllipticCurvePublicKey) -> str:
    """The public key as SubjectPublicKeyInfo, for the vectors."""
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
