# SPDX-License-Identifier: Apache-2.0
"""``nova-vmi-attest-status upgrade check``: whether the control plane's services will run, and work.

Run it on each host with a verifier, with the new version installed and before it is started. It changes
nothing and asks nobody but the database. The exit status is OpenStack's: 0 for success, 1 for warnings, 2
when something stops the upgrade, 255 when it could not be checked.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from oslo_config import cfg
from oslo_log import log
from oslo_upgradecheck import common_checks, upgradecheck
from oslo_upgradecheck.upgradecheck import Code, Result
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.conf import database as database_options
from nova_vmi_attest.conf import opts
from nova_vmi_attest.conf.policy import ALL_CHECKS
from nova_vmi_attest.db.session import Database, DatabaseError
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.records.registry import HostRegistry
from nova_vmi_attest.references.store import ReferenceStore
from nova_vmi_attest.verifier.hosts import Hosts
from nova_vmi_attest.verifier.openstack import OpenStack
from nova_vmi_attest.verifier.policy import Policy
from nova_vmi_attest.verifier.responses.plugins import load

PROGRAM = "nova-vmi-attest-status"
_CANNOT_CHECK = 255
_NAMED = 10
# Groups in which other packages' options may be that are registered only when they are used.
_OPEN_GROUPS = frozenset(("openstack",))

_Check = Callable[["Commands"], Result]


def _explained(check: _Check) -> _Check:
    """What a check cannot read or use is a failure that says so."""

    @functools.wraps(check)
    def checked(self: Commands) -> Result:
        try:
            return check(self)
        except AttestError as error:
            return Result(Code.FAILURE, str(error))

    return checked


class Commands(upgradecheck.UpgradeCommands):
    """One method for each check; the table at the end is their order."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf

    @_explained
    def options(self) -> Result:
        """Every value can be used, and every option is one of this version."""
        try:
            for group, options in opts.list_registered():
                for option in options:
                    getattr(self._conf[group.name], option.dest)
        except cfg.Error as error:
            return Result(Code.FAILURE, f"a value cannot be used: {error}")
        strange = sorted(set(self._strange()))
        if strange:
            return Result(Code.WARNING, f"this version does not know, or will not for long: {_some(strange)}")
        return Result(Code.SUCCESS)

    @_explained
    def schema(self) -> Result:
        """The database can be reached and has this version's tables."""
        self._database().require_current()
        return Result(Code.SUCCESS)

    @_explained
    def verifier_key(self) -> Result:
        """The verifiers' key is here, and nobody else's; agents and relying parties on this host know it."""
        options = self._conf.verifier
        if not Path(options.private_key).exists():
            return Result(
                Code.WARNING, f"{options.private_key} is not here, as it is wherever a verifier runs"
            )
        public = keys.load_private_key(Path(options.private_key)).public_key()
        known = {Path(self._conf.relying.verifier_keys), Path(self._conf.agent.verifier_keys)}
        for path in sorted(path for path in known if path.exists()):
            if public not in keys.load_public_keys([path]):
                return Result(Code.FAILURE, f"the verifier's key is not among those in {path}")
        return Result(Code.SUCCESS)

    @_explained
    def policy(self) -> Result:
        """The policy can be used and is not weaker than the default."""
        weaker = Policy.from_options(self._conf.policy).relaxations(ALL_CHECKS)
        if weaker:
            return Result(Code.WARNING, f"weaker than the default: {_some(weaker)}")
        return Result(Code.SUCCESS)

    @_explained
    def references(self) -> Result:
        """At least one kernel is approved."""
        if not ReferenceStore(self._conf.references.path).manifests():
            return Result(
                Code.WARNING,
                f"no kernel is approved in {self._conf.references.path}: no guest can be trusted",
            )
        return Result(Code.SUCCESS)

    @_explained
    def openstack(self) -> Result:
        """There are credentials for Nova and Placement, and the responses that need them can be used."""
        access = OpenStack.from_conf(self._conf)
        load(self._conf, access is not None)
        if access is None:
            return Result(
                Code.WARNING,
                "[openstack] is not filled in: where guests belong is not checked, and traits are not kept",
            )
        return Result(Code.SUCCESS)

    @_explained
    def hosts(self) -> Result:
        """Every registered host has an agent that answers."""
        database = self._current()
        if database is None:
            return _NOT_CHECKED
        late = int(time.time()) - self._conf.verifier.result_lifetime
        known = {host.name: host for host in Hosts(database).all()}
        never = [host.name for host in HostRegistry(database).hosts() if host.name not in known]
        silent = [name for name, host in known.items() if (host.answered_at or 0) < late]
        found = [f"no agent ever announced itself on {_some(never)}"] if never else []
        found += [f"no answer comes from {_some(silent)}"] if silent else []
        return Result(Code.WARNING, "; ".join(found)) if found else Result(Code.SUCCESS)

    @_explained
    def overrides(self) -> Result:
        """No operator vouches for a host against its evidence."""
        database = self._current()
        if database is None:
            return _NOT_CHECKED
        active = [item.host for item in Overrides(database).all(int(time.time()))]
        if active:
            return Result(Code.WARNING, f"an operator vouches for {_some(active)}")
        return Result(Code.SUCCESS)

    @_explained
    def policy_file(self) -> Result:
        """The API's policy file is not in JSON, which oslo.policy gave up."""
        result: Result = common_checks.check_policy_json(self, self._conf)
        return result

    def _database(self) -> Database:
        connection = self._conf.database.connection
        try:
            url = make_url(connection)
        except ArgumentError as error:
            raise DatabaseError("[database] connection is no database URL", "correct it") from error
        # Looking at it would make it.
        if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
            raise DatabaseError(f"{url.database} is not here", "run: nova-vmi-attest-manage db upgrade")
        return Database(connection)

    def _current(self) -> Database | None:
        """The database, if it has this version's tables: those of another one cannot be read."""
        try:
            database = self._database()
            database.require_current()
        except AttestError:
            return None
        return database

    def _strange(self) -> Iterable[str]:
        """Options in the configuration files that no option of this version reads, or that are deprecated."""
        known: dict[str, dict[str, cfg.Opt]] = {}
        for group, options in opts.list_registered():
            known.setdefault(group.name, {}).update((option.dest, option) for option in options)
        for path in self._conf.config_file or ():
            sections: dict[str, dict[str, Any]] = {}
            cfg.ConfigParser(path, sections).parse()
            for section in known.keys() & sections.keys() - _OPEN_GROUPS:
                for name in sections[section]:
                    option = known[section].get(name.replace("-", "_"))
                    if option is None or option.deprecated_for_removal:
                        yield f"[{section}] {name}"

    _upgrade_checks = (
        ("Options", options),
        ("Database schema", schema),
        ("Verifier's key", verifier_key),
        ("Appraisal policy", policy),
        ("Reference kernels", references),
        ("Access to OpenStack, and responses", openstack),
        ("Hosts", hosts),
        ("Overrides", overrides),
        ("Policy file of the API", policy_file),
    )


_NOT_CHECKED = Result(Code.WARNING, "not checked, because the database cannot be read")


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the check and print it; returns the exit status."""
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    opts.register(conf)
    database_options.register(conf)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status: int = upgradecheck.main(conf, configuration.PROJECT, Commands(conf), arguments)
    except cfg.Error as error:
        print(f"{PROGRAM}: the configuration cannot be used: {error}", file=sys.stderr)
        return _CANNOT_CHECK
    return int(status)


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - _NAMED
    return ", ".join(every[:_NAMED]) + (f" and {more} more" if more > 0 else "")
