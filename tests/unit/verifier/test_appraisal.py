# SPDX-License-Identifier: Apache-2.0
"""The appraisal apart from its log (see test_appraisal_log), and every way around it that was thought of."""

from __future__ import annotations

import uuid
from dataclasses import replace

import evidence_examples as examples
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.authority.ca import CertificateAuthority
from nova_vmi_attest.evidence.batch import Batch, BatchError
from nova_vmi_attest.evidence.challenge import binding
from nova_vmi_attest.evidence.log import EntryKind, LogEntry, extend
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.verifier.appraisal import HostState, place
from nova_vmi_attest.verifier.placed import Placed
from tests.unit.verifier import scenario
from tests.unit.verifier.judging import QUESTION, after, judge, refused
from tests.unit.verifier.scenario import (
    GUESTS,
    HOST,
    LOG_PCR,
    NONCE,
    NOW,
    PCRS,
    POLICY,
    SimulatedHost,
)

# -- honest evidence -----------------------------------------------------------------------------------------


def test_honest_evidence_is_trusted_and_moves_the_state() -> None:
    host = SimulatedHost()
    batch = host.answer()
    before = host.log[0]
    appraisal = judge(batch)
    assert appraisal.attributed
    assert appraisal.host.verdict is Verdict.TRUSTED
    assert [(guest.guest, guest.verdict) for guest in appraisal.guests] == [
        (g, Verdict.TRUSTED) for g in GUESTS
    ]
    assert appraisal.state == HostState(
        scenario.EK, 7, 0, host.clock, 1, host.pcrs[LOG_PCR], host.log[-1].digest
    )
    assert appraisal.pcr_before == extend(bytes(32), before.digest)


def test_each_round_goes_on_where_the_last_one_ended() -> None:
    host = SimulatedHost()
    question = QUESTION
    for _ in range(3):
        since = question.previous.recnum + 1 if question.previous else 0
        appraisal = judge(host.answer(since=since), question)
        assert appraisal.host.verdict is Verdict.TRUSTED
        question = after(appraisal)
    assert question.previous is not None
    assert question.previous.recnum == 3


def test_an_altered_guest_is_named_and_the_others_stay_trusted() -> None:
    batch = SimulatedHost().answer(
        [scenario.healthy(GUESTS[0]), scenario.altered(GUESTS[1]), scenario.healthy(GUESTS[2])]
    )
    appraisal = judge(batch)
    assert appraisal.host.verdict is Verdict.TRUSTED
    assert [guest.verdict for guest in appraisal.guests] == ["trusted", "untrusted", "trusted"]
    first = appraisal.guests[1].reasons[0]
    assert (first.check, first.symbol, first.offset, first.length) == ("text", "__x64_sys_getdents64", 5, 12)
    assert "554889e5" in first.detail
    assert "48b8efbe" in first.detail


def test_a_host_without_guests_is_trusted() -> None:
    appraisal = judge(SimulatedHost().answer([]))
    assert appraisal.host.verdict is Verdict.TRUSTED
    assert appraisal.guests == ()


def test_a_nonce_of_a_tenant_may_be_answered_along() -> None:
    assert judge(SimulatedHost().answer(nonces=(NONCE, examples.octets("tenant")))).state is not None


# -- step 1: certificate -------------------------------------------------------------------------------------


def test_evidence_of_another_host_is_not_attributed() -> None:
    other = SimulatedHost(name="compute-2", certificate=scenario.certificate("compute-2"))
    assert "compute-2" in refused(judge(other.answer()), "certificate")


def test_a_certificate_that_names_another_host_is_refused() -> None:
    """The cuckoo attack among hosts: host 1 shows the key of host 2."""
    host = SimulatedHost(certificate=scenario.certificate("compute-2"))
    assert "compute-2" in refused(judge(host.answer()), "certificate")


