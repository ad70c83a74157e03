# SPDX-License-Identifier: Apache-2.0
"""One host, one EK; every change is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.records.registry import NotRegistered, RegistryError
from nova_vmi_attest.tpm.endorsement import EndorsementError, certified_key, ek_digest
from tests.unit.authority.scene import Scene
from tests.unit.tpm.maker import Chip


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def digest(chip: Chip) -> str:
    return ek_digest(certified_key(chip.certificate))


def test_register_look_up_and_unregister(scene: Scene) -> None:
    chip = scene.chip("compute-1")
    scene.chip("compute-0")
    assert [host.name for host in scene.registry.hosts()] == ["compute-0", "compute-1"]
    host = scene.registry.host("compute-1")
    assert host is not None
    assert host.ek_digest == digest(chip)
    scene.registry.require("compute-1", digest(chip))
    scene.registry.unregister("compute-1")
    assert scene.registry.host("compute-1") is None
    assert scene.audit() == [
        ("register", "compute-1", "done"),
        ("register", "compute-0", "done"),
        ("unregister", "compute-1", "done"),
    ]


def test_nobody_vouches_for_a_host_that_was_withdrawn(scene: Scene) -> None:
    """Else a host that was found out would stay trusted for a day on a word that was given before."""
    scene.chip("compute-1")
    overrides, now = Overrides(scene.database), int(scene.now)
    for host in ("compute-1", "compute-2"):
        overrides.set(host, "why", "alice", 3600, now)
    scene.registry.unregister("compute-1")
    assert [item.host for item in overrides.all(now)] == ["compute-2"]
    assert sorted(scene.audit()[-2:]) == [
        ("lift-override", "compute-1", "done"),
        ("unregister", "compute-1", "done"),
    ]


def test_registering_again_changes_nothing(scene: Scene) -> None:
    chip = scene.chip("compute-1")
    scene.registry.register("compute-1", chip.ek_certificate())
    assert len(scene.audit()) == 1


def test_a_host_with_another_ek_is_refused(scene: Scene) -> None:
    scene.chip("compute-1")
    with pytest.raises(RegistryError, match="compute-1 is registered with the EK"):
        scene.registry.register("compute-1", scene.chip().ek_certificate())


def test_an_ek_of_another_host_is_refused(scene: Scene) -> None:
    chip = scene.chip("compute-1")
    with pytest.raises(RegistryError, match="registered to host compute-1, not to compute-2"):
        scene.registry.register("compute-2", chip.ek_certificate())
    with pytest.raises(RegistryError, match="registered to host compute-1"):
        scene.registry.require("compute-2", digest(chip))


def test_unknown_hosts(scene: Scene) -> None:
    with pytest.raises(NotRegistered, match="compute-9 is not registered"):
        scene.registry.require("compute-9", "00" * 32)
    with pytest.raises(RegistryError, match="not registered"):
        scene.registry.unregister("compute-9")


@pytest.mark.parametrize("name", ["", "a b", "x" * 254, "-", "../etc"])
def test_names_follow_the_one_rule(scene: Scene, name: str) -> None:
    with pytest.raises(RegistryError, match="not a host name"):
        scene.registry.register(name, scene.chip().ek_certificate())


def test_what_is_no_certificate_is_refused(scene: Scene) -> None:
    with pytest.raises(EndorsementError):
        scene.registry.register("compute-1", b"nothing")
