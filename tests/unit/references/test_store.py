# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import hashlib
import stat
import threading
from pathlib import Path

import pytest

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.references.manifest import Blob, Manifest, ManifestError
from nova_vmi_attest.references.package import PackageError
from nova_vmi_attest.references.store import ReferenceStore, StoreError
from tests.unit.kernel import builders

from . import packages

RELEASE = builders.RELEASE


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(tmp_path / "references")


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.deb"
    path.write_bytes(packages.kernel_deb())
    return path


def _deb(tmp_path: Path, files: dict[str, bytes]) -> Path:
    path = tmp_path / "odd.deb"
    path.write_bytes(packages.deb(packages.tar(files), "gz"))
    return path


def _paths(store: ReferenceStore) -> set[str]:
    return {path.name for path in store._directory.rglob("*") if path.is_file()}


def test_import_describes_the_build(store: ReferenceStore, deb: Path) -> None:
    manifest = store.import_package(deb)
    assert (manifest.release, manifest.build_id) == (RELEASE, builders.BUILD_ID.hex())
    assert manifest.banner_digest == _digest(builders.BANNER)
    assert manifest.image.digest == _digest(builders.boot_image())
    assert [module.name for module in manifest.modules] == ["demo_mod", "other"]
    assert manifest.source.digest == _digest(deb.read_bytes())
    assert store.manifests() == (manifest,)
    assert store.manifest(manifest.digest) == manifest


def test_import_tells_its_progress(store: ReferenceStore, deb: Path) -> None:
    told: list[tuple[float, str]] = []
    store.import_package(deb, lambda fraction, name: told.append((fraction, name)))
    assert [name for _, name in told] == ["demo_mod", "other"]
    assert all(0 < fraction <= 1 for fraction, _ in told)


def test_import_again_changes_nothing(store: ReferenceStore, deb: Path) -> None:
    first = store.import_package(deb)
    before = _paths(store)
    assert store.import_package(deb) == first
    assert _paths(store) == before


