# SPDX-License-Identifier: Apache-2.0
"""The log and its PCR come back in step after every crash, and whatever else happened is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova_vmi_attest.attester.coverage import Coverage
from nova_vmi_attest.attester.journal import (
    ForeignExtend,
    Journal,
    JournalError,
    Position,
    ReplacedTpm,
    Step,
    next_step,
)
from nova_vmi_attest.evidence.log import EntryKind, replay
from nova_vmi_attest.tpm.device import PcrRights
from nova_vmi_attest.tpm.sessions import TpmError
from tests.unit.attester.fake_tpm import PCR, ROOT, ZERO, FakeTpm, check, kinds


@pytest.fixture
def tpm() -> FakeTpm:
    return FakeTpm()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "measurements.cel"


def test_a_new_log_begins_with_a_boot_entry(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        entry = journal.append_batch(ROOT, 3)
        assert (entry.recnum, entry.kind, entry.guests, entry.epoch) == (1, EntryKind.BATCH, 3, (1, 0))
        assert kinds(journal) == "boot batch"
        assert journal.value_before(0) == ZERO
        assert journal.value_before(1) == replay(ZERO, journal.entries(0)[:1])
        assert journal.entries(1) == (entry,)
        assert journal.entries(5) == ()
        check(journal, tpm)
    assert path.stat().st_mode & 0o777 == 0o600


def test_reopening_in_step_adds_nothing(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
    with Journal(path, tpm, PCR) as journal:
        assert kinds(journal) == "boot batch"
        check(journal, tpm)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_around_the_extend_is_mended(path: Path, tpm: FakeTpm, when: str) -> None:
    with Journal(path, tpm, PCR) as journal:
        tpm.fail = when
        with pytest.raises(TpmError):
            journal.append_batch(ROOT, 1)
    with Journal(path, tpm, PCR) as journal:
        assert kinds(journal) == "boot batch"
        check(journal, tpm)


def test_a_crash_before_the_very_first_extend_is_mended(path: Path, tpm: FakeTpm) -> None:
    tpm.fail = "before"
    with pytest.raises(TpmError), Journal(path, tpm, PCR):
        pass
    with Journal(path, tpm, PCR) as journal:
        assert kinds(journal) == "boot"
        check(journal, tpm)


def test_the_next_append_mends_a_failed_extend_without_reopening(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        tpm.fail = "before"
        with pytest.raises(TpmError):
            journal.append_batch(ROOT, 1)
        journal.append_batch(ROOT, 2)
        assert kinds(journal) == "boot batch batch"
        check(journal, tpm)


def test_reboot_restart_and_resume(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
    for event in (tpm.reboot, tpm.restart, tpm.resume):
        event()
        with Journal(path, tpm, PCR) as journal:
            journal.append_batch(ROOT, 1)
            check(journal, tpm)
    with Journal(path, tpm, PCR) as journal:
        assert kinds(journal) == "boot batch boot batch boot batch resume batch"
        assert journal.epoch_start == 4


def test_a_resume_under_a_running_agent_is_recorded(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        tpm.resume()
        journal.append_batch(ROOT, 1)
        assert kinds(journal) == "boot resume batch"
        check(journal, tpm)


def test_a_crash_before_the_extend_and_a_resume_together(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
        tpm.fail = "before"
        with pytest.raises(TpmError):
            journal.append_batch(ROOT, 2)
    tpm.resume()
    with Journal(path, tpm, PCR) as journal:
        assert kinds(journal) == "boot batch batch resume"
        check(journal, tpm)


def test_a_foreign_extend_is_named_at_open_and_at_append(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        tpm.extend(PCR, b"\7" * 32)
        with pytest.raises(ForeignExtend, match="PCR 13 was extended by something else"):
            journal.append_batch(ROOT, 1)
        assert kinds(journal) == "boot"
    with pytest.raises(ForeignExtend), Journal(path, tpm, PCR):
        pass


def test_a_foreign_extend_before_the_first_boot_entry(path: Path, tpm: FakeTpm) -> None:
    tpm.extend(PCR, b"\7" * 32)
    with pytest.raises(ForeignExtend, match="no log that explains"), Journal(path, tpm, PCR):
        pass


def test_a_foreign_extend_after_a_reboot(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR):
        pass
    tpm.reboot()
    tpm.extend(PCR, b"\7" * 32)
    with pytest.raises(ForeignExtend), Journal(path, tpm, PCR):
        pass


def test_counters_that_go_back_are_named(path: Path, tpm: FakeTpm) -> None:
    tpm.counts = (9, 0)
    with Journal(path, tpm, PCR):
        pass
    tpm.counts, tpm.value = (8, 3), ZERO
    with pytest.raises(ReplacedTpm, match="went back"), Journal(path, tpm, PCR):
        pass


A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


@pytest.mark.parametrize(
    ("epoch", "value", "step"),
    [
        ((5, 1), B, Step.NOTHING),
        ((5, 1), A, Step.EXTEND_LAST),
        ((5, 2), B, Step.RESUME),
        ((5, 2), A, Step.EXTEND_LAST),
        ((5, 2), ZERO, Step.BOOT),
        ((6, 0), ZERO, Step.BOOT),
        ((5, 1), ZERO, ForeignExtend),
        ((5, 1), C, ForeignExtend),
        ((5, 2), C, ForeignExtend),
        ((6, 0), A, ForeignExtend),
        ((6, 0), B, ForeignExtend),
        ((5, 0), B, ReplacedTpm),
        ((4, 9), ZERO, ReplacedTpm),
    ],
)
def test_every_case_of_recovery(
    epoch: tuple[int, int], value: bytes, step: Step | type[JournalError]
) -> None:
    position = Position((5, 1), A, B)
    if isinstance(step, Step):
        assert next_step(position, epoch, value) is step
    else:
        with pytest.raises(step):
            next_step(position, epoch, value)


@pytest.mark.parametrize("pcr", [16, 17, 20, 22, 23])
def test_pcrs_of_other_localities_are_refused(path: Path, tpm: FakeTpm, pcr: int) -> None:
    with pytest.raises(JournalError, match=f"PCR {pcr} can") as caught, Journal(path, tpm, pcr):
        pass
    assert "log_pcr" in caught.value.remedy
    assert not path.exists()


def test_a_pcr_that_this_tpm_lets_software_reset_is_refused(
    path: Path, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpm, "pcr_rights", lambda: PcrRights(frozenset({13}), frozenset({13})))
    with pytest.raises(JournalError, match="can be reset"), Journal(path, tpm, PCR):
        pass


def test_the_log_of_another_pcr_is_refused(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR):
        pass
    with pytest.raises(JournalError, match="is the log of PCR 13"), Journal(path, tpm, 12):
        pass


def test_what_no_quote_covered_before_a_reboot_is_unattested(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
        journal.mark_quoted(2)
        journal.append_batch(ROOT, 1)
        journal.append_batch(ROOT, 1)
    with Journal(path, tpm, PCR) as journal:
        assert journal.coverage == Coverage(2)
    tpm.reboot()
    with Journal(path, tpm, PCR) as journal:
        assert journal.coverage == Coverage(4, (range(2, 4),))
        journal.append_batch(ROOT, 1)
        journal.mark_quoted(journal.next_recnum)
    tpm.reboot()
    with Journal(path, tpm, PCR) as journal:
        assert journal.coverage == Coverage(6, (range(2, 4),))


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"\xff", b'{"format":1,"quoted":9,"unattested":[[1]]}']
)
def test_a_lost_coverage_file_errs_to_the_safe_side(path: Path, tpm: FakeTpm, content: bytes | None) -> None:
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
        journal.mark_quoted(2)
    coverage = path.with_name(path.name + ".coverage")
    if content is None:
        coverage.unlink()
    else:
        coverage.write_bytes(content)
    tpm.reboot()
    with Journal(path, tpm, PCR) as journal:
        assert journal.coverage.unattested == (range(2),)


EVENTS = st.lists(
    st.sampled_from(
        ["append", "crash before", "crash after", "torn", "reboot", "restart", "resume", "reopen"]
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS)
def test_any_history_recovers(tmp_path_factory: pytest.TempPathFactory, events: list[str]) -> None:
    path = tmp_path_factory.mktemp("journal") / "log"
    tpm = FakeTpm()
    actions: dict[str, Any] = {"reboot": tpm.reboot, "restart": tpm.restart, "resume": tpm.resume}
    for event in ["append", *events, "reopen"]:
        with Journal(path, tpm, PCR) as journal:
            check(journal, tpm)
            if event == "append":
                journal.append_batch(ROOT, 1)
            elif event.startswith("crash"):
                tpm.fail = event.removeprefix("crash ")
                with pytest.raises(TpmError):
                    journal.append_batch(ROOT, 1)
        if event == "torn":
            path.write_bytes(path.read_bytes() + b'{"content":{"domain":"nova')
        actions.get(event, lambda: None)()
