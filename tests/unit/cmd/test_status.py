# SPDX-License-Identifier: Apache-2.0
"""The upgrade check says what would stop the services, and changes nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import evidence_examples as examples
import pytest

from nova_vmi_attest.cmd.status import main
from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.references.manifest import Blob, Manifest, Source
from nova_vmi_attest.references.store import ReferenceStore
from nova_vmi_attest.verifier.hosts import Hosts

OK, WARNING, FAILURE = 0, 1, 2


class Deployment:
    """A control plane that is in order, but for Nova's credentials."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys
        self.config = directory / "attest.conf"
        self.database = Database(f"sqlite:///{directory}/attest.sqlite")
        self.database.upgrade()
        self.key = directory / "verifier.key"
        keys.save_private_key(self.key, examples.key("verifier"))
        self.jwks = directory / "verifier.jwks"
        self.jwks.write_bytes(keys.encode_jwks([examples.key("verifier").public_key()]))
        digest = examples.octets("kernel").hex()
        ReferenceStore(directory / "references").put_manifest(
            Manifest(
                "6.1.0", "ab" * 20, "cd" * 32, Blob(digest, 1), (), Source("linux-image", "1", digest)
            ).encode()
        )
        self.configure()

    def configure(self, extra: str = "") -> None:
        self.config.write_text(
            f"""[database]
connection = sqlite:///{self.directory}/attest.sqlite
[verifier]
private_key = {self.key}
[relying]
verifier_keys = {self.jwks}
[references]
path = {self.directory}/references
[openstack]
auth_type = password
auth_url = http://localhost/identity
username = nova-vmi-attest
password = secret
project_name = service
user_domain_id = default
project_domain_id = default
{extra}
"""
        )

    def __call__(self) -> tuple[int, dict[str, tuple[int, str]]]:
        """The exit status, and (code, details) of each check by name."""
        status = main(["--config-file", str(self.config), "upgrade", "check", "--json"])
        output = self._capsys.readouterr().out
        checks: list[dict[str, Any]] = json.loads(output)["checks"]
        return status, {item["check"]: (item["result"], item["details"] or "") for item in checks}

    def only(self, name: str) -> tuple[int, str]:
        """What the one check says that is not content."""
        status, checks = self()
        found = {check: said for check, said in checks.items() if said[0] != OK}
        assert list(found) == [name]
        assert status == found[name][0]
        return found[name]


@pytest.fixture
def deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    return Deployment(tmp_path, capsys)


