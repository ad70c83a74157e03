# SPDX-License-Identifier: Apache-2.0
"""Options of the verifier service: keys, rhythm and lifetimes."""

from __future__ import annotations

import socket

from oslo_config import cfg

GROUP = cfg.OptGroup("verifier", title="The verifier")

OPTIONS = [
    cfg.StrOpt(
        "host",
        default=socket.gethostname(),
        sample_default="<host name>",
        help="""
Name of this verifier on the message bus. Must differ between verifiers; set it to run two on one machine.
""",
    ),
    cfg.StrOpt(
        "private_key",
        default="/etc/nova-vmi-attest/verifier.key",
        help="""
File with the private key (P-256, PEM, mode 0600) that signs challenges, results and the index of references.

``nova-vmi-attest-manage key create`` makes it. All verifiers of one cloud share it, and the database with it,
because any of them may receive the answer to a challenge. Agents and relying parties need its public half
before it is used.
""",
    ),
    cfg.StrOpt(
        "authority_certificates",
        default="/etc/nova-vmi-attest/authority.pem",
        help="""
File with the certificates (PEM) of the enrolment authority.

Evidence counts only when its attestation key certificate was issued under one of them. During a change of the
authority's key, list both.
""",
    ),
    cfg.StrOpt(
        "audience",
        default="nova-vmi-attest",
        help="""
The audience named in results; the same as ``[relying] audience`` in nova.conf.

Change it only when two clouds share one message bus.
""",
    ),
    cfg.IntOpt(
        "interval",
        default=60,
        min=1,
        help="""
Seconds between two challenges of a host.

A change in a guest's kernel is noticed this late at worst. Lower it for quicker notice; raise it when hosts
have slow TPMs or very many guests. Keep ``result_lifetime`` well above it.
""",
    ),
    cfg.IntOpt(
        "interval_jitter",
        default=10,
        min=0,
        max=100,
        help="""
Percent of ``interval`` by which each challenge is delayed at random, so that hosts do not answer all at once.

Set it to 0 only to reproduce a problem.
""",
    ),
    cfg.IntOpt(
        "minimum_event_interval",
        default=2,
        min=1,
        max=3600,
        help="""
Seconds that must pass after a challenge of a host before it is challenged because something happened on it.

A host's agent says when guests appear, settle and leave, so that verdicts need not wait for the host's turn.
Anybody on the message bus can say so: raise this where hosts have slow TPMs and very many guests.
""",
    ),
    cfg.IntOpt(
        "challenge_lifetime",
        default=60,
        min=1,
        max=3600,
        help="""
Seconds within which a host must answer a challenge.

Raise it when answers of large hosts come too late (the log says so). Clocks of verifiers and hosts must agree
much better than this.
""",
    ),
    cfg.IntOpt(
        "challenges_per_host",
        default=4,
        min=1,
        max=64,
        help="""
How many unanswered challenges one host may have; the oldest gives way.

There is no reason to change it unless more than a few verifiers share the database.
""",
    ),
    cfg.IntOpt(
        "result_lifetime",
        default=300,
        min=2,
        help="""
Seconds for which a result is valid; afterwards relying parties treat it as stale and refuse.

Short lifetimes stop the use of hosts sooner when they fall silent, long ones ride out an outage of the
verifiers.
""",
    ),
    cfg.IntOpt(
        "history_days",
        default=90,
        min=1,
        help="""
Days for which changes of verdicts are kept. Raise it where audits ask for more.
""",
    ),
]
