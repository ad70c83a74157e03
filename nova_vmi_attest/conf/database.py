# SPDX-License-Identifier: Apache-2.0
"""Options of the database: oslo.db's own, with a default that works on one machine."""

from __future__ import annotations

from oslo_config import cfg
from oslo_db import options

DEFAULT_CONNECTION = "sqlite:////var/lib/nova-vmi-attest/attest.sqlite"


def register(conf: cfg.ConfigOpts) -> None:
    """Register ``[database]`` with the SQLite file as default.

    SQLite serves one control-plane node. With verifiers on several nodes set ``connection`` to a MariaDB or
    PostgreSQL database that all of them share.
    """
    options.set_defaults(conf, connection=DEFAULT_CONNECTION)
