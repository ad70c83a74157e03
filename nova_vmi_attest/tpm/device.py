# SPDX-License-Identifier: Apache-2.0
"""The host's TPM: the only file that talks to one.

Every command that matters travels in an HMAC session salted with the EK, so a device on the bus can neither
swap the digest of an extend nor read or replace a credential. The attestation key lives under the EK, because
only keys of the endorsement hierarchy quote resetCount and restartCount as they are.

Sources: TPM 2.0 Library, parts 1 and 3; TCG EK Credential Profile 2.5 (NV indices, templates and handles).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_PT_PCR
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPML_DIGEST_VALUES,
    TPMT_HA,
    TPMU_HA,
)

from nova_vmi_attest.tpm import keys, sessions
from nova_vmi_attest.tpm.sessions import TpmError, translated

__all__ = ["AkPublic", "PcrRights", "Tpm", "TpmError"]

T = TypeVar("T")

# What a TPM answers in one PCR_Read.
_PCRS_PER_READ = 8
_QUOTE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class AkPublic:
    """An attestation key as the TPM holds it: its TPM2B_PUBLIC, and its TPM name (0x000b ‖ SHA-256)."""

    public: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class PcrRights:
    """Which PCRs software (locality 0) may extend, and which it may reset."""

    extendable: frozenset[int]
    resettable: frozenset[int]


class Tpm:
    """One connection to a TPM, usable from several threads: commands wait for each other.

    :param tcti: as tpm2-tss writes it, for instance ``device:/dev/tpmrm0`` or
        ``swtpm:host=127.0.0.1,port=2321``.

    A connection that was lost, because the TPM or the process that emulates it was restarted, is made anew by
    the next command; the command that met the loss fails, and it is unknown whether it took place.

    Every method raises :class:`TpmError`. What the TPM says of its state (PCRs, counters) is not
    authenticated here; only a verified quote is.
    """

    def __init__(self, tcti: str) -> None:
        self._tcti = tcti
        self._lock = threading.RLock()
        self._is_open = False
        self._esys: Any = None
        self._session: Any = None
        self._ak: Any = None
        self._ak_handle: int | None = None

    def __enter__(self) -> Self:
        sessions.quiet_library()
        with self._lock, translated(f"open the TPM at {self._tcti}"):
            self._esys = ESAPI(self._tcti)
            self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_open = False
            self._disconnect()
            self._ak_handle = None

    def ek_certificate(self) -> bytes:
        """The EK certificate from NV, DER, padding removed. Its chain is not checked."""
        with self._command("read the EK certificate"):
            return keys.find_endorsement(self._esys).certificate

    def ek_public(self) -> bytes:
        """The EK's TPM2B_PUBLIC; its key is the one in the certificate."""
        with self._command("read the EK"), keys.endorsement_key(self._esys) as (_, public):
            return bytes(public.marshal())

    def provision_ak(self, handle: int) -> AkPublic:
        """The attestation key at a persistent handle: P-256, made under the EK when the handle is free.

        A key that is already there is used only when it is a restricted signing key that never left this TPM,
        is a child of this TPM's EK, and signs; any other is left alone.
        """
        if handle not in keys.OWNER_HANDLES:
            raise TpmError(
                f"{handle:#x} is not a persistent handle of the owner",
                "set [tpm] ak_handle to 0x81000000 or above",
            )
        with self._command("provision the attestation key"):
            if not keys.present(self._esys, handle):
                self._in_session(
                    sessions.ENCRYPTED, lambda session: keys.create_ak(self._esys, session, handle)
                )
            self._ak, self._ak_handle = None, None
            ak = self._esys.tr_from_tpmpublic(handle)
            public, name, qualified = self._esys.read_public(ak)
            keys.check_ak(self._esys, handle, public, bytes(name), bytes(qualified))
            self._ak, self._ak_handle = ak, handle
            try:
                self._quote((0,), b"")
            except TSS2_Exception as error:
                self._ak, self._ak_handle = None, None
                if not error.fmt1:
                    # A warning of the TPM or a fault on the way to it says nothing about the key.
                    raise
                raise keys.unusable(handle, f"it does not sign: {error}") from error
            return AkPublic(bytes(public.marshal()), bytes(name))

    def ak_public(self) -> AkPublic:
        """The attestation key that :meth:`provision_ak` found or made."""
        with self._command("read the attestation key"):
            public, name, _ = self._esys.read_public(self._loaded_ak())
            return AkPublic(bytes(public.marshal()), bytes(name))

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential: the secret that was encrypted to this TPM's EK and this AK's name.

        :param credential_blob: TPM2B_ID_OBJECT.
        :param encrypted_secret: TPM2B_ENCRYPTED_SECRET.
        """
        with self._command("activate the credential"):
            blob = _whole(TPM2B_ID_OBJECT, credential_blob)
            secret = _whole(TPM2B_ENCRYPTED_SECRET, encrypted_secret)
            ak = self._loaded_ak()

            def run(session: Any) -> bytes:
                with (
                    keys.endorsement_key(self._esys) as (ek, _),
                    sessions.endorsement_policy(self._esys) as policy,
                ):
                    opened = self._esys.activate_credential(
                        ak, ek, blob, secret, session1=session, session2=policy
                    )
                    return bytes(opened)

            return self._in_session(sessions.ENCRYPTED, run)

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend the SHA-256 bank of one PCR with a digest of 32 bytes.

        After an error of the transport it is unknown whether the extend took place: read the PCR.
        """
        if len(digest) != 32 or not 0 <= pcr < 24:
            raise TpmError(f"cannot extend PCR {pcr} with {len(digest)} bytes")
        values = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))])
        with self._command(f"extend PCR {pcr}"):
            self._in_session(
                sessions.INTEGRITY,
                lambda session: self._esys.pcr_extend(ESYS_TR(pcr), values, session1=session),
            )

    def read_pcrs(self, indices: Iterable[int]) -> dict[int, bytes]:
        """The SHA-256 values of PCRs, in the order of their indices."""
        with self._command("read PCRs"):
            wanted = sorted(set(indices))
            values: dict[int, bytes] = {}
            for start in range(0, len(wanted), _PCRS_PER_READ):
                part = wanted[start : start + _PCRS_PER_READ]
                digests = self._esys.pcr_read(_selection(part))[2]
                if len(digests) != len(part):
                    raise TpmError(
                        f"the TPM has no SHA-256 value for some of the PCRs {part}",
                        "activate the SHA-256 bank in the firmware's TPM settings",
                    )
                values.update((index, bytes(value)) for index, value in zip(part, digests, strict=True))
            return values

    def quote(self, pcrs: Iterable[int], qualifying_data: bytes) -> tuple[bytes, bytes]:
        """TPM2_Quote by the AK over SHA-256 PCRs: (TPMS_ATTEST, TPMT_SIGNATURE).

        :param qualifying_data: at most 32 bytes; some firmware TPMs refuse more.
        """
        if len(qualifying_data) > 32:
            raise TpmError(f"qualifying data of {len(qualifying_data)} bytes; at most 32 are portable")
        with self._command("quote"):
            return self._quote(pcrs, qualifying_data)

    def quote_with_values(
        self, pcrs: Iterable[int], qualifying_data: bytes
    ) -> tuple[bytes, bytes, dict[int, bytes]]:
        """A quote with the PCR values that it covers.

        Other software extends PCRs at any time (IMA: PCR 10), so a pair that does not match is taken again.
        """
        indices = sorted(set(pcrs))
        with self._lock:
            for _ in range(_QUOTE_ATTEMPTS):
                values = self.read_pcrs(indices)
                attest, signature = self.quote(indices, qualifying_data)
                # TPMS_QUOTE_INFO ends a TPMS_ATTEST, and pcrDigest ends it.
                if attest.endswith(hashlib.sha256(b"".join(values.values())).digest()):
                    return attest, signature, values
        raise TpmError(
            f"PCRs {indices} changed during each of {_QUOTE_ATTEMPTS} quotes", "the next round tries again"
        )

    def epoch(self) -> tuple[int, int]:
        """(resetCount, restartCount): the pair changes whenever PCRs may have been reset."""
        with self._command("read the clock"):
            # Parts of a structure live in its memory: the whole has to stay referenced.
            time = self._esys.read_clock()
            return int(time.clockInfo.resetCount), int(time.clockInfo.restartCount)

    def pcr_rights(self) -> PcrRights:
        """What software may do with each PCR, as the TPM states it."""
        with self._command("read the PCR properties"):
            return PcrRights(
                extendable=self._pcrs_with(TPM2_PT_PCR.EXTEND_L0),
                resettable=self._pcrs_with(TPM2_PT_PCR.RESET_L0),
            )

    @contextlib.contextmanager
    def _command(self, action: str) -> Iterator[None]:
        with self._lock:
            if not self._is_open:
                raise TpmError(f"cannot {action}: the TPM is not open")
            with translated(action):
                if self._esys is None:
                    self._esys = ESAPI(self._tcti)
                try:
                    yield
                except TSS2_Exception as error:
                    if sessions.connection_lost(error):
                        self._disconnect()
                    raise

    def _in_session(self, attributes: int, run: Callable[[Any], T]) -> T:
        """Run one command in the salted session, once more when the TPM says that the session was lost."""
        for last in (False, True):
            if self._session is None:
                with keys.endorsement_key(self._esys) as (ek, _):
                    self._session = sessions.start_salted(self._esys, ek)
            self._esys.trsess_set_attributes(self._session, attributes)
            try:
                return run(self._session)
            except TSS2_Exception as error:
                # Nonces may be out of step after any failure: the next command starts afresh.
                self._drop_session()
                if last or not sessions.session_lost(error):
                    raise
        raise AssertionError("unreachable")

    def _disconnect(self) -> None:
        self._drop_session()
        self._ak = None
        if self._esys is not None:
            self._esys.close()
            self._esys = None

    def _drop_session(self) -> None:
        if self._session is not None and self._esys is not None:
            sessions.flush(self._esys, self._session)
        self._session = None

    def _pcrs_with(self, tag: int) -> frozenset[int]:
        _, capability = self._esys.get_capability(TPM2_CAP.PCR_PROPERTIES, tag, 1)
        for entry in capability.data.pcrProperties:
            if entry.tag == tag:
                bits = int.from_bytes(bytes(entry.pcrSelect)[: entry.sizeofSelect], "little")
                return frozenset(index for index in range(24) if bits >> index & 1)
        return frozenset()

    def _loaded_ak(self) -> Any:
        if self._ak is None:
            if self._ak_handle is None:
                raise TpmError("the attestation key was not provisioned yet")
            # It was checked before the connection was lost; another key there convinces no verifier.
            self._ak = self._esys.tr_from_tpmpublic(self._ak_handle)
        return self._ak

    def _quote(self, pcrs: Iterable[int], qualifying_data: bytes) -> tuple[bytes, bytes]:
        ak, selection = self._loaded_ak(), _selection(pcrs)
        attest, signature = self._in_session(
            sessions.ENCRYPTED,
            lambda session: self._esys.quote(ak, selection, qualifying_data, session1=session),
        )
        return bytes(attest), bytes(signature.marshal())


def _selection(indices: Iterable[int]) -> str:
    wanted = sorted(set(indices))
    if not wanted or not all(0 <= index < 24 for index in wanted):
        raise TpmError(f"{wanted} is not a selection of PCRs 0 to 23")
    return "sha256:" + ",".join(map(str, wanted))


def _whole(kind: Any, data: bytes) -> Any:
    """Unmarshal a structure that takes all of ``data``."""
    structure, length = kind.unmarshal(data)
    if length != len(data):
        raise TpmError(f"{len(data) - length} bytes follow the end of a {kind.__name__}")
    return structure
