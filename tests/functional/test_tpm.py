# SPDX-License-Identifier: Apache-2.0
"""A real software TPM: keys, quotes, sessions on a hostile bus, the log through reboots and power cuts."""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from lab.tpm import SoftwareTpm
from tpm2_pytss import ESAPI, TCTILdr
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_SE, TPMA_NV
from tpm2_pytss.types import (
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_NV_PUBLIC,
    TPMT_PUBLIC,
    TPMT_SYM_DEF,
)
from tpm2_pytss.utils import NVReadEK, create_ek_template

from nova_vmi_attest.attester.journal import ForeignExtend, Journal
from nova_vmi_attest.evidence.log import check_chain, replay
from nova_vmi_attest.tpm import keys
from nova_vmi_attest.tpm.credential import make_challenge
from nova_vmi_attest.tpm.device import Tpm, TpmError
from nova_vmi_attest.tpm.endorsement import load_certificate
from nova_vmi_attest.tpm.quote import QuoteError, verify_quote
from nova_vmi_attest.tpm.structures import Public
from tests.unit.tpm.maker import Maker

HANDLE = 0x81010030
PCR = 13
HOST_PCRS = [0, 1, 2, 3, 4, 5, 6, 7, 10, PCR]
ZERO = bytes(32)


@pytest.fixture(scope="module")
def chip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with SoftwareTpm(tmp_path_factory.mktemp("tpm")) as chip:
        yield chip


@pytest.fixture
def tpm(chip: SoftwareTpm) -> Iterator[Tpm]:
    with Tpm(chip.tcti) as tpm:
        tpm.provision_ak(HANDLE)
        yield tpm


def left_in(chip: SoftwareTpm) -> dict[str, int]:
    """What programs left in the TPM: loaded sessions, saved sessions, transient objects."""
    kinds = {"loaded": 0x02000000, "saved": 0x03000000, "transient": 0x80000000}
    found = {}
    with ESAPI(chip.tcti) as esys:
        for kind, first in kinds.items():
            _, capability = esys.get_capability(TPM2_CAP.HANDLES, first, 32)
            found[kind] = len(capability.data.handles)
    return found


# -- keys ----------------------------------------------------------------------------------------------------


def test_the_ek_and_its_certificate_belong_together(tpm: Tpm) -> None:
    certificate = load_certificate(tpm.ek_certificate())
    assert Public.parse(tpm.ek_public()).key == certificate.public_key()


def test_the_ak_is_made_once(chip: SoftwareTpm) -> None:
    with Tpm(chip.tcti) as tpm:
        made = tpm.provision_ak(HANDLE + 1)
        assert Public.parse(made.public).name == made.name
    with Tpm(chip.tcti) as tpm:
        assert tpm.provision_ak(HANDLE + 1) == made == tpm.ak_public()


def test_a_storage_key_is_no_ak(tpm: Tpm) -> None:
    with pytest.raises(TpmError, match="not a restricted signing key") as caught:
        tpm.provision_ak(0x81010001)
    assert "tpm2_evictcontrol" in caught.value.remedy


def test_a_signing_key_of_the_owner_is_no_ak(chip: SoftwareTpm, tpm: Tpm) -> None:
    handle = HANDLE + 2
    template = TPM2B_PUBLIC.unmarshal(tpm.ak_public().public)[0]
    area = TPMT_PUBLIC.parse(
        alg="ecc:ecdsa-sha256:null", objectAttributes=template.publicArea.objectAttributes, nameAlg="sha256"
    )
    tpm.__exit__(None, None, None)
    with ESAPI(chip.tcti) as esys:
        key, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), TPM2B_PUBLIC(publicArea=area), ESYS_TR.OWNER)
        esys.evict_control(ESYS_TR.OWNER, key, handle)
        esys.flush_context(key)
    with Tpm(chip.tcti) as again, pytest.raises(TpmError, match="not a child of this TPM's EK"):
        again.provision_ak(handle)


