# SPDX-License-Identifier: Apache-2.0
"""A small cloud in a database, the API in front of it, and tokens that Keystone's middleware takes for real.

Only the call to Keystone is made up (keystonemiddleware's own fixture); everything else is what is deployed.
"""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy.engine
import sqlalchemy.event
from keystoneauth1 import fixture as tokens
from keystonemiddleware.fixture import AuthTokenFixture
from oslo_config import cfg
from werkzeug.test import Client, TestResponse

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.api.deploy import WsgiApp, make_application
from nova_vmi_attest.db.session import Database

PROJECT, OTHER = "a" * 32, "b" * 32
ROLES = {
    "admin": ("admin", "manager", "member", "reader"),
    "member": ("member", "reader"),
    "reader": ("reader",),
    "nobody": ("other",),
}


def make_conf(directory: Path) -> cfg.ConfigOpts:
    """The configuration of an API with an empty, current database in ``directory``."""
    file = directory / "api.conf"
    file.write_text(
        f"""
[DEFAULT]
transport_url = fake:/
[database]
connection = sqlite:///{directory}/attest.sqlite
[references]
path = {directory}/references
[relying]
verifier_keys = {directory}/verifier.jwks
[verifier]
authority_certificates = {directory}/authority.pem
[keystone_authtoken]
auth_type = password
auth_url = http://keystone.invalid/
www_authenticate_uri = http://keystone.invalid/
service_token_roles_required = true
"""
    )
    conf = configuration.load([], default_files=[str(file)])
    Database(conf.database.connection).upgrade()
    return conf


def token(role: str, project: str | None = PROJECT, system: bool = False, seconds: int = 3600) -> Any:
    """What Keystone says of a token: roles for a project, for all of the system, or for a domain."""
    expires = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=seconds)
    made = tokens.V3Token(expires=expires, user_id="c" * 32)
    if system:
        made.set_system_scope()
    elif project is None:
        made.set_domain_scope()
    else:
        made.set_project_scope(id=project)
    for name in ROLES[role]:
        made.add_role(name=name)
    return made


class Api:
    """The deployed application with a client."""

    def __init__(self, conf: cfg.ConfigOpts, keystone: AuthTokenFixture) -> None:
        self.conf = conf
        self.keystone = keystone
        self.application: WsgiApp
        self.database = Database(conf.database.connection)
        self.restart()

    def restart(self) -> None:
        """Make the application anew, as after a change of its configuration."""
        self.application = make_application(self.conf)
        self._client = Client(self.application)

    def login(
        self, role: str, project: str | None = PROJECT, system: bool = False, seconds: int = 3600
    ) -> str:
        """A token's id."""
        made: str = self.keystone.add_token(token(role, project, system, seconds), uuid.uuid4().hex)
        return made

    def request(self, method: str, path: str, token_id: str | None = None, **arguments: Any) -> TestResponse:
        """One request; ``json`` and ``data`` as Werkzeug's client takes them."""
        headers = dict(arguments.pop("headers", {}))
        if token_id is not None:
            headers["X-Auth-Token"] = token_id
        return self._client.open(path, method=method, headers=headers, **arguments)

    def get(self, path: str, token_id: str | None = None, **arguments: Any) -> TestResponse:
        return self.request("GET", path, token_id, **arguments)

    def count_queries(self, path: str, token_id: str) -> int:
        """How many SELECT statements a GET takes, once all is warm."""
        self.get(path, token_id)
        seen: list[str] = []

        def executed(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if statement.lstrip().upper().startswith("SELECT"):
                seen.append(statement)

        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", executed)
        try:
            assert self.get(path, token_id).status_code == 200
        finally:
            sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", executed)
        return len(seen)


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Api]:
    """An API over an empty database."""
    with AuthTokenFixture() as keystone:
        api = Api(make_conf(directory), keystone)
        try:
            yield api
        finally:
            api.database.close()
