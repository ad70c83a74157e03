# SPDX-License-Identifier: Apache-2.0
"""What the stateful parts of the verifier share: an empty database with the newest schema, and a cloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nova_vmi_attest.db.session import Database
from tests.unit.verifier.fake_cloud import FakeCloud


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'attest.sqlite'}")
    database.upgrade()
    return database


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    cloud = FakeCloud()
    cloud.start()
    yield cloud
    cloud.stop()