def test_an_ek_that_is_not_persistent_is_made_again(tmp_path: Path) -> None:
    with SoftwareTpm(tmp_path) as bare:
        with Tpm(bare.tcti) as tpm:
            persistent = tpm.ek_public()
        with ESAPI(bare.tcti) as esys:
            esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(0x81010001), 0x81010001)
        with Tpm(bare.tcti) as tpm:
            assert tpm.ek_public() == persistent
            tpm.provision_ak(HANDLE)
            tpm.extend(PCR, b"\1" * 32)
        assert left_in(bare) == {"loaded": 0, "saved": 0, "transient": 0}


# -- quotes --------------------------------------------------------------------------------------------------


def test_a_quote_verifies_and_tells_the_true_epoch(tpm: Tpm) -> None:
    data = secrets.token_bytes(32)
    attest, signature, values = tpm.quote_with_values(HOST_PCRS, data)
    key = Public.parse(tpm.ak_public().public).key
    quote = verify_quote(key, attest, signature, data, values)
    assert sorted(values) == HOST_PCRS
    # A key outside the endorsement hierarchy would show these obfuscated.
    assert (quote.reset_count, quote.restart_count) == tpm.epoch()
    with pytest.raises(QuoteError):
        verify_quote(key, attest, signature, secrets.token_bytes(32), values)


def test_extends_and_quotes_of_many_threads(tpm: Tpm) -> None:
    before = tpm.read_pcrs([12])[12]
    key = Public.parse(tpm.ak_public().public).key

    def work(number: int) -> bytes:
        tpm.extend(12, b"\5" * 32)
        data = number.to_bytes(32, "big")
        attest, signature, values = tpm.quote_with_values([7, 12], data)
        return verify_quote(key, attest, signature, data, values).pcrs[12]

    with ThreadPoolExecutor(4) as pool:
        seen = set(pool.map(work, range(24)))
    possible = [before]
    for _ in range(24):
        possible.append(hashlib.sha256(possible[-1] + b"\5" * 32).digest())
    assert tpm.read_pcrs([12])[12] == possible[-1]
    assert seen <= set(possible)


def test_every_pcr_is_read(tpm: Tpm) -> None:
    assert list(tpm.read_pcrs(range(24))) == list(range(24))
    rights = tpm.pcr_rights()
    assert {16, 23} <= rights.resettable
    assert PCR in rights.extendable - rights.resettable
    assert 17 not in rights.extendable


# -- errors --------------------------------------------------------------------------------------------------


def test_refusals_are_typed_and_leave_nothing_behind(chip: SoftwareTpm, tpm: Tpm) -> None:
    for attempt in (
        lambda: tpm.extend(17, b"\1" * 32),
        lambda: tpm.extend(PCR, b"\1"),
        lambda: tpm.read_pcrs([24]),
        lambda: tpm.quote([], b""),
        lambda: tpm.quote([0], b"x" * 33),
        lambda: tpm.activate(b"", b""),
        lambda: tpm.activate(b"\0\4abcd", b"\0\4abcd"),
        lambda: tpm.activate(b"\0\4abcdX", b"\0\4abcd"),
        lambda: tpm.provision_ak(0x01C00002),
    ):
        with pytest.raises(TpmError):
            attempt()
    tpm.extend(PCR, b"\1" * 32)
    tpm.__exit__(None, None, None)
    assert left_in(chip) == {"loaded": 0, "saved": 0, "transient": 0}
    with pytest.raises(TpmError, match="not open"):
        tpm.epoch()


def test_sessions_that_killed_programs_left_are_named(tmp_path: Path) -> None:
    with SoftwareTpm(tmp_path) as chip:
        with Tpm(chip.tcti) as tpm:
            tpm.provision_ak(HANDLE)
        with ESAPI(chip.tcti) as esys:
            for _ in range(3):
                esys.start_auth_session(
                    ESYS_TR.NONE,
                    ESYS_TR.NONE,
                    TPM2_SE.HMAC,
                    TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL),
                    TPM2_ALG.SHA256,
                )
        with Tpm(chip.tcti) as tpm, pytest.raises(TpmError, match="out of memory for session") as caught:
            tpm.provision_ak(HANDLE)
        assert "tpm2_flushcontext" in caught.value.remedy
        chip.restart()
        with Tpm(chip.tcti) as tpm:
            assert tpm.provision_ak(HANDLE)


