# SPDX-License-Identifier: Apache-2.0
"""Debian's own kernels for test guests: package, boot image, initramfs, and a module that alters bytes.

Packages come from the archive that the machine's apt is configured for, are only downloaded and unpacked
(never installed), and are kept in the cache by name and version. Two processes may ask for the same at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from lab import REPOSITORY, cache_dir
from lab.errors import LabError

Flavour = Literal["cloud", "amd64", "rt"]

META_PACKAGES: dict[str, str] = {
    "cloud": "linux-image-cloud-amd64",
    "amd64": "linux-image-amd64",
    "rt": "linux-image-rt-amd64",
}
# In the order of their dependencies, because busybox's insmod loads exactly the file it is given. Those that
# a flavour has built in are left out there.
MODULES = (
    "crc32c_generic", "libcrc32c", "failover", "net_failover", "virtio_ring", "virtio",
    "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_net",
    "nfnetlink", "nf_tables", "dm-mod",
)  # fmt: skip
REFRESH = "run apt-get update, then try again"
TAMPER_SOURCE = REPOSITORY / "tools" / "lab" / "tamper"


def package(flavour: Flavour = "cloud") -> Path:
    """Return the newest image package (.deb) of a flavour that apt knows of, downloaded on first use.

    Raises LabError when apt has no such package or cannot download it.
    """
    name, version = _image_package(flavour)
    return _download(name, version)


def release(flavour: Flavour = "cloud") -> str:
    """Return the kernel release, as the guest's `uname -r` says it."""
    return _image_package(flavour)[0].removeprefix("linux-image-")


def unpacked(flavour: Flavour = "cloud") -> Path:
    """Return the directory of the unpacked image package (boot/, lib/modules/<release>/)."""
    return _unpack([package(flavour)])


def boot_image(flavour: Flavour = "cloud") -> Path:
    """Return the vmlinuz of a flavour."""
    return unpacked(flavour) / "boot" / f"vmlinuz-{release(flavour)}"


def modules_dir(flavour: Flavour = "cloud") -> Path:
    """Return lib/modules/<release> of a flavour."""
    return unpacked(flavour) / "lib" / "modules" / release(flavour)


def initramfs(flavour: Flavour = "cloud") -> Path:
    """Return a gzipped initramfs: static busybox, a dozen of Debian's modules, the tamper module, our init.

    The guest mounts proc, sys and dev, loads the modules, starts a few processes, prints GUEST-UP, and then
    runs each line that arrives on the serial console. It has no network.
    """
    tree, tamper, busybox = unpacked(flavour), tamper_module(flavour), _static_busybox()
    loaded = _module_files(modules_dir(flavour))
    init = _init_script([module.stem for module in loaded])
    path = (
        tree.parent / f"{tree.name}.{_digest(init.encode(), tamper.read_bytes(), busybox.read_bytes())}.img"
    )
    with _locked(path):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="initramfs-") as scratch:
                root = Path(scratch)
                for directory in ("bin", "dev", "proc", "sys", "tmp", "lib/modules"):
                    (root / directory).mkdir(parents=True)
                shutil.copy(busybox, root / "bin" / "busybox")
                for module in loaded:
                    shutil.copy(module, root / "lib" / "modules")
                shutil.copy(tamper, root / "lib" / "modules" / "tamper.ko")
                (root / "init").write_text(init)
                (root / "init").chmod(0o755)
                _write_atomically(path, _pack(root))
    return path


def tamper_module(flavour: Flavour = "cloud") -> Path:
    """Return tamper.ko built for exactly this kernel, against Debian's headers of the same version.

    Raises LabError with the compiler's words when it does not build.
    """
    name, version = _image_package(flavour)
    kernel = release(flavour)
    sources = sorted(TAMPER_SOURCE.iterdir())
    stamp = _digest(*(source.read_bytes() for source in sources))
    built = cache_dir() / "tamper" / f"{name}_{version}_{stamp}" / "tamper.ko"
    with _locked(built.parent):
        if not built.exists():
            headers = _headers(kernel, version)
            with tempfile.TemporaryDirectory(dir=built.parent.parent, prefix="build-") as scratch:
                for source in sources:
                    shutil.copy(source, scratch)
                _run(["make", "-s", "-C", str(headers), f"M={scratch}", "modules"])
                built.parent.mkdir(exist_ok=True)
                _write_atomically(built, Path(scratch, "tamper.ko").read_bytes())
    return built


