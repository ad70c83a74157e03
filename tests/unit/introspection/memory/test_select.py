# SPDX-License-Identifier: Apache-2.0
"""Which reader is chosen, and why, for every kind of domain."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from nova_vmi_attest.introspection.memory import libvmi
from nova_vmi_attest.introspection.memory.base import (
    EncryptedMemory,
    GuestGone,
    ReaderError,
    UnsupportedLayout,
)
from nova_vmi_attest.introspection.memory.domain import Backend, DomainMemory, Source
from nova_vmi_attest.introspection.memory.select import Choice, choose, open_memory

MIB = 1 << 20


def domain(*backends: Backend) -> DomainMemory:
    size = sum(backend.size for backend in backends)
    return DomainMemory(uuid.uuid4(), "guest", "pc-q35-7.2", size, backends)


SHARED = Backend(256 * MIB, Source.FILE, True)
MEMFD = Backend(256 * MIB, Source.MEMFD, True)
PRIVATE = Backend(256 * MIB, Source.ANONYMOUS, False)


@pytest.mark.parametrize(
    ("chosen", "reader", "reason"),
    [
        (domain(SHARED), "ram_file", "shared file"),
        (domain(MEMFD), "ram_file", "shared memfd"),
        (domain(SHARED, SHARED), "ram_file", "shared file"),
        (domain(PRIVATE), "process", "private"),
        (domain(replace(SHARED, shared=False)), "process", "private"),
        (domain(replace(SHARED, shared=False), SHARED), "process", "private"),
        (domain(PRIVATE, replace(PRIVATE, size=128 * MIB)), "process", "private"),
        (replace(domain(PRIVATE, PRIVATE), dump="/dump"), "dump", "dump"),
    ],
)
def test_the_best_reader(chosen: DomainMemory, reader: str, reason: str) -> None:
    choice = choose(chosen)
    assert choice.reader == reader
    assert reason in choice.reason


def test_cells_that_no_reader_can_tell_apart() -> None:
    with pytest.raises(ReaderError, match="cannot be told apart"):
        choose(domain(PRIVATE, PRIVATE))


def test_the_operator_may_name_a_reader_that_fits() -> None:
    for name in ("ram_file", "process", "libvmi"):
        choice = choose(domain(SHARED), name)
        assert isinstance(choice, Choice)
        assert choice.reader == name
        assert "named in the configuration" in choice.reason
    for name in ("libvmi", "ram_file"):
        with pytest.raises(ReaderError, match="not a shared file"):
            choose(domain(PRIVATE), name)
    with pytest.raises(ReaderError, match="there is no dump"):
        open_memory(domain(PRIVATE), "dump")
    with pytest.raises(ReaderError, match="dump, libvmi, process, ram_file"):
        choose(domain(PRIVATE), "crystal_ball")


def test_domains_that_are_refused_before_any_reader_is_asked() -> None:
    for refused, error in [
        (replace(domain(SHARED), running=False), GuestGone),
        (replace(domain(SHARED), encrypted="sev"), EncryptedMemory),
        (replace(domain(SHARED), obstacle="it has memory devices"), UnsupportedLayout),
        (replace(domain(SHARED), machine="microvm"), UnsupportedLayout),
    ]:
        for name in (None, "ram_file", "process", "libvmi"):
            with pytest.raises(error):
                choose(refused, name)
            with pytest.raises(error):
                open_memory(refused, name)


def test_a_guest_without_a_process() -> None:
    for name in ("ram_file", "process", "libvmi"):
        with pytest.raises(GuestGone):
            open_memory(domain(SHARED), name)


def test_libvmi_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert libvmi.LibvmiMemory.suitability(domain(SHARED)).score == 0
    monkeypatch.setitem(__import__("sys").modules, "libvmi", None)
    with pytest.raises(ReaderError, match=r"nova-vmi-attest\[libvmi\]"):
        libvmi.LibvmiMemory([], [])
