# SPDX-License-Identifier: Apache-2.0
"""A libvirt of our own: virtlogd, libvirtd and their guests, apart from any libvirt that the machine runs.

Debian's daemons have their state directories compiled in, so each gets a mount namespace in which /etc, /run,
/var/lib, /var/log and /var/cache are directories of ours, and a network namespace with nothing in it. Clients
outside reach the socket by its path, and the RAM files of guests lie in /dev/shm, which both sides share.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4
from xml.sax.saxutils import escape

import libvirt

from lab import cache_dir, kernels
from lab.errors import LabError
from lab.processes import alive, kill_pid, stop, until
from lab.qemu import UP_TIMEOUT, Backing, Console

HIDDEN = ("/etc", "/run", "/var/lib", "/var/log", "/var/cache")
# What the daemons' C library reads in /etc.
COPIED = ("hosts", "ld.so.cache", "nsswitch.conf")
# Debian's libvirtd looks its default user up before it reads qemu.conf, which then says root.
QEMU_USER = "libvirt-qemu"

# Nothing of the machine is used or changed: no security driver, no cgroups, no change of owners, no
# namespaces for each guest (QEMU runs in libvirtd's, where the paths it is given exist).
QEMU_CONF = """security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "logd"
memory_backing_dir = "{ram}"
"""
LIBVIRTD_CONF = """auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
log_level = 3
log_outputs = "3:stderr"
"""
BACKINGS: dict[str, str] = {
    "file": "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>",
    "memfd": "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
    "anonymous": "",
}


class LibvirtGuest:
    """A running domain, with its console."""

    def __init__(self, domain: libvirt.virDomain, console: Console, pid_file: Path) -> None:
        self.domain = domain
        self.console = console
        self.name: str = domain.name()
        self.uuid = UUID(domain.UUIDString())
        self.pid = int(pid_file.read_text())
        self._gone = False

    def xml(self) -> str:
        """Return the live domain XML."""
        return str(self.domain.XMLDesc())

    def wait_up(self, timeout: float = UP_TIMEOUT) -> Self:
        """Wait until the guest's init has done everything."""
        self.console.wait_for("GUEST-UP", timeout)
        return self

    def ram_file(self) -> Path:
        """A link to the file of the guest's RAM, in any mount namespace. LabError when it is anonymous."""
        for link in Path(f"/proc/{self.pid}/map_files").iterdir():
            if os.readlink(link).endswith("/pc.ram"):
                return link
        raise LabError(f"the RAM of guest {self.name} is no file")

    def shell(self, line: str, timeout: float = 60.0) -> str:
        """Run one line in the guest and return what it printed (see Console.shell)."""
        return self.console.shell(line, timeout)

    def pause(self) -> None:
        """Stop the guest's processors."""
        self.domain.suspend()

    def resume(self) -> None:
        """Let the guest's processors run again."""
        self.domain.resume()

    def dump(self, path: Path) -> Path:
        """Write the guest's memory as an ELF core, as `virsh dump --memory-only --live` does."""
        flags = libvirt.VIR_DUMP_MEMORY_ONLY | libvirt.VIR_DUMP_LIVE
        self.domain.coreDumpWithFormat(str(path), libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW, flags)
        return path

    def destroy(self) -> None:
        """Switch the guest off. One that is gone already is no error."""
        self.console.close()
        if not self._gone:
            self._gone = True
            with contextlib.suppress(libvirt.libvirtError):
                self.domain.destroy()


