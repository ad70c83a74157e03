# SPDX-License-Identifier: Apache-2.0
"""Options of the enrolment authority, the private CA of the cloud."""

from __future__ import annotations

import socket

from oslo_config import cfg

GROUP = cfg.OptGroup("authority", title="The enrolment authority")

OPTIONS = [
    cfg.StrOpt(
        "host",
        default=socket.gethostname(),
        sample_default="<host name>",
        help="""
Name of this authority on the message bus. Must differ between authorities.
""",
    ),
    cfg.StrOpt(
        "private_key",
        default="/etc/nova-vmi-attest/authority.key",
        help="""
File with the authority's private key (P-256, PEM, mode 0600).

Whoever reads it can enrol any machine as any host: keep it on the control plane only, readable by the
authority alone. The authority refuses to start when other users may read it.
""",
    ),
    cfg.StrOpt(
        "certificate",
        default="/etc/nova-vmi-attest/authority.pem",
        help="""
File with the authority's certificate (PEM). Agents, verifiers and tenants need a copy.
""",
    ),
    cfg.StrOpt(
        "ek_roots",
        default="/etc/nova-vmi-attest/ek-roots.d",
        help="""
Directory with the root certificates (PEM) of the TPM makers that are trusted.

Put in only the makers of the chips in this cloud. Read when the authority starts.
""",
    ),
    cfg.StrOpt(
        "ek_intermediates",
        default="/etc/nova-vmi-attest/ek-intermediates.d",
        help="""
Directory with the intermediate certificates (PEM) of TPM makers. They are not trusted by being here: each
must chain to one of ``ek_roots``. Read when the authority starts.
""",
    ),
    cfg.IntOpt(
        "certificate_lifetime",
        default=86400,
        min=300,
        max=31622400,
        help="""
Seconds for which an attestation key certificate is valid.

Agents renew after two thirds of it. When a host is taken out of the registry, verifiers that use the same
database refuse its certificate at once; for everybody else it is valid until it ends, so keep it short. Raise
it when the authority may be away for long.
""",
    ),
    cfg.BoolOpt(
        "unsafe_trust_on_first_use",
        default=False,
        help="""
Register a host with the TPM that first enrols under its name, instead of asking the operator.

UNSAFE: whoever is first to claim the name of a host that is not registered yet, with any genuine TPM of a
trusted maker, becomes that host. Each use is logged and recorded. Leave it off, and register hosts with
``nova-vmi-attest-manage host register``; turn it on only to fill the registry on a network without strangers.
""",
    ),
]
