# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.references import archives
from nova_vmi_attest.references.archives import Archive, PackageError, open_archive
from tests.unit.kernel.mutation import mutated, refusal

from . import packages

FILES = {"./boot/a": b"first", "./lib/" + "d" * 150 + "/b": bytes(1000), "./empty": b""}
DEB = packages.deb(packages.tar(FILES), "gz")
PLAIN_DEB = packages.deb(packages.tar(FILES), "")
PLAIN_RPM = packages.rpm(packages.cpio(FILES))


def _open(data: bytes) -> Archive:
    return open_archive(io.BytesIO(data), len(data))


def _contents(data: bytes) -> dict[str, bytes]:
    return {entry.path: entry.read() for entry in _open(data).entries()}


EXPECTED = {path.removeprefix("./"): data for path, data in FILES.items()}


@pytest.mark.parametrize("how", sorted(packages.COMPRESSIONS))
def test_deb(how: str) -> None:
    data = packages.deb(packages.tar(FILES), how)
    assert (_open(data).name, _open(data).version) == ("linux-image-test", "6.1-1")
    assert _contents(data) == EXPECTED


@pytest.mark.parametrize("how", sorted(packages.COMPRESSIONS))
def test_rpm(how: str) -> None:
    data = packages.rpm(packages.COMPRESSIONS[how](packages.cpio(FILES)))
    assert (_open(data).name, _open(data).version) == ("kernel-core", "6.1-5")
    assert _contents(data) == EXPECTED


@pytest.mark.parametrize("data", [DEB, PLAIN_RPM])
def test_entries_that_are_not_read_are_skipped(data: bytes) -> None:
    archive = _open(data)
    for _ in range(2):
        assert [(e.path, e.size) for e in archive.entries()] == [(p, len(d)) for p, d in EXPECTED.items()]


def test_only_regular_files() -> None:
    special = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo(f"./boot/vmlinuz-{kind.decode()}")
        info.type, info.linkname = kind, "/etc/passwd"
        special.append(info)
    assert _contents(packages.deb(packages.tar(FILES, special))) == EXPECTED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\3\4" + bytes(100),
        b"!<arch>\n",
        b"!<arch>\n" + bytes(60),
        packages.ar({"debian-binary": b"2.0\n", "data.tar": packages.tar(FILES)}),  # no control
        packages.ar({"control.tar": b"", "data.tar.gz": b"", "data.tar.xz": b""}),  # two data
        packages.deb(packages.tar(FILES), control=b"Package: x\n"),  # no version
        packages.deb(b"x" * 2000),  # not a tar archive
        packages.rpm(packages.cpio(FILES), {1001: "6.1"}),  # no name
        packages.rpm(b"070702" + bytes(200)),
        packages.rpm(packages.cpio(FILES)[:-200]),
        packages.rpm(b"07070X" + bytes(200)),  # the variant for huge files
        packages.rpm(b"\x1f\x8b" + bytes(50)),
        packages.rpm(b"")[:150],
        b"\xed\xab\xee\xdb" + bytes(200),
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(PackageError):
        _contents(data)


def test_header_larger_than_the_package() -> None:
    at = PLAIN_RPM.index(b"\x8e\xad\xe8\x01")
    for field in (8, 12):
        data = bytearray(PLAIN_RPM)
        data[at + field : at + field + 4] = b"\xff" * 4
        with pytest.raises(PackageError, match="larger"):
            _open(bytes(data))


def test_member_larger_than_the_package() -> None:
    data = PLAIN_DEB.replace(b"`\n", b"`\n", 1)
    at = data.index(b"data.tar")
    data = data[: at + 48] + b"9999999999" + data[at + 58 :]
    with pytest.raises(PackageError, match="cut off"):
        _open(data)


def test_file_larger_than_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILE", 999)
    for data in (PLAIN_DEB, PLAIN_RPM):
        with pytest.raises(PackageError, match="1000 bytes"):
            _contents(data)


def test_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_ENTRIES", 2)
    for data in (PLAIN_DEB, PLAIN_RPM):
        with pytest.raises(PackageError, match="more than 2 files"):
            list(_open(data).entries())


def test_long_names_nested_without_end() -> None:
    nested = b""
    for _ in range(3000):
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
        nested += info.tobuf(tarfile.GNU_FORMAT) + b"abc\0".ljust(512, b"\0")
    with pytest.raises(PackageError):
        _contents(packages.deb(nested + packages.tar(FILES), ""))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    assert refusal(lambda: _contents(data))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([DEB, PLAIN_DEB, PLAIN_RPM]).flatmap(mutated))
def test_mutated(data: bytes) -> None:
    assert refusal(lambda: _contents(data)) != ""


@settings(max_examples=100, deadline=None)
@given(mutated(packages.tar(FILES)))
def test_mutated_tar(data: bytes) -> None:
    assert refusal(lambda: _contents(packages.deb(data, ""))) != ""
