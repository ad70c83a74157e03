# SPDX-License-Identifier: Apache-2.0
"""The bus: topics, RPC interfaces and their versions, in one place.

Every compute host holds credentials to the bus, so nothing that arrives here is believed because of where it
came from: challenges, results and reference indexes are signed objects, blobs are named by their digest, and
evidence is bound to a TPM. These classes move opaque, JSON-safe values and check none of that.
"""

from __future__ import annotations

import base64
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import oslo_messaging
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest.errors import AttestError

LOG = log.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

EXCHANGE = "nova_vmi_attest"
ATTESTER_TOPIC = "nova_vmi_attest.attester"
AUTHORITY_TOPIC = "nova_vmi_attest.authority"
VERIFIER_TOPIC = "nova_vmi_attest.verifier"
RESULTS_TOPIC = "nova_vmi_attest.results"
# Where changed verdicts are announced to whoever subscribes, as oslo.messaging notifications.
NOTIFICATIONS_TOPIC = "attestation_notifications"

# Raise the minor version for an addition, the major one for a change that older peers would misread.
VERSION = "1.1"

# The largest piece of a blob that travels in one message, in bytes before base64.
BLOB_PIECE = 1 << 19


class RefusedError(AttestError):
    """The service that was called refused, and said why."""


class AttesterEndpoint(Protocol):
    """Served by the agent of each host, addressed by host name."""

    def attest(self, ctxt: Mapping[str, Any], challenge: str) -> None:
        """A signed challenge (compact JWS); the answer is a batch submitted to the verifiers."""


class AuthorityEndpoint(Protocol):
    """Served by the enrolment authority."""

    def begin_enrolment(self, ctxt: Mapping[str, Any], request: dict[str, str]) -> dict[str, str]:
        """{host, ek_certificate, ek_public, ak_public} -> {enrolment, credential, secret}; octets in
        base64.
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

    def results(self, ctxt: Mapping[str, Any], after: str) -> dict[str, Any]:
        """The newest signed results of the hosts whose names follow ``after``, as many as a message may hold:
        {results, next}. ``next`` is where to go on, empty at the end.
        """

    def event(self, ctxt: Mapping[str, Any], host: str, reason: str) -> None:
        """Something changed on a host: a reason to challenge it soon, and no more than that. Since 1.1."""

    def refused(self, ctxt: Mapping[str, Any], refusal: dict[str, Any]) -> None:
        """What a scheduler refused: {at, server, project, request, level, total, hosts: [{host, reason}]}.
        For people to read; anybody on the bus can send one. Since 1.1.
        """

    def challenge(self, ctxt: Mapping[str, Any], host: str, nonce: str) -> dict[str, Any]:
        """Challenge a host now, with a nonce of 64 hex digits or, when empty, one of the verifier's:
        {nonce}. Since 1.1.
        """


class ResultEndpoint(Protocol):
    """Served by every relying party: each receives each result."""

    def result(self, ctxt: Mapping[str, Any], token: str) -> None:
        """A signed attestation result (EAR, compact JWS)."""


def get_transport(conf: cfg.ConfigOpts) -> oslo_messaging.Transport:
    """The RPC transport that ``transport_url`` names."""
    return oslo_messaging.get_rpc_transport(conf)


def get_server(transport: oslo_messaging.Transport, topic: str, server: str, endpoint: object) -> Any:
    """An RPC server for one endpoint; the caller starts and stops it."""
    target = oslo_messaging.Target(exchange=EXCHANGE, topic=topic, server=server)
    # The dispatcher compares the version of a call with that of the endpoint, not with the server's.
    setattr(endpoint, "target", oslo_messaging.Target(version=VERSION))  # noqa: B010 - of whatever class it is
    return oslo_messaging.get_rpc_server(
        transport, target, [endpoint], access_policy=oslo_messaging.ExplicitRPCAccessPolicy
    )


def exposed(method: F) -> F:
    """Marks a method of an endpoint that may be called over the bus; everything else is refused.

    Whatever goes wrong inside, a caller gets the answer {refused, remedy}: it looks the same over every
    transport and needs no class that both sides can import. Stack traces stay in this process's log.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def answered(*arguments: Any, **named: Any) -> Any:
        try:
            signature.bind(*arguments, **named)
        except TypeError as error:
            LOG.warning("%s with wrong arguments: %.256s", method.__name__, error)
            return {"refused": f"{method.__name__} takes other arguments", "remedy": "compare the versions"}
        try:
            return method(*arguments, **named)
        except AttestError as error:
            LOG.warning("%s refused: %s", method.__name__, error)
            return {"refused": error.message, "remedy": error.remedy}
        except Exception:  # the edge of the service: what failed stays in its own log
            LOG.exception("%s failed unexpectedly", method.__name__)
            return {"refused": "internal error", "remedy": "see the log of the service that was called"}

    oslo_messaging.expose(answered)
    return cast(F, answered)


class _Client:
    """Common to all clients: the target and a bounded wait for answers."""

    topic: str

    def __init__(self, transport: oslo_messaging.Transport, timeout: int = 30) -> None:
        # What was there from the start is asked for as such, so that a service of the version before answers.
        target = oslo_messaging.Target(exchange=EXCHANGE, topic=self.topic, version="1.0")
        self._client = oslo_messaging.get_rpc_client(transport, target, timeout=timeout)

    def _since(self, version: str) -> Any:
        """The client for methods that came with a later version."""
        return self._client.prepare(version=version)

    def _call(self, method: str, since: str = "1.0", /, **arguments: Any) -> Any:
        """The answer, of whatever type it is.

        :param since: the version of the interface that brought the method.
        :raises RefusedError: the service said so, or it is of a version that does not know the method.
        :raises oslo_messaging.MessagingException: no answer.
        """
        try:
            answer = self._since(since).call({}, method, **arguments)
        except oslo_messaging.RemoteError as error:
            if error.exc_type != oslo_messaging.UnsupportedVersion.__name__:
                raise
            raise RefusedError(
                f"the service that was asked is older than version {since}, which brought {method}",
                "upgrade it first",
            ) from error
        if isinstance(answer, Mapping) and "refused" in answer:
            raise RefusedError(str(answer["refused"])[:1024], str(answer.get("remedy", ""))[:1024])
        return answer


class AttesterClient(_Client):
    """Verifier to host."""

    topic = ATTESTER_TOPIC

    def attest(self, host: str, challenge: str) -> None:
        self._client.prepare(server=host).cast({}, "attest", challenge=challenge)


class AuthorityClient(_Client):
    """Host to enrolment authority. A refusal is an answer like any other; its reader checks them all."""

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
        index: str = self._call("reference_index")
        return index

    def blob(self, digest: str, offset: int) -> dict[str, Any]:
        piece: dict[str, Any] = self._call("blob", digest=digest, offset=offset)
        return piece

    def results(self, after: str) -> dict[str, Any]:
        page: dict[str, Any] = self._call("results", after=after)
        return page

    def event(self, host: str, reason: str) -> None:
        self._since("1.1").cast({}, "event", host=host, reason=reason)

    def refused(self, refusal: Mapping[str, Any]) -> None:
        self._since("1.1").cast({}, "refused", refusal=dict(refusal))

    def challenge(self, host: str, nonce: str = "") -> str:
        answer: dict[str, Any] = self._call("challenge", "1.1", host=host, nonce=nonce)
        return str(answer["nonce"])


class ResultsClient(_Client):
    """Verifier to all relying parties."""

    topic = RESULTS_TOPIC

    def result(self, token: str) -> None:
        self._client.prepare(fanout=True).cast({}, "result", token=token)
