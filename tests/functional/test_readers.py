# SPDX-License-Identifier: Apache-2.0
"""Every reader gives the same measurement of the same guest, whether its kernel is sound or altered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from lab import kernels
from lab.hypervisor import Hypervisor, LibvirtGuest

from nova_vmi_attest.evidence.measurement import Measurement
from nova_vmi_attest.introspection.measure import Measurer, passed
from nova_vmi_attest.introspection.memory.domain import parse_domain
from nova_vmi_attest.introspection.memory.select import open_memory
from nova_vmi_attest.kernel.reference import Reference
from nova_vmi_attest.references.store import ReferenceStore

SYMBOL, OFFSET, BYTES = "tcp4_seq_show", 0x20, "f4f4f4f4"


class OneReference:
    """The reference of the lab's kernel."""

    def __init__(self, reference: Reference) -> None:
        self._references = (reference,)

    def candidates(self) -> Sequence[Reference]:
        return self._references

    def missing(self, banner: bytes) -> None:
        raise AssertionError(f"no reference for {banner!r}")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> OneReference:
    store = ReferenceStore(tmp_path_factory.mktemp("references"))
    return OneReference(store.open(store.import_package(kernels.package()).digest))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibvirtGuest]:
    with Hypervisor(tmp_path_factory.mktemp("libvirt")) as hypervisor:
        yield hypervisor.start("readers", cpu="Skylake-Server").wait_up()


def measured(guest: LibvirtGuest, references: OneReference, directory: Path) -> dict[str, Measurement]:
    """One moment of the guest through each reader, without what differs by nature: who read, and how long."""
    guest.pause()
    try:
        domain = parse_domain(guest.xml())
        core = replace(domain, dump=str(guest.dump(directory / "core")))
        raw = replace(domain, dump=str(directory / "raw"))
        found = {}
        with ExitStack() as stack:
            live = stack.enter_context(closing(open_memory(domain, "ram_file")))
            with open(raw.dump, "wb") as file:
                for part in live.populated():
                    file.seek(part.offset)
                    file.write(live.read(part.start, part.end - part.start))
                file.truncate(domain.size)
            sources = {
                "ram_file": live,
                "process": stack.enter_context(closing(open_memory(domain, "process"))),
                "libvmi": stack.enter_context(closing(open_memory(domain, "libvmi"))),
                "core": stack.enter_context(closing(open_memory(core, "dump"))),
                "raw": stack.enter_context(closing(open_memory(raw, "dump"))),
            }
            for name, memory in sources.items():
                # A measurer of its own: nothing that one reader showed may help another.
                found[name] = Measurer(references).measure(guest.uuid, memory, memory.name)
        return found
    finally:
        guest.resume()


def facts(measurement: Measurement) -> tuple[UUID, object, object]:
    return measurement.guest, measurement.integrity, measurement.inventory


def test_all_readers_give_the_same_measurement(
    guest: LibvirtGuest, references: OneReference, tmp_path: Path
) -> None:
    sound = measured(guest, references, tmp_path)
    assert {measurement.observation.reader for measurement in sound.values()} == {
        "ram_file", "process", "libvmi", "dump",
    }  # fmt: skip
    for name, measurement in sound.items():
        assert passed(measurement), (name, measurement.integrity)
        assert facts(measurement) == facts(sound["ram_file"]), name
    assert sound["ram_file"].integrity.unexplained_bytes == 0
    assert len(sound["ram_file"].inventory.processes) > 20

    said = guest.shell(
        f"insmod /lib/modules/tamper.ko address=0x$(grep ' {SYMBOL}$' /proc/kallsyms | cut -d' ' -f1)"
        f" offset={OFFSET:#x} bytes={BYTES}"
    )
    (tmp_path / "altered").mkdir()
    altered = measured(guest, references, tmp_path / "altered")
    for name, measurement in altered.items():
        text = next(check for check in measurement.integrity.checks if check.check == "text")
        assert [(one.symbol, one.offset) for one in text.findings] == [(SYMBOL, OFFSET)], (name, said)
        assert facts(measurement) == facts(altered["ram_file"]), name
