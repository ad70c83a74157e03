# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line: RAM backends in both syntaxes, and nothing that a tenant writes becomes one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.introspection.memory.base import ReaderError
from nova_vmi_attest.introspection.memory.command_line import (
    RamBackend,
    layout_override,
    options,
    protection,
    ram_backends,
)

SIZE = 256 << 20
LIBVIRT = [
    "/usr/bin/qemu-system-x86_64", "-name", "guest=instance-1,debug-threads=on", "-S",
    "-machine", "pc-q35-7.2,usb=off,memory-backend=pc.ram", "-m", "256",
    "-object", '{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/ram/pc.ram","share":true,'
    '"x-use-canonical-path-for-ramblock-id":false,"prealloc":true,"size":268435456}',
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "backends"),
    [
        (LIBVIRT, (RamBackend("file", SIZE, "/ram/pc.ram", True),)),
        (["qemu", "-m", "256M"], (RamBackend("ram", SIZE),)),
        (["qemu", "-m", "size=262144k,slots=16,maxmem=4G"], (RamBackend("ram", SIZE),)),
        (["qemu"], (RamBackend("ram", SIZE),)),
        (
            [
                "qemu",
                "-object",
                "memory-backend-memfd,id=r,size=256M",
                "--machine",
                "q35",
                "-M",
                "memory-backend=r",
            ],
            (RamBackend("memfd", SIZE),),
        ),
        (
            [
                "qemu",
                "-object",
                "memory-backend-file,id=a,,b,size=128M,mem-path=/x,,y",
                "-object",
                "memory-backend-ram,id=c,size=128M",
                "-numa",
                "node,nodeid=1,memdev=a,,b",
                "-numa",
                "node,nodeid=0,memdev=c",
            ],
            (RamBackend("ram", SIZE // 2), RamBackend("file", SIZE // 2, "/x,y")),
        ),
    ],
)
def test_backends(arguments: list[str], backends: tuple[RamBackend, ...]) -> None:
    assert ram_backends(arguments, SIZE) == backends


@pytest.mark.parametrize(
    "arguments",
    [
        ["qemu", "-m", "512"],
        ["qemu", "-m", "256X"],
        ["qemu", "-mem-path", "/dev/hugepages"],
        ["qemu", "-machine", "memory-backend=absent"],
        ["qemu", "-object", "memory-backend-epc,id=x,size=1M"],
        ["qemu", "-object", "memory-backend-file,id=x,size=1M,offset=4096"],
        ["qemu", "-object", "memory-backend-file,id=x"],
        ["qemu", "-object", '{"memory-backend-'],
        ["qemu", "-object", "memory-backend-ram,id=x,size=1M", "-machine", "memory-backend=x"],
    ],
)
def test_what_is_not_understood_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ReaderError):
        ram_backends(arguments, SIZE)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-machine", "pc,max-ram-below-4g=1G"],
        ["-M", '{"type":"pc","max-ram-below-4g":1073741824}'],
        ["-device", "pc-dimm,id=d,memdev=m"],
        ["-device", '{"driver":"virtio-mem-pci","id":"v"}'],
        ["-device", "driver=nvdimm"],
        ["--readconfig", "/etc/qemu.cfg"],
    ],
)
def test_what_moves_ram_is_noticed(arguments: list[str]) -> None:
    assert layout_override(["qemu", *arguments])
    assert not layout_override(["qemu", "-append", arguments[0], arguments[1]])
    assert not layout_override(LIBVIRT)


def test_what_protects_memory_is_noticed() -> None:
    assert protection(["qemu", "-machine", "q35,confidential-guest-support=lsec0"])
    assert protection(["qemu", "-machine", "q35,memory-encryption=sev0"])
    assert not protection(LIBVIRT)


def test_the_kernel_command_line_is_no_option() -> None:
    assert list(options(["qemu", "-append", "-uuid", "-name", "guest=x"])) == [
        ("-append", "-uuid"),
        ("-name", "guest=x"),
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(max_size=20) | st.sampled_from([*LIBVIRT, "-numa", "-device", "-object", "{}"]), max_size=12
    )
)
def test_any_command_line_gives_typed_errors_only(arguments: list[str]) -> None:
    with contextlib.suppress(AttestError):
        protection(arguments)
        layout_override(arguments)
        assert sum(backend.size for backend in ram_backends(arguments, SIZE)) == SIZE
