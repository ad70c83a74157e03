# SPDX-License-Identifier: Apache-2.0
"""A software TPM that stands in for a host's chip, reached through the same kind of TCTI string.

It is manufactured with endorsement keys (RSA-2048 at 0x81010001, P-384 at 0x81010016) and their certificates,
issued by a certificate authority of its own that lives beside it. swtpm serves one client at a time.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from lab.errors import LabError
from lab.processes import stop, until

# TPM2_Shutdown(TPM_SU_STATE): without it a later Startup(STATE) is refused (TPM 2.0 Part 3, 9.4).
SHUTDOWN_STATE = bytes.fromhex("80010000000c000001450001")

TPM_CC_QUOTE = 0x158  # TPM 2.0 Part 2, 6.5.2


class SoftwareTpm:
    """A manufactured TPM that is powered on for the length of the `with` block.

    `ca` names a directory of certificate authority files to share between several TPMs. A directory that
    already holds a TPM's state is used as it is, as a chip that was powered off would be.
    """

    def __init__(self, directory: Path, *, name: str = "host", ca: Path | None = None) -> None:
        self._name = name
        self._state = Path(directory) / "state"
        self._ca = Path(ca) if ca else Path(directory) / "ca"
        self._log = Path(directory) / "swtpm.log"
        self._commands = Path(directory) / "commands.log"
        self._socket = Path(directory) / "swtpm"
        self._control = Path(f"{self._socket}.ctrl")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not (self._state / "tpm2-00.permall").exists():
            self.manufacture()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def tcti(self) -> str:
        """What the TPM software stack opens; the same through every restart."""
        return f"swtpm:path={self._socket}"

    @property
    def roots(self) -> Path:
        """PEM file of the root certificate of the endorsement keys."""
        return self._ca / "swtpm-localca-rootca-cert.pem"

    @property
    def intermediates(self) -> Path:
        """PEM file of the certificate that issued the endorsement key certificates."""
        return self._ca / "issuercert.pem"

    def count(self, command: int) -> int:
        """How often the TPM received a command (a TPM_CC code), by its own log, not by a client's word."""
        header = re.compile(r"SWTPM_IO_Read: length \d+\n ((?:[0-9A-F]{2} ){10})")
        headers = header.findall(self._commands.read_text())
        return sum(bytes.fromhex(octets)[6:10] == command.to_bytes(4, "big") for octets in headers)

    @property
    def pid(self) -> int:
        """Process id of swtpm."""
        if self._process is None:
            raise LabError("the TPM is powered off")
        return self._process.pid

    def start(self, startup: Literal["clear", "state"] = "clear") -> None:
        """Power on, with the Startup command that the firmware of a host would send."""
        for left in (self._socket, self._control):
            left.unlink(missing_ok=True)
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self.command(startup), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(self.answers, "swtpm", 10, self._process, self._log)

    def command(self, startup: Literal["clear", "state"] = "clear") -> list[str]:
        """How swtpm is started, for those who start and stop it themselves."""
        return [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state}",
            "--flags", f"not-need-init,startup-{startup}",
            "--server", f"type=unixio,path={self._socket}",
            "--ctrl", f"type=unixio,path={self._control}",
            "--log", f"level=20,file={self._commands}",
        ]  # fmt: skip

    def stop(self) -> None:
        """Power off."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Press the host's reset button: the PCRs start anew, resetCount goes up, clients must reconnect."""
        self.stop()
        self.start()

    def power_cut(self) -> None:
        """Take the power away between two instructions; `start` brings it back."""
        self._end(signal.SIGKILL)

    def resume(self) -> None:
        """Suspend the host to RAM and wake it: the PCRs stay, restartCount goes up.

        No client may be connected: swtpm would not hear us.
        """
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(10)
            channel.connect(str(self._socket))
            channel.sendall(SHUTDOWN_STATE)
            answer = channel.recv(64)
        if answer[6:10] != bytes(4):
            raise LabError(f"the TPM refused Shutdown(STATE): {answer.hex()}")
        self.stop()
        self.start("state")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            stop(self._process, how)
            self._process = None

    def answers(self) -> bool:
        """Say whether it is ready, by its control channel: a probe of the data channel would occupy it."""
        with socket.socket(socket.AF_UNIX) as channel:
            try:
                channel.connect(str(self._control))
            except OSError:
                return False
        return True

    def manufacture(self) -> None:
        """Make the keys and certificates; swtpm_localca makes its authority on first use."""
        self._state.mkdir(parents=True, exist_ok=True)
        self._ca.mkdir(parents=True, exist_ok=True)
        authority, options, setup = (
            self._ca / name for name in ("localca.conf", "localca.options", "setup.conf")
        )
        authority.write_text(
            f"statedir = {self._ca}\nsigningkey = {self._ca}/signkey.pem\n"
            f"issuercert = {self._ca}/issuercert.pem\ncertserial = {self._ca}/certserial\n"
        )
        options.write_text("--platform-manufacturer Lab\n--platform-version 1\n--platform-model Lab\n")
        setup.write_text(
            f"create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {authority}\n"
            f"create_certs_tool_options = {options}\nactive_pcr_banks = sha256\n"
        )
        try:
            done = subprocess.run(
                [
                    "swtpm_setup", "--tpm2", "--tpmstate", str(self._state), "--config", str(setup),
                    "--vmid", self._name, "--pcr-banks", "sha256", "--create-ek-cert", "--lock-nvram",
                    "--overwrite",
                ],
                env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except OSError as error:
            raise LabError(f"swtpm_setup cannot be run: {error}", "apt-get install swtpm-tools") from error
        if done.returncode:
            raise LabError(
                f"the TPM could not be manufactured: {(done.stdout + done.stderr).strip()[-1500:]}"
            )
