# SPDX-License-Identifier: Apache-2.0
"""The parsers of TPM structures, against structures built octet by octet."""

from __future__ import annotations

import hashlib
import struct

import evidence_examples as example
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.tpm.structures import Attest, Attribute, Public, Signature, StructureError

from ..evidence.hostile import damaged

bounded = settings(max_examples=100, deadline=None)

PCRS = {index: bytes([index]) * 32 for index in (0, 7, 8, 13, 23)}
STATEMENT = example.attest(b"\5" * 32, PCRS)
P256, P384 = example.key("ak"), example.key("ak", ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)
SIGNATURES = [example.tpm_signature(key, STATEMENT) for key in (P256, P384, RSA)]
PUBLICS = [example.tpm_public(key.public_key()) for key in (P256, P384, RSA)]
# The RSA 2048 EK template of the TCG's EK Credential Profile (B.3.3): AES-128-CFB, no scheme, a policy.
EK_HEAD = struct.pack(">HHI", 1, 0x000B, 0x000300B2) + example.sized(example.octets("policy"))
EK_BODY = struct.pack(">HHHHHI", 0x0006, 128, 0x0043, 0x0010, 2048, 0)
EK = example.sized(
    EK_HEAD + EK_BODY + example.sized(RSA.public_key().public_numbers().n.to_bytes(256, "big"))
)


def test_attest() -> None:
    quote = Attest.parse(STATEMENT)
    assert quote == Attest(
        qualified_signer=b"\x00\x0b" + example.octets("qualified signer"),
        extra_data=b"\5" * 32,
        clock=123_456_789,
        reset_count=example.RESET_COUNT,
        restart_count=example.RESTART_COUNT,
        safe=True,
        firmware_version=0x2019_1023_0016_3636,
        pcr_selection=((0x000B, (0, 7, 8, 13, 23)),),
        pcr_digest=hashlib.sha256(b"".join(PCRS[i] for i in sorted(PCRS))).digest(),
    )
    assert Attest.parse(example.attest(b"", PCRS, safe=0)).safe is False


def test_attest_of_several_banks() -> None:
    banks = (example.selection((1,), 0x0004), example.selection((), 0x000B), example.selection((31,), 0xC, 4))
    assert Attest.parse(example.attest(b"", PCRS, selections=banks)).pcr_selection == (
        (0x0004, (1,)),
        (0x000B, ()),
        (0x000C, (31,)),
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (example.attest(b"", PCRS, magic=0xFF544346), "TPM_GENERATED"),
        (example.attest(b"", PCRS, kind=0x8017), "not a quote"),
        (example.attest(b"", PCRS, safe=2), "neither safe nor unsafe"),
        (example.attest(bytes(65), PCRS), "field of 65 bytes"),
        (example.attest(b"", PCRS, selections=(example.selection((1,)),) * 17), "17 PCR banks"),
        (example.attest(b"", PCRS, selections=(b"\0\x0b\0",)), "bitmap of 0"),
        (example.attest(b"", PCRS, selections=(b"\0\x0b\5" + bytes(5),)), "bitmap of 5"),
        (STATEMENT + b"\0", "1 bytes too many"),
        (STATEMENT + bytes(4096), "more than 4096|at most 4096"),
        (b"", "cut at byte 0"),
    ],
)
def test_attest_refuses(data: bytes, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        Attest.parse(data)


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (Attest.parse, STATEMENT),
        *((Signature.parse, data) for data in SIGNATURES),
        *((Public.parse, data) for data in (*PUBLICS, EK)),
    ],
)
def test_every_cut_is_refused(parse: object, data: bytes) -> None:
    assert callable(parse)
    assert parse(data)
    for end in range(len(data)):
        with pytest.raises(StructureError):
            parse(data[:end])
    with pytest.raises(StructureError):
        parse(data + b"\0")


