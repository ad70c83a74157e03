# SPDX-License-Identifier: Apache-2.0
"""The bus: topics, RPC interfaces and their versions, in one place.

Every compute host holds credentials to the bus, so nothing that arrives here is believed because of where it
came from: challenges, results and reference indexes are signed objects, blobs are named by their digest, and
evidence is bound to a TPM. These classes move opaque, JSON-safe values and check none of that.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import oslo_messaging
from oslo_config import cfg

F = TypeVar("F", bound=Callable[..., Any])

EXCHANGE = "nova_vmi_attest"
ATTESTER_TOPIC = "nova_vmi_attest.attester"
AUTHORITY_TOPIC = "nova_vmi_attest.authority"
VERIFIER_TOPIC = "nova_vmi_attest.verifier"
RESULTS_TOPIC = "nova_vmi_attest.results"

# Raise the minor version for an addition, the major one for a change that older peers would misread.
VERSION = "1.0"

# The largest piece of a blob that travels in one message, in bytes before base64.
BLOB_PIECE = 1 << 19


class AttesterEndpoint(Protocol):
    """Served by the agent of each host, addressed by host name."""

    def attest(self, ctxt: Mapping[str, Any], challenge: str) -> None:
        """A signed challenge (compact JWS); the answer is a batch submitted to the verifiers."""


class AuthorityEndpoint(Protocol):
    """Served by the enrolment authority."""

    def begin_enrolment(self, ctxt: Mapping[str, Any], request: dict[str, str]) -> dict[str, str]:
        """{host, ek_certificate, ek_public, ak_public} -> {enrolment, credential, secret}; octets in base64.

        A refusal is the answer {refused, remedy}, here and below.
        """

    def complete_enrolment(self, ctxt: Mapping[str, Any], enrolment: str, proof: str) -> dict[str, str]:
        """The activated secret (base64) -> {certificate} (PEM)."""


class VerifierEndpoint(Protocol):
    """Served by every verifier; one of them takes each message."""

    def announce(self, ctxt: Mapping[str, Any], host: str, certificate: str) -> None:
        """A host says that it is ready to be challenged, with its AK certificate (PEM)."""

    def submit(self, ctxt: Mapping[str, Any], batch: str) -> None:
        """An evidence batch, encoded, in base64."""

    def reference_index(self, ctxt: Mapping[str, Any]) -> str:
        """The signed index of approved references (compact JWS)."""

    def blob(self, ctxt: Mapping[str, Any], digest: str, offset: int) -> dict[str, Any]:
        """One piece of a reference blob: {size, data (base64)}."""

    def results(self, ctxt: Mapping[str, Any]) -> list[str]:
        """The newest signed result of every host, for a relying party that starts."""


class ResultEndpoint(Protocol):
    """Served by every relying party: each receives each result."""

    def result(self, ctxt: Mapping[str, Any], token: str) -> None:
        """A signed attestation result (EAR, compact JWS)."""


def get_transport(conf: cfg.ConfigOpts) -> oslo_messaging.Transport:
    """The RPC transport that ``transport_url`` names."""
    return oslo_messaging.get_rpc_transport(conf)


def get_server(transport: oslo_messaging.Transport, topic: str, server: str, endpoint: object) -> Any:
    """An RPC server for one endpoint; the caller starts and stops it."""
    target = oslo_messaging.Target(exchange=EXCHANGE, topic=topic, server=server, version=VERSION)
    return oslo_messaging.get_rpc_server(
        transport, target, [endpoint], access_policy=oslo_messaging.ExplicitRPCAccessPolicy
    )


def exposed(method: F) -> F:
    """Marks a method of an endpoint that may be called over the bus; everything else is refused."""
    oslo_messaging.expose(method)
    return method


class _Client:
    """Common to all clients: the target and a bounded wait for answers."""

    topic: str

    def __init__(self, transport: oslo_messaging.Transport, timeout: int = 30) -> None:
        target = oslo_messaging.Target(exchange=EXCHANGE, topic=self.topic, version=VERSION)
        self._client = oslo_messaging.get_rpc_client(transport, target, timeout=timeout)


class AttesterClient(_Client):
    """Verifier to host."""

    topic = ATTESTER_TOPIC

    def attest(self, host: str, challenge: str) -> None:
        self._client.prepare(server=host).cast({}, "attest", challenge=challenge)


class AuthorityClient(_Client):
    """Host to enrolment authority."""

    topic = AUTHORITY_TOPIC

    def begin_enrolment(self, request: Mapping[str, str]) -> dict[str, str]:
        answer: dict[str, str] = self._client.call({}, "begin_enrolment", request=dict(request))
        return answer

    def complete_enrolment(self, enrolment: str, proof: str) -> dict[str, str]:
        answer: dict[str, str] = self._client.call({}, "complete_enrolment", enrolment=enrolment, proof=proof)
        return answer


class VerifierClient(_Client):
    """Host or relying party to the verifiers."""

    topic = VERIFIER_TOPIC

    def announce(self, host: str, certificate: str) -> None:
        self._client.cast({}, "announce", host=host, certificate=certificate)

    def submit(self, batch: bytes) -> None:
        self._client.cast({}, "submit", batch=base64.b64encode(batch).decode())

    def reference_index(self) -> str:
        index: str = self._client.call({}, "reference_index")
        return index

    def blob(self, digest: str, offset: int) -> dict[str, Any]:
        piece: dict[str, Any] = self._client.call({}, "blob", digest=digest, offset=offset)
        return piece

    def results(self) -> Sequence[str]:
        tokens: list[str] = self._client.call({}, "results")
        return tokens


class ResultsClient(_Client):
    """Verifier to all relying parties."""

    topic = RESULTS_TOPIC

    def result(self, token: str) -> None:
        self._client.prepare(fanout=True).cast({}, "result", token=token)
