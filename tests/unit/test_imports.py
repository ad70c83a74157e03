# SPDX-License-Identifier: Apache-2.0
"""Dependencies point down: read off the source of every module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.import_rules import PACKAGE, Breach, breaches, imported, module_name

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))
LONGEST_MODULE = 400
FORBIDDEN = {"eventlet", "volatility3"}
PURE_ROOTS = ("kernel", "introspection", "evidence", "tpm", "references", "verifier.appraisal")
SERVICE_CODE = {"alembic", "keystoneauth1", "libvirt", "nova", "sqlalchemy"}


def imports_of(path: Path) -> set[str]:
    return imported(path.read_text(), module_name(path, ROOT), path.name == "__init__.py")


IMPORTS = {module_name(path, ROOT): imports_of(path) for path in SOURCES}


def reached(start: str) -> set[str]:
    """Modules of ours that importing `start` runs, parent packages included, and what they import besides."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        # `from package.module import thing` names the module and the thing; what is no module ends here.
        if name in seen or name not in IMPORTS:
            if name not in seen and name.startswith(PACKAGE) and "." in name:
                waiting.append(name.rpartition(".")[0])
                seen.add(name)
            continue
        seen.add(name)
        waiting.extend([*IMPORTS[name], name.rpartition(".")[0]])
    return seen & IMPORTS.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_name(path, ROOT))
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    module = module_name(path, ROOT)
    assert sorted(breaches(module, IMPORTS[module])) == []


@pytest.mark.parametrize("root", PURE_ROOTS)
def test_pure_code_reaches_no_service_code_through_others(root: str) -> None:
    starts = [name for name in IMPORTS if f"{name}.".startswith(f"{PACKAGE}.{root}.")]
    assert starts
    modules = set().union(*(reached(name) for name in starts))
    tops = {name.split(".")[0] for module in modules for name in IMPORTS[module]}
    assert {top for top in tops if top in SERVICE_CODE or top.startswith("oslo")} == set()


def test_only_the_device_and_the_authoritys_credential_know_a_tpm_library() -> None:
    users = {
        module for module, names in IMPORTS.items() if any(name.startswith("tpm2_pytss") for name in names)
    }
    assert users <= {f"{PACKAGE}.tpm.{name}" for name in ("device", "sessions", "keys", "credential")}
    assert f"{PACKAGE}.tpm.device" in users


def test_nothing_imports_what_the_house_forbids() -> None:
    assert {name.split(".")[0] for names in IMPORTS.values() for name in names} & FORBIDDEN == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_name(path, ROOT))
def test_a_module_is_one_story_and_says_its_licence(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST_MODULE
    assert lines == [] or lines[0] == "# SPDX-License-Identifier: Apache-2.0"


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("attester.rounds", "from nova_vmi_attest.verifier import policy", "nova_vmi_attest.verifier.policy"),
        ("verifier.service", "import nova_vmi_attest.attester", "nova_vmi_attest.attester"),
        ("relying.trust", "from ..db import models", "nova_vmi_attest.db.models"),
        ("verifier.appraisal", "from nova_vmi_attest.db import session", "nova_vmi_attest.db.session"),
        ("verifier.appraisal", "from . import results", "nova_vmi_attest.verifier.results"),
        ("verifier.appraisal", "def f():\n    import socket", "socket"),
        (
            "kernel.btf",
            "from nova_vmi_attest.introspection import guest",
            "nova_vmi_attest.introspection.guest",
        ),
        ("kernel.btf", "import logging", "logging"),
        ("introspection.guest", "from oslo_log import log", "oslo_log.log"),
        ("introspection.guest", "import libvmi", "libvmi"),
        (
            "introspection.guest",
            "from nova_vmi_attest.evidence.batch import Batch",
            "nova_vmi_attest.evidence.batch.Batch",
        ),
        ("evidence.proof", "from nova_vmi_attest.tpm import device", "nova_vmi_attest.tpm.device"),
        ("evidence.proof", "if False:\n    import oslo_config.cfg", "oslo_config.cfg"),
        ("tpm.quote", "from tpm2_pytss import ESAPI", "tpm2_pytss.ESAPI"),
    ],
)
def test_the_checker_finds_a_breach(module: str, source: str, found: str) -> None:
    names = imported(source, f"{PACKAGE}.{module}", is_package=False)
    assert breaches(f"{PACKAGE}.{module}", names) == {Breach(f"{PACKAGE}.{module}", found)}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("attester.rounds", "from nova_vmi_attest.evidence import batch\nfrom . import guests"),
        (
            "verifier.appraisal",
            "from nova_vmi_attest.evidence.batch import Batch\nfrom .policy import Policy",
        ),
        (
            "introspection.checks.text",
            "from nova_vmi_attest.kernel.vmlinux import Vmlinux\nimport numpy as np",
        ),
        ("evidence.proof", "from nova_vmi_attest.tpm.quote import verify_quote\nimport hashlib"),
    ],
)
def test_the_checker_lets_the_rest_pass(module: str, source: str) -> None:
    names = imported(source, f"{PACKAGE}.{module}", is_package=False)
    assert breaches(f"{PACKAGE}.{module}", names) == set()


def test_the_checker_knows_no_module_without_a_rule() -> None:
    with pytest.raises(AssertionError, match="no rule"):
        breaches(f"{PACKAGE}.utils", set())
