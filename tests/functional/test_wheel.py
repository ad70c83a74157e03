# SPDX-License-Identifier: Apache-2.0
"""What users install: the wheel, built from the sources alone, works in an environment without them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "nova_vmi_attest"
SOURCES = (PACKAGE, "pyproject.toml", "setup.cfg", "setup.py", "requirements.txt", "README.md")

# Runs in the environment that has only the wheel: what is installed, where, and whether it works.
PROBE = """
import importlib.metadata, importlib.resources, json, sys
import nova_vmi_attest
from nova_vmi_attest.db.session import Database

distribution = importlib.metadata.distribution("nova-vmi-attest")
points = {}
for point in distribution.entry_points:
    points.setdefault(point.group, {})[point.name] = point.load() is not None
Database(sys.argv[1]).upgrade()
print(json.dumps({
    "package": nova_vmi_attest.__file__,
    "typed": importlib.resources.files(nova_vmi_attest).joinpath("py.typed").is_file(),
    "points": points,
    "licence": distribution.metadata["License-Expression"],
}))
"""


def run(command: Sequence[str | Path], **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy without history: no file gets in only because git knows it, or an older build."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    target = tmp_path_factory.mktemp("dist")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run([*pip, "--wheel-dir", target, tree], PBR_VERSION="1.2.3")
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel; its dependencies are lent by the environment of the tests."""
    directory = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", directory])
    python = directory / "bin" / "python"
    (site,) = directory.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            wheel,
        ]
    )
    return directory


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith(f"{PACKAGE}-")}
        (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert held == sources
    assert entries
    assert f"{PACKAGE}/py.typed" in held
    assert f"{PACKAGE}/db/migrations/script.py.mako" in held


def test_the_installed_wheel_works_away_from_the_sources(installed: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/database"
    said = json.loads(run([installed / "bin" / "python", "-I", "-W", "ignore", "-c", PROBE, database]))
    assert Path(said["package"]).is_relative_to(installed)
    assert said["typed"] is True
    assert said["licence"] == "Apache-2.0"
    points = said["points"]
    assert set(points["nova_vmi_attest.memory"]) == {"ram_file", "process", "libvmi", "dump"}
    assert "text" in points["nova_vmi_attest.checks"]
    assert points["oslo.config.opts"] == {PACKAGE: True, f"{PACKAGE}.relying": True}
    assert all(loads for group in points.values() for loads in group.values())


@pytest.mark.parametrize("service", ["agent", "authority", "verifier", "manage"])
def test_the_console_scripts_explain_themselves(service: str, installed: Path) -> None:
    assert "usage:" in run([installed / "bin" / f"nova-vmi-attest-{service}", "--help"])
