# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from nova_vmi_attest.references import package
from nova_vmi_attest.references.package import KernelPackage, PackageError, read_package, read_tree
from tests.unit.kernel import builders

from . import packages

RELEASE = builders.RELEASE
OTHER_RELEASE = "6.1.0-other"
MODULES = {"demo_mod": builders.module("demo-mod"), "other": builders.module("other")}


def _file(directory: Path, data: bytes) -> Path:
    path = directory / "package"
    path.write_bytes(data)
    return path


def _modules(found: KernelPackage) -> dict[str, bytes]:
    return {module.name: module.contents for module in found.modules()}


def _deb(files: dict[str, bytes]) -> bytes:
    return packages.deb(packages.tar(files), "gz")


def test_deb(tmp_path: Path) -> None:
    data = packages.kernel_deb()
    found = read_package(_file(tmp_path, data))
    assert (found.name, found.version, found.release) == ("linux-image-test", "6.1-1", RELEASE)
    assert found.digest == hashlib.sha256(data).hexdigest()
    assert found.image == builders.boot_image()
    assert _modules(found) == MODULES
    assert _modules(found) == MODULES  # it starts over


def test_rpm_with_compressed_modules(tmp_path: Path) -> None:
    found = read_package(_file(tmp_path, packages.kernel_rpm()))
    assert (found.name, found.version, found.release) == ("kernel-core", "6.1-5", RELEASE)
    assert found.image == builders.boot_image()
    assert _modules(found) == MODULES


def test_merged_usr(tmp_path: Path) -> None:
    data = packages.kernel_deb(prefix="./usr/lib")
    assert _modules(read_package(_file(tmp_path, data))) == MODULES


def test_fractions_grow_to_one(tmp_path: Path) -> None:
    fractions = [m.fraction for m in read_package(_file(tmp_path, packages.kernel_deb())).modules()]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] <= fractions[-1] <= 1


def test_no_boot_image(tmp_path: Path) -> None:
    files = {path: data for path, data in packages.kernel_files().items() if "boot" not in path}
    with pytest.raises(PackageError, match="no boot image"):
        read_package(_file(tmp_path, _deb(files)))


def test_two_boot_images_are_named(tmp_path: Path) -> None:
    files = packages.kernel_files() | {f"./boot/vmlinuz-{OTHER_RELEASE}": builders.boot_image()}
    found = read_package(_file(tmp_path, _deb(files)))
    with pytest.raises(PackageError, match=rf"boot/vmlinuz-{RELEASE} and boot/vmlinuz-{OTHER_RELEASE}"):
        list(found.modules())


def test_module_of_another_release(tmp_path: Path) -> None:
    files = packages.kernel_files() | {f"./lib/modules/{OTHER_RELEASE}/x.ko": builders.module("x")}
    with pytest.raises(PackageError, match="does not belong"):
        list(read_package(_file(tmp_path, _deb(files))).modules())


def test_two_modules_of_one_name(tmp_path: Path) -> None:
    files = packages.kernel_files(modules=("demo-mod", "demo_mod"))
    with pytest.raises(PackageError, match="two modules demo_mod"):
        list(read_package(_file(tmp_path, _deb(files))).modules())


def test_too_many_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_MAX_MODULES", 1)
    with pytest.raises(PackageError, match="more than 1"):
        list(read_package(_file(tmp_path, packages.kernel_deb())).modules())


def test_other_files_are_not_looked_at(tmp_path: Path) -> None:
    files = packages.kernel_files() | {
        f"./usr/lib/debug/lib/modules/{RELEASE}/demo.ko": b"debug",
        f"./lib/modules/{RELEASE}/modules.dep": b"x",
        f"./boot/config-{RELEASE}": b"x",
        f"./boot/extra/vmlinuz-{RELEASE}": b"x",
    }
    assert _modules(read_package(_file(tmp_path, _deb(files)))) == MODULES


def test_module_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = packages.kernel_files() | {f"./lib/modules/{RELEASE}/x.ko.gz": gzip.compress(bytes(10 << 20))}
    path = _file(tmp_path, _deb(files))
    monkeypatch.setattr(package, "MAX_FILE", 1 << 20)
    with pytest.raises(PackageError, match="more than"):
        list(read_package(path).modules())


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="cannot be read"):
        read_package(tmp_path / "absent")
    with pytest.raises(PackageError, match="cannot be read"):
        read_package(tmp_path)


def test_file_that_went_away(tmp_path: Path) -> None:
    path = _file(tmp_path, packages.kernel_deb())
    found = read_package(path)
    path.unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        list(found.modules())


def _tree(directory: Path) -> tuple[Path, Path]:
    vmlinuz, modules = directory / "vmlinuz", directory / "modules" / RELEASE
    vmlinuz.write_bytes(builders.boot_image())
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel" / "demo-mod.ko").write_bytes(builders.module("demo-mod"))
    (modules / "other.ko.gz").write_bytes(gzip.compress(builders.module("other")))
    (modules / "modules.dep").write_bytes(b"x")
    (modules / "notes.ko.txt").write_bytes(b"x")
    (modules / "build").symlink_to("/")
    (modules / "link.ko").symlink_to(vmlinuz)
    return vmlinuz, modules


def test_tree(tmp_path: Path) -> None:
    found = read_tree(*_tree(tmp_path))
    assert (found.name, found.version, found.release) == ("", "", RELEASE)
    assert found.digest == hashlib.sha256(found.image).hexdigest()
    assert _modules(found) == MODULES
    assert [m.fraction for m in found.modules()][-1] <= 1


def test_tree_that_cannot_be_read(tmp_path: Path) -> None:
    vmlinuz, modules = _tree(tmp_path)
    for pair in ((tmp_path / "absent", modules), (vmlinuz, tmp_path / "absent"), (tmp_path, modules)):
        with pytest.raises(PackageError, match="cannot be read"):
            read_tree(*pair)


def test_tree_with_too_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vmlinuz, modules = _tree(tmp_path)
    found = read_tree(vmlinuz, modules)
    monkeypatch.setattr(package, "MAX_FILE", 10)
    with pytest.raises(PackageError, match="larger"):
        list(found.modules())
    with pytest.raises(PackageError, match="larger"):
        read_tree(vmlinuz, modules)
