# SPDX-License-Identifier: Apache-2.0
"""What a measurement shows, in words for whoever reads it without our policy: facts, and no verdict."""

from __future__ import annotations

from dataclasses import dataclass

from nova_vmi_attest.evidence.measurement import Finding, Measurement, Outcome, Status


@dataclass(frozen=True, slots=True)
class Summary:
    """One measurement in short.

    :param sound: the kernel was measured, every check that ran passed, some code was compared and none of it
        is unexplained. Whether its reference is an approved kernel, and whether enough checks ran, is policy.
    :param status: the status, and the cause where it was not measured.
    :param checks: each check with its outcome.
    :param findings: each finding with its place and length.
    """

    sound: bool
    status: str
    release: str
    reference: str
    code_bytes: int
    unexplained_bytes: int
    modules: int
    processes: int
    checks: tuple[str, ...]
    findings: tuple[str, ...]


def summarize(measurement: Measurement) -> Summary:
    """The summary of a measurement that the caller has authenticated; nothing in it is checked here."""
    integrity = measurement.integrity
    checks = integrity.checks
    return Summary(
        sound=(
            integrity.status is Status.MEASURED
            and bool(checks)
            and all(check.outcome is Outcome.PASSED for check in checks)
            and integrity.code_bytes > 0
            and integrity.unexplained_bytes == 0
        ),
        status=" ".join(filter(None, (integrity.status.value, integrity.reason and integrity.reason.value))),
        release=integrity.kernel.release if integrity.kernel else "",
        reference=integrity.kernel.reference if integrity.kernel else "",
        code_bytes=integrity.code_bytes,
        unexplained_bytes=integrity.unexplained_bytes,
        modules=len(integrity.modules),
        processes=len(measurement.inventory.processes) + measurement.inventory.truncated,
        checks=tuple(f"{check.check}: {check.outcome}" for check in checks),
        findings=tuple(_text(finding) for check in checks for finding in check.findings),
    )


def _text(finding: Finding) -> str:
    """A finding on one line. Names in it are the guest's: what is not printable is masked."""
    text = f"{finding.check}: {finding.symbol}+{finding.offset:#x}, {finding.length} bytes, {finding.detail}"
    return "".join(character if character.isprintable() else "?" for character in text)
