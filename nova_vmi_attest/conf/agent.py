# SPDX-License-Identifier: Apache-2.0
"""Options of the agent that runs beside nova-compute."""

from __future__ import annotations

import socket

from oslo_config import cfg

GROUP = cfg.OptGroup("agent", title="The agent on each compute host")

OPTIONS = [
    cfg.StrOpt(
        "host",
        default=socket.gethostname(),
        sample_default="<host name>",
        help="""
Name of this host, exactly as Nova knows it.

Set it when nova.conf sets ``[DEFAULT] host``: the scheduler filter looks results up by that name, and the
attestation key certificate carries it. Leave it alone otherwise.
""",
    ),
    cfg.StrOpt(
        "libvirt_uri",
        default="qemu:///system",
        help="""
The libvirt connection whose guests are measured.

Use the one that nova-compute uses (``[libvirt] connection_uri``). The agent only reads: domain lists, live
XML and lifecycle events.
""",
    ),
    cfg.StrOpt(
        "state_path",
        default="/var/lib/nova-vmi-attest",
        help="""
Directory for the measurement log, the attestation key certificate and the cache of kernel references.

The log must survive reboots: without it the next boot of the agent cannot explain the PCR that it extended.
Keep it on a local disk, out of reach of the guests, and writable by the agent alone.
""",
    ),
    cfg.StrOpt(
        "verifier_keys",
        default="/etc/nova-vmi-attest/verifier.jwks",
        help="""
File with the public keys of the verifiers (a JWKS; ``nova-vmi-attest-manage key show --jwks`` prints it).

A challenge or a reference index that none of these keys signed is dropped. Add the new key before the
verifiers change to it, and remove the old one afterwards. Read at start: restart the agent after a change.
""",
    ),
    cfg.StrOpt(
        "authority_certificates",
        default="/etc/nova-vmi-attest/authority.pem",
        help="""
File with the certificates (PEM) of the enrolment authority.

An attestation key certificate that does not chain to one of them is not stored.
""",
    ),
    cfg.StrOpt(
        "reader",
        default="",
        help="""
Name of the one memory reader to use for every guest; empty to choose by the guest's live XML.

Force one only to investigate a problem: a reader that does not fit a guest makes it unmeasurable.
""",
    ),
    cfg.IntOpt(
        "measure_threads",
        default=2,
        min=1,
        max=64,
        help="""
How many guests are measured at the same time.

Comparing memory is bound by memory bandwidth: more than a few threads seldom help. Lower it to 1 where the
agent must not use more than one core.
""",
    ),
    cfg.IntOpt(
        "minimum_round_interval",
        default=2,
        min=0,
        help="""
Seconds that must pass between the starts of two rounds.

Challenges that arrive earlier wait and are answered together by one quote. Raise it on hosts with a slow TPM.
""",
    ),
    cfg.IntOpt(
        "announce_interval",
        default=60,
        min=1,
        help="""
Seconds between two announcements to the verifiers.

An announcement only says that this host is ready to be challenged. Lower it if verifiers lose their database
often; there is no other reason to.
""",
    ),
    cfg.IntOpt(
        "reconcile_interval",
        default=30,
        min=1,
        help="""
Seconds between two comparisons of the agent's guests with libvirt's.

Events keep them in step; this heals what an event missed.
""",
    ),
    cfg.StrOpt(
        "hint_socket",
        default="/run/nova-vmi-attest/hints.sock",
        help="""
The unix datagram socket on which nova-compute says that it did something with an instance.

Such a hint only makes the agent look at libvirt at once; nothing in it is believed. The directory must exist
(systemd's ``RuntimeDirectory=`` makes it), belong to the agent's user or to root, be writable by its owner
alone, and have no symbolic link on the way to it. Empty to do without hints: libvirt's own events and
``reconcile_interval`` remain.
""",
    ),
    cfg.StrOpt(
        "hint_group",
        default="nova",
        help="""
The group that may send hints: the one that nova-compute runs as.

The socket gets mode 0660 and this group. Empty to leave the socket to the agent's own user.
""",
    ),
]
