# SPDX-License-Identifier: Apache-2.0
"""The attestation API over HTTP: one method for each thing that can be asked.

What comes back is the API's JSON as it is. It is trusted as far as the cloud is; what a tenant need not trust
is checked in :mod:`nova_vmi_attest.osc.verification`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any
from urllib.parse import quote

from keystoneauth1 import adapter, exceptions
from keystoneauth1.session import Session

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.osc.rows import printable

SERVICE_TYPE = "attestation"
# Pages that are fetched at most for one list; a page holds up to a thousand items.
_MOST_PAGES = 10_000


class ClientError(AttestError):
    """The API refused, or could not be reached."""

    def __init__(self, message: str, remedy: str = "", status: int = 0) -> None:
        super().__init__(message, remedy)
        self.status = status


class AttestationClient:
    """The API as the session's user may use it."""

    def __init__(self, session: Session, region_name: str | None = None, interface: str = "public") -> None:
        self._http = adapter.Adapter(
            session, service_type=SERVICE_TYPE, region_name=region_name, interface=interface
        )

    def list(self, noun: str, limit: int | None = None, **query: str | None) -> Iterator[dict[str, Any]]:
        """All items of a collection, page after page, or the first ``limit`` of them.

        :raises ClientError: whatever the API says.
        """
        wanted = {name: value for name, value in query.items() if value is not None}
        seen = 0
        for _ in range(_MOST_PAGES):
            page = self._request("GET", f"/v1/{noun}", params=wanted)
            items = page.get(noun.rsplit("/", 1)[-1])
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise ClientError(f"the answer of the attestation service holds no {noun}")
            for item in items:
                yield item
                seen += 1
                if seen == limit:
                    return
            marker = page.get("next_marker")
            if not marker:
                return
            wanted["marker"] = str(marker)
        raise ClientError(f"the list of {noun} has no end")

    def show(self, *path: str, **query: str | None) -> dict[str, Any]:
        """One resource."""
        wanted = {name: value for name, value in query.items() if value is not None}
        return self._request("GET", _url(path), params=wanted)

    def create(self, *path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST a JSON document."""
        return self._request("POST", _url(path), json=dict(body))

    def replace(self, *path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PUT a JSON document."""
        return self._request("PUT", _url(path), json=dict(body))

    def upload(self, *path: str, file: IO[bytes]) -> dict[str, Any]:
        """POST a file as it is."""
        return self._request(
            "POST", _url(path), data=file, headers={"Content-Type": "application/octet-stream"}
        )

    def delete(self, *path: str) -> None:
        """DELETE a resource."""
        self._request("DELETE", _url(path))

    def download(self, *path: str, **query: str | None) -> bytes:
        """The bytes of a resource that is no JSON document for us to read, such as a proof."""
        wanted = {name: value for name, value in query.items() if value is not None}
        return bytes(self._send("GET", _url(path), params=wanted).content)

    def _request(self, method: str, url: str, **arguments: Any) -> dict[str, Any]:
        response = self._send(method, url, **arguments)
        if not response.content:
            return {}
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise ClientError("the attestation service answered with something that is no JSON") from error
        if not isinstance(answer, dict):
            raise ClientError("the attestation service answered with something that is no JSON object")
        return answer

    def _send(self, method: str, url: str, **arguments: Any) -> Any:
        try:
            response = self._http.request(url, method, raise_exc=False, **arguments)
        except exceptions.EndpointNotFound as error:
            raise ClientError(
                "this cloud's catalogue has no attestation service", "ask its operator whether it has one"
            ) from error
        except exceptions.ClientException as error:
            raise ClientError(f"the attestation service cannot be asked: {error}") from error
        if response.status_code >= 400:
            raise _problem(response)
        return response


def _url(path: tuple[str, ...]) -> str:
    """The parts as one path; none of them may lead to another resource than the one that is meant."""
    if any(part in ("", ".", "..") for part in path):
        raise ClientError(f"{'/'.join(path)!r} names nothing")
    return "/v1/" + "/".join(quote(part, safe="") for part in path)


def _problem(response: Any) -> ClientError:
    """The API's problem details (RFC 9457), or as much as a proxy in between left of them."""
    try:
        problem = response.json()
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or response.reason or "no reason given"
    remedy = problem.get("remedy")
    message = f"{printable(str(detail))} (HTTP {response.status_code})"
    remedy = printable(remedy) if isinstance(remedy, str) else ""
    return ClientError(message, remedy, response.status_code)


def client_of(command: Any) -> AttestationClient:
    """The client that osc-lib's client manager keeps for a command; the plugin made it."""
    client: AttestationClient = command.app.client_manager.attestation
    return client
