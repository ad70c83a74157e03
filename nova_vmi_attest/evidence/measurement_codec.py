# SPDX-License-Identifier: Apache-2.0
"""Measurements on the wire, and the digests that leaves are made of.

Each section has a digest of its own under its own tag, so a section that a verifier already holds can be
named by it. The digest of the measurement covers the three of them and the guest.

Encoding holds a measurement to the same bounds as decoding does: what a hostile guest may have slipped past
the checks is refused on the host that read it, not on the verifier, where it would cost the whole batch.
"""

from __future__ import annotations

from typing import Any

from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.evidence.encoding import MAX_INTEGER, EncodingError
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

MAX_CHECKS = 64
MAX_FINDINGS = 64
MAX_SAMPLE = 32
MAX_MODULES = 4096
MAX_PROCESSES = 4096
MAX_NAME = 64
MAX_SYMBOL = 256
MAX_DETAIL = 512
MAX_RELEASE = 128
MAX_PATH = 4096
_U32 = (1 << 32) - 1


def encode_measurement(measurement: Measurement) -> dict[str, Any]:
    """The wire object of a measurement.

    :raises EncodingError: if a value is out of the bounds that :func:`decode_measurement` holds it to.
    """
    value = {
        "guest": str(measurement.guest),
        "integrity": _integrity_to(measurement.integrity),
        "inventory": _inventory_to(measurement.inventory),
        "observation": _observation_to(measurement.observation),
    }
    if decode_measurement(value) != measurement:
        raise EncodingError(f"the measurement of guest {measurement.guest} does not survive its encoding")
    return value


def decode_measurement(value: Any) -> Measurement:
    """The measurement that a wire object states.

    :raises EncodingError: naming the first member that is missing, unknown or out of bounds. NOT checked:
        whether the statements agree with each other; that is appraisal.
    """
    members = encoding.exact_keys(value, ("guest", "integrity", "inventory", "observation"), "a measurement")
    return Measurement(
        guest=encoding.uuid(members, "guest"),
        integrity=_integrity_from(members["integrity"]),
        inventory=_inventory_from(members["inventory"]),
        observation=_observation_from(members["observation"]),
    )


def section_digests(measurement: Measurement) -> dict[str, bytes]:
    """The digest of each section: ``integrity``, ``inventory`` and ``observation``, 32 bytes each.

    SHA-256 of ``"nova-vmi-attest integrity v1" ‖ 0x00 ‖ canonical(section)``, and so for the others.

    :raises EncodingError: if a section has no canonical form.
    """
    sections = {
        "integrity": _integrity_to(measurement.integrity),
        "inventory": _inventory_to(measurement.inventory),
        "observation": _observation_to(measurement.observation),
    }
    return {name: encoding.tagged_digest(f"{name} v1", section) for name, section in sections.items()}


def measurement_digest(measurement: Measurement) -> bytes:
    """The 32 bytes that stand for the measurement in a leaf.

    SHA-256 of ``"nova-vmi-attest measurement v1" ‖ 0x00 ‖ canonical({"format": 1, "guest": uuid,
    "integrity": hex, "inventory": hex, "observation": hex})``.

    :raises EncodingError: if a section has no canonical form.
    """
    digests = {name: value.hex() for name, value in section_digests(measurement).items()}
    return encoding.tagged_digest("measurement v1", {"format": 1, "guest": str(measurement.guest), **digests})


def _integrity_to(integrity: Integrity) -> dict[str, Any]:
    return {
        "checks": [_check_to(check) for check in integrity.checks],
        "code_bytes": integrity.code_bytes,
        "detail": integrity.detail,
        "kernel": _kernel_to(integrity.kernel) if integrity.kernel else None,
        "modules": [[module.name, module.reference, module.text_bytes] for module in integrity.modules],
        "reason": str(integrity.reason) if integrity.reason else None,
        "status": str(integrity.status),
        "unexplained_bytes": integrity.unexplained_bytes,
    }


def _integrity_from(value: Any) -> Integrity:
    members = encoding.exact_keys(value, _INTEGRITY_KEYS, "integrity")
    return Integrity(
        status=_status(members),
        reason=_reason(members),
        detail=encoding.text(members, "detail", MAX_DETAIL),
        kernel=None if members["kernel"] is None else _kernel_from(members["kernel"]),
        checks=tuple(_check_from(check) for check in encoding.items(members, "checks", MAX_CHECKS)),
        modules=tuple(_module_from(module) for module in encoding.items(members, "modules", MAX_MODULES)),
        code_bytes=encoding.integer(members, "code_bytes"),
        unexplained_bytes=encoding.integer(members, "unexplained_bytes"),
    )


def _status(members: dict[str, Any]) -> Status:
    try:
        return Status(encoding.text(members, "status", MAX_NAME))
    except ValueError as error:
        raise EncodingError("status is not one that is known") from error


def _reason(members: dict[str, Any]) -> Unmeasured | None:
    if members["reason"] is None:
        return None
    try:
        return Unmeasured(encoding.text(members, "reason", MAX_NAME))
    except ValueError as error:
        raise EncodingError("reason is not one that is known") from error


