# SPDX-License-Identifier: Apache-2.0
"""What a response is: one class, named by an entry point of the group ``nova_vmi_attest.responses``.

A response is asked once for each change that it is configured for, in a thread of its own, by whichever
verifier comes first. It may be asked again: after a failure, or when a verifier died over it. So what it does
has to come to the same when it is done twice.
"""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass
from typing import ClassVar, Protocol
from uuid import UUID

from oslo_config import cfg

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.records.changes import NumberedChange

NAMESPACE = "nova_vmi_attest.responses"
GUEST, HOST = "guest", "host"

# Reasons on guests whose details speak of the host.
_OF_HOSTS = frozenset(("host_untrusted", "guest_missing", "guest_unexpected"))

# What Nova takes as the reason of a lock or of a disabled service, in characters.
_MAX_REASON = 255
PREFIX = "attestation: "


class ResponseError(AttestError):
    """A response could not be carried out; it is tried again for a while."""


class Moot(ResponseError):  # noqa: N818 - says what is the case
    """There is nothing to respond to any more; it is not tried again."""


class LimitReached(ResponseError):  # noqa: N818 - says what is the case
    """As much as is allowed was done already; it is not tried again."""


@dataclass(frozen=True, slots=True)
class NovaServer:
    """A server as Nova shows it now. ``host`` is the nova-compute service that has it, empty for none;
    ``status`` is ``ACTIVE``, ``PAUSED`` and so on; ``task_state`` is empty when nothing is in flight.
    """

    host: str
    status: str
    task_state: str
    is_locked: bool


@dataclass(frozen=True, slots=True)
class ComputeService:
    """One nova-compute service. ``reason`` is why it is disabled, empty when it is not."""

    id: str
    host: str
    is_disabled: bool
    reason: str


class Nova(Protocol):
    """What responses need of Nova. Each method raises :class:`ResponseError` when Nova is away or refuses."""

    def server(self, server: UUID) -> NovaServer | None:
        """A server; ``None`` when there is none."""

    def lock(self, server: UUID, reason: str) -> None:
        """Lock a server against its project."""

    def pause(self, server: UUID) -> None:
        """Stop a server's processors and keep its memory."""

    def compute_services(self) -> tuple[ComputeService, ...]:
        """Every nova-compute service."""

    def disable(self, service: ComputeService, reason: str) -> None:
        """Keep new servers off a service."""


class Alerts(Protocol):
    """Where notifications go; see :class:`nova_vmi_attest.verifier.notifications.Notifier`."""

    def alert(self, item: NumberedChange) -> None:
        """Announce a change for somebody to look at."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a response works with. ``nova`` is ``None`` where ``[openstack]`` is not filled in."""

    nova: Nova | None
    alerts: Alerts

    def require_nova(self) -> Nova:
        """Nova's API.

        :raises ResponseError: there are no credentials for it.
        """
        if self.nova is None:
            raise ResponseError("there is no access to Nova", "fill in [openstack]")
        return self.nova


class Response(abc.ABC):
    """One response.

    :cvar kinds: what it responds to: ``guest``, ``host`` or both.
    :cvar needs_nova: whether it is refused where the verifiers have no credentials for Nova.
    """

    kinds: ClassVar[frozenset[str]]
    needs_nova: ClassVar[bool] = False

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """Take what is needed of the configuration; raise :class:`ResponseError` when it cannot be used."""
        self.conf = conf

    @abc.abstractmethod
    def respond(self, item: NumberedChange, tools: Tools) -> str:
        """Do it, and say in a sentence what was done.

        :raises ResponseError: it failed; :class:`Moot` or :class:`LimitReached` when it need not, or must
            not, be tried again.
        """


def why(item: NumberedChange) -> str:
    """The reason to give to Nova for acting on a change: its prefix, the verdict and the first finding.

    Nova shows that of a server to its project, which is not to learn what was found on which host.
    """
    change = item.change
    first = change.reasons[0] if change.reasons else None
    found = f", {first.check} {first.symbol} {first.detail}" if first else ""
    named = re.search(rf"(?<![\w.-]){re.escape(change.host)}(?![\w-])", found, re.IGNORECASE)
    if first and change.kind == GUEST and (named or first.check in _OF_HOSTS):
        found = f", {first.check}"
    text = " ".join(f"{PREFIX}{change.verdict}{found} (change {item.number})".split())
    printable = "".join(sign if sign.isprintable() else "?" for sign in text)
    return printable if len(printable) <= _MAX_REASON else printable[: _MAX_REASON - 1] + "…"


def server_of(item: NumberedChange, nova: Nova) -> NovaServer:
    """The server that a change speaks of, if the host that shows it is the one that Nova has it on.

    Without this question a compromised host could have any server of the cloud locked, by showing an altered
    guest under its name.

    :raises Moot: Nova knows no such server, or has it elsewhere.
    :raises ResponseError: Nova has it elsewhere, and is just doing something with it.
    """
    server = nova.server(UUID(item.change.subject))
    if server is None:
        raise Moot("Nova knows no such server")
    if server.host != item.change.host:
        elsewhere = f"Nova has it on {server.host or 'no host'}, not on {item.change.host}"
        raise ResponseError(elsewhere) if server.task_state else Moot(elsewhere)
    return server
