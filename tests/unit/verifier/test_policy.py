# SPDX-License-Identifier: Apache-2.0
"""What could not be checked is unknown, what was found is untrusted, and only the rest is trusted."""

from __future__ import annotations

from dataclasses import replace

import evidence_examples as examples
import pytest

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.evidence.measurement import (
    CheckResult,
    Finding,
    Integrity,
    Measurement,
    Module,
    Outcome,
    Unmeasured,
)
from nova_vmi_attest.evidence.result import MAX_REASONS, GuestResult, Verdict
from nova_vmi_attest.verifier.policy import Policy, PolicyError
from tests.unit.verifier import scenario
from tests.unit.verifier.scenario import GUESTS, POLICY


def judge(measurement: Measurement, policy: Policy = POLICY) -> GuestResult:
    return policy.appraise(measurement, scenario.references())


def changed(**fields: object) -> Measurement:
    """A healthy guest but for some fields of its integrity."""
    measurement = scenario.healthy(GUESTS[0])
    return replace(measurement, integrity=replace(measurement.integrity, **fields))  # type: ignore[arg-type]


def checks(outcome: Outcome, *findings: Finding, detail: str = "") -> tuple[CheckResult, ...]:
    """The text check with an outcome, and the others passed."""
    healthy = scenario.healthy(GUESTS[0]).integrity.checks
    return (CheckResult("text", outcome, 1, findings, detail=detail), *healthy[1:])


def verdict_and_checks(result: GuestResult) -> tuple[Verdict, list[str]]:
    return result.verdict, [reason.check for reason in result.reasons]


def test_a_healthy_guest_is_trusted_and_its_figures_are_passed_on() -> None:
    result = judge(scenario.healthy(GUESTS[0]))
    assert verdict_and_checks(result) == (Verdict.TRUSTED, [])
    assert (result.release, result.code_bytes, result.modules) == ("6.1.0-56-cloud-amd64", 14_741_504, 1)
    assert (result.processes, result.reader, result.microseconds) == (6, "ram_file", 21_500)


@pytest.mark.parametrize("cause", list(Unmeasured))
def test_an_unmeasured_guest_is_unknown_with_the_cause(cause: Unmeasured) -> None:
    measurement = examples.booting(GUESTS[0])
    measurement = replace(measurement, integrity=replace(measurement.integrity, reason=cause))
    assert verdict_and_checks(judge(measurement)) == (Verdict.UNKNOWN, [cause.value])


def test_a_kernel_that_is_not_approved_here_is_unknown() -> None:
    result = POLICY.appraise(scenario.healthy(GUESTS[0]), {})
    assert verdict_and_checks(result) == (Verdict.UNKNOWN, ["reference_not_approved"])


def test_a_measured_guest_without_a_kernel_is_unknown() -> None:
    assert verdict_and_checks(judge(changed(kernel=None))) == (Verdict.UNKNOWN, ["reference_not_approved"])


def test_a_kernel_that_contradicts_its_reference_is_unknown() -> None:
    kernel = scenario.healthy(GUESTS[0]).integrity.kernel
    assert kernel is not None
    result = judge(changed(kernel=replace(kernel, build_id="00" * 20)))
    assert verdict_and_checks(result) == (Verdict.UNKNOWN, ["reference_contradicted"])


@pytest.mark.parametrize(
    ("module", "check"),
    [
        (Module("virtio_net", "00" * 32, 1), "module_digest"),
        (Module("other", examples.octets("virtio_net").hex(), 1), "module_digest"),
        (Module("rootkit", "", 1), "module_unlisted"),
    ],
)
def test_a_module_must_be_the_approved_file(module: Module, check: str) -> None:
    result = judge(changed(modules=(module,)))
    assert verdict_and_checks(result) == (Verdict.UNTRUSTED, [check])
    assert result.reasons[0].symbol == module.name


def test_a_failed_check_is_untrusted_with_every_finding() -> None:
    findings = [
        Finding("text", "f", 4, 2, expected=b"\x01", actual=b"\x02", detail="why"),
        Finding("text", "g"),
    ]
    result = judge(changed(checks=checks(Outcome.FAILED, *findings)))
    assert verdict_and_checks(result) == (Verdict.UNTRUSTED, ["text", "text"])
    assert result.reasons[0].detail == "why; expected 01, found 02"


def test_a_failed_check_without_findings_is_untrusted_all_the_same() -> None:
    result = judge(changed(checks=checks(Outcome.FAILED, detail="odd")))
    assert (result.verdict, result.reasons[0].detail) == (Verdict.UNTRUSTED, "odd")


def test_an_incomplete_check_is_unknown() -> None:
    result = judge(changed(checks=checks(Outcome.INCOMPLETE, detail="list changed")))
    assert (result.verdict, result.reasons[0].detail) == (Verdict.UNKNOWN, "incomplete: list changed")


def test_a_check_that_was_not_run_is_unknown() -> None:
    assert verdict_and_checks(judge(changed(checks=()))) == (Verdict.UNKNOWN, ["modules", "text"])


