# SPDX-License-Identifier: Apache-2.0
"""The architecture's rules of who may import whom, and a checker that reads them off the source.

Imports inside functions and for type checking count like any other: they are dependencies, too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "nova_vmi_attest"
EVERYWHERE = ("errors",)
TALKATIVE = frozenset({"asyncio", "http", "logging", "socket", "sqlite3", "subprocess", "urllib"})
"""Modules of the standard library that pure code does without: it says nothing and reaches nothing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one package or module may import: of our own packages, and of other people's.

    A rule for a module inside a package replaces the package's rule. `pure` also forbids TALKATIVE.
    """

    ours: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ()
    pure: bool = False


OSLO = ("oslo_config", "oslo_log", "oslo_messaging", "oslo_service", "oslo_utils", "oslo_concurrency")
DATABASE = ("oslo_db", "sqlalchemy", "alembic")
SHARED = ("conf", "db", "evidence", "messaging", "records", "references", "tpm")
OPENSTACK_WEB = ("keystonemiddleware", "oslo_context", "oslo_middleware", "oslo_policy")
WEB = (*OPENSTACK_WEB, "flask", "jsonschema", "werkzeug")
KEYSTONE = ("keystoneauth1", "openstack")

RULES: Mapping[str, Rule] = {
    "": Rule(),
    "errors": Rule(),
    # Pure packages, lowest first.
    "kernel": Rule(theirs=("numpy", "elftools", "lz4", "zstandard"), pure=True),
    "tpm": Rule(theirs=("cryptography",), pure=True),
    # Verification needs no TPM and must not come to need one.
    "tpm.structures": Rule(theirs=("cryptography",), pure=True),
    "tpm.quote": Rule(("tpm.structures",), ("cryptography",), pure=True),
    "tpm.endorsement": Rule(("tpm.structures",), ("OpenSSL", "cryptography"), pure=True),
    "tpm.ak_certificate": Rule(("tpm.endorsement", "tpm.structures"), ("cryptography",), pure=True),
    "tpm.device": Rule(("tpm",), ("cryptography", "tpm2_pytss"), pure=True),
    "tpm.sessions": Rule(("tpm",), ("cryptography", "tpm2_pytss"), pure=True),
    "tpm.keys": Rule(("tpm",), ("cryptography", "tpm2_pytss"), pure=True),
    "tpm.credential": Rule(("tpm",), ("cryptography", "tpm2_pytss"), pure=True),
    "evidence": Rule(
        ("tpm.ak_certificate", "tpm.quote", "tpm.structures"), ("cryptography", "jwt", "rfc8785"), pure=True
    ),
    "introspection": Rule(("kernel", "evidence.measurement"), ("numpy", "capstone", "stevedore"), pure=True),
    "introspection.memory.libvmi": Rule(("introspection",), ("libvmi", "numpy"), pure=True),
    "references": Rule(
        ("kernel", "evidence.encoding"), ("debian", "lz4", "rpmfile", "zstandard", "rfc8785"), pure=True
    ),
    # Appraisal is the verifier's pure heart: evidence and policy come in, a verdict goes out.
    "verifier.appraisal": Rule(
        ("evidence", "tpm", "verifier.placed", "verifier.policy"), ("cryptography",), pure=True
    ),
    "verifier.placed": Rule(("evidence", "verifier.policy"), (), pure=True),
    "verifier.policy": Rule(("evidence", "tpm"), (), pure=True),
    # What the services share.
    "messaging": Rule(("conf",), OSLO),
    "conf": Rule((), (*OSLO, *DATABASE, "keystoneauth1", "keystonemiddleware")),
    "db": Rule(("conf",), OSLO + DATABASE),
    "records": Rule(("db", "evidence", "tpm"), (*DATABASE, "cryptography")),
    # The services, which know the shared packages and themselves, and never each other.
    "attester": Rule((*SHARED, "introspection", "kernel"), (*OSLO, "libvirt", "cryptography", "lxml")),
    "authority": Rule(SHARED, (*OSLO, *DATABASE, "cryptography")),
    "verifier": Rule(SHARED, (*OSLO, *DATABASE, *KEYSTONE, "cryptography", "stevedore")),
    "relying": Rule(("conf", "evidence", "messaging"), (*OSLO, "cryptography")),
    # What Nova loads into its own services knows Nova, and the part that both schedulers' plugins share does.
    "relying.shared": Rule(("conf", "evidence", "messaging", "relying"), (*OSLO, "nova")),
    "relying.scheduler_filter": Rule(("conf", "evidence", "messaging", "relying"), (*OSLO, "nova")),
    "relying.scheduler_weigher": Rule(("conf", "evidence", "messaging", "relying"), (*OSLO, "nova")),
    "relying.demand": Rule(("evidence", "relying"), OSLO),
    "relying.servers": Rule(("relying",), (*OSLO, "nova", "oslo_db")),
    "relying.requests": Rule(("conf", "relying"), (*OSLO, "nova")),
    "relying.extra_specs": Rule(("conf", "relying"), ("nova",)),
    "relying.server_properties": Rule(("conf", "evidence", "relying"), (*OSLO, "nova", "webob")),
    "relying.lifecycle_driver": Rule(("conf", "relying"), (*OSLO, "nova")),
    # The control plane's HTTP interface; it reads what the services recorded and asks them over the bus.
    "policies": Rule((), ("oslo_policy",)),
    "api": Rule((*SHARED, "policies"), (*OSLO, *DATABASE, *WEB, "cryptography", "yaml")),
    "wsgi": Rule(("api", "conf", "messaging"), OSLO),
    # The client's plugin runs where nothing else of this package is configured.
    "osc": Rule(("evidence", "tpm"), ("cryptography", "keystoneauth1", "openstack", "osc_lib", "cliff")),
    "tempest_plugin": Rule((), ("tempest", "oslo_config", "testtools")),
    # Command lines put services together, so they may know everything.
    "cmd": Rule(
        ("attester", "authority", "verifier", "relying", "introspection", "kernel", *SHARED),
        (*OSLO, *DATABASE, "cryptography", "rich", "oslo_upgradecheck"),
    ),
}


@dataclass(frozen=True, slots=True, order=True)
class Breach:
    """One import that its module may not have."""

    module: str
    imports: str


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name of a source file below the directory that holds the package."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """Return the full dotted names that a module's source imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + (1 if is_package else 0)]
                base = ".".join([*parents, base] if base else parents)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def rule_for(module: str) -> tuple[str, Rule]:
    """Return the most particular rule for a module of the package, and the name it goes by."""
    name = module.removeprefix(PACKAGE).removeprefix(".")
    while name not in RULES:
        if "." not in name:
            raise AssertionError(f"no rule says what {module} may import")
        name = name.rpartition(".")[0]
    return name, RULES[name]


def breaches(module: str, names: Iterable[str]) -> set[Breach]:
    """Return every import of a module that no rule allows."""
    own, rule = rule_for(module)
    allowed = {*EVERYWHERE, *rule.ours, own}
    return {Breach(module, name) for name in names if not _is_allowed(name, allowed, rule)}


def _is_allowed(name: str, allowed: set[str], rule: Rule) -> bool:
    top = name.split(".")[0]
    if top == PACKAGE:
        inside = name.removeprefix(PACKAGE).removeprefix(".")
        return not inside or any(
            inside == prefix or inside.startswith(f"{prefix}.") for prefix in allowed if prefix
        )
    if top in sys.stdlib_module_names or top == "__future__":
        return not (rule.pure and top in TALKATIVE)
    return top in rule.theirs
