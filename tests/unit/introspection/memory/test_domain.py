# SPDX-License-Identifier: Apache-2.0
"""What live XML says of a domain's memory, and that no XML does harm."""

from __future__ import annotations

import contextlib
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.introspection.memory.base import EncryptedMemory, GuestGone, UnsupportedLayout
from nova_vmi_attest.introspection.memory.domain import (
    MAX_XML,
    Backend,
    DomainError,
    Source,
    parse_domain,
)

GUEST = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
MIB = 1 << 20


def xml(
    body: str = "",
    *,
    start: str = "<domain type='kvm' id='7'>",
    memory: str = "<memory unit='KiB'>2097152</memory>",
    machine: str = "pc-q35-7.2",
    devices: str = "",
) -> str:
    return (
        f"{start}<name>instance-00000007</name><uuid>{GUEST}</uuid>{memory}"
        f"<currentMemory unit='KiB'>1048576</currentMemory>{body}"
        f"<os><type arch='x86_64' machine='{machine}'>hvm</type></os><devices>{devices}</devices></domain>"
    )


def test_the_balloon_does_not_change_the_size() -> None:
    domain = parse_domain(xml())
    assert (domain.uuid, domain.name, domain.size) == (GUEST, "instance-00000007", 2048 * MIB)
    assert domain.backends == (Backend(2048 * MIB, Source.ANONYMOUS, False),)
    assert domain.running
    assert not domain.shared_files
    assert domain.ranges()[-1].end == 2048 * MIB


@pytest.mark.parametrize(
    ("backing", "source", "shared"),
    [
        ("<source type='file'/><access mode='shared'/>", Source.FILE, True),
        ("<source type='file'/>", Source.FILE, False),
        ("<source type='memfd'/><access mode='shared'/>", Source.MEMFD, True),
        ("<source type='anonymous'/>", Source.ANONYMOUS, False),
        ("<hugepages><page size='2048' unit='KiB' nodeset='0'/></hugepages>", Source.FILE, False),
        ("<hugepages/><access mode='shared'/>", Source.FILE, True),
        ("<source type='memfd'/><hugepages/><access mode='shared'/>", Source.MEMFD, True),
        ("<locked/><nosharepages/>", Source.ANONYMOUS, False),
    ],
)
def test_memory_backing(backing: str, source: Source, shared: bool) -> None:
    domain = parse_domain(xml(f"<memoryBacking>{backing}</memoryBacking>"))
    assert domain.backends == (Backend(2048 * MIB, source, shared),)


def test_numa_cells_are_backends_in_the_order_of_their_ids() -> None:
    cells = (
        "<cell id='1' cpus='1' memory='1572864' unit='KiB' memAccess='private'/>"
        "<cell id='0' cpus='0' memory='512' unit='MiB'/>"
    )
    backing = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"
    domain = parse_domain(xml(f"{backing}<cpu><numa>{cells}</numa></cpu>"))
    assert domain.backends == (
        Backend(512 * MIB, Source.FILE, True),
        Backend(1536 * MIB, Source.FILE, False),
    )
    assert not domain.obstacle


@pytest.mark.parametrize(
    ("amount", "size"),
    [
        ("<memory unit='bytes'>1073741824</memory>", 1 << 30),
        ("<memory>1048576</memory>", 1 << 30),
        ("<memory unit='G'>1</memory>", 1 << 30),
        ("<memory unit='MB'>1000</memory>", 10**9),
    ],
)
def test_units(amount: str, size: int) -> None:
    assert parse_domain(xml(memory=amount)).size == size


@pytest.mark.parametrize("kind", ["sev", "sev-snp", "tdx", "s390-pv", "what-comes-next"])
def test_protected_guests(kind: str) -> None:
    domain = parse_domain(xml(f"<launchSecurity type='{kind}'><policy>0x3</policy></launchSecurity>"))
    assert domain.encrypted == kind
    with pytest.raises(EncryptedMemory, match=kind):
        domain.ranges()


def test_a_domain_that_does_not_run() -> None:
    with pytest.raises(GuestGone):
        parse_domain(xml(start="<domain type='kvm'>")).ranges()


QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


@pytest.mark.parametrize(
    "text",
    [
        xml(machine="microvm"),
        xml(machine=""),
        xml(start="<domain type='xen' id='1'>"),
        xml().replace("x86_64", "aarch64"),
        xml(devices="<memory model='dimm'><target><size unit='KiB'>524288</size></target></memory>"),
        xml(devices="<memory model='virtio-mem'/>"),
        xml("<cpu><numa><cell id='0' memory='1' unit='GiB'/></numa></cpu>"),
        xml("<maxMemory slots='16' unit='GiB'>1000</maxMemory>"),
        xml(devices="<controller type='pci'><pcihole64 unit='GiB'>1024</pcihole64></controller>"),
        xml(
            f"<q:commandline xmlns:q='{QEMU}'><q:arg value='-machine'/>"
            "<q:arg value='max-ram-below-4g=1G'/></q:commandline>"
        ),
        xml(
            f"<q:commandline xmlns:q='{QEMU}'><q:arg value='-device'/>"
            "<q:arg value='pc-dimm,id=d'/></q:commandline>"
        ),
    ],
)
def test_layouts_that_are_not_known(text: str) -> None:
    with pytest.raises(UnsupportedLayout):
        parse_domain(text).ranges()


def test_reserved_addresses_alone_do_not_matter() -> None:
    body = "<maxMemory slots='16' unit='GiB'>64</maxMemory>"
    assert parse_domain(xml(body)).ranges() == parse_domain(xml()).ranges()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domain",
        "<network/>",
        "<domain/>",
        "\ud800",
        "<!DOCTYPE domain [<!ENTITY a 'b'>]>" + xml(),
        "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'>" + xml(),
        "<domain>" + "<a>" * 100 + "</a>" * 100 + "</domain>",
        "<domain>" + "<a/>" * 70000 + "</domain>",
        "<domain>" + "a" * MAX_XML + "</domain>",
        xml(memory=""),
        xml(memory="<memory>many</memory>"),
        xml(memory="<memory>-1</memory>"),
        xml(memory="<memory unit='furlong'>1</memory>"),
        xml(memory="<memory>99999999999999999999</memory>"),
        xml(memory="<memory>²</memory>"),
        xml().replace(str(GUEST), "no uuid"),
        xml("<memoryBacking><source type='cloud'/></memoryBacking>"),
        xml("<cpu><numa>" + "<cell id='0' memory='1'/>" * 200 + "</numa></cpu>"),
        xml("<cpu><numa><cell id='x' memory='1'/><cell id='y' memory='1'/></numa></cpu>"),
    ],
)
def test_xml_that_is_refused(text: str) -> None:
    with pytest.raises(DomainError):
        parse_domain(text)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_mutated_xml_gives_typed_errors_only(data: st.DataObject) -> None:
    text = xml("<cpu><numa><cell id='0' memory='2' unit='GiB'/></numa></cpu>")
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    text = text[:start] + data.draw(st.text(max_size=12)) + text[end:]
    with contextlib.suppress(AttestError):
        assert parse_domain(text).ranges()
