# SPDX-License-Identifier: Apache-2.0
"""The openstack command as tenants and operators type it, in a real cloud."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab.cloud.cloud import Cloud
from lab.cloud.guests import alter
from lab.cloud.waiting import until

from nova_vmi_attest.evidence.result import Verdict
from tests.openstack.conftest import Boot

Openstack = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def openstack(cloud: Cloud, tmp_path: Path) -> Openstack:
    """Run ``openstack`` as one of the cloud's users."""
    configuration = cloud.identity.write_clouds()
    program = Path(sys.executable).with_name("openstack")

    def run(user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(configuration), "OS_CLOUD": user}
        return subprocess.run(
            [str(program), *arguments], env=environment, cwd=tmp_path, text=True, capture_output=True,
            check=False, timeout=180,
        )  # fmt: skip

    return run


def printed(found: subprocess.CompletedProcess[str]) -> Any:
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_a_tenant_verifies_his_server_alone(
    cloud: Cloud, boot: Boot, openstack: Openstack, tmp_path: Path
) -> None:
    server = boot("verified")
    cloud.wait_verdict(server)
    ca, proof = tmp_path / "authority.pem", tmp_path / "proof"
    ca.write_bytes((cloud.layout.config("nova-vmi-attest") / "authority.pem").read_bytes())

    shown = until(lambda: _shown(openstack, str(server.id)), "the API to show the server", 60)
    assert (shown["verdict"], shown["host_verdict"]) == ("trusted", "trusted")
    listed = printed(openstack("alpha", "trust", "server", "list", "-f", "json"))
    assert str(server.id) in [item["id"] for item in listed]

    verify = ("trust", "server", "verify", str(server.id), "--ca", str(ca), "-f", "json")
    verified = printed(openstack("alpha", *verify, "--save", str(proof)))
    assert (verified["proof"], verified["evidence"]) == ("valid", "sound")
    # The saved proof needs no service, and is worth nothing without its nonce.
    saved = ("trust", "proof", "verify", str(proof), "--ca", str(ca), "-f", "json", "--nonce")
    again = printed(openstack("", *saved, verified["nonce"]))
    assert (again["server"], again["log_record"]) == (str(server.id), verified["log_record"])
    other = openstack("", *saved, "00" * 32)
    assert other.returncode == 1
    assert "nonce" in other.stderr

    stranger = openstack("beta", "trust", "server", "show", str(server.id))
    assert stranger.returncode == 1
    assert "404" in stranger.stderr

    alter(cloud.console(server))
    cloud.wait_verdict(server, Verdict.UNTRUSTED, timeout=120)
    altered = openstack("alpha", *verify)
    assert altered.returncode == 1
    assert json.loads(altered.stdout)["evidence"] == "NOT SOUND"
    changes = printed(openstack("alpha", "trust", "server", "history", str(server.id), "-f", "json"))
    assert changes[0]["verdict"] == "untrusted"


def test_an_operator_looks_after_hosts(cloud: Cloud, openstack: Openstack) -> None:
    hosts = printed(openstack("admin", "trust", "host", "list", "-f", "json"))
    assert {"compute-1", "compute-2"} <= {host["name"] for host in hosts}
    assert printed(openstack("admin", "trust", "host", "list", "--pending", "-f", "json")) == []
    override = ("trust", "host", "override", "compute-2")
    made = printed(openstack("admin", *override, "--reason", "TPM is replaced", "--hours", "1", "-f", "json"))
    assert made["override"]["reason"] == "TPM is replaced"
    assert printed(openstack("admin", *override, "--lift", "-f", "json"))["override"] is None
    references = printed(openstack("admin", "trust", "reference", "list", "-f", "json"))
    assert references
    assert printed(openstack("admin", "trust", "policy", "show", "-f", "json"))["required_checks"]
    refused = openstack("alpha", "trust", "host", "list")
    assert refused.returncode == 1
    assert "403" in refused.stderr
    assert "Traceback" not in refused.stderr


def _shown(openstack: Openstack, server: str) -> Any:
    found = openstack("alpha", "trust", "server", "show", server, "-f", "json")
    return json.loads(found.stdout) if found.returncode == 0 else None