def test_a_certificate_of_another_authority_is_refused() -> None:
    foreign = CertificateAuthority(examples.key("stranger"), examples.ca_certificate("stranger"))
    host = SimulatedHost(certificate=scenario.certificate(authority=foreign))
    refused(judge(host.answer()), "certificate")


def test_an_authority_of_the_same_name_with_another_key_is_refused() -> None:
    foreign = CertificateAuthority(
        examples.key("impostor"), examples.ca_certificate("authority", True, "impostor")
    )
    host = SimulatedHost(certificate=scenario.certificate(authority=foreign))
    refused(judge(host.answer()), "certificate")


@pytest.mark.parametrize("moment", [NOW - 86400, NOW + 2 * 86400])
def test_a_certificate_counts_only_while_it_is_valid(moment: int) -> None:
    refused(judge(SimulatedHost().answer(), replace(QUESTION, now=moment)), "certificate")


def test_the_authority_itself_is_no_host() -> None:
    der = scenario.AUTHORITY.certificate.public_bytes(scenario.Encoding.DER)
    refused(judge(SimulatedHost(certificate=der).answer()), "certificate")


@given(st.binary(max_size=64))
@settings(max_examples=50, deadline=None)
def test_octets_that_are_no_certificate_are_refused(data: bytes) -> None:
    refused(judge(replace(SimulatedHost().answer(), ak_certificate=data)), "certificate")


# -- step 2: quote -------------------------------------------------------------------------------------------


def test_a_replayed_batch_answers_no_open_challenge() -> None:
    batch = SimulatedHost().answer()
    question = replace(QUESTION, nonces=frozenset({examples.octets("next nonce")}))
    assert "replayed" in refused(judge(batch, question), "quote")


def test_a_batch_nobody_asked_for_is_refused() -> None:
    refused(judge(SimulatedHost().answer(), replace(QUESTION, nonces=frozenset())), "quote")


def test_an_old_quote_relabelled_with_the_new_nonce_is_refused() -> None:
    nonce = examples.octets("next nonce")
    batch = replace(SimulatedHost().answer(), nonces=(nonce,))
    question = replace(QUESTION, nonces=frozenset({nonce}))
    assert "extraData" in refused(judge(batch, question), "quote")


def test_the_answer_to_another_verifier_is_refused() -> None:
    batch = replace(SimulatedHost().answer(), verifier=examples.octets("another key"))
    assert "another verifier" in refused(judge(batch), "quote")


def test_an_answer_bound_to_another_verifier_but_labelled_ours_is_refused() -> None:
    host = SimulatedHost()
    batch = host.answer()
    elsewhere = host.quote(binding(HOST, examples.octets("another key"), (NONCE,)))
    assert "extraData" in refused(judge(replace(batch, quote=elsewhere)), "quote")


def test_a_quote_by_another_key_is_refused() -> None:
    host = SimulatedHost(key=examples.key("not in the certificate"))
    assert "signature" in refused(judge(host.answer()), "quote")


def test_pcr_values_that_were_not_quoted_are_refused() -> None:
    batch = SimulatedHost().answer()
    forged = replace(batch.quote, pcrs={**batch.quote.pcrs, 0: examples.octets("good firmware")})
    assert "digest" in refused(judge(replace(batch, quote=forged)), "quote")


def test_a_pcr_that_was_not_quoted_may_not_come_along() -> None:
    batch = SimulatedHost().answer()
    forged = replace(batch.quote, pcrs={**batch.quote.pcrs, 10: examples.octets("IMA")})
    assert "selection" in refused(judge(replace(batch, quote=forged)), "quote")


# -- step 6: PCR selection -----------------------------------------------------------------------------------


def test_a_quote_without_the_pcr_of_the_log_explains_nothing() -> None:
    host = SimulatedHost()
    batch = host.answer()
    partial = replace(batch, quote=host.quote(batch.binding, PCRS))
    assert f"PCR {LOG_PCR}" in refused(judge(partial), "log")


