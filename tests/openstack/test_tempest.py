# SPDX-License-Identifier: Apache-2.0
"""Our tempest plugin, run by tempest itself against a real cloud."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

from lab.cloud import images
from lab.cloud.cloud import Cloud

SCENARIOS = "nova_vmi_attest.tempest_plugin.tests"
# One server for all of them.
EXPECTED = 6


def test_all_scenarios_pass(cloud: Cloud, tmp_path: Path) -> None:
    configuration = configure(cloud, tmp_path)
    tempest = Path(sys.executable).with_name("tempest")
    workspace = tmp_path / "workspace"
    # tempest keeps a list of its workspaces in the home directory.
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([tempest, "init", workspace], check=True, capture_output=True, env=environment)
    found = subprocess.run(
        [tempest, "run", "--serial", "--config-file", configuration, "--regex", SCENARIOS],
        cwd=workspace, env=environment, text=True, capture_output=True, check=False, timeout=500,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert f" - Passed: {EXPECTED}" in found.stdout
    assert " - Skipped: 0" in found.stdout


def configure(cloud: Cloud, directory: Path) -> Path:
    """Write a tempest.conf in which tempest makes projects and users of its own."""
    admin = cloud.admin
    image = admin.image.find_image(images.DISK_IMAGE, ignore_missing=False)
    flavor = admin.compute.find_flavor("small", ignore_missing=False)
    auth = admin.config.config["auth"]
    path = directory / "tempest.conf"
    parser = configparser.ConfigParser()
    parser.read_dict(
        {
            "DEFAULT": {"log_file": str(directory / "tempest.log")},
            "oslo_concurrency": {"lock_path": str(directory / "locks")},
            "auth": {
                "admin_username": auth["username"],
                "admin_password": auth["password"],
                "admin_project_name": auth["project_name"],
                "admin_domain_name": "Default",
                "use_dynamic_credentials": "true",
                "create_isolated_networks": "false",
            },
            "identity": {"uri_v3": auth["auth_url"], "auth_version": "v3", "region": "RegionOne"},
            "compute": {
                "image_ref": image.id,
                "image_ref_alt": image.id,
                "flavor_ref": flavor.id,
                "flavor_ref_alt": flavor.id,
                "min_microversion": "2.1",
                "max_microversion": "latest",
                "build_timeout": "180",
            },
            "service_available": {
                "cinder": "false",
                "swift": "false",
                "horizon": "false",
                "neutron": "false",
            },
            "validation": {"run_validation": "false"},
        }
    )
    with path.open("w") as file:
        parser.write(file)
    return path
