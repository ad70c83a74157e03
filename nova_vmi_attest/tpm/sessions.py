# SPDX-License-Identifier: Apache-2.0
"""Sessions with a TPM, and what its error codes mean to an operator.

A salted HMAC session keeps whoever sits on the bus between CPU and chip from reading or changing a command:
the salt is encrypted to the EK, so only the TPM with that EK shares the session key (TPM 2.0 Library part 1,
"Session-based authorizations"). Opening one costs more than the command it protects, so one is kept open and
renewed when lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_SESSION, TSS2_RC
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPMT_SYM_DEF, TPMU_SYM_KEY_BITS, TPMU_SYM_MODE

from nova_vmi_attest.errors import AttestError

# Which parameters of a command are encrypted; PCR_Extend has none that may be (its first one is a list).
INTEGRITY = TPMA_SESSION.CONTINUESESSION
ENCRYPTED = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT

_LAYER = 0xFF0000
# Answers of the TPM itself, directly or through a resource manager; the command was not executed.
_TPM_LAYERS = (0x000000, 0x0B0000, 0x0C0000)
_TCTI_LAYER = 0x0A0000
_OUT_OF_SLOTS = {0x901, 0x902, 0x903, 0x904, 0x905}
_LOCKOUT = 0x921
_REFERENCE_SESSION = range(0x918, 0x91F)
_AUTH_FAILED = {0x08E, 0x0A2}


class TpmError(AttestError):
    """The TPM, or the way to it, refused."""


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn what tpm2-pytss raises during ``action`` into a :class:`TpmError` with a remedy."""
    try:
        yield
    except TSS2_Exception as error:
        raise TpmError(f"the TPM refused to {action}: {error}", _remedy(error)) from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise TpmError(f"could not {action}: {error}", "check [tpm] tcti") from error


def quiet_library() -> None:
    """Keep libtss2 from writing its own messages to stderr; its error codes reach the log anyway.

    The library reads the variable at its first message, so this precedes the first command.
    """
    os.environ.setdefault("TSS2_LOG", "all+none")


def start_salted(esys: Any, key: Any) -> Any:
    """An HMAC session whose secret is salted with ``key`` (the EK); AES-128-CFB for parameters."""
    return esys.start_auth_session(
        key, ESYS_TR.NONE, TPM2_SE.HMAC,
        TPMT_SYM_DEF(
            algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
        ),
        TPM2_ALG.SHA256,
    )  # fmt: skip


@contextlib.contextmanager
def endorsement_policy(esys: Any) -> Iterator[Any]:
    """A policy session that satisfies the EK's PolicySecret(endorsement); it authorises one command."""
    session = esys.start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
    )
    try:
        esys.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
        yield session
    finally:
        flush(esys, session)


def flush(esys: Any, handle: Any) -> None:
    """Free a session or a transient object; one that is already gone is fine."""
    with contextlib.suppress(TSS2_Exception):
        esys.flush_context(handle)


def session_lost(error: Any) -> bool:
    """Whether the TPM refused a command because of its session, unexecuted: a new session may try again."""
    code = int(error.rc)
    if code & _LAYER not in _TPM_LAYERS:
        return False
    return (code & 0xFFFF) in _REFERENCE_SESSION or bool(error.fmt1 and error.session)


def connection_lost(error: Any) -> bool:
    """Whether the way to the TPM is gone, and not just a command refused."""
    return int(error.rc) & _LAYER == _TCTI_LAYER


def _remedy(error: Any) -> str:
    code = int(error.rc)
    if code & _LAYER == _TCTI_LAYER:
        return "check [tpm] tcti and the access rights of the device; is the TPM in use by another process?"
    if code == TSS2_RC.ESYS_RC_RSP_AUTH_FAILED:
        return "the answer was altered on its way from the TPM: examine the host"
    if code & 0xFFFF in _OUT_OF_SLOTS:
        return (
            "is the TPM in use by another process? swtpm and /dev/tpm0 have no resource manager: "
            "use /dev/tpmrm0, or free what a killed program left with tpm2_flushcontext --loaded-session"
        )
    if code & 0xFFFF == _LOCKOUT:
        return "the TPM is in dictionary attack lockout: wait, or run tpm2_dictionarylockout --clear-lockout"
    if error.fmt1 and int(error.error) in _AUTH_FAILED:
        return "the owner and endorsement hierarchies must have an empty password"
    return "see the TPM library's description of the code with tpm2_rc_decode " + hex(code)
