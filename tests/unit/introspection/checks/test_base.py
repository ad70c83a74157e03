# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.measurement import Outcome
from nova_vmi_attest.introspection.checks.base import FINDING_LIMIT, Check, CheckContext, Findings
from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.memory.base import GuestGone, ReaderError

CONTEXT = cast(CheckContext, SimpleNamespace())


def locate(address: int) -> tuple[str, int]:
    """Symbols of 100 bytes each."""
    return f"symbol{address // 100}", address % 100


def reported(offsets: list[int], size: int = 1000) -> Findings:
    findings = Findings("text")
    live = np.arange(size).astype(np.uint8)
    findings.differences(
        np.array(offsets, np.int64), lambda at, length: bytes(length), live, 0, locate, "differs"
    )
    return findings


class Raising(Check):
    name = "raising"

    def __init__(self, error: Exception, finds: bool = False) -> None:
        self.error = error
        self.finds = finds

    def examine(self, context: CheckContext, findings: Findings) -> None:
        if self.finds:
            findings.add("symbol", "odd")
        raise self.error


def test_nothing_found_is_passed_and_something_is_failed() -> None:
    findings = Findings("text")
    findings.bytes_verified = 7
    assert findings.result().outcome is Outcome.PASSED
    assert findings.result().bytes_verified == 7
    findings.add("tcp4_seq_show", "odd", offset=3)
    assert findings.result().outcome is Outcome.FAILED
    assert findings.result().findings[0].symbol == "tcp4_seq_show"


@pytest.mark.parametrize("error", [GuestFault(0x1234), AttestError("no rule")])
def test_what_could_not_be_checked_is_incomplete(error: AttestError) -> None:
    result = Raising(error).run(CONTEXT)
    assert result.outcome is Outcome.INCOMPLETE
    assert result.detail == error.message


def test_what_was_found_before_an_error_counts() -> None:
    result = Raising(GuestFault(0x1234), finds=True).run(CONTEXT)
    assert result.outcome is Outcome.FAILED
    assert "0x1234" in result.detail


@pytest.mark.parametrize("error", [GuestGone("gone"), ReaderError("broken")])
def test_a_guest_that_ended_is_not_a_result(error: AttestError) -> None:
    with pytest.raises(type(error)):
        Raising(error).run(CONTEXT)


def test_findings_are_bounded() -> None:
    findings = Findings("text")
    for number in range(FINDING_LIMIT + 10):
        findings.add("s" * 1000, "d" * 1000, address=number, expected=b"e" * 1000, actual=b"a" * 1000)
    result = findings.result()
    assert len(result.findings) == FINDING_LIMIT
    assert result.truncated == 10
    one = result.findings[0]
    assert (len(one.symbol), len(one.detail), len(one.expected), len(one.actual)) == (128, 256, 32, 32)


def test_neighbouring_bytes_of_one_symbol_are_one_finding() -> None:
    found = reported([110, 111, 114, 150]).result().findings
    assert [(one.symbol, one.offset, one.length) for one in found] == [("symbol1", 10, 5), ("symbol1", 50, 1)]
    assert found[0].actual == bytes(range(110, 115))
    assert found[0].address == 110


def test_a_run_over_two_symbols_is_two_findings() -> None:
    found = reported([198, 199, 200, 201]).result().findings
    assert [(one.symbol, one.offset, one.length) for one in found] == [("symbol1", 98, 2), ("symbol2", 0, 2)]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 999), min_size=1, max_size=300))
def test_every_difference_is_inside_a_finding(offsets: set[int]) -> None:
    result = reported(sorted(offsets)).result()
    covered = {at for one in result.findings for at in range(one.address, one.address + one.length)}
    assert result.outcome is Outcome.FAILED
    assert offsets <= covered or result.truncated


def test_differences_everywhere_end_soon() -> None:
    result = reported(list(range(0, 100000, 20)), 100000).result()
    assert len(result.findings) == FINDING_LIMIT
    assert result.truncated > 0