class Hypervisor:
    """libvirtd and virtlogd for the length of the `with` block; leaving it switches every guest off.

    `uri` is what libvirt clients open. `directory` and the cache must not lie under a directory of HIDDEN,
    where the daemons do not see it. Needs root. Raises LabError when a daemon does not come up.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory).absolute()
        self._ram = Path("/dev/shm") / f"nova-vmi-attest-lab-{os.getpid()}-{uuid4().hex[:8]}"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._connection: libvirt.virConnect | None = None
        self._guests: dict[str, LibvirtGuest] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """The connection URI of this libvirtd."""
        return f"qemu+unix:///system?socket={self._socket}"

    def start(
        self,
        name: str,
        *,
        memory_mib: int = 256,
        backing: Backing = "file",
        cpu: str = "qemu64",
        vcpus: int = 1,
        machine: str = "pc",
        flavour: kernels.Flavour = "cloud",
        append: str = "",
    ) -> LibvirtGuest:
        """Start a transient domain and return at once; `wait_up` waits for the guest. Threads may call it.

        The first start takes some seconds more, in which libvirtd asks QEMU what it can do.
        """
        if self._connection is None:
            raise LabError("the hypervisor does not run")
        consoles = self.directory / "consoles"
        xml = _domain_xml(
            name,
            memory_mib,
            backing,
            cpu,
            vcpus,
            machine,
            flavour,
            append,
            consoles / f"{name}.tty",
            consoles / name,
        )
        try:
            domain = self._connection.createXML(xml, 0)
        except libvirt.libvirtError as error:
            raise LabError(f"libvirt did not start guest {name}: {error}") from error
        console = Console(consoles / name, consoles / f"{name}.tty")
        guest = LibvirtGuest(domain, console, self._pid_files / f"{name}.pid")
        with self._lock:
            self._guests[name] = guest
        return guest

    def kill_daemon(self) -> None:
        """End libvirtd at once, as a crash would; its guests run on."""
        stop(self._daemons.pop(), signal.SIGKILL)

    def stop(self) -> None:
        """Switch the guests off, end the daemons, and remove the RAM files. May be called twice."""
        with self._lock:
            guests, self._guests = list(self._guests.values()), {}

        # libvirt takes a second or two for each, most of it waiting.
        with ThreadPoolExecutor(max(1, len(guests))) as pool:
            list(pool.map(LibvirtGuest.destroy, guests))
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None
        while self._daemons:
            stop(self._daemons.pop(), signal.SIGTERM)
        # Only what libvirtd could not end any more, because it died first.
        for guest in guests:
            if alive(guest.pid) and _runs(guest):
                kill_pid(guest.pid)
        shutil.rmtree(self._ram, ignore_errors=True)

    @property
    def _socket(self) -> Path:
        return self.directory / "run" / "libvirt" / "libvirt-sock"

    @property
    def _pid_files(self) -> Path:
        return self.directory / "run" / "libvirt" / "qemu"

    def _start(self) -> None:
        if os.geteuid() != 0:
            raise LabError("libvirtd needs root", "run as root or with sudo")
        for path in (self.directory, cache_dir()):
            if any(path.is_relative_to(hidden) for hidden in HIDDEN):
                raise LabError(
                    f"the lab's libvirtd cannot see {path}", "use a directory outside /etc, /run and /var"
                )
        for hidden in HIDDEN:
            self._mounted(hidden).mkdir(parents=True, exist_ok=True)
        (self.directory / "consoles").mkdir(exist_ok=True)
        self._ram.mkdir(mode=0o700)
        write_etc(self._mounted("/etc"), self._ram)
        self._daemon("virtlogd", self._socket.with_name("virtlogd-sock"))
        self._daemon("libvirtd", self._socket)
        try:
            self._connection = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            said = (self.directory / "libvirtd.log").read_text(errors="replace")[-1500:]
            raise LabError(f"libvirtd does not answer ({error}): {said}") from error

    def _mounted(self, path: str) -> Path:
        return stand_in(self.directory, path)

    def _daemon(self, program: str, ready: Path) -> None:
        """Start a daemon in namespaces of its own and wait for its socket."""
        script = f"set -e\n{mounts(self.directory)}exec {program} --config /etc/libvirt/{program}.conf"
        log_path = self.directory / f"{program}.log"
        with open(log_path, "wb") as log:
            daemon = subprocess.Popen(
                ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A terminal's interrupt is ours to handle: the guests go first, then the daemons.
                start_new_session=True,
            )
        self._daemons.append(daemon)
        until(ready.exists, program, 30, daemon, log_path)


def stand_in(directory: Path, path: str) -> Path:
    """The directory below ``directory`` that stands in for a path of the machine."""
    return directory / path.removeprefix("/").replace("/", "-")


def mounts(directory: Path) -> str:
    """Lines of shell that put our directories over those of the machine, in a mount namespace of our own."""
    return "".join(f"mount --bind '{stand_in(directory, path)}' {path}\n" for path in HIDDEN)


def write_etc(etc: Path, ram: Path, libvirtd: str = "", hosts: str = "") -> None:
    """Write what libvirt's daemons read: our settings, the machine's accounts, libvirt's default user.

    :param ram: directory for the RAM files of guests.
    :param libvirtd: more lines for libvirtd.conf; ``hosts``: for the table of host names.
    """
    ours = etc / "libvirt"
    ours.mkdir(parents=True, exist_ok=True)
    (ours / "qemu.conf").write_text(QEMU_CONF.format(ram=ram))
    (ours / "libvirtd.conf").write_text(LIBVIRTD_CONF + libvirtd)
    (ours / "virtlogd.conf").write_text('log_outputs = "3:stderr"\n')
    for name in COPIED:
        if (machine := Path("/etc", name)).exists():
            shutil.copy(machine, etc)
    with open(etc / "hosts", "a") as table:
        table.write(hosts)
    for name, entry in (("passwd", "x:65534:65534::/:/usr/sbin/nologin"), ("group", "x:65534:")):
        accounts = Path("/etc", name).read_text()
        known = any(line.startswith(f"{QEMU_USER}:") for line in accounts.splitlines())
        added = "" if known else f"{QEMU_USER}:{entry}\n"
        (etc / name).write_text(accounts.rstrip("\n") + "\n" + added)


def _runs(guest: LibvirtGuest) -> bool:
    """Say whether the guest's process id is still that of its QEMU."""
    try:
        return str(guest.uuid).encode() in Path(f"/proc/{guest.pid}/cmdline").read_bytes()
    except OSError:
        return False


def _domain_xml(
    name: str,
    memory_mib: int,
    backing: Backing,
    cpu: str,
    vcpus: int,
    machine: str,
    flavour: kernels.Flavour,
    append: str,
    tty: Path,
    log: Path,
) -> str:
    processor = (
        "<cpu mode='maximum'/>"
        if cpu == "max"
        else f"<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{cpu}</model></cpu>"
    )
    return f"""<domain type='qemu'>
  <name>{escape(name)}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  {BACKINGS[backing]}
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{escape(str(kernels.boot_image(flavour)))}</kernel>
    <initrd>{escape(str(kernels.initramfs(flavour)))}</initrd>
    <cmdline>{escape(f"console=ttyS0 {append}")}</cmdline>
  </os>
  <features><acpi/></features>
  {processor}
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='unix'>
      <source mode='bind' path='{escape(str(tty))}'/>
      <log file='{escape(str(log))}'/>
    </serial>
  </devices>
</domain>"""