@pytest.mark.parametrize("absent", [0, 7])
def test_a_quote_that_leaves_a_required_pcr_out_is_the_hosts_fault(absent: int) -> None:
    host = SimulatedHost()
    batch = host.answer()
    pcrs = {index: value for index, value in host.pcrs.items() if index != absent}
    partial = replace(batch, quote=host.quote(batch.binding, pcrs))
    assert f"[{absent}]" in refused(judge(partial), "pcr_selection", attributed=True)


def test_a_pcr_with_an_approved_value_must_be_quoted() -> None:
    policy = replace(POLICY, approved_pcrs={10: frozenset({bytes(32)})})
    assert "[10]" in refused(judge(SimulatedHost().answer(), policy=policy), "pcr_selection", attributed=True)


# -- step 3: forward -----------------------------------------------------------------------------------------


def test_the_clock_may_not_go_back_within_an_epoch() -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()))
    host.clock = 500
    refused(judge(host.answer(since=2), question), "clock")


@pytest.mark.parametrize("counts", [{"reset_count": 8}, {"restart_count": 1}])
def test_the_epoch_may_not_go_back(counts: dict[str, int]) -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()), **counts)
    refused(judge(host.answer(since=2), question), "epoch")


def test_the_clock_starts_again_with_a_new_epoch() -> None:
    host = SimulatedHost(clock=1_000_000)
    question = after(judge(host.answer()))
    host.reboot()
    assert judge(host.answer(since=2), question).host.verdict is Verdict.TRUSTED


def test_a_host_whose_tpm_was_replaced_and_enrolled_starts_afresh() -> None:
    old = SimulatedHost(reset_count=90)
    question = after(judge(old.answer()))
    new = SimulatedHost(
        key=examples.key("new chip"), certificate=scenario.certificate(key="new chip", ek_digest="cd" * 32),
        reset_count=1,
    )  # fmt: skip
    appraisal = judge(new.answer(), question)
    assert appraisal.state is not None
    assert appraisal.state.tpm == "cd" * 32


# -- step 7: host PCRs ---------------------------------------------------------------------------------------


def test_pcrs_without_approved_values_are_stated_as_not_appraised() -> None:
    reasons = judge(SimulatedHost().answer()).host.reasons
    assert [reason.check for reason in reasons] == ["host_pcr_not_appraised"]


def test_approved_pcr_values_pass_and_others_do_not() -> None:
    approved = {index: frozenset({value, bytes(32)}) for index, value in PCRS.items()}
    policy = replace(POLICY, approved_pcrs=approved)
    assert judge(SimulatedHost().answer(), policy=policy).host.reasons == ()
    other = SimulatedHost(pcrs={**PCRS, 4: examples.octets("another boot loader")})
    detail = refused(judge(other.answer(), policy=policy), "host_pcr", attributed=True)
    assert "PCR 4" in detail
    assert examples.octets("another boot loader").hex() in detail


# -- step 9: placement ---------------------------------------------------------------------------------------


def test_only_what_nova_places_on_the_host_counts() -> None:
    absent, foreign = uuid.UUID(int=9), uuid.UUID(int=10)
    placed = Placed(
        required=frozenset({GUESTS[0], absent}), allowed=frozenset({GUESTS[0], absent}),
        elsewhere=frozenset({GUESTS[1], GUESTS[2]}), foreign=frozenset({foreign}),
    )  # fmt: skip
    shown = [scenario.healthy(GUESTS[0]), scenario.healthy(GUESTS[1]), scenario.altered(GUESTS[2])]
    batch = SimulatedHost().answer([*shown, scenario.healthy(foreign)])
    appraisal = place(judge(batch), placed)
    found = {
        guest.guest: (guest.verdict, guest.reasons[0].check if guest.reasons else "")
        for guest in appraisal.guests
    }
    assert found == {
        GUESTS[0]: (Verdict.TRUSTED, ""),
        absent: (Verdict.UNKNOWN, "guest_missing"),
        foreign: (Verdict.UNKNOWN, "not_known_to_nova"),
    }
    assert appraisal.host.verdict is Verdict.TRUSTED
    assert {(reason.check, reason.symbol) for reason in appraisal.host.reasons if reason.symbol} == {
        ("not_placed_here", str(GUESTS[1])),
        ("not_placed_here", str(GUESTS[2])),
    }