def _kernel_to(kernel: KernelIdentity) -> dict[str, Any]:
    return {"build_id": kernel.build_id, "reference": kernel.reference, "release": kernel.release}


def _kernel_from(value: Any) -> KernelIdentity:
    members = encoding.exact_keys(value, ("build_id", "reference", "release"), "kernel")
    return KernelIdentity(
        reference=encoding.hexdigest_text(members["reference"], "reference"),
        release=encoding.text(members, "release", MAX_RELEASE),
        build_id=encoding.text(members, "build_id", 128),
    )


def _check_to(check: CheckResult) -> dict[str, Any]:
    return {
        "bytes_verified": check.bytes_verified,
        "check": check.check,
        "detail": check.detail,
        "findings": [_finding_to(finding) for finding in check.findings],
        "outcome": str(check.outcome),
        "truncated": check.truncated,
    }


def _check_from(value: Any) -> CheckResult:
    members = encoding.exact_keys(value, _CHECK_KEYS, "a check")
    try:
        outcome = Outcome(encoding.text(members, "outcome", MAX_NAME))
    except ValueError as error:
        raise EncodingError("outcome is not one that is known") from error
    return CheckResult(
        check=encoding.text(members, "check", MAX_NAME),
        outcome=outcome,
        bytes_verified=encoding.integer(members, "bytes_verified"),
        findings=tuple(_finding_from(item) for item in encoding.items(members, "findings", MAX_FINDINGS)),
        truncated=encoding.integer(members, "truncated"),
        detail=encoding.text(members, "detail", MAX_DETAIL),
    )


def _finding_to(finding: Finding) -> dict[str, Any]:
    return {
        "actual": encoding.base64url(finding.actual),
        "address": hex(finding.address),
        "check": finding.check,
        "detail": finding.detail,
        "expected": encoding.base64url(finding.expected),
        "length": finding.length,
        "offset": finding.offset,
        "symbol": finding.symbol,
    }


def _finding_from(value: Any) -> Finding:
    members = encoding.exact_keys(value, _FINDING_KEYS, "a finding")
    return Finding(
        check=encoding.text(members, "check", MAX_NAME),
        symbol=encoding.text(members, "symbol", MAX_SYMBOL),
        offset=encoding.integer(members, "offset", -MAX_INTEGER),
        length=encoding.integer(members, "length"),
        address=encoding.address(members, "address"),
        expected=encoding.octets(members, "expected", MAX_SAMPLE),
        actual=encoding.octets(members, "actual", MAX_SAMPLE),
        detail=encoding.text(members, "detail", MAX_DETAIL),
    )


def _module_from(value: Any) -> Module:
    members = _row(value, ("name", "reference", "text_bytes"), "a module")
    reference = encoding.text(members, "reference", 64)
    return Module(
        name=encoding.text(members, "name", MAX_NAME),
        reference=encoding.hexdigest_text(reference, "reference") if reference else "",
        text_bytes=encoding.integer(members, "text_bytes"),
    )


def _inventory_to(inventory: Inventory) -> dict[str, Any]:
    return {
        "processes": [[item.pid, item.name, item.uid, item.executable] for item in inventory.processes],
        "truncated": inventory.truncated,
    }


def _inventory_from(value: Any) -> Inventory:
    members = encoding.exact_keys(value, ("processes", "truncated"), "inventory")
    processes = encoding.items(members, "processes", MAX_PROCESSES)
    return Inventory(
        processes=tuple(_process_from(process) for process in processes),
        truncated=encoding.integer(members, "truncated"),
    )


def _process_from(value: Any) -> Process:
    members = _row(value, ("pid", "name", "uid", "executable"), "a process")
    return Process(
        pid=encoding.integer(members, "pid", 0, _U32),
        name=encoding.text(members, "name", MAX_NAME),
        uid=encoding.integer(members, "uid", 0, _U32),
        executable=encoding.text(members, "executable", MAX_PATH),
    )


def _row(value: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    # Modules and processes are by far the most of a measurement: they travel as rows without member names.
    if type(value) is not list or len(value) != len(names):
        raise EncodingError(f"{what} is not an array of {len(names)} elements")
    return dict(zip(names, value, strict=True))


def _observation_to(observation: Observation) -> dict[str, Any]:
    return {
        "bytes_read": observation.bytes_read,
        "microseconds": observation.microseconds,
        "reader": observation.reader,
    }


def _observation_from(value: Any) -> Observation:
    members = encoding.exact_keys(value, ("bytes_read", "microseconds", "reader"), "observation")
    return Observation(
        reader=encoding.text(members, "reader", MAX_NAME),
        bytes_read=encoding.integer(members, "bytes_read"),
        microseconds=encoding.integer(members, "microseconds"),
    )


_INTEGRITY_KEYS = frozenset(
    ("checks", "code_bytes", "detail", "kernel", "modules", "reason", "status", "unexplained_bytes")
)
_CHECK_KEYS = frozenset(("bytes_verified", "check", "detail", "findings", "outcome", "truncated"))
_FINDING_KEYS = frozenset(("actual", "address", "check", "detail", "expected", "length", "offset", "symbol"))