def test_signatures() -> None:
    ecdsa, wide, rsassa = (Signature.parse(data) for data in SIGNATURES)
    assert (ecdsa.algorithm, ecdsa.hash_name) == (0x0018, "sha256")
    assert (
        ecdsa.r.to_bytes(32, "big") + ecdsa.s.to_bytes(32, "big") == SIGNATURES[0][6:38] + SIGNATURES[0][40:]
    )
    assert (wide.algorithm, wide.hash_name) == (0x0018, "sha384")
    assert (rsassa.algorithm, rsassa.hash_name, rsassa.rsa) == (0x0014, "sha256", SIGNATURES[2][6:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack(">HH", 0x0016, 0x000B) + example.sized(bytes(256)), "neither ECDSA nor RSASSA"),
        (struct.pack(">HH", 0x0010, 0x000B), "neither ECDSA nor RSASSA"),
        (struct.pack(">HH", 0x0018, 0x0004) + example.sized(b"r") + example.sized(b"s"), "not SHA-256"),
        (struct.pack(">HH", 0x0018, 0x000B) + example.sized(bytes(49)) + example.sized(b"s"), "49 bytes"),
        (struct.pack(">HH", 0x0014, 0x000B) + example.sized(bytes(513)), "513 bytes"),
    ],
)
def test_signatures_refused(data: bytes, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        Signature.parse(data)


def test_publics() -> None:
    restricted = (
        Attribute.FIXED_TPM
        | Attribute.FIXED_PARENT
        | Attribute.SENSITIVE_DATA_ORIGIN
        | Attribute.USER_WITH_AUTH
        | Attribute.NO_DA
        | Attribute.RESTRICTED
        | Attribute.SIGN
    )
    for key, data in zip((P256, P384, RSA), PUBLICS, strict=True):
        public = Public.parse(data)
        assert public.key == key.public_key()
        assert public.attributes == restricted
        assert public.name == b"\x00\x0b" + hashlib.sha256(data[2:]).digest()


def test_endorsement_key() -> None:
    public = Public.parse(EK)
    assert public.key == RSA.public_key()
    assert public.auth_policy == example.octets("policy")
    assert Attribute.DECRYPT in public.attributes
    assert Attribute.SIGN not in public.attributes


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(PUBLICS[0], 2, b"\x00\x08"), "neither RSA nor ECC"),
        (changed(PUBLICS[0], 4, b"\x00\x04"), "hash of the name"),
        (changed(PUBLICS[0], 6, b"\x80\0\0\0"), "unknown attributes"),
        (changed(PUBLICS[0], 12, b"\x00\x44"), "symmetric algorithm"),
        (changed(PUBLICS[0], 14, b"\x00\x14"), "scheme"),
        (changed(PUBLICS[0], 18, b"\x00\x05"), "neither P-256 nor P-384"),
        (changed(PUBLICS[0], len(PUBLICS[0]) - 1, bytes([PUBLICS[0][-1] ^ 1])), "not on its curve"),
        (changed(PUBLICS[2], 18, struct.pack(">H", 3072)), "declared as one of 3072"),
        (changed(PUBLICS[2], 20, struct.pack(">I", 2)), "no usable RSA key"),
        (PUBLICS[0][2:], "public area"),
    ],
)
def test_publics_refused(data: bytes, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        Public.parse(data)


@bounded
@given(st.binary(max_size=300) | damaged(STATEMENT))
def test_any_attest_is_read_or_refused(data: bytes) -> None:
    try:
        quote = Attest.parse(data)
    except StructureError:
        return
    assert len(quote.pcr_selection) <= 16
    assert all(index < 32 for _, indices in quote.pcr_selection for index in indices)


@bounded
@given(st.one_of(st.binary(max_size=300), *(damaged(data) for data in SIGNATURES)))
def test_any_signature_is_read_or_refused(data: bytes) -> None:
    try:
        signature = Signature.parse(data)
    except StructureError:
        return
    assert signature.hash_name in ("sha256", "sha384")


@bounded
@given(st.one_of(st.binary(max_size=300), *(damaged(data) for data in (*PUBLICS, EK))))
def test_any_public_is_read_or_refused(data: bytes) -> None:
    try:
        public = Public.parse(data)
    except StructureError:
        return
    assert public.name[2:] in (hashlib.sha256(data[2:]).digest(), hashlib.sha384(data[2:]).digest())
