# SPDX-License-Identifier: Apache-2.0
"""Options of relying parties: what Nova's services need in nova.conf to use results."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

GROUP = cfg.OptGroup("relying", title="Relying parties")

# From what asks most to what asks nothing.
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
Whether servers may only be placed on trusted hosts, where neither flavor nor image say it themselves.

``required`` refuses hosts that are untrusted, unknown or stale. ``preferred`` refuses hosts that are
untrusted, takes those of which nothing is known, and with ``VMIAttestationWeigher`` takes trusted ones first:
begin with it while agents are rolled out. ``ignored`` does not look.

Related: the extra spec ``trust:host`` of a flavor sets another level, higher or lower; the property
``trust:host`` of an image can only raise it.
""",
    ),
    cfg.StrOpt(
        "trust_guest",
        default="required",
        choices=LEVELS,
        help="""
Whether a server may only be moved when it is trusted itself, where neither flavor nor image say it
(``trust:guest``).

The levels are those of ``trust_host``. With ``required``, a server that runs needs a valid, trusted result to
be migrated or resized. Of one whose memory is gone (stopped, shelved, or on a host that is down) the last
result that this scheduler saw must be trusted, if it saw any. A new server has none and is not asked for
one; a rebuild replaces what the result was about, so that an altered server can be rebuilt where it is.

Set it to ``preferred`` while there are servers on hosts without an agent: they cannot be moved otherwise.
""",
    ),
    cfg.StrOpt(
        "trust_neighbours",
        default="ignored",
        choices=LEVELS,
        help="""
Whether servers may only be placed where all other servers are trusted, where neither flavor nor image
say it (``trust:neighbours``).

The levels are those of ``trust_host``. A trusted host without servers passes. Mind that one server whose
kernel has no reference keeps others off its host: set it on flavors that need it rather than for all.
""",
    ),
    cfg.IntOpt(
        "unsafe_stale_grace",
        default=0,
        min=0,
        max=86400,
        help="""
Seconds for which an expired result that said ``trusted`` still counts as trusted.

0, the default, refuses hosts as soon as their results expire, so that a verifier that is away for longer than
``[verifier] result_lifetime`` stops new servers. Anything else lets a host be used that has been altered
since, and each use is logged. Meant for the repair of the verifiers, not for keeps.
""",
    ),
    cfg.FloatOpt(
        "weight_multiplier",
        default=10.0,
        min=0.0,
        help="""
How much ``VMIAttestationWeigher`` weighs beside Nova's other weighers.

It gives a trusted host 1, one of which nothing valid is known 0.5, and an untrusted one 0, for what is
``preferred`` in the request. Nova's weighers for memory, CPU and disk give up to 1 each. 0 turns it off.

Related: ``[filter_scheduler] weight_classes`` must name the weigher.
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


def list_opts() -> list[tuple[cfg.OptGroup, Sequence[cfg.Opt]]]:
    """The options that belong in nova.conf, for ``oslo-config-generator``."""
    return [(GROUP, OPTIONS)]
