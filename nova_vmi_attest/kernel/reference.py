# SPDX-License-Identifier: Apache-2.0
"""One approved kernel build, ready to measure guests with: the kernel, and its modules when asked for.

A host keeps one :class:`Reference` for each build, however many guests run it. Modules are read when a guest
has them loaded, and the ones used last are kept.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.kernel.module import ModuleObject, normalised
from nova_vmi_attest.kernel.vmlinux import Vmlinux

_MODULES_KEPT = 256


class ReferenceMismatch(AttestError):  # noqa: N818 - it names what is wrong with a reference
    """A module file is not the one that the manifest names."""


class Reference:
    """A kernel build. Safe to share between threads; nothing that it hands out can be written.

    :param manifest_digest: SHA-256 (hex) of the manifest that approves the build; it names the reference.
    :param module_digests: SHA-256 (hex) of every module file of the build, by module name (with underscores).
    :param load_module: returns the contents of the file that has a digest; what it raises is passed on. Its
        result is not trusted: the digest is checked here.
    :param modules_kept: how many parsed modules to keep.
    """

    def __init__(
        self,
        manifest_digest: str,
        vmlinux: Vmlinux,
        module_digests: Mapping[str, str],
        load_module: Callable[[str], bytes],
        modules_kept: int = _MODULES_KEPT,
    ) -> None:
        self.manifest_digest = manifest_digest
        self.vmlinux = vmlinux
        self.module_digests: Mapping[str, str] = MappingProxyType(dict(module_digests))
        self._load_module = load_module
        self._modules_kept = modules_kept
        self._modules: OrderedDict[str, ModuleObject] = OrderedDict()
        self._lock = threading.Lock()

    def module_digest(self, name: str) -> str | None:
        """SHA-256 (hex) of the file of module ``name``, or None when the build has no such module."""
        return self.module_digests.get(normalised(name))

    def module(self, name: str) -> ModuleObject | None:
        """Module ``name``, or None when the build has no such module.

        :raises ReferenceMismatch: the file that was loaded has another digest, or another name inside.
        :raises ModuleError: the file is malformed.
        """
        name = normalised(name)
        digest = self.module_digests.get(name)
        if digest is None:
            return None
        with self._lock:
            known = self._modules.get(name)
            if known is not None:
                self._modules.move_to_end(name)
                return known
        module = self._read(name, digest)
        with self._lock:
            self._modules[name] = module
            self._modules.move_to_end(name)
            while len(self._modules) > self._modules_kept:
                self._modules.popitem(last=False)
        return module

    def _read(self, name: str, digest: str) -> ModuleObject:
        contents = self._load_module(digest)
        if hashlib.sha256(contents).hexdigest() != digest:
            raise ReferenceMismatch(f"the file of module {name} does not have the digest {digest}")
        module = ModuleObject.parse(contents)
        if module.name != name:
            raise ReferenceMismatch(f"the file of module {name} calls itself {module.name}")
        return module
