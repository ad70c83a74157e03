# SPDX-License-Identifier: Apache-2.0
"""The module for web servers finds its configuration, and importing it opens no connection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nova_vmi_attest.wsgi import config

PROBE = """
import threading
from nova_vmi_attest.wsgi.api import application
from werkzeug.test import Client
assert threading.active_count() == 1, threading.enumerate()
print(Client(application).get("/").status_code)
"""


@pytest.mark.parametrize(
    ("directory", "files", "expected"),
    [
        (None, None, None),
        ("", " ; ", None),
        ("/etc/x", "a.conf;b.conf", ["/etc/x/a.conf", "/etc/x/b.conf"]),
        ("/etc/x", "/y/a.conf", ["/y/a.conf"]),
        (None, "a.conf", ["a.conf"]),
        ("/nowhere", None, []),
    ],
)
def test_the_environment_names_files(
    directory: str | None, files: str | None, expected: list[str] | None
) -> None:
    names = {"OS_NOVA_VMI_ATTEST_CONFIG_DIR": directory, "OS_NOVA_VMI_ATTEST_CONFIG_FILES": files}
    assert config.files({name: value for name, value in names.items() if value is not None}) == expected


def test_a_directory_has_files_of_the_usual_names(tmp_path: Path) -> None:
    (tmp_path / "api.conf").touch()
    assert config.files({"OS_NOVA_VMI_ATTEST_CONFIG_DIR": str(tmp_path)}) == [str(tmp_path / "api.conf")]


def test_the_application_is_made_at_import_and_connects_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "api.conf").write_text(
        """
[DEFAULT]
transport_url = rabbit://127.0.0.1:1/
[database]
connection = mysql+pymysql://127.0.0.1:1/none
[keystone_authtoken]
auth_type = password
auth_url = http://127.0.0.1:1/
"""
    )
    environment = os.environ | {"OS_NOVA_VMI_ATTEST_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split()[-1:], done.returncode) == (["200"], 0), done.stderr