def test_an_untrusted_host_makes_its_placed_guests_unknown() -> None:
    """Guests of other hosts are not among them, though an untrusted host shows them."""
    mine = frozenset({GUESTS[0]})
    placed = Placed(mine, mine, elsewhere=frozenset({GUESTS[1]}))
    policy = replace(POLICY, approved_pcrs={0: frozenset({bytes(32)})})
    batch = SimulatedHost().answer([scenario.healthy(GUESTS[0]), scenario.altered(GUESTS[1])])
    appraisal = place(judge(batch, policy=policy), placed)
    assert appraisal.attributed
    assert [guest.guest for guest in appraisal.guests] == [GUESTS[0]]
    assert appraisal.guests[0].verdict is Verdict.UNKNOWN


def test_a_certificate_that_was_withdrawn_is_refused() -> None:
    batch = SimulatedHost().answer()
    serial = x509.load_der_x509_certificate(batch.ak_certificate).serial_number
    assert "withdrew" in refused(judge(batch, replace(QUESTION, revoked=frozenset({serial}))), "certificate")
    assert judge(batch, replace(QUESTION, revoked=frozenset({serial + 1}))).attributed


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_who_relays_a_genuine_quote_cannot_turn_the_host_untrusted(data: st.DataObject) -> None:
    """Whatever is exchanged around the quote: the answer counts in full, or it counts for nothing."""
    host = SimulatedHost()
    batch = host.answer()
    other = SimulatedHost(name="compute-2", certificate=scenario.certificate("compute-2"))
    foreign = other.answer([scenario.altered(guest) for guest in GUESTS])
    parts = data.draw(
        st.sets(st.sampled_from(["entries", "guests", "log_start", "ak_certificate"]), min_size=1)
    )
    strange = replace(foreign, log_start=examples.octets("start"))
    relayed = replace(batch, **{part: getattr(strange, part) for part in parts})
    if data.draw(st.booleans()):
        relayed = replace(relayed, entries=batch.entries[: data.draw(st.integers(0, 1))])
    appraisal = judge(relayed)
    assert appraisal.attributed == (appraisal.host.verdict is Verdict.TRUSTED)
    # A log that begins with a boot record needs no word of the sender's on how it begins.
    assert appraisal.attributed == (relayed.entries == batch.entries and parts == {"log_start"})


# -- whatever comes ------------------------------------------------------------------------------------------

HONEST = SimulatedHost().answer().encode()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_mutation_of_a_batch_is_trusted_or_raises(data: st.DataObject) -> None:
    """Change one byte of an honest, encoded batch: it cannot be decoded, or the host is not trusted."""
    position = data.draw(st.integers(0, len(HONEST) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != HONEST[position]))
    mutated = HONEST[:position] + bytes([value]) + HONEST[position + 1 :]
    try:
        batch = Batch.decode(mutated)
    except BatchError:
        return
    assert judge(batch).host.verdict is not Verdict.TRUSTED


@given(st.lists(st.sampled_from(list(EntryKind)), max_size=6), st.lists(st.integers(0, 3), max_size=6))
@settings(max_examples=60, deadline=None)
def test_arbitrary_logs_never_raise(kinds: list[EntryKind], counts: list[int]) -> None:
    entries = []
    for number, (kind, count) in enumerate(zip(kinds, counts, strict=False)):
        previous = entries[-1].digest if entries else bytes(32)
        entries.append(LogEntry(number, LOG_PCR, kind, 7, count, previous))
    refused(judge(replace(SimulatedHost().answer(), entries=tuple(entries))), "log")
