# SPDX-License-Identifier: Apache-2.0
"""The played API, one for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.osc.http_api import PlayedApi, serve


@pytest.fixture
def api() -> Iterator[PlayedApi]:
    with serve() as played:
        yield played
