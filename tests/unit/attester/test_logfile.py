# SPDX-License-Identifier: Apache-2.0
"""The log's file: torn, damaged, full, shared or altered, it gives what was written or an error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova_vmi_attest.attester.journal import ForeignExtend, Journal, JournalError
from tests.unit.attester.fake_tpm import PCR, ROOT, FakeTpm, check, kinds


@pytest.fixture
def tpm() -> FakeTpm:
    return FakeTpm()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "measurements.cel"


def test_a_torn_line_is_cut_wherever_it_was_torn(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
    whole = path.read_bytes()
    tear = whole.splitlines(keepends=True)[1]
    for length in range(len(tear)):
        path.write_bytes(whole + tear[:length])
        with Journal(path, tpm, PCR) as journal:
            assert kinds(journal) == "boot batch"
        assert path.read_bytes() == whole


def test_damage_before_the_last_line_is_not_cut(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match="damaged after entry -1"), Journal(path, tpm, PCR):
        pass
    assert path.read_bytes() == data


def test_a_removed_last_entry_is_a_foreign_extend(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
        journal.append_batch(ROOT, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ForeignExtend), Journal(path, tpm, PCR):
        pass


def test_an_entry_altered_under_a_running_agent_is_noticed(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR) as journal:
        path.write_bytes(path.read_bytes().replace(b"boot", b"b00t"))
        with pytest.raises(JournalError, match="altered on disk"):
            journal.entries(0)


@pytest.mark.parametrize("fault", ["write", "fsync", "short"])
def test_a_full_disk_extends_nothing_and_leaves_no_trace(
    path: Path, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    real_write, real_sync = os.write, os.fsync
    state = {"armed": True}

    def write(descriptor: int, data: bytes) -> int:
        if fault == "short":
            return real_write(descriptor, data[:20])
        if fault == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data)

    def sync(descriptor: int) -> None:
        if fault == "fsync" and state.pop("armed", False):
            raise OSError(errno.EIO, "Input/output error")
        real_sync(descriptor)

    with Journal(path, tpm, PCR) as journal:
        before, value = path.read_bytes(), tpm.value
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            patch.setattr(os, "fsync", sync)
            with pytest.raises(JournalError, match="append to the log") as caught:
                journal.append_batch(ROOT, 1)
        assert caught.value.remedy
        assert path.read_bytes() == before
        assert tpm.value == value
        journal.append_batch(ROOT, 1)
        check(journal, tpm)


def test_two_agents_cannot_share_a_log(path: Path, tpm: FakeTpm) -> None:
    with Journal(path, tpm, PCR), pytest.raises(JournalError, match="another agent"), Journal(path, tpm, PCR):
        pass


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(0, 10_000),
    change=st.integers(1, 255),
    cut=st.booleans(),
    tail=st.binary(max_size=40),
)
def test_a_mutated_file_gives_typed_errors_or_the_same_log(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int, cut: bool, tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "log"
    tpm = FakeTpm()
    with Journal(path, tpm, PCR) as journal:
        journal.append_batch(ROOT, 1)
        entries = journal.entries(0)
    data = bytearray(path.read_bytes())
    position %= len(data)
    data[position] ^= change
    path.write_bytes((data[:position] if cut else data) + tail)
    found = None
    try:
        with Journal(path, tpm, PCR) as journal:
            found = journal.entries(0)
    except JournalError:
        return
    assert found == entries
