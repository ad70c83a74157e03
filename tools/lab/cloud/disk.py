# SPDX-License-Identifier: Apache-2.0
"""A disk image that boots by itself: boot sector and boot loader of syslinux, kernel and initramfs on FAT.

Made without mounts or loop devices, and kept in the cache.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from lab import cache_dir, kernels
from lab.errors import LabError

CONFIGURATION = """DEFAULT linux
PROMPT 0
LABEL linux
  KERNEL vmlinuz
  INITRD initrd
  APPEND console=ttyS0
"""
# The media byte of a FAT boot sector. With another one Glance and Nova take the sector for a partition table,
# and find it broken.
FIXED_DISK = "248"
SPARE = 4 << 20
"""Bytes for the file system's own tables and the boot loader, over those of the files."""


def bootable(flavour: kernels.Flavour = "cloud") -> Path:
    """Return a qcow2 image of Debian's kernel and the lab's initramfs. Raises LabError when a tool fails."""
    kernel, initramfs = kernels.boot_image(flavour), kernels.initramfs(flavour)
    image = cache_dir() / "disks" / f"{initramfs.stem}.qcow2"
    if image.exists():
        return image
    image.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        work = Path(scratch)
        shutil.copy(kernel, work / "vmlinuz")
        shutil.copy(initramfs, work / "initrd")
        (work / "syslinux.cfg").write_text(CONFIGURATION)
        files = ["vmlinuz", "initrd", "syslinux.cfg"]
        sectors = (sum((work / name).stat().st_size for name in files) + SPARE) // 512
        # Whole cylinders of 255 heads and 63 sectors, the geometry that the BIOS reports for it.
        cylinders = sectors // (255 * 63) + 1
        _run(
            work,
            "mformat",
            "-C",
            "-m",
            FIXED_DISK,
            "-i",
            "disk",
            "-t",
            str(cylinders),
            "-h",
            "255",
            "-s",
            "63",
            "::",
        )
        _run(work, "mcopy", "-i", "disk", *files, "::")
        _run(work, "syslinux", "--install", "disk")
        _run(work, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk", "disk.qcow2")
        (work / "disk.qcow2").rename(image)
    return image


def empty() -> Path:
    """Return a small empty qcow2 image, for servers whose kernel lies beside the disk."""
    image = cache_dir() / "disks" / "empty.qcow2"
    if not image.exists():
        image.parent.mkdir(parents=True, exist_ok=True)
        _run(image.parent, "qemu-img", "create", "-q", "-f", "qcow2", image.name, "16M")
    return image


def _run(directory: Path, *command: str) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LabError(f"{command[0]} cannot be run: {error}", "install what bindep.txt lists") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-1000:]}")
