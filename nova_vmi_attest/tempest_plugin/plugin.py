# SPDX-License-Identifier: Apache-2.0
"""What tempest asks of a plugin: where its tests, options and clients are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oslo_config import cfg
from tempest import config
from tempest.test_discover import plugins

from nova_vmi_attest.tempest_plugin import config as options

_PACKAGE = "nova_vmi_attest.tempest_plugin"


class VMIAttestTempestPlugin(plugins.TempestPlugin):  # type: ignore[misc]
    """Found by the entry point ``tempest.test_plugins``."""

    def load_tests(self) -> tuple[str, str]:
        """The directory of the tests, and the one that their package begins in."""
        here = Path(__file__).resolve().parent
        return str(here / "tests"), str(here.parent.parent)

    def register_opts(self, conf: cfg.ConfigOpts) -> None:
        """Add our options to tempest's."""
        conf.register_opt(options.AVAILABLE, group="service_available")
        config.register_opt_group(conf, options.GROUP, options.OPTIONS)

    def get_opt_lists(self) -> list[tuple[str, list[cfg.Opt]]]:
        """Our options, for tempest's sample configuration."""
        return [("service_available", [options.AVAILABLE]), (options.GROUP.name, options.OPTIONS)]

    def get_service_clients(self) -> list[dict[str, Any]]:
        """The client of the attestation API, for tempest's client managers."""
        parameters = {
            **config.service_client_config("attestation"),
            "name": "attestation",
            "service_version": "attestation.v1",
            "module_path": f"{_PACKAGE}.services",
            "client_names": ["AttestationClient"],
        }
        return [parameters]
