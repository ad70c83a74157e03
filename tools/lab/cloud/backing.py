# SPDX-License-Identifier: Apache-2.0
"""Glance, Placement and Neutron's API: what Nova cannot do without."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lab.cloud import ini, web
from lab.cloud.identity import connect
from lab.cloud.layout import Layout
from lab.cloud.processes import Processes


class Glance:
    """Images, kept as files."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes

    def configure(self) -> None:
        """Write glance-api.conf; the paste file is the one that glance installs."""
        folders = {name: self._layout.state("glance", name) for name in ("images", "tasks", "staging")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        ini.write(
            self._directory / "glance-api.conf",
            {
                "DEFAULT": {"log_file": self._layout.logs / "glance.log", "enabled_backends": "files:file"},
                "glance_store": {"default_backend": "files"},
                "files": {"filesystem_store_datadir": folders["images"]},
                "os_glance_tasks_store": {"filesystem_store_datadir": folders["tasks"]},
                "os_glance_staging_store": {"filesystem_store_datadir": folders["staging"]},
                "database": {"connection": self._layout.database("glance")},
                "paste_deploy": {"flavor": "keystone"},
                "oslo_concurrency": {"lock_path": self._layout.state("locks")},
                "keystone_authtoken": web.authtoken(self._layout, "glance"),
            },
        )
        shutil.copy(installed("glance/glance-api-paste.ini"), self._directory)

    def migrate(self) -> None:
        """Make the schema."""
        self._processes.run(
            "glance-manage", "--config-file", str(self._directory / "glance-api.conf"), "db_sync"
        )

    def start(self) -> None:
        """Start the API."""
        environment = {"OS_GLANCE_CONFIG_DIR": str(self._directory)}
        web.serve(self._layout, self._processes, "glance", "glance.wsgi.api", environment)

    @property
    def _directory(self) -> Path:
        return self._layout.config("glance")


class Placement:
    """What hosts have, and who took it."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes

    def configure(self) -> None:
        """Write placement.conf."""
        ini.write(
            self._directory / "placement.conf",
            {
                "DEFAULT": {"log_file": self._layout.logs / "placement.log"},
                "placement_database": {"connection": self._layout.database("placement")},
                "api": {"auth_strategy": "keystone"},
                "keystone_authtoken": web.authtoken(self._layout, "placement"),
            },
        )

    def migrate(self) -> None:
        """Make the schema."""
        self._processes.run(
            "placement-manage", "--config-file", str(self._directory / "placement.conf"), "db", "sync"
        )

    def start(self) -> None:
        """Start the API."""
        environment = {"OS_PLACEMENT_CONFIG_DIR": str(self._directory)}
        web.serve(self._layout, self._processes, "placement", "placement.wsgi.api", environment)

    @property
    def _directory(self) -> Path:
        return self._layout.config("placement")


class Neutron:
    """The network API without agents: servers boot without ports."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes

    def configure(self) -> None:
        """Write neutron.conf; the paste file is the one that neutron installs."""
        directory = self._directory
        state = self._layout.state("neutron")
        state.mkdir(parents=True, exist_ok=True)
        ini.write(
            directory / "neutron.conf",
            {
                "DEFAULT": {
                    "log_file": self._layout.logs / "neutron.log",
                    "state_path": state,
                    "core_plugin": "ml2",
                    "service_plugins": "",
                    "api_paste_config": directory / "api-paste.ini",
                    "transport_url": self._layout.transport_url,
                    "rpc_workers": 0,
                    "notify_nova_on_port_status_changes": "false",
                    "notify_nova_on_port_data_changes": "false",
                },
                "database": {"connection": self._layout.database("neutron")},
                "oslo_concurrency": {"lock_path": self._layout.state("locks")},
                "ml2": {"type_drivers": "local", "tenant_network_types": "local", "mechanism_drivers": ""},
                "keystone_authtoken": web.authtoken(self._layout, "neutron"),
            },
        )
        shutil.copy(installed("neutron/api-paste.ini"), directory)

    def migrate(self) -> None:
        """Make the schema."""
        self._processes.run(
            "neutron-db-manage", "--config-file", str(self._directory / "neutron.conf"), "upgrade", "heads"
        )

    def start(self) -> None:
        """Start the API."""
        environment = {
            "OS_NEUTRON_CONFIG_DIR": str(self._directory),
            "OS_NEUTRON_CONFIG_FILES": "neutron.conf",
        }
        web.serve(self._layout, self._processes, "neutron", "neutron.wsgi.api", environment)

    def wake(self) -> None:
        """Ask for the networks: Neutron 29 cannot answer for ports before it was asked for something else."""
        list(connect(self._layout, "admin").network.networks())

    @property
    def _directory(self) -> Path:
        return self._layout.config("neutron")


def installed(name: str) -> Path:
    """A configuration file that a service's package brings along, below etc of the environment."""
    return Path(sys.prefix) / "etc" / name