def test_all_is_well(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    status, checks = deployment()
    assert (status, {code for code, _ in checks.values()}) == (OK, {OK})
    assert len(checks) == 9
    assert main(["--config-file", str(deployment.config), "upgrade", "check"]) == OK
    table = capsys.readouterr().out
    assert "Upgrade Check Results" in table
    assert "Check: Database schema" in table


def test_a_database_that_is_behind(deployment: Deployment) -> None:
    with deployment.database.writer() as session:
        session.connection().exec_driver_sql("update alembic_version set version_num = '0001'")
    status, checks = deployment()
    assert status == FAILURE
    assert checks["Database schema"][0] == FAILURE
    assert "0001" in checks["Database schema"][1]
    assert "db upgrade" in checks["Database schema"][1]
    assert checks["Hosts"] == (WARNING, "not checked, because the database cannot be read")


def test_a_database_that_is_not_there_is_not_made(deployment: Deployment) -> None:
    path = deployment.directory / "attest.sqlite"
    deployment.database.close()
    for name in deployment.directory.glob("attest.sqlite*"):
        name.unlink()
    status, checks = deployment()
    assert (status, checks["Database schema"][0]) == (FAILURE, FAILURE)
    assert not path.exists()


@pytest.mark.parametrize("url", ["nonsense", "mysql+nodriver://x", "postgresql://127.0.0.1:1/x", ""])
def test_a_database_that_cannot_be_reached(deployment: Deployment, url: str) -> None:
    text = deployment.config.read_text()
    deployment.config.write_text(
        text.replace(f"sqlite:///{deployment.directory}/attest.sqlite", url or "sqlite:////proc/none")
    )
    status, checks = deployment()
    assert (status, checks["Database schema"][0]) == (FAILURE, FAILURE)


def test_keys(deployment: Deployment) -> None:
    deployment.key.chmod(0o644)
    assert "chmod 600" in deployment.only("Verifier's key")[1]
    deployment.key.chmod(0o600)
    deployment.jwks.write_bytes(keys.encode_jwks([examples.key("stranger").public_key()]))
    code, text = deployment.only("Verifier's key")
    assert (code, str(deployment.jwks) in text) == (FAILURE, True)
    deployment.jwks.write_bytes(b"[" * 10000)
    assert deployment.only("Verifier's key")[0] == FAILURE
    deployment.jwks.unlink()
    assert deployment()[0] == OK
    deployment.key.unlink()
    assert deployment.only("Verifier's key")[0] == WARNING


def test_a_weak_policy_and_a_wrong_one(deployment: Deployment) -> None:
    deployment.configure("[policy]\nunsafe_tolerate_hooks = true")
    code, text = deployment.only("Appraisal policy")
    assert (code, "unsafe_tolerate_hooks" in text) == (WARNING, True)
    deployment.configure("[policy]\napproved_pcr = nonsense")
    assert deployment.only("Appraisal policy")[0] == FAILURE


def test_references(deployment: Deployment) -> None:
    deployment.configure(f"[references]\npath = {deployment.directory}/none")
    assert deployment.only("Reference kernels")[0] == WARNING
    assert not (deployment.directory / "none").exists()


def test_access_to_openstack_and_responses(deployment: Deployment) -> None:
    name = "Access to OpenStack, and responses"
    whole = deployment.config.read_text()
    deployment.config.write_text(whole.replace("auth_type = password", ""))
    assert deployment.only(name)[0] == WARNING
    deployment.config.write_text(
        whole.replace("auth_type = password", "") + "[responses]\non_guest_untrusted = lock\n"
    )
    assert "[openstack]" in deployment.only(name)[1]
    deployment.configure("[responses]\non_guest_untrusted = lock,nonsense")
    assert deployment.only(name)[0] == FAILURE
    deployment.config.write_text(whole.replace("auth_type = password", "auth_type = nonsense"))
    assert deployment.only(name)[0] == FAILURE


def test_hosts_that_do_not_answer(deployment: Deployment) -> None:
    Hosts(deployment.database).remember("compute-1", "tpm", "pem", 1)
    with deployment.database.writer() as session:
        session.add(models.Host(name="compute-2", ek_digest="ab" * 32, ek_certificate="", registered_at=1))
    code, text = deployment.only("Hosts")
    assert (code, text) == (
        WARNING,
        "no agent ever announced itself on compute-2; no answer comes from compute-1",
    )


def test_overrides_are_not_forgotten(deployment: Deployment) -> None:
    for number in range(12):
        Overrides(deployment.database).set(f"h{number:02}", "why", "ops", 60, int(time.time()))
    assert deployment.only("Overrides")[1].endswith("h09 and 2 more")


def test_options_that_nobody_reads(deployment: Deployment) -> None:
    deployment.configure("[verifier]\nintervall = 5\n[responses]\non-host-stale = notify\n[other]\nx = 1")
    assert deployment.only("Options") == (
        WARNING,
        "this version does not know, or will not for long: [verifier] intervall",
    )
    deployment.configure("[verifier]\ninterval = often")
    status, checks = deployment()
    assert (status, checks["Options"][0]) == (FAILURE, FAILURE)
    assert "interval" in checks["Options"][1]


def test_a_policy_file_in_json(deployment: Deployment) -> None:
    path = deployment.directory / "policy.json"
    path.write_text("{}")
    deployment.configure(f"[oslo_policy]\npolicy_file = {path}")
    assert deployment.only("Policy file of the API")[0] == FAILURE


def test_a_configuration_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config-file", str(tmp_path / "none"), "upgrade", "check"]) == 255
    assert str(tmp_path / "none") in capsys.readouterr().err
    (tmp_path / "bad").write_text("no group\n")
    assert main(["--config-file", str(tmp_path / "bad"), "upgrade", "check"]) == 255
    assert "Traceback" not in capsys.readouterr().err
