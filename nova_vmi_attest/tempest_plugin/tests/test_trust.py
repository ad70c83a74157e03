# SPDX-License-Identifier: Apache-2.0
"""What tenants and operators see of a new server, and what they may not do."""

from __future__ import annotations

import time
from typing import Any

from tempest import config
from tempest.api.compute import base
from tempest.lib import decorators, exceptions

CONF = config.CONF
PREFIX = "trust:"


class TrustOfServersTest(base.BaseV2ComputeTest):  # type: ignore[misc]
    """One server of a tenant, from its creation to its deletion."""

    credentials = ("primary", "alt", "admin")
    # From here on a server can be made without a network.
    min_microversion = "2.37"
    create_default_network = False

    server: dict[str, Any]

    @classmethod
    def skip_checks(cls) -> None:
        super().skip_checks()
        if not CONF.service_available.attestation:
            raise cls.skipException("this cloud attests nothing")

    @classmethod
    def setup_clients(cls) -> None:
        super().setup_clients()
        cls.attestation = cls.os_primary.attestation.AttestationClient()
        cls.attestation_alt = cls.os_alt.attestation.AttestationClient()
        cls.attestation_admin = cls.os_admin.attestation.AttestationClient()

    @classmethod
    def resource_setup(cls) -> None:
        super().resource_setup()
        cls.server = cls.create_test_server(wait_until="ACTIVE", networks="none")

    @decorators.idempotent_id("5f0a6a3e-7a2d-4b62-9a3b-6d7f5d0b1c01")
    def test_a_new_server_comes_to_be_trusted(self) -> None:
        shown = self._wait_for("trusted")
        self.assertEqual("trusted", shown[f"{PREFIX}host_verdict"])
        self.assertIn(f"{PREFIX}kernel", shown)
        self.assertIn(f"{PREFIX}valid_until", shown)

    @decorators.idempotent_id("5f0a6a3e-7a2d-4b62-9a3b-6d7f5d0b1c02")
    def test_lists_show_what_the_server_shows(self) -> None:
        self._wait_for("trusted")
        servers = self.servers_client.list_servers(detail=True)["servers"]
        metadata = {server["id"]: server["metadata"] for server in servers}
        self.assertEqual("trusted", metadata[self.server["id"]][f"{PREFIX}verdict"])

    @decorators.attr(type=["negative"])
    @decorators.idempotent_id("5f0a6a3e-7a2d-4b62-9a3b-6d7f5d0b1c03")
    def test_a_tenant_cannot_write_a_verdict(self) -> None:
        forged = {f"{PREFIX}verdict": "trusted"}
        with self.assertRaisesRegex((exceptions.BadRequest, exceptions.Forbidden), PREFIX):
            self.servers_client.update_server_metadata(self.server["id"], forged)

    @decorators.idempotent_id("5f0a6a3e-7a2d-4b62-9a3b-6d7f5d0b1c04")
    def test_the_api_agrees(self) -> None:
        self._wait_for("trusted")
        shown = self.attestation.show_server(self.server["id"])
        self.assertEqual("trusted", shown["verdict"])
        self.assertIn(self.server["id"], [server["id"] for server in self.attestation.list_servers()])

    @decorators.attr(type=["negative"])
    @decorators.idempotent_id("5f0a6a3e-7a2d-4b62-9a3b-6d7f5d0b1c05")
    def test_another_project_sees_nothing(self) -> None:
        self._wait_for("trusted")
        self.assertRaises(exceptions.NotFound, self.attestation_alt.show_server, self.server["id"])

    @decorators.attr(type=["negative"])
    @decorators.idempotent_id("5f0a6a3e-7a2d-4b62-9a3b-6d7f5d0b1c06")
    def test_hosts_are_the_operators_business(self) -> None:
        self.assertRaises(exceptions.Forbidden, self.attestation.list_hosts)
        verdicts = {host["name"]: host["verdict"] for host in self.attestation_admin.list_hosts()}
        self.assertIn("trusted", verdicts.values())

    def _wait_for(self, verdict: str) -> dict[str, str]:
        """The metadata of the server, once both Nova and the API show the verdict."""
        deadline = time.monotonic() + CONF.attestation.verdict_timeout
        while True:
            shown: dict[str, str] = self.servers_client.show_server(self.server["id"])["server"]["metadata"]
            if shown.get(f"{PREFIX}verdict") == verdict and self._api_shows(verdict):
                return shown
            if time.monotonic() > deadline:
                self.fail(f"server {self.server['id']} is not {verdict}: {shown}")
            time.sleep(CONF.attestation.verdict_interval)

    def _api_shows(self, verdict: str) -> bool:
        try:
            return bool(self.attestation.show_server(self.server["id"])["verdict"] == verdict)
        except exceptions.NotFound:
            return False
