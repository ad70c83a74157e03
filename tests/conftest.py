# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: threads, no eventlet, and an interrupted run stops what it started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from oslo_service import backend

# oslo.messaging imports oslo.service, which takes eventlet unless it was told before.
backend.init_backend(backend.BackendType.THREADING)
# The TPM software stack prints an error of its own for each that our tests provoke.
os.environ.setdefault("TSS2_LOG", "all+none")


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {number}")


@pytest.fixture(scope="session", autouse=True)
def _stop_cleanly_when_terminated() -> Iterator[None]:
    """Make SIGTERM unwind fixtures as Ctrl-C does, so that no guest or daemon outlives the run."""
    before = signal.signal(signal.SIGTERM, _interrupted)
    yield
    signal.signal(signal.SIGTERM, before)
