# SPDX-License-Identifier: Apache-2.0
"""Which parts a verifier has, by what ``[openstack]`` says, and what an operator may not say there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.verifier.cloud import Cloud
from nova_vmi_attest.verifier.openstack import OpenStackError
from nova_vmi_attest.verifier.traits import Traits

CREDENTIALS = """
auth_type = password
auth_url = http://keystone.invalid/v3
username = attest
password = secret
project_name = service
notification_exchange =
"""


def cloud(directory: Path, database: Database, lines: str) -> Cloud:
    path = directory / "test.conf"
    path.write_text(f"[openstack]\n{lines}\n")
    return Cloud.from_conf(configuration.load(["--config-file", str(path)], "test"), database)


def test_without_credentials_there_is_nothing_and_that_is_said(
    tmp_path: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    assert cloud(tmp_path, database, "") == Cloud()
    assert "has no credentials" in caplog.text


@pytest.mark.parametrize(("trait", "kept"), [("CUSTOM_VMI_ATTESTED", True), ("", False)])
def test_the_trait_is_kept_where_it_is_wanted(
    tmp_path: Path, database: Database, trait: str, kept: bool
) -> None:
    found = cloud(tmp_path, database, f"{CREDENTIALS}trait = {trait}")
    assert any(isinstance(part, Traits) for part in found.parts) is kept
    assert (found.changed is not None) is kept
    assert found.placements is not None


@pytest.mark.parametrize(("lifetime", "reconcile"), [(60, 60), (30, 60), (900, 3600)])
def test_a_memory_shorter_than_the_pause_between_questions_is_refused(
    tmp_path: Path, database: Database, lifetime: int, reconcile: int
) -> None:
    lines = f"{CREDENTIALS}placement_lifetime = {lifetime}\nplacement_reconcile = {reconcile}"
    with pytest.raises(OpenStackError, match="too old") as caught:
        cloud(tmp_path, database, lines)
    assert "placement_lifetime" in caught.value.remedy
