# SPDX-License-Identifier: Apache-2.0
"""Options come from one place, belong to one program, and explain themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from keystoneauth1 import loading

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.conf import openstack, opts
from nova_vmi_attest.conf.policy import ALL_CHECKS

GROUPS = {
    "agent", "tpm", "authority", "verifier", "openstack", "policy", "references", "relying", "responses",
    "api",
}  # fmt: skip


def test_every_group_is_listed_and_registered() -> None:
    assert {group.name for group, _ in opts.list_own()} == GROUPS
    conf = configuration.load([], default_files=[])
    assert all(hasattr(conf, name) for name in GROUPS | {"database"})


@pytest.mark.parametrize("option", [option for _, options in opts.list_own() for option in options], ids=str)
def test_every_option_says_what_it_is_for(option: object) -> None:
    text = getattr(option, "help", "")
    assert text
    assert text.strip().endswith((".", "``"))


def test_the_command_line_names_the_file_and_the_file_sets_values(tmp_path: Path) -> None:
    path = tmp_path / "own.conf"
    path.write_text("[verifier]\ninterval = 7\n[policy]\napproved_pcr = 0:aa\napproved_pcr = 1:bb\n")
    conf = configuration.load(["--config-file", str(path)], "nova-vmi-attest-verifier")
    assert conf.verifier.interval == 7
    assert conf.policy.approved_pcr == ["0:aa", "1:bb"]
    assert conf.database.connection == "sqlite:////var/lib/nova-vmi-attest/attest.sqlite"


def test_programs_do_not_share_values() -> None:
    one, other = (configuration.load([], default_files=[]) for _ in range(2))
    one.set_override("interval", 7, "verifier")
    assert other.verifier.interval == 60


def test_all_checks_of_the_package_are_required_by_default() -> None:
    conf = configuration.load([], default_files=[])
    assert conf.policy.required_checks == list(ALL_CHECKS)


def test_verifiers_and_agents_agree_on_the_pcrs_by_default() -> None:
    conf = configuration.load([], default_files=[])
    assert conf.policy.log_pcr == conf.tpm.log_pcr
    assert set(conf.policy.host_pcrs) <= set(conf.tpm.pcrs)


@pytest.mark.parametrize(
    "content",
    [
        "[verifier]\ninterval = often\n",
        "[verifier]\ninterval = 0\n",
        "no group\n",
        "[relying]\ntrust_host = x\n",
    ],
)
def test_values_that_cannot_be_are_refused_with_the_option(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.conf"
    path.write_text(content)
    with pytest.raises(configuration.ConfigurationError, match="configuration"):
        configuration.load(["--config-file", str(path)])


def test_credentials_are_those_of_the_kind_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.conf"
    conf = configuration.load([], default_files=[])
    assert not openstack.is_configured(conf)
    assert conf.openstack.timeout == 20
    path.write_text(
        "[openstack]\nauth_type = v3applicationcredential\nauth_url = http://keystone\n"
        "application_credential_id = a\napplication_credential_secret = b\n"
    )
    conf = configuration.load(["--config-file", str(path)])
    assert openstack.is_configured(conf)
    assert loading.load_auth_from_conf_options(conf, "openstack").auth_url == "http://keystone"


@pytest.mark.parametrize("trait", ["HW_CPU_X86_VMX", "custom_x", "CUSTOM_", "CUSTOM_X Y", "CUSTOM_X/../Y"])
def test_a_trait_that_cannot_be_ours_is_refused(tmp_path: Path, trait: str) -> None:
    path = tmp_path / "bad.conf"
    path.write_text(f"[openstack]\ntrait = {trait}\n")
    with pytest.raises(configuration.ConfigurationError, match="trait"):
        configuration.load(["--config-file", str(path)])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(configuration.ConfigurationError, match=r"/nonexistent\.conf"):
        configuration.load(["--config-file", "/nonexistent.conf"])
