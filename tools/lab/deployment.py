# SPDX-License-Identifier: Apache-2.0
"""Authority, verifier and agent of one small cloud, set up by the commands that an operator would use.

The services run in this process (their bus is then oslo.messaging's in-process one) or as processes of their
own over a real broker; both read the same configuration file.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from oslo_log import log

from lab.errors import LabError
from lab.processes import stop
from lab.tpm import SoftwareTpm
from nova_vmi_attest import conf as configuration
from nova_vmi_attest import messaging
from nova_vmi_attest.attester.service import AttesterService
from nova_vmi_attest.authority.service import AuthorityService
from nova_vmi_attest.cmd import manage
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.result import AttestationResult
from nova_vmi_attest.relying.trust import TrustCache
from nova_vmi_attest.verifier.service import VerifierService

IN_PROCESS = "fake:/"
SERVICES = ("authority", "verifier", "agent")
ROUND_TIMEOUT = 60.0


class Deployment:
    """One host and its control plane under ``directory``.

    :param transport_url: the bus; :data:`IN_PROCESS` only for services of this process.
    :param interval: seconds between the verifier's own challenges; long, so that rounds are those asked for.
    """

    def __init__(
        self,
        directory: Path,
        tpm: SoftwareTpm,
        libvirt_uri: str,
        *,
        host: str = "compute-1",
        transport_url: str = IN_PROCESS,
        interval: int = 3600,
    ) -> None:
        self.directory = directory
        self.host = host
        self.transport_url = transport_url
        self._tpm = tpm
        self._cleanup = contextlib.ExitStack()
        directory.mkdir(parents=True, exist_ok=True)
        self.verifier_keys = directory / "verifier.jwks"
        self.authority_certificate = directory / "authority.pem"
        self.log_file = directory / "services.log"
        self.config_file = directory / "nova-vmi-attest.conf"
        self.config_file.write_text(self._configuration(transport_url, libvirt_uri, interval))
        self.conf = configuration.load(["--config-file", str(self.config_file)], "nova-vmi-attest-lab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def manage(self, *arguments: str) -> str:
        """Run ``nova-vmi-attest-manage`` and return what it printed. Raises LabError when it failed."""
        status, output, errors = self._manage(arguments)
        if status:
            raise LabError(f"nova-vmi-attest-manage {' '.join(arguments)}: {errors}")
        return output

    def refuses(self, *arguments: str) -> str:
        """Run a command that must fail, and return what it says of the reason; empty when it succeeded."""
        status, _, errors = self._manage(arguments)
        return errors.strip() if status else ""

    def prepare(self) -> None:
        """Database, keys and certificates, as on a new control plane."""
        self.manage("db", "upgrade")
        self.manage("key", "create")
        self.verifier_keys.write_text(self.manage("key", "show", "--jwks"))
        self.manage("ca", "create")
        for name, certificate in (("roots", self._tpm.roots), ("intermediates", self._tpm.intermediates)):
            directory = self.directory / f"ek-{name}.d"
            directory.mkdir()
            shutil.copy(certificate, directory)

    def approve(self, package: Path) -> None:
        """Import a kernel package as reference."""
        self.manage("reference", "import", str(package))

    def register_host(self) -> None:
        """Tell the authority which TPM belongs to the host, as read on the host itself."""
        path = self.directory / f"{self.host}.ek.pem"
        self.manage("tpm", "ek-certificate", str(path))
        self.manage("host", "register", self.host, str(path))

    def start(self) -> None:
        """Start the services in this process: authority and verifier first."""
        self.conf.set_override("log_file", str(self.log_file))
        log.setup(self.conf, "nova-vmi-attest-lab")
        transport = messaging.get_transport(self.conf)
        self.verifier = VerifierService.from_conf(self.conf, transport)
        for service in (
            AuthorityService(self.conf, transport),
            self.verifier,
            AttesterService(self.conf, transport),
        ):
            service.start()
            self._cleanup.callback(service.stop)

    def stop(self) -> None:
        """Stop what was started, in the reverse order."""
        self._cleanup.close()

    def spawn(self, services: Sequence[str] = SERVICES) -> dict[str, subprocess.Popen[bytes]]:
        """Start services as processes of their own; each logs to ``<name>.log``."""
        return {name: self._spawn(name) for name in services}

    def wait_ready(self, timeout: float = ROUND_TIMEOUT) -> None:
        """Wait until the host is enrolled and its first evidence is appraised.

        A verifier challenges a host as soon as it has announced itself; :meth:`round` asks for the next one.
        """
        try:
            self.verifier.wait_for_result(self.host, 0, timeout)
        except AttestError as error:
            raise LabError(f"{error}; {self.last_words()}") from error

    def round(self, timeout: float = ROUND_TIMEOUT) -> AttestationResult:
        """Challenge the host (services of this process) and return the result of exactly that challenge."""
        before = self.verifier.sequence(self.host)
        self.verifier.challenge(self.host)
        return self.verifier.wait_for_result(self.host, before, timeout)

    def last_words(self) -> str:
        """The end of the services' logs, for an error message."""
        files = sorted(self.directory.glob("*.log"))
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in files)

    def wait_for_trust(self, cache: TrustCache, timeout: float = ROUND_TIMEOUT) -> None:
        """Wait until a relying party's cache has heard of the host."""
        end = time.monotonic() + timeout
        while not cache.host(self.host, time.time()).seen:
            if time.monotonic() > end:
                raise LabError(
                    f"no result of host {self.host} reached the relying party; {self.last_words()}"
                )
            time.sleep(0.05)

    def _manage(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                status = manage.main(["--config-file", str(self.config_file), *arguments])
            except SystemExit as wrong_usage:
                status = 2 if wrong_usage.code is None else int(wrong_usage.code)
        return status, output.getvalue(), errors.getvalue()

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).with_name(f"nova-vmi-attest-{name}")
        command = [str(program), "--config-file", str(self.config_file)]
        with open(self.directory / f"{name}.log", "ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ}
            )
        self._cleanup.callback(stop, process)
        return process

    def _configuration(self, transport_url: str, libvirt_uri: str, interval: int) -> str:
        here = self.directory
        return f"""[DEFAULT]
transport_url = {transport_url}

[database]
connection = sqlite:///{here}/attest.sqlite

[agent]
host = {self.host}
libvirt_uri = {libvirt_uri}
state_path = {here}/agent
verifier_keys = {self.verifier_keys}
authority_certificates = {self.authority_certificate}
minimum_round_interval = 0
announce_interval = 2
hint_socket = {here}/hints.sock
hint_group =

[tpm]
tcti = {self._tpm.tcti}

[authority]
private_key = {here}/authority.key
certificate = {self.authority_certificate}
ek_roots = {here}/ek-roots.d
ek_intermediates = {here}/ek-intermediates.d

[verifier]
private_key = {here}/verifier.key
authority_certificates = {self.authority_certificate}
interval = {interval}
minimum_event_interval = {interval}
result_lifetime = {interval + 600}

[references]
path = {here}/references

[relying]
verifier_keys = {self.verifier_keys}
"""
