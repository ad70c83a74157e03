# SPDX-License-Identifier: Apache-2.0
"""Our own services in a cloud, set up by the commands and from the samples that an operator would use."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from lab import REPOSITORY, kernels
from lab.cloud import ini, web
from lab.cloud.layout import HOSTS, Layout, program
from lab.cloud.processes import CONTROL, Processes, Service
from lab.tpm import SoftwareTpm

API = "attestation"
MANAGE = "nova-vmi-attest-manage"
INTERVAL = 10
"""Seconds between the verifier's challenges; short, because tests wait for them."""


class Attestation:
    """Authority, verifier, and an agent with its own TPM on each host."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes
        self._directory = layout.config("nova-vmi-attest")

    def manage(self, *arguments: str, host: str = "") -> str:
        """Run ``nova-vmi-attest-manage`` on the control plane, or with the configuration of a host."""
        file = self.agent_file(host) if host else self.file
        return self._processes.run(MANAGE, "--config-file", str(file), *arguments)

    @property
    def file(self) -> Path:
        """The configuration of the services on the control plane."""
        return self._directory / "nova-vmi-attest.conf"

    def agent_file(self, host: str) -> Path:
        """The configuration of a host's agent."""
        return self._layout.config(host) / "agent.conf"

    def configure(self) -> None:
        """Write the configuration files, from newly generated samples."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._sample("verifier")
        self.write_options({})
        self._sample("api")
        self._write_api_options()
        self._sample("agent")
        sample = self._sample_file("agent").read_text()
        for host in HOSTS:
            file = self.agent_file(host)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(ini.fill(sample, self._agent_options(host)))

    def make_keys(self) -> None:
        """Make the verifier's key, whose public half Nova reads at its start."""
        self.manage("key", "create")
        self._layout.verifier_keys.write_text(self.manage("key", "show", "--jwks"))

    def prepare(self) -> None:
        """Make the authority and the database, and approve the kernel that guests may run."""
        self.manage("db", "upgrade")
        self.manage("ca", "create")
        for name in ("roots", "intermediates"):
            (self._directory / f"ek-{name}.d").mkdir(exist_ok=True)
        self.manage("reference", "import", str(kernels.package()))

    def start_tpm(self, host: str) -> None:
        """Manufacture the TPM of a host, power it on, and register it with the authority."""
        tpm = self.tpm(host)
        tpm.manufacture()
        self._processes.start(f"swtpm-{host}", tpm.command(), space=host)
        self._processes.until(tpm.answers, f"swtpm-{host}", 10)

    def register(self, host: str) -> None:
        """Tell the authority which TPM belongs to a host, as read on the host itself."""
        tpm = self.tpm(host)
        for name, certificate in (("roots", tpm.roots), ("intermediates", tpm.intermediates)):
            shutil.copy(certificate, self._directory / f"ek-{name}.d" / f"{host}.pem")
        certificate = self._layout.host(host) / "ek.pem"
        self.manage("tpm", "ek-certificate", str(certificate), host=host)
        self.manage("host", "register", host, str(certificate))

    def start(self) -> None:
        """Start authority and verifier."""
        for name in ("authority", "verifier"):
            self._processes.start(
                f"attest-{name}",
                [program(f"nova-vmi-attest-{name}"), "--config-file", str(self.file)],
                space=CONTROL,
            )

    def start_api(self) -> None:
        """Start the REST API and wait for it."""
        environment = {"OS_NOVA_VMI_ATTEST_CONFIG_DIR": str(self._directory)}
        web.serve(self._layout, self._processes, API, "nova_vmi_attest.wsgi.api", environment)
        web.wait(self._layout, self._processes, API)

    def start_agent(self, host: str) -> None:
        """Start the agent of a host."""
        self._processes.start(
            f"agent-{host}",
            [program("nova-vmi-attest-agent"), "--config-file", str(self.agent_file(host))],
            space=host,
        )

    def tpm(self, host: str) -> SoftwareTpm:
        """The TPM of a host; its directory holds its makers' certificates, too."""
        directory = self._layout.host(host) / "tpm"
        directory.mkdir(parents=True, exist_ok=True)
        return SoftwareTpm(directory, name=host)

    @contextlib.contextmanager
    def options(self, more: ini.Options) -> Iterator[None]:
        """Run the verifier with more options for the length of the block; it is restarted before and after.

        ``more`` is group -> option -> value, and takes the place of what the group has otherwise.
        """
        verifier = Service(self._processes, "attest-verifier")
        self.write_options(more)
        verifier.restart()
        try:
            yield
        finally:
            self.write_options({})
            verifier.restart()

    def write_options(self, more: ini.Options) -> None:
        """Write the configuration of the control plane anew, with more options than usual."""
        text = ini.fill(self._sample_file("verifier").read_text(), {**self._options(), **more})
        self.file.touch(0o600)
        self.file.write_text(text)

    def _write_api_options(self) -> None:
        """Write what the API reads besides. Its sample leaves out what depends on the kind of credentials."""
        credentials = web.authtoken(self._layout, "nova-vmi-attest")
        listed = {name: credentials.pop(name) for name in ("www_authenticate_uri", "auth_type")}
        filled = ini.fill(self._sample_file("api").read_text(), {"keystone_authtoken": listed})
        own = self._directory / "api.conf"
        own.touch(0o600)
        own.write_text(f"{filled}\n{ini.text({'keystone_authtoken': credentials})}")

    def _sample(self, name: str) -> None:
        """Generate a sample as ``make genconfig`` does."""
        generator = REPOSITORY / "etc" / "oslo-config-generator" / f"{name}.conf"
        arguments = ["--config-file", str(generator), "--output-file", str(self._sample_file(name))]
        self._processes.run("oslo-config-generator", *arguments)

    def _sample_file(self, name: str) -> Path:
        return self._directory / f"{name}.conf.sample"

    def _options(self) -> ini.Options:
        here = self._directory
        return {
            "DEFAULT": {"transport_url": self._layout.transport_url},
            "database": {"connection": self._layout.database("attest")},
            "authority": {
                "private_key": here / "authority.key",
                "certificate": here / "authority.pem",
                "ek_roots": here / "ek-roots.d",
                "ek_intermediates": here / "ek-intermediates.d",
            },
            "verifier": {
                "private_key": here / "verifier.key",
                "authority_certificates": here / "authority.pem",
                "interval": INTERVAL,
            },
            "openstack": web.credentials(self._layout, "nova-vmi-attest"),
            "references": {"path": self._layout.state("references")},
            "relying": {"verifier_keys": self._layout.verifier_keys},
        }

    def _agent_options(self, host: str) -> ini.Options:
        return {
            "DEFAULT": {"transport_url": self._layout.transport_url},
            "agent": {
                "host": host,
                "libvirt_uri": self._layout.libvirt_uri(host),
                "state_path": self._layout.host(host) / "agent",
                "verifier_keys": self._layout.verifier_keys,
                "authority_certificates": self._directory / "authority.pem",
                "announce_interval": 5,
                # nova-compute runs as root here.
                "hint_group": "root",
            },
            "tpm": {"tcti": self.tpm(host).tcti},
            "references": {"path": self._layout.host(host) / "references"},
        }
