# SPDX-License-Identifier: Apache-2.0
"""What the stateful parts of the verifier share: an empty database with the newest schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from nova_vmi_attest.db.session import Database


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'attest.sqlite'}")
    database.upgrade()
    return database
