# SPDX-License-Identifier: Apache-2.0
"""The appraisal policy: from what a measurement states to a verdict. Pure.

A guest is trusted when nothing speaks against it *and* everything that is required was shown: what could not
be checked makes it unknown, what was found makes it untrusted. The agent holds no policy, so all of it is
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.measurement import CheckResult, Finding, Integrity, Measurement, Outcome, Status
from nova_vmi_attest.evidence.measurement_codec import MAX_DETAIL, MAX_NAME, MAX_SYMBOL
from nova_vmi_attest.evidence.result import MAX_REASONS, GuestResult, Reason, Verdict

_APPROVED_PCR = re.compile(r"([0-9]{1,2}):([0-9a-fA-F]{64})")

# The checks by which a hook of the kernel's own tracing, and a module that no package has, come to light.
_HOOKS = "hooks"
_MODULES = "modules"


class PolicyError(AttestError):
    """The options in ``[policy]`` do not make a policy."""


class PolicyOptions(Protocol):
    """The options in ``[policy]``, as configuration gives them."""

    required_checks: Sequence[str]
    log_pcr: int
    host_pcrs: Sequence[int]
    approved_pcr: Sequence[str]
    unsafe_tolerate_hooks: bool
    unsafe_tolerate_unlisted_modules: bool


@dataclass(frozen=True, slots=True)
class ApprovedReference:
    """A kernel that the operator approved. ``modules`` maps names to hex SHA-256 digests of their .ko
    files.
    """

    release: str
    build_id: str
    modules: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Policy:
    """What makes evidence trusted; the options in ``[policy]`` say what each field is for.

    :raises PolicyError: when nothing would be required, which would trust every guest.
    """

    required_checks: frozenset[str]
    log_pcr: int
    host_pcrs: frozenset[int]
    approved_pcrs: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    unsafe_tolerate_hooks: bool = False
    unsafe_tolerate_unlisted_modules: bool = False

    def __post_init__(self) -> None:
        if not self.required_checks:
            raise PolicyError(
                "no check is required: every guest would be trusted", "set [policy] required_checks"
            )
        if self.log_pcr in self.host_pcrs:
            raise PolicyError(
                f"PCR {self.log_pcr} cannot be the log's and the host's at once",
                "change [policy] log_pcr or host_pcrs",
            )

    @classmethod
    def from_options(cls, options: PolicyOptions) -> Policy:
        """The policy that the options state.

        :raises PolicyError: naming the option at fault.
        """
        return cls(
            required_checks=frozenset(options.required_checks),
            log_pcr=options.log_pcr,
            host_pcrs=frozenset(options.host_pcrs),
            approved_pcrs=_approved_pcrs(options.approved_pcr),
            unsafe_tolerate_hooks=options.unsafe_tolerate_hooks,
            unsafe_tolerate_unlisted_modules=options.unsafe_tolerate_unlisted_modules,
        )

    @property
    def required_pcrs(self) -> frozenset[int]:
        """The PCRs that a quote must cover."""
        return self.host_pcrs | self.approved_pcrs.keys() | {self.log_pcr}

    def relaxations(self, known_checks: Iterable[str]) -> tuple[str, ...]:
        """What this policy does not insist on, for the log of a service that starts."""
        left_out = sorted(set(known_checks) - self.required_checks)
        found = [f"[policy] required_checks leaves out {name}" for name in left_out]
        if self.unsafe_tolerate_hooks:
            found.append("[policy] unsafe_tolerate_hooks is set: hooked kernels are trusted")
        if self.unsafe_tolerate_unlisted_modules:
            found.append("[policy] unsafe_tolerate_unlisted_modules is set: unknown modules are trusted")
        return tuple(found)

    def appraise(self, measurement: Measurement, references: Mapping[str, ApprovedReference]) -> GuestResult:
        """The verdict on one guest.

        :param measurement: authenticated by the caller: this only reads what it states.
        :param references: the approved kernels by the digest of their manifest.
        """
        verdict, reasons = self._judge(measurement, references)
        integrity, kernel = measurement.integrity, measurement.integrity.kernel
        return GuestResult(
            guest=measurement.guest,
            verdict=verdict,
            reasons=tuple(reasons[:MAX_REASONS]),
            release=kernel.release if kernel else "",
            reference=kernel.reference if kernel else "",
            code_bytes=integrity.code_bytes,
            unexplained_bytes=integrity.unexplained_bytes,
            modules=len(integrity.modules),
            processes=len(measurement.inventory.processes) + measurement.inventory.truncated,
            reader=measurement.observation.reader,
            microseconds=measurement.observation.microseconds,
        )

    def _judge(
        self, measurement: Measurement, references: Mapping[str, ApprovedReference]
    ) -> tuple[Verdict, list[Reason]]:
        integrity = measurement.integrity
        if integrity.status is not Status.MEASURED:
            cause = integrity.reason.value if integrity.reason else "unmeasured"
            return Verdict.UNKNOWN, [reason(cause, detail=integrity.detail)]
        against: list[Reason] = []
        missing: list[Reason] = []
        tolerated: list[Reason] = []
        self._judge_kernel(measurement, references, against, missing, tolerated)
        self._judge_checks(integrity, against, missing, tolerated)
        if (unexplained := integrity.unexplained_bytes) and not against:
            against.append(reason("unexplained_bytes", length=unexplained, detail="in no finding of a check"))
        if not integrity.code_bytes:
            missing.append(reason("nothing_verified", detail="no code was compared with the reference"))
        verdict = Verdict.UNTRUSTED if against else Verdict.UNKNOWN if missing else Verdict.TRUSTED
        return verdict, [*against, *missing, *tolerated]

    def _judge_kernel(
        self,
        measurement: Measurement,
        references: Mapping[str, ApprovedReference],
        against: list[Reason],
        missing: list[Reason],
        tolerated: list[Reason],
    ) -> None:
        """The kernel and its modules must be approved here, whatever the agent measured them against.

        A kernel that is not approved is unknown, not untrusted: the guest equals the reference that the agent
        has, nothing shows an alteration, and importing that reference is all that is needed to tell. A module
        that differs from its own package is another matter.
        """
        kernel = measurement.integrity.kernel
        approved = references.get(kernel.reference) if kernel else None
        if kernel is None or approved is None:
            detail = f"kernel {kernel.release}, manifest {kernel.reference}" if kernel else "no kernel"
            missing.append(reason("reference_not_approved", detail=detail))
            return
        if (kernel.release, kernel.build_id) != (approved.release, approved.build_id):
            detail = f"stated as {kernel.release}, build {kernel.build_id}"
            missing.append(reason("reference_contradicted", detail=detail))
        for module in measurement.integrity.modules:
            if not module.reference:
                unlisted = reason("module_unlisted", module.name, detail="not in the reference package")
                (tolerated if self.unsafe_tolerate_unlisted_modules else against).append(unlisted)
            elif module.reference != approved.modules.get(module.name):
                detail = f"measured against {module.reference}, which is not the approved file"
                against.append(reason("module_digest", module.name, detail=detail))

    def _judge_checks(
        self,
        integrity: Integrity,
        against: list[Reason],
        missing: list[Reason],
        tolerated: list[Reason],
    ) -> None:
        """Every check that is required must be there and have passed; the others are only reported."""
        seen: set[str] = set()
        for check in integrity.checks:
            seen.add(check.check)
            required = check.check in self.required_checks
            if check.outcome is Outcome.FAILED:
                target = against if required and not self._tolerates(check, integrity) else tolerated
                target.extend(_findings(check))
            elif check.outcome is Outcome.INCOMPLETE and required:
                missing.append(reason(check.check, detail=f"incomplete: {check.detail}"))
        for name in sorted(self.required_checks - seen):
            missing.append(reason(name, detail="the agent did not run this check"))

    def _tolerates(self, check: CheckResult, integrity: Integrity) -> bool:
        """Whether a relaxation covers all that a failed check found.

        A module that no package has is one finding; whatever more is said of it, such as that it is hidden,
        is not covered.
        """
        if check.check == _HOOKS:
            return self.unsafe_tolerate_hooks
        if check.check != _MODULES or not self.unsafe_tolerate_unlisted_modules or check.truncated:
            return False
        unlisted = {module.name for module in integrity.modules if not module.reference}
        found = [finding.symbol for finding in check.findings]
        return bool(found) and len(found) == len(set(found)) and unlisted.issuperset(found)


def reason(check: str, symbol: str = "", offset: int = 0, length: int = 0, detail: str = "") -> Reason:
    """A reason whose texts fit into a result."""
    name, place, text = _text(check, MAX_NAME), _text(symbol, MAX_SYMBOL), _text(detail, MAX_DETAIL)
    return Reason(name, place, offset, length, text)


def _text(value: str, maximum: int) -> str:
    return "".join(character if character.isprintable() else "?" for character in value[:maximum])


def _findings(check: CheckResult) -> list[Reason]:
    if not check.findings:
        return [reason(check.check, detail=check.detail or "failed without a finding")]
    found = [_finding(check.check, finding) for finding in check.findings]
    if check.truncated:
        found.append(reason(check.check, detail=f"{check.truncated} further findings were left out"))
    return found


def _finding(check: str, finding: Finding) -> Reason:
    parts = [finding.detail] if finding.detail else []
    if finding.expected or finding.actual:
        parts.append(f"expected {finding.expected.hex() or '-'}, found {finding.actual.hex() or '-'}")
    return reason(check, finding.symbol, finding.offset, finding.length, "; ".join(parts))


def _approved_pcrs(values: Iterable[str]) -> dict[int, frozenset[bytes]]:
    approved: dict[int, set[bytes]] = {}
    for value in values:
        match = _APPROVED_PCR.fullmatch(value.strip())
        if match is None or int(match[1]) > 23:
            raise PolicyError(
                f"{value!r} is not INDEX:HEX with 64 hex digits", "correct [policy] approved_pcr"
            )
        approved.setdefault(int(match[1]), set()).add(bytes.fromhex(match[2]))
    return {index: frozenset(digests) for index, digests in approved.items()}