@pytest.mark.parametrize("tcti", ["swtpm:path=/nonexistent", "device:/nonexistent", "nonsense", ""])
def test_a_tpm_that_is_not_there(tcti: str) -> None:
    with pytest.raises(TpmError, match="open the TPM") as caught, Tpm(tcti):
        pass
    assert "tcti" in caught.value.remedy


def test_a_session_that_was_flushed_is_renewed(chip: SoftwareTpm, tpm: Tpm) -> None:
    for use in (lambda: tpm.extend(PCR, b"\1" * 32), lambda: tpm.quote([PCR], b"n")):
        tpm.extend(PCR, b"\1" * 32)
        with closing(TCTILdr.parse(chip.tcti)) as other:
            # TPM2_FlushContext of the first loaded HMAC session.
            other.transmit(bytes.fromhex("80010000000e0000016502000000"))
            assert bytes(other.receive())[6:10] == bytes(4)
        use()


# -- the bus -------------------------------------------------------------------------------------------------


class Bus:
    """Sits between software and TPM: sees every message, and may replace octets in commands."""

    def __init__(self, chip: SoftwareTpm, directory: Path) -> None:
        self.tcti = f"swtpm:path={directory / 'bus'}"
        self.seen: list[bytes] = []
        self.swap: tuple[bytes, bytes] | None = None
        self._closed = threading.Event()
        target = chip.tcti.removeprefix("swtpm:path=")
        for ending in ("", ".ctrl"):
            server = socket.socket(socket.AF_UNIX)
            server.bind(f"{directory / 'bus'}{ending}")
            server.listen()
            server.settimeout(0.1)
            threading.Thread(target=self._serve, args=(server, target + ending), daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _serve(self, server: socket.socket, target: str) -> None:
        with server:
            while not self._closed.is_set():
                try:
                    client, _ = server.accept()
                except TimeoutError:
                    continue
                onward = socket.socket(socket.AF_UNIX)
                onward.connect(target)
                for source, sink, command in ((client, onward, True), (onward, client, False)):
                    threading.Thread(target=self._carry, args=(source, sink, command), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, command: bool) -> None:
        while data := source.recv(65536):
            self.seen.append(data)
            if command and self.swap:
                data = data.replace(*self.swap)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_a_digest_swapped_on_the_bus_does_not_reach_the_pcr(chip: SoftwareTpm, tmp_path: Path) -> None:
    with closing(Bus(chip, tmp_path)) as bus, Tpm(bus.tcti) as tpm:
        before = tpm.read_pcrs([PCR])[PCR]
        bus.swap = (b"\xaa" * 32, b"\xbb" * 32)
        with pytest.raises(TpmError):
            tpm.extend(PCR, b"\xaa" * 32)
        assert any(b"\xaa" * 32 in message for message in bus.seen)
        assert tpm.read_pcrs([PCR])[PCR] == before
        bus.swap = None
        tpm.extend(PCR, b"\xaa" * 32)
        assert tpm.read_pcrs([PCR])[PCR] == hashlib.sha256(before + b"\xaa" * 32).digest()


def test_what_is_quoted_is_not_readable_on_the_bus(chip: SoftwareTpm, tmp_path: Path) -> None:
    data = secrets.token_bytes(32)
    with closing(Bus(chip, tmp_path)) as bus, Tpm(bus.tcti) as tpm:
        tpm.provision_ak(HANDLE)
        attest, _ = tpm.quote([0], data)
        assert data in attest
        assert len(bus.seen) > 10
        assert not any(data in message for message in bus.seen)


# -- the log -------------------------------------------------------------------------------------------------


class Crash(Exception):  # noqa: N818 - plays a crash
    """The agent dies here."""


class Fragile(Tpm):
    """Dies before or after its next extend."""

    die = ""

    def extend(self, pcr: int, digest: bytes) -> None:
        if self.die == "before":
            raise Crash
        super().extend(pcr, digest)
        if self.die == "after":
            raise Crash


def test_the_log_survives_crashes_reboots_and_power_cuts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with SoftwareTpm(tmp_path / "tpm") as chip:

        def run(die: str = "", batches: int = 1) -> str:
            """One life of the agent; the kinds of all entries after it."""
            with Fragile(chip.tcti) as tpm, Journal(path, tpm, PCR) as journal:
                for number in range(batches):
                    tpm.die = die if number == batches - 1 else ""
                    try:
                        journal.append_batch(secrets.token_bytes(32), 4)
                    except Crash:
                        break
                entries = journal.entries(0)
                check_chain(entries, ZERO, 0)
                if not die:
                    quoted = tpm.read_pcrs([PCR])[PCR]
                    assert replay(ZERO, entries[journal.epoch_start :]) == quoted
                return " ".join(entry.kind for entry in entries)

        expected = "boot batch"
        assert run() == expected
        for die in ("before", "after"):
            expected += " batch"
            assert run(die) == expected
        path.write_bytes(path.read_bytes() + b'{"content":')
        expected += " batch"
        assert run() == expected
        chip.restart()
        expected += " boot batch batch"
        assert run(batches=2) == expected
        chip.power_cut()
        chip.start()
        expected += " boot batch"
        assert run() == expected
        run("before")
        chip.resume()
        expected += " batch resume batch"
        assert run() == expected
        with Tpm(chip.tcti) as tpm:
            tpm.extend(PCR, b"\7" * 32)
            with (
                pytest.raises(ForeignExtend, match="PCR 13 was extended by something else"),
                Journal(path, tpm, PCR),
            ):
                pass
        chip.restart()
        assert run() == expected + " boot batch"


@pytest.fixture
def p256(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a chip whose maker certified its P-256 EK alone."""
    monkeypatch.setattr(keys, "_ENDORSEMENTS", (("EK-ECC256", 0x01C0000A, 0x81010002),))


@pytest.mark.usefixtures("p256")
def test_a_tpm_without_an_ek_certificate(chip: SoftwareTpm) -> None:
    with Tpm(chip.tcti) as tpm, pytest.raises(TpmError, match="no EK certificate") as caught:
        tpm.ek_certificate()
    assert "maker" in caught.value.remedy


@pytest.mark.usefixtures("p256")
def test_a_p256_ek_serves_as_well(tmp_path: Path) -> None:
    maker = Maker()
    with SoftwareTpm(tmp_path) as chip:
        with ESAPI(chip.tcti) as esys:
            area = create_ek_template("EK-ECC256", NVReadEK(esys))[1]
            ek, public, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), area, ESYS_TR.ENDORSEMENT)
            esys.flush_context(ek)
            certificate = maker.certify(Public.parse(public.marshal()).key)
            data = certificate.public_bytes(Encoding.DER) + b"\xff" * 40
            space = TPMS_NV_PUBLIC(
                nvIndex=0x01C0000A,
                nameAlg=TPM2_ALG.SHA256,
                attributes=TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD,
                dataSize=len(data),
            )
            index = esys.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=space), auth_handle=ESYS_TR.OWNER)
            esys.nv_write(index, data, 0, auth_handle=ESYS_TR.OWNER)
        with Tpm(chip.tcti) as tpm:
            assert load_certificate(tpm.ek_certificate()) == certificate
            ak = tpm.provision_ak(HANDLE)
            made = make_challenge(certificate, tpm.ek_public(), ak.public)
            assert tpm.activate(made.credential, made.encrypted_secret) == made.secret
        assert left_in(chip) == {"loaded": 0, "saved": 0, "transient": 0}
