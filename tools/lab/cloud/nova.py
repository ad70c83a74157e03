# SPDX-License-Identifier: Apache-2.0
"""Nova's control plane, and the configuration that it shares with nova-compute."""

from __future__ import annotations

from pathlib import Path

from lab.cloud import ini, web
from lab.cloud.backing import installed
from lab.cloud.layout import Layout, program
from lab.cloud.processes import CONTROL, Processes

# The parts of Nova that raise their privileges by a helper. All is root here, so no sudo comes before it.
HELPERS = ("nova_sys_admin", "privsep_osbrick", "vif_plug_linux_bridge_privileged", "vif_plug_ovs_privileged")
FILTERS = (
    "ComputeFilter,ComputeCapabilitiesFilter,ImagePropertiesFilter,"
    "ServerGroupAntiAffinityFilter,ServerGroupAffinityFilter"
)
WEIGHERS = "nova.scheduler.weights.all_weighers"
RELYING = "nova_vmi_attest.relying"


class Nova:
    """API, metadata API, conductor and scheduler."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes

    def configure(self) -> None:
        """Write nova.conf, and the paste file that nova installs with our filter in it."""
        options = common_options(self._layout, self._layout.state("nova"), self._file)
        options["keystone_authtoken"] = web.authtoken(self._layout, "nova")
        options["api"] = {"auth_strategy": "keystone"}
        options["conductor"] = {"workers": 1}
        options["scheduler"] = {"workers": 1}
        options["filter_scheduler"] = {
            "available_filters": [
                "nova.scheduler.filters.all_filters",
                f"{RELYING}.scheduler_filter.VMIAttestationFilter",
            ],
            "enabled_filters": f"{FILTERS},VMIAttestationFilter",
            "weight_classes": f"{WEIGHERS},{RELYING}.scheduler_weigher.VMIAttestationWeigher",
            "track_instance_changes": "false",
        }
        options["relying"] = {"verifier_keys": self._layout.verifier_keys}
        ini.write(self._file, options)
        paste = installed("nova/api-paste.ini").read_text()
        paste = paste.replace(" osapi_compute_app_v21", " trust osapi_compute_app_v21")
        (self._file.parent / "api-paste.ini").write_text(
            f"{paste}\n[filter:trust]\nuse = egg:nova-vmi-attest#trust\n"
        )

    def migrate(self) -> None:
        """Make the schemas and the one cell. URLs are templates, so that a copy of the database can move."""
        anywhere = "{scheme}://{username}:{password}@{hostname}/"
        for arguments in (
            ["api_db", "sync"],
            ["cell_v2", "map_cell0", "--database_connection", anywhere + "nova_cell0?{query}"],
            ["db", "sync"],
            [
                "cell_v2", "create_cell", "--name=cell1",
                "--database_connection", anywhere + "{path}?{query}",
                "--transport-url", "{scheme}://{username}:{password}@{hostname}:{port}/",
            ],
        ):  # fmt: skip
            self.manage(*arguments)

    def manage(self, *arguments: str) -> str:
        """Run nova-manage."""
        return self._processes.run("nova-manage", "--config-file", str(self._file), *arguments)

    def start(self) -> None:
        """Start everything but the computes, and wait for the conductor, which they ask at their start."""
        for name in ("conductor", "scheduler"):
            self._processes.start(
                f"nova-{name}", [program(f"nova-{name}"), "--config-file", str(self._file)], space=CONTROL
            )
        environment = {"OS_NOVA_CONFIG_DIR": str(self._file.parent)}
        web.serve(self._layout, self._processes, "nova", "nova.wsgi.osapi_compute", environment)
        web.serve(self._layout, self._processes, "metadata", "nova.wsgi.metadata", environment)
        self._processes.until(self._conducts, "nova-conductor", 120)

    def _conducts(self) -> bool:
        return "Starting conductor node" in self._processes.log("nova-conductor").read_text(errors="replace")

    @property
    def _file(self) -> Path:
        return self._layout.config("nova") / "nova.conf"


def common_options(layout: Layout, state: Path, file: Path) -> dict[str, dict[str, ini.Value]]:
    """What every part of Nova is told; ``file`` is the configuration file itself, for its helpers."""
    state.mkdir(parents=True, exist_ok=True)
    helper = f"{program('privsep-helper')} --config-file {file}"
    return {
        "DEFAULT": {
            "state_path": state,
            "my_ip": "127.0.0.1",
            "transport_url": layout.transport_url,
            # An orderly end takes three minutes otherwise.
            "graceful_shutdown_timeout": 5,
            "manager_shutdown_timeout": 0,
        },
        "api_database": {"connection": layout.database("nova_api")},
        "database": {"connection": layout.database("nova")},
        "notifications": {"notification_format": "both", "notify_on_state_change": "vm_and_task_state"},
        "oslo_messaging_notifications": {"driver": ["messagingv2"], "topics": "notifications"},
        "oslo_concurrency": {"lock_path": state / "locks"},
        "glance": web.credentials(layout, "glance"),
        "placement": web.credentials(layout, "placement"),
        "neutron": web.credentials(layout, "neutron"),
        "service_user": {"send_service_user_token": "true", **web.credentials(layout, "nova")},
        "workarounds": {"disable_rootwrap": "true"},
        **{name: {"helper_command": helper} for name in HELPERS},
    }
