# SPDX-License-Identifier: Apache-2.0
"""The sample configuration files can be generated, and say something about every option."""

from __future__ import annotations

from pathlib import Path

import pytest
from oslo_config import cfg, generator

from nova_vmi_attest.conf import opts

ROOT = Path(__file__).parents[3]
SERVICES = ("agent", "authority", "verifier")


def sample(service: str, directory: Path) -> str:
    target = directory / f"{service}.conf.sample"
    settings = ROOT / "etc" / "oslo-config-generator" / f"{service}.conf"
    generator.main(["--config-file", str(settings), "--output-file", str(target)])
    return target.read_text()


@pytest.mark.parametrize("service", SERVICES)
def test_the_sample_has_every_option_with_its_help(service: str, tmp_path: Path) -> None:
    text = sample(service, tmp_path)
    for group, options in opts.list_opts():
        assert f"\n[{group.name}]\n" in text
        section = text.split(f"\n[{group.name}]\n", 1)[1].split("\n[", 1)[0]
        for option in options:
            assert f"\n#{option.dest} =" in section, f"[{group.name}]/{option.dest}"
            assert option.help, f"[{group.name}]/{option.dest} has no help"


@pytest.mark.parametrize("service", SERVICES)
def test_the_sample_is_a_configuration_that_changes_nothing(service: str, tmp_path: Path) -> None:
    path = tmp_path / f"{service}.conf"
    path.write_text(sample(service, tmp_path))
    given, default = cfg.ConfigOpts(), cfg.ConfigOpts()
    for conf, arguments in ((given, ["--config-file", str(path)]), (default, [])):
        opts.register(conf)
        conf(arguments, default_config_files=[])
    for group, options in opts.list_registered():
        for option in options:
            assert given[group.name][option.dest] == default[group.name][option.dest]


def test_only_services_with_a_database_are_told_about_one(tmp_path: Path) -> None:
    assert "\n[database]\n" not in sample("agent", tmp_path)
    assert "\n[database]\n" in sample("authority", tmp_path)
    assert "\n[database]\n" in sample("verifier", tmp_path)
