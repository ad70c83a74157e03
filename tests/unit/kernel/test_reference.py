# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import threading

import pytest

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.kernel.module import ModuleError
from nova_vmi_attest.kernel.reference import Reference, ReferenceMismatch
from nova_vmi_attest.kernel.vmlinux import Vmlinux

from . import builders


class Files:
    """Module files by digest, counting how often each is read."""

    def __init__(self, *files: bytes) -> None:
        self.files = {hashlib.sha256(data).hexdigest(): data for data in files}
        self.reads: list[str] = []

    def load(self, digest: str) -> bytes:
        self.reads.append(digest)
        return self.files[digest]


@pytest.fixture(scope="module")
def vmlinux() -> Vmlinux:
    return Vmlinux.load(builders.vmlinux())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ONE, OTHER = builders.module("one"), builders.module("other_one")
DIGESTS = {"one": _digest(ONE), "other_one": _digest(OTHER)}


def test_modules_by_name(vmlinux: Vmlinux) -> None:
    reference = Reference("00" * 32, vmlinux, DIGESTS, Files(ONE, OTHER).load)
    assert reference.manifest_digest == "00" * 32
    assert reference.vmlinux is vmlinux
    found = reference.module("other-one")
    assert found is not None
    assert found.name == "other_one"
    assert reference.module_digest("other-one") == _digest(OTHER)


def test_absent_module(vmlinux: Vmlinux) -> None:
    reference = Reference("", vmlinux, DIGESTS, Files().load)
    assert reference.module("absent") is None
    assert reference.module_digest("absent") is None


def test_modules_are_kept(vmlinux: Vmlinux) -> None:
    files = Files(ONE, OTHER)
    reference = Reference("", vmlinux, DIGESTS, files.load)
    assert reference.module("one") is reference.module("one")
    assert files.reads == [_digest(ONE)]


def test_the_one_not_used_for_longest_goes(vmlinux: Vmlinux) -> None:
    files = Files(ONE, OTHER)
    reference = Reference("", vmlinux, DIGESTS, files.load, modules_kept=1)
    for name in ("one", "other_one", "one", "one"):
        assert reference.module(name) is not None
    assert files.reads == [_digest(ONE), _digest(OTHER), _digest(ONE)]


def test_file_of_another_digest(vmlinux: Vmlinux) -> None:
    reference = Reference("", vmlinux, DIGESTS, lambda _: OTHER)
    with pytest.raises(ReferenceMismatch, match="digest"):
        reference.module("one")


def test_file_of_another_module(vmlinux: Vmlinux) -> None:
    reference = Reference("", vmlinux, {"one": _digest(OTHER)}, Files(OTHER).load)
    with pytest.raises(ReferenceMismatch, match="calls itself other_one"):
        reference.module("one")


def test_malformed_file(vmlinux: Vmlinux) -> None:
    reference = Reference("", vmlinux, {"one": _digest(b"x")}, Files(b"x").load)
    with pytest.raises(ModuleError):
        reference.module("one")


def test_errors_of_the_loader_pass(vmlinux: Vmlinux) -> None:
    def refuse(digest: str) -> bytes:
        raise AttestError(f"no file {digest[:4]}")

    with pytest.raises(AttestError, match="no file"):
        Reference("", vmlinux, DIGESTS, refuse).module("one")


def test_many_threads(vmlinux: Vmlinux) -> None:
    reference = Reference("", vmlinux, DIGESTS, Files(ONE, OTHER).load, modules_kept=1)
    names: list[str] = []

    def use() -> None:
        for name in ("one", "other_one") * 20:
            module = reference.module(name)
            names.append(module.name if module else "")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == ["one"] * 80 + ["other_one"] * 80