def test_import_tree(store: ReferenceStore, tmp_path: Path) -> None:
    vmlinuz, modules = tmp_path / "vmlinuz", tmp_path / RELEASE
    vmlinuz.write_bytes(builders.boot_image())
    modules.mkdir()
    (modules / "demo-mod.ko").write_bytes(builders.module("demo-mod"))
    manifest = store.import_tree(vmlinuz, modules)
    assert [module.name for module in manifest.modules] == ["demo_mod"]
    assert manifest.source.package == ""


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {f"./boot/vmlinuz-{RELEASE}x": builders.boot_image()},
            "the paths say",
        ),
        (
            packages.kernel_files() | {f"./lib/modules/{RELEASE}/x.ko": builders.module("y")},
            "calls itself y",
        ),
        (
            packages.kernel_files() | {f"./lib/modules/{RELEASE}/x.ko": builders.module("x", "5.10.0")},
            "built for 5.10.0",
        ),
    ],
)
def test_package_that_contradicts_itself(
    store: ReferenceStore, tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    with pytest.raises(PackageError, match=reason):
        store.import_package(_deb(tmp_path, files))
    assert store.manifests() == ()


def test_module_that_is_none(store: ReferenceStore, tmp_path: Path) -> None:
    files = packages.kernel_files() | {f"./lib/modules/{RELEASE}/x.ko": b"nothing"}
    with pytest.raises(AttestError, match="malformed"):
        store.import_package(_deb(tmp_path, files))
    assert store.manifests() == ()


def test_open(store: ReferenceStore, deb: Path) -> None:
    manifest = store.import_package(deb)
    reference = store.open(manifest.digest)
    assert reference.manifest_digest == manifest.digest
    assert reference.vmlinux.release == RELEASE
    module = reference.module("demo-mod")
    assert module is not None
    assert module.name == "demo_mod"
    assert reference.module_digest("other") == _digest(builders.module("other"))
    assert reference.module("absent") is None


def test_open_fetches_what_is_missing(tmp_path: Path, deb: Path) -> None:
    source, store = ReferenceStore(tmp_path / "source"), ReferenceStore(tmp_path / "copy")
    manifest = source.import_package(deb)
    store.put_blob(source.blob(manifest.digest))
    assert store.put_manifest(store.blob(manifest.digest)) == manifest
    fetched: list[str] = []

    def fetch(digest: str) -> None:
        fetched.append(digest)
        store.put_blob(source.blob(digest))

    reference = store.open(manifest.digest, fetch)
    assert fetched == [manifest.image.digest]
    assert reference.module("other") is not None
    assert fetched == [manifest.image.digest, reference.module_digest("other")]
    store.open(manifest.digest, fetch)
    assert len(fetched) == 2


def test_open_without_what_is_needed(store: ReferenceStore) -> None:
    with pytest.raises(StoreError, match="no file"):
        store.open("00" * 32)


def test_manifests_are_files_too(store: ReferenceStore, deb: Path) -> None:
    manifest = store.import_package(deb)
    assert store.has(manifest.digest)
    assert store.blob(manifest.digest) == manifest.encode()


def test_files(store: ReferenceStore) -> None:
    digest = store.put_blob(b"contents")
    assert digest == _digest(b"contents")
    assert store.has(digest)
    assert store.blob(digest) == b"contents"
    assert not store.has("00" * 32)
    for data in (b"", bytes(257 << 20)):
        with pytest.raises(StoreError, match="not kept"):
            store.put_blob(data)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_only_digests_are_names(store: ReferenceStore, digest: str) -> None:
    for use in (store.has, store.blob, store.manifest, store.open, store.delete):
        with pytest.raises(StoreError, match="not a SHA-256 digest"):
            use(digest)


def test_damage_is_noticed_and_mended(store: ReferenceStore) -> None:
    digest = store.put_blob(b"contents")
    path = store._blob_path(digest)
    path.write_bytes(b"CONTENTS")
    with pytest.raises(StoreError, match="damaged"):
        store.blob(digest)
    store.put_blob(b"contents")
    assert store.blob(digest) == b"contents"


def test_damaged_manifest(store: ReferenceStore, deb: Path) -> None:
    manifest = store.import_package(deb)
    (store._manifests / manifest.digest).write_bytes(manifest.encode() + b" ")
    for use in (store.manifests, lambda: store.manifest(manifest.digest)):
        with pytest.raises(StoreError, match="damaged"):
            use()


def test_damaged_module(store: ReferenceStore, deb: Path) -> None:
    reference = store.open(store.import_package(deb).digest)
    digest = reference.module_digest("other")
    assert digest is not None
    store._blob_path(digest).write_bytes(builders.module("evil"))
    with pytest.raises(StoreError, match="damaged"):
        reference.module("other")


def test_put_manifest_refuses_what_is_none(store: ReferenceStore) -> None:
    with pytest.raises(ManifestError):
        store.put_manifest(b"{}")
    assert store.manifests() == ()


def test_delete_keeps_what_others_need(store: ReferenceStore, deb: Path) -> None:
    manifest = store.import_package(deb)
    image = store.put_blob(b"another image")
    second = dataclasses.replace(manifest, image=Blob(image, 13), modules=manifest.modules[:1])
    store.put_manifest(second.encode())
    store.delete(manifest.digest)
    assert store.manifests() == (second,)
    assert not store.has(manifest.image.digest)
    assert [store.has(module.digest) for module in manifest.modules] == [True, False]
    store.delete(second.digest)
    assert _paths(store) == {"lock"}


def test_delete_what_is_not_there(store: ReferenceStore) -> None:
    with pytest.raises(StoreError, match="no manifest"):
        store.delete("00" * 32)


def test_only_the_owner_may_read(store: ReferenceStore, deb: Path) -> None:
    store.import_package(deb)
    for path in [store._directory, *store._directory.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_unusable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = ReferenceStore(tmp_path / "file")
    for use in (lambda: store.put_blob(b"x"), store.manifests, lambda: store.delete("00" * 32)):
        with pytest.raises(StoreError, match="cannot be used"):
            use()


def test_nothing_is_left_when_writing_fails(store: ReferenceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StoreError, match="No space left"):
        store.put_blob(b"contents")
    assert _paths(store) == set()


def test_threads_that_import_and_delete(store: ReferenceStore, deb: Path) -> None:
    failures: list[AttestError] = []

    def work() -> None:
        for _ in range(5):
            manifest = store.import_package(deb)
            try:
                store.delete(manifest.digest)
            except StoreError as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A manifest may have been deleted by another thread; what remains is whole.
    assert all("no manifest" in error.message for error in failures)
    assert _paths(store) == {"lock"}


def test_order_of_manifests(store: ReferenceStore, deb: Path) -> None:
    manifest = store.import_package(deb)
    older = dataclasses.replace(manifest, release="5.10")
    store.put_manifest(older.encode())
    found: tuple[Manifest, ...] = store.manifests()
    assert [item.release for item in found] == ["5.10", RELEASE]
