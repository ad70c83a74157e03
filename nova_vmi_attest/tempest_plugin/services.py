# SPDX-License-Identifier: Apache-2.0
"""The attestation API as tempest's clients are made: one method for each request."""

from __future__ import annotations

import json
from typing import Any

from tempest.lib.common import rest_client


class AttestationClient(rest_client.RestClient):  # type: ignore[misc]
    """Raises tempest's exceptions for what the API refuses."""

    def show_server(self, server_id: str) -> dict[str, Any]:
        """The verdict on one server."""
        return self._get(f"v1/servers/{server_id}")

    def list_servers(self) -> list[dict[str, Any]]:
        """The first page of the project's servers."""
        servers: list[dict[str, Any]] = self._get("v1/servers")["servers"]
        return servers

    def list_hosts(self) -> list[dict[str, Any]]:
        """The first page of the hosts, for operators."""
        hosts: list[dict[str, Any]] = self._get("v1/hosts")["hosts"]
        return hosts

    def raw_request(self, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        """As inherited; tempest knows errors in plain JSON and not in the JSON of problem details."""
        response, body = super().raw_request(*arguments, **named)
        if response.get("content-type", "").startswith("application/problem+json"):
            response["content-type"] = "application/json"
        return response, body

    def _get(self, url: str) -> dict[str, Any]:
        response, body = self.get(url)
        self.expected_success(200, response.status)
        answer: dict[str, Any] = json.loads(body)
        return answer
