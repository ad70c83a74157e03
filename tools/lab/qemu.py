# SPDX-License-Identifier: Apache-2.0
"""One guest in a QEMU process of its own, without libvirt: emulated, no network, a shell on its console."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from uuid import uuid4

from lab import kernels
from lab.errors import LabError
from lab.processes import stop

Backing = Literal["file", "memfd", "anonymous"]
UP_TIMEOUT = 180.0
"""Seconds: an emulated guest is up in 4 to 7 alone, in a multiple of that on a busy machine."""


class Console:
    """The serial console of a guest: a log file that is written for us, and a socket to the guest's shell."""

    def __init__(self, log: Path, address: Path) -> None:
        self._log = log
        self._address = address
        self._socket: socket.socket | None = None

    def text(self) -> str:
        """Return everything the guest has said since it started."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_for(self, text: str, timeout: float = UP_TIMEOUT) -> str:
        """Return the log once it holds `text`. Raises LabError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while text not in (said := self.text()):
            if time.monotonic() > end:
                raise LabError(f"the guest did not say {text!r} in {timeout:.0f} s; it said: {said[-1500:]}")
            time.sleep(0.05)
        return said

    def shell(self, line: str, timeout: float = 60.0) -> str:
        """Run one line in the guest and return what it printed. The line's standard input is empty.

        Raises LabError when the guest does not finish in `timeout` seconds. A failing command is no error.
        """
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(self._address))
        begin, end = f"<{uuid4().hex}>", f"</{uuid4().hex}>"
        self._socket.settimeout(timeout)
        self._socket.sendall(f"echo '{begin}'\n{line}\necho '{end}'\n".encode())
        said = ""
        limit = time.monotonic() + timeout
        while end not in said:
            try:
                self._socket.settimeout(max(0.01, limit - time.monotonic()))
                received = self._socket.recv(65536)
            except TimeoutError as error:
                raise LabError(
                    f"the guest did not finish {line!r} in {timeout:.0f} s: {said[-500:]}"
                ) from error
            if not received:
                raise LabError(f"the guest's console closed during {line!r}")
            said += received.decode(errors="replace")
        return said.split(begin, 1)[1].split(end, 1)[0].strip("\r\n")

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Qmp:
    """QEMU's own control socket: one JSON object a line, events skipped."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(address))
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """Return the answer to one command. Raises LabError with QEMU's words."""
        self._lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._lines.flush()
        for line in self._lines:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise LabError(f"QEMU refused {name}: {answer['error'].get('desc')}")
        raise LabError(f"QEMU closed its control socket during {name}")

    def close(self) -> None:
        """Let go of the socket."""
        self._lines.close()
        self._socket.close()


class QemuGuest:
    """A guest that lives as long as the `with` block.

    On entry QEMU runs and its control socket answers; `wait_up()` waits for the guest itself. `ram_path` is
    the file of the guest's RAM with backing "file", /proc/<pid>/fd/<n> with "memfd", None with "anonymous".
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        memory_mib: int = 256,
        backing: Backing = "file",
        cpu: str = "qemu64",
        vcpus: int = 1,
        machine: str = "pc",
        append: str = "",
        flavour: kernels.Flavour = "cloud",
        extra: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.memory_mib = memory_mib
        self.backing = backing
        self._directory = Path(directory)
        self._options = [
            "-cpu",
            cpu,
            "-smp",
            str(vcpus),
            "-machine",
            machine,
            "-append",
            f"console=ttyS0 {append}",
            *extra,
        ]
        self._flavour: kernels.Flavour = flavour
        self._ram_file = Path("/dev/shm") / f"nova-vmi-attest-lab-{os.getpid()}-{uuid4().hex[:8]}-{name}"
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None
        self.console = Console(self._path("console"), self._path("tty"))

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
    def pid(self) -> int:
        """Process id of QEMU."""
        if self._process is None:
            raise LabError(f"guest {self.name} does not run")
        return self._process.pid

    @property
    def ram_path(self) -> Path | None:
        """Where the guest's RAM can be opened as a file, if it can."""
        if self.backing == "file":
            return self._ram_file
        if self.backing == "memfd":
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if "memfd:memory-backend-memfd" in os.readlink(descriptor):
                        return descriptor
            raise LabError(f"QEMU of guest {self.name} holds no memfd")
        return None

    def shell(self, line: str, timeout: float = 60.0) -> str:
        """Run one line in the guest and return what it printed (see Console.shell)."""
        return self.console.shell(line, timeout)

    def wait_for(self, text: str, timeout: float = UP_TIMEOUT) -> str:
        """Return the console's log once it holds `text`."""
        return self.console.wait_for(text, timeout)

    def wait_up(self, timeout: float = UP_TIMEOUT) -> Self:
        """Wait until the guest's init has done everything."""
        self.wait_for("GUEST-UP", timeout)
        return self

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Return QEMU's answer to one QMP command."""
        if self._qmp is None:
            raise LabError(f"guest {self.name} does not run")
        return self._qmp.command(command, **arguments)

    def pause(self) -> None:
        """Stop the guest's processors."""
        self.qmp("stop")

    def resume(self) -> None:
        """Let the guest's processors run again."""
        self.qmp("cont")

    def kill(self) -> None:
        """End QEMU at once, as a crash would; the RAM file stays until `stop`."""
        if self._process is not None:
            stop(self._process, signal.SIGKILL)

    def stop(self) -> None:
        """End QEMU and remove what it left."""
        self.console.close()
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        self.kill()
        self._process = None
        self._ram_file.unlink(missing_ok=True)

    def _path(self, suffix: str) -> Path:
        return self._directory / f"{self.name}.{suffix}"

    def _memory(self) -> list[str]:
        size = f"{self.memory_mib}M"
        kinds = {
            "file": f"memory-backend-file,id=pc.ram,size={size},share=on,mem-path={self._ram_file}",
            "memfd": f"memory-backend-memfd,id=pc.ram,size={size},share=on",
        }
        backend = kinds.get(self.backing)
        # The RAM object must be given to the machine, or it stays unused.
        return ["-m", size, *(["-object", backend, "-machine", "memory-backend=pc.ram"] if backend else [])]

    def _start(self) -> None:
        tty = f"socket,id=tty,path={self._path('tty')}"
        command = [
            "qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot",
            *self._options, *self._memory(),
            "-kernel", str(kernels.boot_image(self._flavour)),
            "-initrd", str(kernels.initramfs(self._flavour)),
            "-qmp", f"unix:{self._path('qmp')},server=on,wait=off",
            "-chardev", f"{tty},server=on,wait=off,logfile={self._path('console')}",
            "-serial", "chardev:tty",
        ]  # fmt: skip
        self._directory.mkdir(parents=True, exist_ok=True)
        with open(self._path("log"), "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 30
        while self._qmp is None:
            try:
                self._qmp = Qmp(self._path("qmp"))
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    said = self._path("log").read_text(errors="replace")[-1500:]
                    raise LabError(f"QEMU of guest {self.name} did not start: {said}") from error
                time.sleep(0.02)
