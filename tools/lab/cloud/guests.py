# SPDX-License-Identifier: Apache-2.0
"""A guest of the cloud from its host's side: its domain, its console, and a change of its kernel's code."""

from __future__ import annotations

import contextlib
import os
import termios
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import libvirt

from lab.errors import LabError

# A function of Debian's kernels that nothing in an idle guest calls.
SYMBOL, OFFSET, ALTERED = "tcp4_seq_show", 0x20, "f4f4f4f4"
UP_TIMEOUT = 120.0


class GuestConsole:
    """The serial console that Nova gave a server: a log, and a terminal of the machine that leads to it.

    :param log: Nova's ``console.log``.
    """

    def __init__(self, domain: libvirt.virDomain, log: Path) -> None:
        self._domain = domain
        self._log = log

    def text(self) -> str:
        """Everything the guest has said since Nova started its domain."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_up(self, timeout: float = UP_TIMEOUT) -> None:
        """Wait until the guest's init has done everything. Raises LabError with the guest's last words."""
        end = time.monotonic() + timeout
        while "GUEST-UP" not in (said := self.text()):
            if time.monotonic() > end:
                raise LabError(f"the guest was not up in {timeout:.0f} s; it said: {said[-1500:]}")
            time.sleep(0.05)

    def shell(self, line: str, timeout: float = 60.0) -> str:
        """Run one line in the guest and return what it printed. A failing command is no error."""
        begin, end = f"<{uuid4().hex}>", f"</{uuid4().hex}>"
        # What the guest says goes to the log even when nobody listens, so it is read there.
        with self._terminal() as terminal:
            os.write(terminal, f"echo '{begin}'\n{line}\necho '{end}'\n".encode())
            limit = time.monotonic() + timeout
            while end not in (said := self.text()):
                if time.monotonic() > limit:
                    raise LabError(f"the guest did not finish {line!r} in {timeout:.0f} s: {said[-500:]}")
                time.sleep(0.05)
        return said.split(begin, 1)[1].split(end, 1)[0].strip("\r\n")

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[int]:
        source = ET.fromstring(self._domain.XMLDesc()).find("devices/console/source")
        if source is None or "path" not in source.attrib:
            raise LabError(f"guest {self._domain.UUIDString()} has no console")
        terminal = os.open(source.attrib["path"], os.O_RDWR | os.O_NOCTTY)
        try:
            # Byte for byte: no echo back to the guest, no signals, no translated line ends.
            settings = termios.tcgetattr(terminal)
            settings[0] = settings[1] = settings[3] = 0
            termios.tcsetattr(terminal, termios.TCSANOW, settings)
            yield terminal
        finally:
            os.close(terminal)


def alter(console: GuestConsole, symbol: str = SYMBOL, offset: int = OFFSET, data: str = ALTERED) -> None:
    """Overwrite code of the guest's kernel (hexadecimal ``data``), by a module that leaves no other trace.

    Raises LabError when the module did not do its work.
    """
    said = console.shell(
        f"insmod /lib/modules/tamper.ko address=0x$(grep ' {symbol}$' /proc/kallsyms | cut -d' ' -f1)"
        f" offset={offset:#x} bytes={data}; lsmod | grep -c tamper"
    )
    if not said.rstrip().endswith("0"):
        raise LabError(f"the module did not do its work and leave: {said}")
