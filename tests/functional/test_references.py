# SPDX-License-Identifier: Apache-2.0
"""Debian's own kernel packages, as an operator imports them: every module, and what a kernel says."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from lab import kernels
from lab.kernels import Flavour

from nova_vmi_attest.kernel.vmlinux import LINK_BASE
from nova_vmi_attest.references.manifest import Manifest
from nova_vmi_attest.references.store import ReferenceStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ReferenceStore:
    return ReferenceStore(tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module", params=get_args(Flavour))
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param


@pytest.fixture(scope="module")
def manifest(store: ReferenceStore, flavour: Flavour) -> Manifest:
    return store.import_package(kernels.package(flavour))


def test_manifest_names_what_the_package_holds(flavour: Flavour, manifest: Manifest) -> None:
    package = kernels.package(flavour)
    fields = subprocess.run(
        ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", package],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{manifest.source.package} {manifest.source.version}" == fields.stdout
    assert manifest.source.digest == hashlib.sha256(package.read_bytes()).hexdigest()
    assert manifest.release == kernels.release(flavour)
    assert manifest.image.digest == hashlib.sha256(kernels.boot_image(flavour).read_bytes()).hexdigest()
    files = {path.stem.replace("-", "_"): path for path in kernels.modules_dir(flavour).rglob("*.ko")}
    assert [module.name for module in manifest.modules] == sorted(files)
    for module in manifest.modules:
        assert module.digest == hashlib.sha256(files[module.name].read_bytes()).hexdigest()


def test_tree_is_the_same_kernel(flavour: Flavour, manifest: Manifest, tmp_path: Path) -> None:
    told: list[float] = []
    tree = ReferenceStore(tmp_path / "tree").import_tree(
        kernels.boot_image(flavour), kernels.modules_dir(flavour), lambda fraction, _: told.append(fraction)
    )
    assert (tree.image, tree.modules) == (manifest.image, manifest.modules)
    assert (tree.release, tree.build_id, tree.banner_digest) == (
        manifest.release,
        manifest.build_id,
        manifest.banner_digest,
    )
    assert told == sorted(told)
    assert told[-1] == 1


def test_kernel_is_read(store: ReferenceStore, manifest: Manifest) -> None:
    vmlinux = store.open(manifest.digest).vmlinux
    assert vmlinux.banner.startswith(f"Linux version {manifest.release} ".encode())
    assert vmlinux.banner.endswith(b"\n")
    assert vmlinux.symbols["_text"] == LINK_BASE
    assert vmlinux.section_offset(".text") is not None
    assert vmlinux.symbols.at(vmlinux.symbols["do_syscall_64"] + 1) == ("do_syscall_64", 1)
    assert len(vmlinux.symbols) > 50_000
    assert vmlinux.btf.offset("list_head", "prev") == 8
    assert vmlinux.btf.size("task_struct") > 1000
    assert vmlinux.btf.has("module", "core_layout.base")


def test_relocation_moves_pointers_by_the_slide(store: ReferenceStore, manifest: Manifest) -> None:
    vmlinux = store.open(manifest.digest).vmlinux
    start = vmlinux.offset_of("sys_call_table")
    before = vmlinux.image[start : start + 64 * 8].view(np.uint64)
    after = vmlinux.relocated(0x1E00000, start, start + 64 * 8).view(np.uint64)
    assert (after - before == 0x1E00000).all()
    assert vmlinux.symbols.at(int(before[0])) == ("__x64_sys_read", 0)


def test_modules_are_read(store: ReferenceStore, manifest: Manifest) -> None:
    reference = store.open(manifest.digest)
    module = reference.module("nf_tables")
    assert module is not None
    assert module.name == "nf_tables"
    assert module.vermagic.startswith(manifest.release + " ")
    text = module.section_index(".text")
    assert text is not None
    assert len(module.relocations[text].offset) > 1000
    assert any(symbol.name == "init_module" for symbol in module.symbols)
