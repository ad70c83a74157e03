# SPDX-License-Identifier: Apache-2.0
"""The code that the kernel gives to every process, as it must be: its images are patched like kernel text.

They lie in data that is read-only after initialisation, because the kernel applies their alternatives when it
starts. Source: arch/x86/entry/vdso/vma.c (init_vdso_image).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nova_vmi_attest.introspection.build import BuildError
from nova_vmi_attest.introspection.memory.base import Bytes
from nova_vmi_attest.introspection.replay import alternatives
from nova_vmi_attest.introspection.replay.inputs import LiveKernel, ReplaySource, signed
from nova_vmi_attest.introspection.replay.patching import Patching, Region, Table
from nova_vmi_attest.kernel.relocations import LINK_BASE
from nova_vmi_attest.kernel.vmlinux import Vmlinux

IMAGES = ("vdso_image_64", "vdso_image_32", "vdso_image_x32")
SIZE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class SharedObject:
    """One image at ``offset`` from ``_text``, with the bytes that it must have in this boot."""

    name: str
    offset: int
    expected: Bytes


def replay_vdso(source: ReplaySource, vmlinux: Vmlinux) -> Iterator[SharedObject]:
    """The images of a build, patched for the CPU of the live kernel.

    :raises BuildError: the build describes an image that it does not hold.
    :raises ReplayError: the image's patch table is malformed.
    """
    kernel = LiveKernel(source, vmlinux)
    fields = [vmlinux.btf.offset("vdso_image", name) for name in ("data", "size", "alt", "alt_len")]
    for name in IMAGES:
        if vmlinux.symbols.get(name) is None:
            continue
        at = vmlinux.offset_of(name)
        address, size, table, length = (
            int.from_bytes(vmlinux.image[at + field : at + field + 8].tobytes(), "little") for field in fields
        )
        offset = address - LINK_BASE
        if not (offset >= 0 and 0 < size <= SIZE_LIMIT and offset + size <= len(vmlinux.image)):
            raise BuildError(f"{name} is not inside the kernel's image")
        if table + length > size:
            raise BuildError(f"the patch table of {name} is not inside it")
        running = signed(address + source.slide)
        image = vmlinux.image[offset : offset + size].copy()
        tables = {}
        if length:
            tables[".altinstructions"] = Table(running + table, image[table : table + length].copy())
        patching = Patching(image, [Region(name, running, size, 0)], tables, kernel)
        alternatives.apply(patching)
        image.setflags(write=False)
        yield SharedObject(name, offset, image)
