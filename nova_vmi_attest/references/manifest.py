# SPDX-License-Identifier: Apache-2.0
"""What an approved kernel build consists of: the digest of its boot image and of every module.

A manifest is a canonical JSON text, and its SHA-256 digest is the name of the reference everywhere: in the
signed index, in measurements, in policy. It holds no kernel data itself.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.evidence.encoding import EncodingError

MAX_BYTES = 8 << 20
MAX_MODULES = 32768
ARCHITECTURE = "x86_64"

_FORMAT = 1
_MAX_BLOB = 256 << 20
_MAX_TEXT = 256
_BUILD_ID = re.compile(r"[0-9a-f]{16,128}")
_RELEASE = re.compile(r"[0-9A-Za-z.+~_-]{1,64}")
_MODULE_NAME = re.compile(r"[0-9A-Za-z_]{1,63}")
_KEYS = (
    "architecture",
    "banner_digest",
    "build_id",
    "format",
    "image",
    "modules",
    "release",
    "source",
)


class ManifestError(AttestError):
    """A manifest is malformed, or not of a format that is read."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A file by its SHA-256 digest (hex) and its size in bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ModuleBlob:
    """An uncompressed module file, by the kernel's name for the module."""

    name: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Source:
    """Package name and version (empty for plain files), and SHA-256 (hex) of the package file."""

    package: str
    version: str
    digest: str


@dataclass(frozen=True)
class Manifest:
    """A kernel build.

    ``modules`` are ordered by name; ``banner_digest`` is SHA-256 (hex) of the kernel's banner.
    """

    release: str
    build_id: str
    banner_digest: str
    image: Blob
    modules: tuple[ModuleBlob, ...]
    source: Source
    architecture: str = ARCHITECTURE
    format: int = _FORMAT

    def encode(self) -> bytes:
        """The canonical JSON text (RFC 8785). Raises ManifestError for values that could not be read back."""
        fields = {
            "architecture": self.architecture,
            "banner_digest": self.banner_digest,
            "build_id": self.build_id,
            "format": self.format,
            "image": {"digest": self.image.digest, "size": self.image.size},
            "modules": [{"digest": m.digest, "name": m.name, "size": m.size} for m in self.modules],
            "release": self.release,
            "source": {
                "digest": self.source.digest,
                "package": self.source.package,
                "version": self.source.version,
            },
        }
        try:
            data = encoding.canonical(fields)
        except EncodingError as error:
            raise ManifestError(f"the manifest has no encoding: {error.message}") from error
        if Manifest.decode(data) != self:
            raise ManifestError("the manifest's modules are not ordered by name")
        return data

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the encoding: the name of this reference."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read what ``encode`` writes, and nothing else.

        Raises ManifestError. Its digest is for the caller to check.
        """
        try:
            return _decode(encoding.parse(data, MAX_BYTES))
        except EncodingError as error:
            raise ManifestError(f"the manifest is malformed: {error.message}") from error


def _decode(value: dict[str, Any]) -> Manifest:
    if encoding.integer(value, "format") != _FORMAT:
        raise ManifestError(
            "the manifest's format is not known", "it may need a later version of this software"
        )
    fields = encoding.exact_keys(value, _KEYS, "the manifest")
    if fields["architecture"] != ARCHITECTURE:
        raise ManifestError("the manifest is not of an x86-64 kernel")
    image = encoding.exact_keys(fields["image"], ("digest", "size"), "image")
    source = encoding.exact_keys(fields["source"], ("digest", "package", "version"), "source")
    modules = tuple(_module(item) for item in encoding.items(fields, "modules", MAX_MODULES))
    names = [module.name for module in modules]
    if names != sorted(set(names)):
        raise ManifestError("the manifest's modules are not ordered by name, each once")
    return Manifest(
        release=_matching(fields, "release", _RELEASE),
        build_id=_matching(fields, "build_id", _BUILD_ID),
        banner_digest=encoding.hexdigest_text(fields["banner_digest"], "banner_digest"),
        image=Blob(encoding.hexdigest_text(image["digest"], "image"), _size(image)),
        modules=modules,
        source=Source(
            encoding.text(source, "package", _MAX_TEXT),
            encoding.text(source, "version", _MAX_TEXT),
            encoding.hexdigest_text(source["digest"], "source"),
        ),
    )


def _module(item: object) -> ModuleBlob:
    fields = encoding.exact_keys(item, ("digest", "name", "size"), "a module")
    name = _matching(fields, "name", _MODULE_NAME)
    return ModuleBlob(name, encoding.hexdigest_text(fields["digest"], name), _size(fields))


def _size(fields: dict[str, Any]) -> int:
    return encoding.integer(fields, "size", 1, _MAX_BLOB)


def _matching(fields: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = encoding.text(fields, name, _MAX_TEXT)
    if not pattern.fullmatch(value):
        raise ManifestError(f"the manifest's {name} is malformed")
    return value
