# SPDX-License-Identifier: Apache-2.0
"""The appraisal of the log and of its root, and every way around it that was thought of."""

from __future__ import annotations

from dataclasses import replace

import evidence_examples as examples

from nova_vmi_attest.evidence.batch import Batch
from nova_vmi_attest.evidence.challenge import binding
from nova_vmi_attest.evidence.log import EntryKind, extend
from nova_vmi_attest.evidence.result import Verdict
from tests.unit.verifier import scenario
from tests.unit.verifier.judging import after, judge, refused
from tests.unit.verifier.scenario import (
    GUESTS,
    HOST,
    LOG_PCR,
    NONCE,
    PCRS,
    VERIFIER,
    SimulatedHost,
)

# -- step 4: log ---------------------------------------------------------------------------------------------


def test_a_record_that_was_left_out_is_missed() -> None:
    host = SimulatedHost()
    host.answer()
    batch = host.answer()
    refused(judge(replace(batch, entries=(batch.entries[0], batch.entries[2]))), "log")


def test_a_withheld_last_record_is_missed() -> None:
    batch = SimulatedHost().answer()
    assert "withheld" in refused(judge(replace(batch, entries=batch.entries[:-1])), "log")


def test_no_records_at_all_are_refused() -> None:
    refused(judge(replace(SimulatedHost().answer(), entries=())), "log")


def test_a_changed_record_breaks_the_chain() -> None:
    host = SimulatedHost()
    host.answer()
    batch = host.answer()
    forged = replace(batch.entries[1], root=examples.octets("another root"))
    refused(judge(replace(batch, entries=(batch.entries[0], forged, batch.entries[2]))), "log")


def test_a_foreign_extend_is_noticed() -> None:
    host = SimulatedHost()
    host.pcrs[LOG_PCR] = extend(host.pcrs[LOG_PCR], examples.octets("foreign"))
    assert "somebody else" in refused(judge(host.answer()), "log")


def test_an_extend_between_record_and_quote_waits_for_the_next_round() -> None:
    host = SimulatedHost()
    batch = host.answer()
    host.append((), examples.octets("the next round"))
    appraisal = judge(replace(batch, entries=tuple(host.log)))
    assert appraisal.state is not None
    assert appraisal.state.recnum == 1
    assert judge(host.answer(since=2), after(appraisal)).host.verdict is Verdict.TRUSTED


def test_records_that_were_quoted_before_may_come_again() -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()))
    appraisal = judge(host.answer(since=0), question)
    assert appraisal.host.verdict is Verdict.TRUSTED
    assert appraisal.state is not None
    assert appraisal.state.recnum == 2


def test_another_history_than_the_one_quoted_before_is_refused() -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()), head=examples.octets("another head"))
    assert "not the one" in refused(judge(host.answer(since=0), question), "log")


def test_a_wiped_log_with_a_new_boot_record_in_the_same_epoch_is_refused() -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()))
    host.log, host.pcrs = [], dict(PCRS)
    host.__post_init__()
    refused(judge(host.answer(), question), "log")


def test_a_boot_record_inside_an_epoch_is_refused() -> None:
    """It would let the log forget what came before without the TPM having been reset."""
    host = SimulatedHost()
    question = after(judge(host.answer()))
    del host.pcrs[LOG_PCR]
    host._record(EntryKind.BOOT)
    assert "inside an epoch" in refused(judge(host.answer(since=2), question), "log")


def test_a_resume_record_inside_an_epoch_is_refused() -> None:
    host = SimulatedHost()
    host._record(EntryKind.RESUME)
    assert "inside an epoch" in refused(judge(host.answer()), "log")


def test_a_new_epoch_needs_a_record_of_its_own() -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()))
    host.restart_count += 1
    assert "begins with batch" in refused(judge(host.answer(since=2), question), "log")


def test_a_resume_after_a_reset_is_refused() -> None:
    """A PCR is not kept over a reset."""
    host = SimulatedHost()
    question = after(judge(host.answer()))
    host.reset_count += 1
    host._record(EntryKind.RESUME)
    assert "begins with resume" in refused(judge(host.answer(since=2), question), "log")


def test_the_log_may_not_go_back_to_an_earlier_epoch() -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()))
    host.reboot()
    host.reset_count -= 1
    host._record(EntryKind.BATCH)
    host.reset_count += 1
    assert "goes back" in refused(judge(host.answer(since=2), question), "log")


