# SPDX-License-Identifier: Apache-2.0
"""Options of relying parties: what nova-scheduler needs in nova.conf to use the filter."""

from __future__ import annotations

from oslo_config import cfg

GROUP = cfg.OptGroup("relying", title="Relying parties")

LEVELS = ("required", "preferred", "ignored")

OPTIONS = [
    cfg.StrOpt(
        "verifier_keys",
        default="/etc/nova-vmi-attest/verifier.jwks",
        help="""
File with the public keys of the verifiers (a JWKS; ``nova-vmi-attest-manage key show --jwks`` prints it).

A result that none of these keys signed is dropped, so without this file no host is trusted. Read at start:
restart nova-scheduler after a change.
""",
    ),
    cfg.StrOpt(
        "audience",
        default="nova-vmi-attest",
        help="""
The audience that results must name; the same as ``[verifier] audience``.

Change it only when two clouds share one message bus.
""",
    ),
    cfg.StrOpt(
        "transport_url",
        secret=True,
        help="""
The message bus on which the verifiers publish results.

Leave it unset when they use the bus of this service (``[DEFAULT] transport_url``).
""",
    ),
    cfg.StrOpt(
        "trust_host",
        default="required",
        choices=LEVELS,
        help="""
Whether servers may only be placed on trusted hosts, for flavors that do not say it themselves
(extra spec ``trust:host``).

``required`` refuses hosts that are untrusted, unknown or stale. ``preferred`` refuses hosts that are
untrusted, and takes those of which nothing is known: use it while agents are rolled out. ``ignored`` does not
look.
""",
    ),
    cfg.StrOpt(
        "trust_guest",
        default="required",
        choices=LEVELS,
        help="""
Whether a server that has a result may only be moved when that result is trusted, for flavors that
do not say it themselves (extra spec ``trust:guest``).

The levels are those of ``trust_host``. A server of which no result speaks may always be placed: a new one,
and one that is stopped, since the memory that its last result was about is gone. Set it to ``preferred`` if
servers must be evacuated from hosts that are down: their results go stale.
""",
    ),
    cfg.StrOpt(
        "hint_socket",
        default="/run/nova-vmi-attest/hints.sock",
        help="""
The agent's unix datagram socket, to which nova-compute passes on what it does with its instances.

Read by the notification driver ``vmi_attest`` in nova-compute; the same as ``[agent] hint_socket``. When
nobody listens there Nova is not delayed: the agent follows libvirt's own events all the same. Empty to send
nothing.
""",
    ),
]
