# SPDX-License-Identifier: Apache-2.0
"""What belongs in nova.conf has a sample of its own, without the options of our services."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from nova_vmi_attest.conf import relying

ROOT = Path(__file__).parents[3]
NAMESPACE = "nova_vmi_attest.relying"


def test_the_sample_for_nova_names_the_namespace_of_its_options() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["oslo.config.opts"][NAMESPACE]
    list_opts = metadata.EntryPoint(NAMESPACE, target, "oslo.config.opts").load()
    assert [(group.name, len(options)) for group, options in list_opts()] == [
        ("relying", len(relying.OPTIONS))
    ]
    settings = (ROOT / "etc" / "oslo-config-generator" / "nova.conf").read_text()
    assert [line.split(" = ")[1] for line in settings.splitlines() if line.startswith("namespace")] == [
        NAMESPACE
    ]


def test_levels_are_the_choices_of_every_kind_of_trust() -> None:
    kinds = [option for option in relying.OPTIONS if option.name.startswith("trust_")]
    assert [option.name for option in kinds] == ["trust_host", "trust_guest", "trust_neighbours"]
    for option in kinds:
        assert tuple(value for value, _ in option.type.choices.items()) == relying.LEVELS
        assert option.default in relying.LEVELS


def test_nothing_unsafe_is_on() -> None:
    assert {
        option.name: option.default for option in relying.OPTIONS if option.name.startswith("unsafe_")
    } == {"unsafe_stale_grace": 0}