def test_a_resume_keeps_the_pcr() -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()))
    host.resume()
    appraisal = judge(host.answer(since=2), question)
    assert appraisal.host.verdict is Verdict.TRUSTED
    assert not any(reason.check == "log_unattested" for reason in appraisal.host.reasons)


def test_batches_that_no_quote_covered_before_a_reboot_are_marked() -> None:
    host = SimulatedHost()
    question = after(judge(host.answer()))
    host.append((), examples.octets("lost"))
    host.append((), examples.octets("lost too"))
    host.reboot()
    appraisal = judge(host.answer(since=2), question)
    assert appraisal.host.verdict is Verdict.TRUSTED
    marks = [reason for reason in appraisal.host.reasons if reason.check == "log_unattested"]
    assert len(marks) == 1
    assert "2 to 3" in marks[0].detail


def test_a_host_that_is_new_to_us_may_send_its_newest_records_only() -> None:
    """An agent that was up for months has more records than a batch may hold."""
    host = SimulatedHost()
    host.answer()
    appraisal = judge(host.answer(since=2))
    assert appraisal.host.verdict is Verdict.TRUSTED
    assert "before 2" in next(r.detail for r in appraisal.host.reasons if r.check == "log_beginning_unseen")
    assert judge(host.answer(since=3), after(appraisal)).host.verdict is Verdict.TRUSTED


def test_a_beginning_that_does_not_lead_to_the_quoted_value_is_refused() -> None:
    host = SimulatedHost()
    host.answer()
    batch = host.answer(since=2)
    for start in (bytes(32), examples.octets("another start")):
        refused(judge(replace(batch, log_start=start)), "log")


def test_records_of_another_pcr_are_refused() -> None:
    batch = SimulatedHost().answer()
    entries = tuple(replace(entry, pcr=12) for entry in batch.entries)
    assert "PCR 12" in refused(judge(replace(batch, entries=entries)), "log")


# -- step 5: root --------------------------------------------------------------------------------------------


def test_a_guest_that_was_left_out_is_missed() -> None:
    batch = SimulatedHost().answer()
    assert "3 guests were logged" in refused(judge(replace(batch, guests=batch.guests[:-1])), "merkle_root")


def test_a_guest_may_have_one_leaf_only() -> None:
    host = SimulatedHost()
    batch = host.answer()
    twice = (batch.guests[0], *batch.guests[:2])
    assert "twice" in refused(judge(replace(batch, guests=twice)), "merkle_root")


def test_another_measurement_than_the_one_logged_is_refused() -> None:
    batch = SimulatedHost().answer([scenario.healthy(GUESTS[0]), scenario.altered(GUESTS[1])])
    whitewashed = (batch.guests[0], replace(batch.guests[1], measurement=scenario.healthy(GUESTS[1])))
    assert "root" in refused(judge(replace(batch, guests=whitewashed)), "merkle_root")


def test_the_measurement_of_another_guest_is_refused() -> None:
    host = SimulatedHost()
    batch = host.answer()
    decoy = replace(batch.guests[1], measurement=batch.guests[0].measurement)
    host.append((batch.guests[0], decoy, batch.guests[2]), batch.binding)
    swapped = replace(
        batch, guests=(batch.guests[0], decoy, batch.guests[2]), entries=tuple(host.log),
        quote=host.quote(batch.binding),
    )  # fmt: skip
    assert "another guest" in refused(judge(swapped), "merkle_root")


def test_leaves_of_an_earlier_round_are_refused() -> None:
    """A root made for another nonce is worth nothing, though its record is in the log and quoted."""
    host = SimulatedHost()
    guests = scenario.evidence([scenario.healthy(guest) for guest in GUESTS])
    host.append(guests, binding(HOST, VERIFIER, (examples.octets("earlier"),)))
    bound = binding(HOST, VERIFIER, (NONCE,))
    stale = Batch(
        HOST, VERIFIER, (NONCE,), tuple(host.log), bytes(32), host.quote(bound), host.certificate, guests
    )
    assert "root" in refused(judge(stale), "merkle_root")


def test_the_last_quoted_record_must_be_the_batch() -> None:
    host = SimulatedHost()
    batch = host.answer()
    host.resume()
    late = replace(batch, entries=tuple(host.log), quote=host.quote(batch.binding))
    assert "not a batch" in refused(judge(late), "merkle_root")