def test_what_was_found_outweighs_what_is_missing() -> None:
    result = judge(changed(checks=checks(Outcome.FAILED, Finding("text", "f"))[:1]))
    assert verdict_and_checks(result) == (Verdict.UNTRUSTED, ["text", "modules"])


def test_unexplained_bytes_without_a_finding_are_not_overlooked() -> None:
    assert verdict_and_checks(judge(changed(unexplained_bytes=1))) == (
        Verdict.UNTRUSTED,
        ["unexplained_bytes"],
    )


def test_a_measurement_that_verified_nothing_is_unknown() -> None:
    assert verdict_and_checks(judge(changed(code_bytes=0))) == (Verdict.UNKNOWN, ["nothing_verified"])


def test_checks_that_are_not_required_are_only_reported() -> None:
    extra = CheckResult("processes", Outcome.FAILED, 0, (Finding("processes", "init"),))
    result = judge(changed(checks=(*checks(Outcome.PASSED), extra)))
    assert verdict_and_checks(result) == (Verdict.TRUSTED, ["processes"])


def test_reasons_are_bounded_and_printable() -> None:
    findings = [Finding("text", f"f{number}", detail="\x1b[2J" + "x" * 600) for number in range(64)]
    extra = CheckResult("modules", Outcome.FAILED, 0, tuple(findings))
    result = judge(changed(checks=(*checks(Outcome.FAILED, *findings), extra)))
    assert len(result.reasons) == MAX_REASONS
    assert all(reason.detail.isprintable() and len(reason.detail) <= 512 for reason in result.reasons)


def test_relaxations_are_named_and_do_what_they_say() -> None:
    hooked = changed(
        checks=(*checks(Outcome.PASSED), CheckResult("hooks", Outcome.FAILED, 0, (Finding("hooks", "f"),))),
        modules=(Module("rootkit", "", 1),),
    )
    strict = replace(POLICY, required_checks=POLICY.required_checks | {"hooks"})
    assert judge(hooked, strict).verdict is Verdict.UNTRUSTED
    relaxed = replace(strict, unsafe_tolerate_hooks=True, unsafe_tolerate_unlisted_modules=True)
    result = judge(hooked, relaxed)
    assert (result.verdict, {reason.check for reason in result.reasons}) == (
        Verdict.TRUSTED,
        {"hooks", "module_unlisted"},
    )
    assert [line.split()[1] for line in relaxed.relaxations(["text", "idt"])] == [
        "required_checks",
        "unsafe_tolerate_hooks",
        "unsafe_tolerate_unlisted_modules",
    ]


def test_unlisted_modules_are_tolerated_in_the_modules_check_too() -> None:
    unlisted = CheckResult("modules", Outcome.FAILED, 0, (Finding("modules", "rootkit"),))
    other = CheckResult("modules", Outcome.FAILED, 0, (Finding("modules", "virtio_net"),))
    relaxed = replace(POLICY, unsafe_tolerate_unlisted_modules=True)
    passed = checks(Outcome.PASSED)[:1]
    modules = (Module("rootkit", "", 1),)
    assert judge(changed(checks=(*passed, unlisted), modules=modules), relaxed).verdict is Verdict.TRUSTED
    assert judge(changed(checks=(*passed, other), modules=modules), relaxed).verdict is Verdict.UNTRUSTED
    assert judge(changed(checks=(*passed, unlisted), modules=modules)).verdict is Verdict.UNTRUSTED


def test_the_options_make_a_policy() -> None:
    conf = configuration.load([], default_files=[])
    conf.set_override("approved_pcr", ["0:" + "ab" * 32, "0:" + "CD" * 32, "7:" + "00" * 32], "policy")
    policy = Policy.from_options(conf.policy)
    assert policy.approved_pcrs[0] == {bytes.fromhex("ab" * 32), bytes.fromhex("cd" * 32)}
    assert policy.required_pcrs == {*range(8), 13}
    assert policy.relaxations(policy.required_checks) == ()


@pytest.mark.parametrize("value", ["", "0", "0:ab", "24:" + "00" * 32, "x:" + "00" * 32, "0:" + "zz" * 32])
def test_malformed_pcr_values_are_refused(value: str) -> None:
    conf = configuration.load([], default_files=[])
    conf.set_override("approved_pcr", [value], "policy")
    with pytest.raises(PolicyError, match="approved_pcr"):
        Policy.from_options(conf.policy)


def test_a_policy_that_requires_nothing_is_refused() -> None:
    with pytest.raises(PolicyError, match="required_checks"):
        Policy(frozenset(), 13, frozenset())


def test_the_log_has_a_pcr_of_its_own() -> None:
    with pytest.raises(PolicyError, match="PCR 7"):
        Policy(frozenset({"text"}), 7, frozenset({7}))


def test_an_empty_integrity_is_unknown() -> None:
    measurement = replace(
        scenario.healthy(GUESTS[0]), integrity=Integrity(scenario.healthy(GUESTS[0]).integrity.status)
    )
    assert judge(measurement).verdict is Verdict.UNKNOWN
