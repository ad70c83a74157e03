# SPDX-License-Identifier: Apache-2.0
"""Options in tempest.conf."""

from __future__ import annotations

from oslo_config import cfg

AVAILABLE = cfg.BoolOpt(
    "attestation", default=True, help="Whether this cloud attests its servers by introspection."
)

GROUP = cfg.OptGroup("attestation", title="Attestation by introspection")

OPTIONS = [
    cfg.StrOpt("catalog_type", default="attestation", help="Service type in the catalogue."),
    cfg.StrOpt("region", default="", help="Region of the service; empty for that of the identity service."),
    cfg.StrOpt(
        "endpoint_type",
        default="public",
        choices=("public", "internal", "admin"),
        help="Which of the service's endpoints to use.",
    ),
    cfg.IntOpt(
        "verdict_timeout",
        default=120,
        help="Seconds within which a new server must have its verdict. Its kernel has to boot in that time.",
    ),
    cfg.IntOpt("verdict_interval", default=2, help="Seconds between two looks at a verdict."),
]