@functools.cache
def _image_package(flavour: Flavour) -> tuple[str, str]:
    """Name and version of the image package that the flavour's meta package depends on."""
    meta = META_PACKAGES[flavour]
    found = re.search(r"Depends: (linux-image-\S+)", _run(["apt-cache", "depends", meta], remedy=REFRESH))
    if not found:
        raise LabError(f"apt knows no kernel for {meta}", REFRESH)
    name = found[1]
    version = re.search(
        r"^Version: (\S+)", _run(["apt-cache", "show", "--no-all-versions", name]), re.MULTILINE
    )
    if not version:
        raise LabError(f"apt knows no version of {name}", REFRESH)
    return name, version[1]


def _download(name: str, version: str, architecture: str = "amd64") -> Path:
    # Epochs carry a colon, which apt writes as %3a in a file's name.
    path = cache_dir() / "packages" / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
    with _locked(path):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="download-") as scratch:
                # apt's own download user cannot write here, and says so at length unless it stays root.
                as_root = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
                _run(
                    ["apt-get", *as_root, "-q", "download", f"{name}={version}"],
                    directory=scratch,
                    remedy=REFRESH,
                )
                files = list(Path(scratch).glob("*.deb"))
                if len(files) != 1:
                    raise LabError(f"apt-get download {name}={version} left {len(files)} files")
                files[0].rename(path)
    return path


def _headers(kernel: str, version: str) -> Path:
    """The build tree of a kernel; its Makefile names the common headers by a path, which is moved here."""
    abi = re.match(r"[0-9.]+-[0-9]+", kernel)
    if not abi:
        raise LabError(f"kernel release {kernel} has no ABI number")
    common = f"linux-headers-{abi[0]}-common{'-rt' if '-rt-' in kernel else ''}"
    kbuild = "linux-kbuild-" + ".".join(kernel.split(".")[:2])
    tree = _unpack(
        [
            _download(f"linux-headers-{kernel}", version),
            _download(common, version, "all"),
            _download(kbuild, version),
        ]
    )
    headers = tree / "usr" / "src" / f"linux-headers-{kernel}"
    (headers / "Makefile").write_text(f"include {tree}/usr/src/{common}/Makefile\n")
    return headers


def _unpack(packages: Sequence[Path]) -> Path:
    """Unpack packages together into one directory of the cache, named after the first."""
    target = cache_dir() / "unpacked" / packages[0].stem
    with _locked(target):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix="unpack-") as scratch:
                tree = Path(scratch, "tree")
                for file in packages:
                    _run(["dpkg-deb", "-x", str(file), str(tree)])
                tree.rename(target)
    return target


def _module_files(directory: Path) -> list[Path]:
    """The files of MODULES that this flavour does not have built in, in loading order."""
    files = {path.stem: path for path in directory.glob("kernel/**/*.ko")}
    built_in = {Path(line).stem for line in (directory / "modules.builtin").read_text().splitlines()}
    missing = set(MODULES) - set(files) - built_in
    if missing:
        raise LabError(f"{directory.name} has no module {', '.join(sorted(missing))}")
    return [files[name] for name in MODULES if name in files]


def _static_busybox() -> Path:
    """busybox-static and busybox share a path; only the static one runs in an empty initramfs."""
    found = shutil.which("busybox")
    if not found:
        raise LabError("busybox is not installed", "apt-get install busybox-static")
    libraries = subprocess.run(["ldd", found], capture_output=True, text=True, check=False).stdout
    if "=>" in libraries:
        raise LabError(f"{found} is not the static build", "apt-get install busybox-static")
    return Path(found)


def _init_script(modules: Sequence[str]) -> str:
    return f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in {" ".join(modules)}; do
  insmod /lib/modules/$module.ko || echo "GUEST-MISSES $module"
done
sleep 99991 &
sleep 99992 &
(while :; do dd if=/dev/zero of=/dev/null bs=1k count=1 2>/dev/null; sleep 1; done) &
# From here on the console carries only what was asked for: no kernel messages, no echo, plain line ends.
dmesg -n 1
exec </dev/console >/dev/console 2>&1
stty -echo -onlcr
echo GUEST-UP
while read -r line; do eval "$line" </dev/null; done
"""


def _pack(root: Path) -> bytes:
    names = "\0".join(sorted(str(path.relative_to(root)) for path in root.rglob("*"))).encode()
    archive = subprocess.run(
        ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0", "--reproducible"],
        cwd=root, input=names, stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    return subprocess.run(["gzip", "-1n"], input=archive, stdout=subprocess.PIPE, check=True).stdout


def _run(command: Sequence[str], directory: str | None = None, remedy: str = "") -> str:
    """Run a command for its output; LabError carries the end of what it said."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise LabError(f"{command[0]} cannot be run: {error}", "install what bindep.txt lists") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-2000:]}", remedy)
    return done.stdout


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:12]


def _write_atomically(path: Path, data: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(data)
    scratch.rename(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make a thing of the cache."""
    locks = cache_dir() / "locks"
    locks.mkdir(exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(locks / path.name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
