# SPDX-License-Identifier: Apache-2.0
"""The systemd units: systemd takes them, they start programs that exist, and they keep their services in."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab import REPOSITORY

DIRECTORY = REPOSITORY / "etc" / "systemd"
UNITS = sorted(DIRECTORY.glob("*.service"))
# systemd's own measure, from 0 (nothing is open) to 100. The agent reads the memory of other processes.
EXPOSURE = {"agent": 35, "api": 20, "authority": 20, "verifier": 20}


def service(unit: Path) -> str:
    return unit.stem.rpartition("-")[2]


def program(unit: Path) -> str:
    (line,) = re.findall(r"^ExecStart=/usr/bin/(\S+)", unit.read_text(), re.MULTILINE)
    return str(line)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with the programs where they are on this machine."""
    for unit in UNITS:
        text = unit.read_text().replace("/usr/bin/", f"{Path(sys.executable).parent}/")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words],
        check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_every_service_has_a_unit() -> None:
    assert {service(unit) for unit in UNITS} == set(EXPOSURE)


def test_systemd_accepts_them(installed: Path) -> None:
    done = analyze("verify", "--man=no", "--recursive-errors=no", *map(str, sorted(installed.iterdir())))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=service)
def test_little_is_open_to_a_service(installed: Path, unit: Path) -> None:
    threshold = f"--threshold={EXPOSURE[service(unit)]}"
    done = analyze("security", "--offline=yes", "--no-pager", threshold, str(installed / unit.name))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", UNITS, ids=service)
def test_they_start_programs_that_are_installed(unit: Path) -> None:
    scripts = {item.name for item in importlib.metadata.entry_points(group="console_scripts")}
    assert program(unit) in scripts | {"uwsgi"}
    assert (Path(sys.executable).parent / program(unit)).exists()


def test_only_the_agent_is_root_and_the_authority_stands_alone() -> None:
    users = {service(unit): re.findall(r"^User=(.*)$", unit.read_text(), re.MULTILINE) for unit in UNITS}
    assert users == {
        "agent": [],
        "api": ["nova-vmi-attest"],
        "authority": ["nova-vmi-attest-authority"],
        "verifier": ["nova-vmi-attest"],
    }
    made = re.findall(r"^u (\S+)", (DIRECTORY / "sysusers.conf").read_text(), re.MULTILINE)
    assert set(made) == {user for found in users.values() for user in found}
