# SPDX-License-Identifier: Apache-2.0
"""Tenants read a verdict in plain words, and neither hostile guests nor the host's secrets get into them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.evidence.measurement import Unmeasured
from nova_vmi_attest.evidence.result import Reason, Verdict
from nova_vmi_attest.relying import properties as module
from nova_vmi_attest.relying.properties import MAX_VALUE, properties
from nova_vmi_attest.relying.trust import Trust

ISSUED, EXPIRES = 1_800_000_000, 1_800_000_300
TRUSTED = Trust(Verdict.TRUSTED, (), EXPIRES, ISSUED, "6.1.0-56-amd64", "compute-1")
PLAIN = re.compile(r"[A-Za-z0-9 _.,:;+\-/()\[\]{}@#%*=!?|^~$]{1,255}")


def bad(*reasons: Reason, verdict: Verdict = Verdict.UNTRUSTED) -> Trust:
    return Trust(verdict, reasons, EXPIRES, ISSUED, "6.1.0", "compute-1")


def why(trust: Trust, status: str = "ACTIVE") -> str:
    return properties(trust, Verdict.TRUSTED, status).get("trust:reason", "")


def test_a_trusted_server() -> None:
    assert properties(TRUSTED, Verdict.TRUSTED, "ACTIVE") == {
        "trust:verdict": "trusted",
        "trust:host_verdict": "trusted",
        "trust:checked_at": "2027-01-15T08:00:00Z",
        "trust:valid_until": "2027-01-15T08:05:00Z",
        "trust:kernel": "6.1.0-56-amd64",
    }


@pytest.mark.parametrize("status", ["SHUTOFF", "SHELVED_OFFLOADED", "SUSPENDED"])
def test_a_server_without_memory_is_not_trusted_by_what_was_said_of_it(status: str) -> None:
    # As after an evacuation: the result of the host that is down is valid for a while.
    assert properties(TRUSTED, Verdict.TRUSTED, status) == {
        "trust:verdict": "unknown",
        "trust:host_verdict": "trusted",
        "trust:reason": "no result: it is not running",
    }
    assert properties(bad(Reason("text")), Verdict.TRUSTED, status)["trust:verdict"] == "untrusted"


def test_names_begin_with_the_reserved_prefix() -> None:
    names = properties(bad(Reason("text")), Verdict.UNKNOWN)
    assert len(names) == 6
    assert all(name.startswith("trust:") for name in names)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("BUILD", "not measured yet: it is being built"),
        ("SHUTOFF", "no result: it is not running"),
        ("SUSPENDED", "no result: it is not running"),
        ("SHELVED_OFFLOADED", "no result: it is not running"),
        ("ACTIVE", "no result: it was not measured yet, or results cannot be had at the moment"),
        ("REBOOT", "no result: it was not measured yet, or results cannot be had at the moment"),
        ("", "no result: it is not running, was not measured yet, or results cannot be had at the moment"),
    ],
)
def test_a_server_without_a_result(status: str, said: str) -> None:
    assert properties(Trust(Verdict.UNKNOWN, (Reason("never_seen"),)), Verdict.UNKNOWN, status) == {
        "trust:verdict": "unknown",
        "trust:host_verdict": "unknown",
        "trust:reason": said,
    }


@pytest.mark.parametrize(
    ("status", "behind"), [("ACTIVE", ", and no newer one came"), ("SHUTOFF", ": it is not running")]
)
def test_a_result_that_ended(status: str, behind: str) -> None:
    trust = Trust(Verdict.STALE, (Reason("text"),), EXPIRES, ISSUED, "6.1.0", "compute-1", Verdict.TRUSTED)
    assert why(trust, status) == f"the last result (trusted) ended at 2027-01-15T08:05:00Z{behind}"


def test_what_was_found() -> None:
    found = bad(Reason("modules", "rootkit", 16, 5, "not in the package"), Reason("text"), Reason("idt"))
    assert why(found) == "modules at rootkit+0x10 (5 bytes): not in the package (and 2 more)"
    assert why(bad(Reason("processes"))) == "processes"


@pytest.mark.parametrize(
    "cause", ["host_untrusted", "guest_missing", "not_known_to_nova", "placement_unchecked", *Unmeasured]
)
def test_the_hosts_part_in_it_is_not_told(cause: str) -> None:
    detail = "certificate: the evidence is of host compute-1, /dev/shm/qemu.1 was asked"
    said = why(bad(Reason(cause, "qemu", 1, 1, detail), verdict=Verdict.UNKNOWN))
    assert said
    assert not any(word in said for word in ("compute-1", "qemu", "certificate", "/dev", "bytes", cause))


def test_no_detail_names_the_host() -> None:
    for name in ("compute-1", "Compute-1", "compute-1.example"):
        assert "ompute" not in why(bad(Reason("text", "f", 0, 1, f"seen by {name}: {name}")))
    assert why(bad(Reason("text", "f", detail="on compute-10 and xcompute-1"))).endswith("xcompute-1")


@pytest.mark.parametrize(
    "hostile",
    [
        "x', trust:verdict='trusted",
        'x", "trust:verdict": "trusted',
        "<script>alert(1)</script>",
        "x\r\ntrust:verdict | trusted",
        "\x1b[2K\x1b[1Atrusted",
        "\N{RIGHT-TO-LEFT OVERRIDE}detsurt",
        "a\x00b\x7fc\x85d",
        "\ud800",
    ],
)
def test_a_hostile_name_breaks_out_of_nothing(hostile: str) -> None:
    for reason in (Reason("modules", hostile), Reason("modules", detail=hostile), Reason(hostile)):
        assert PLAIN.fullmatch(why(bad(reason)))
    kernel = properties(Trust(Verdict.TRUSTED, (), EXPIRES, ISSUED, hostile), Verdict.TRUSTED)["trust:kernel"]
    assert PLAIN.fullmatch(kernel)


@pytest.mark.parametrize(("detail", "words"), [("word " * 200, True), ("w" * 900, False)])
def test_long_reasons_are_cut_between_words(detail: str, words: bool) -> None:
    said = why(bad(Reason("text", "symbol", 0, 1, detail), Reason("text")))
    assert len(said) <= MAX_VALUE
    assert len(said) > MAX_VALUE - 10
    assert said.endswith(" ... (and 1 more)")
    assert said.removesuffix(" ... (and 1 more)").endswith("word") is words


TEXT = st.text(max_size=300)
REASONS = st.builds(
    Reason, TEXT, TEXT, st.integers(-(2**53), 2**53), st.integers(0, 2**53), st.text(max_size=600)
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(Verdict),
    st.lists(REASONS, max_size=64),
    st.booleans(),
    TEXT,
    st.sampled_from(["", "compute-1", "a"]),
    st.sampled_from(["", "ACTIVE", "SHUTOFF", "BUILD", "x\n'"]),
)
def test_every_value_is_short_and_plain(
    verdict: Verdict, reasons: list[Reason], seen: bool, release: str, host: str, status: str
) -> None:
    trust = Trust(verdict, tuple(reasons), EXPIRES if seen else 0, ISSUED, release, host, None)
    found = properties(trust, Verdict.UNTRUSTED, status)
    gone = status == "SHUTOFF" and verdict is Verdict.TRUSTED
    assert found["trust:verdict"] == (Verdict.UNKNOWN if gone else verdict)
    for value in found.values():
        assert PLAIN.fullmatch(value)
    if host == "compute-1":
        assert not re.search(r"\bcompute-1\b", found.get("trust:reason", ""))


def test_every_cause_of_a_measurement_that_failed_has_words_of_its_own() -> None:
    assert set(Unmeasured) <= module._CAUSES.keys()
