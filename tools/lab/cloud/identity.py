# SPDX-License-Identifier: Apache-2.0
"""Keystone: who there is in the cloud, what they may do, and where each service is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from openstack.config import OpenStackConfig
from openstack.connection import Connection

from lab.cloud import ini, web
from lab.cloud.database import Database
from lab.cloud.layout import REGION, Layout
from lab.cloud.processes import Processes

PROJECTS = ("alpha", "beta")
"""Two tenants that must not see each other's servers. Each has a user of its own name, a member of the
project, and a ``<name>-reader``."""

# service user, service type, path of its endpoint; by the name of the service's port
SERVICES = {
    "glance": ("glance", "image", ""),
    "placement": ("placement", "placement", ""),
    "neutron": ("neutron", "network", ""),
    "nova": ("nova", "compute", "/v2.1"),
    "attestation": ("nova-vmi-attest", "attestation", ""),
}


class Identity:
    """Keystone and what is in it."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes

    def configure(self) -> None:
        """Write keystone.conf."""
        keys = self._layout.state("keystone")
        for repository in ("fernet", "credential"):
            (keys / repository).mkdir(parents=True, exist_ok=True, mode=0o700)
        ini.write(
            self._file,
            {
                "DEFAULT": {"log_file": self._layout.logs / "keystone.log"},
                "database": {"connection": self._layout.database("keystone")},
                "token": {"provider": "fernet"},
                "fernet_tokens": {"key_repository": keys / "fernet"},
                "credential": {"key_repository": keys / "credential"},
            },
        )

    def migrate(self) -> None:
        """Fill an empty database: schema, keys, and an administrator."""
        url = self._layout.url("keystone", "/v3")
        for arguments in (
            ["db_sync"],
            ["fernet_setup", "--keystone-user", "root", "--keystone-group", "root"],
            ["credential_setup", "--keystone-user", "root", "--keystone-group", "root"],
            [
                "bootstrap", "--bootstrap-password", self._layout.password, "--bootstrap-region-id", REGION,
                "--bootstrap-public-url", url, "--bootstrap-internal-url", url,
            ],
        ):  # fmt: skip
            self._processes.run("keystone-manage", "--config-file", str(self._file), *arguments)

    def start(self) -> None:
        """Start the API and wait for it."""
        environment = {"OS_KEYSTONE_CONFIG_DIR": str(self._file.parent)}
        web.serve(self._layout, self._processes, "keystone", "keystone.wsgi.api", environment)
        web.wait(self._layout, self._processes, "keystone")

    def populate(self) -> None:
        """Make the service users, the tenants and the catalogue."""
        # The library's types also allow for Keystone's version 2.
        identity: Any = connect(self._layout, "admin").identity
        roles = {role.name: role for role in identity.roles()}
        service_project = identity.create_project(name="service", domain_id="default")
        for port, (name, kind, path) in SERVICES.items():
            user = self._user(identity, name)
            for role in ("admin", "service"):
                identity.assign_project_role_to_user(service_project, user, roles[role])
            self._endpoint(identity, identity.create_service(name=name, type=kind).id, port, path)
        administrator = identity.find_user("admin")
        for name in PROJECTS:
            project = identity.create_project(name=name, domain_id="default")
            identity.assign_project_role_to_user(project, administrator, roles["admin"])
            for user_name, role in ((name, "member"), (f"{name}-reader", "reader")):
                identity.assign_project_role_to_user(project, self._user(identity, user_name), roles[role])

    def move_endpoints(self, database: Database) -> None:
        """Point the catalogue of a restored database at the ports of this cloud."""
        paths = {kind: self._layout.url(port, path) for port, (_, kind, path) in SERVICES.items()}
        paths["identity"] = self._layout.url("keystone", "/v3")
        database.execute(
            "".join(
                "UPDATE keystone.endpoint JOIN keystone.service ON endpoint.service_id = service.id"
                f" SET endpoint.url = '{url}' WHERE service.type = '{kind}';"
                for kind, url in paths.items()
            )
        )

    def write_clouds(self) -> Path:
        """Write the clouds.yaml by which clients find the cloud, with an entry for each user."""
        path = self._layout.directory / "clouds.yaml"
        path.touch(0o600)
        path.write_text(yaml.safe_dump({"clouds": {name: entry(self._layout, name) for name in users()}}))
        return path

    @property
    def _file(self) -> Path:
        return self._layout.config("keystone") / "keystone.conf"

    def _user(self, identity: Any, name: str) -> Any:
        return identity.create_user(name=name, password=self._layout.password, domain_id="default")

    def _endpoint(self, identity: Any, service: str, port: str, path: str) -> None:
        for interface in ("public", "internal"):
            identity.create_endpoint(
                service_id=service, interface=interface, url=self._layout.url(port, path), region_id=REGION
            )


def users() -> tuple[str, ...]:
    """Names of the users that people and tests act as; each has an entry in clouds.yaml."""
    return ("admin", *(name for project in PROJECTS for name in (project, f"{project}-reader")))


def entry(layout: Layout, user: str, project: str = "") -> dict[str, Any]:
    """The clouds.yaml entry of a user; without ``project`` in the one that the user is named after."""
    return {
        "auth": {
            "auth_url": layout.url("keystone", "/v3"),
            "username": user,
            "password": layout.password,
            "project_name": project or user.removesuffix("-reader"),
            "user_domain_id": "default",
            "project_domain_id": "default",
        },
        "region_name": REGION,
        "identity_api_version": 3,
    }


def connect(layout: Layout, user: str, project: str = "") -> Connection:
    """Return a connection of openstacksdk for a user; no file or variable of the caller's is read."""
    loader = OpenStackConfig(load_yaml_config=False, load_envvars=False)
    return Connection(config=loader.get_one(**entry(layout, user, project)))
