# SPDX-License-Identifier: Apache-2.0
"""The images and flavors of a cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openstack.connection import Connection

from lab import kernels
from lab.cloud import disk

DISK_IMAGE = "disk"
"""Boots by itself, so its servers can be moved while they run."""
KERNEL_IMAGE = "kernel"
"""An empty disk with a kernel and a ramdisk beside it; Nova does not move its servers while they run."""

FLAVORS = {"small": 192, "medium": 256}
"""Name -> MiB of memory."""


def register(admin: Connection, flavour: kernels.Flavour = "cloud") -> None:
    """Upload the images, for everybody, and make the flavors."""
    kernel = _upload(admin, "vmlinuz", kernels.boot_image(flavour), "aki")
    ramdisk = _upload(admin, "initramfs", kernels.initramfs(flavour), "ari")
    _upload(admin, DISK_IMAGE, disk.bootable(flavour), "qcow2")
    _upload(
        admin, KERNEL_IMAGE, disk.empty(), "qcow2",
        kernel_id=kernel, ramdisk_id=ramdisk, os_command_line="console=ttyS0",
    )  # fmt: skip
    for name, memory in FLAVORS.items():
        admin.compute.create_flavor(name=name, ram=memory, vcpus=1, disk=1)


def _upload(admin: Connection, name: str, path: Path, kind: str, **properties: Any) -> str:
    image = admin.image.create_image(
        name,
        filename=str(path),
        disk_format=kind,
        container_format="bare" if kind == "qcow2" else kind,
        visibility="public",
        **properties,
    )
    return str(image.id)
