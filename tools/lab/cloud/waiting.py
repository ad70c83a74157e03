# SPDX-License-Identifier: Apache-2.0
"""Waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import LabError

T = TypeVar("T")
PAUSE = 0.2


def until(ready: Callable[[], T], what: str, timeout: float, explain: Callable[[], str] = str) -> T:
    """Return the first true answer of ``ready``. Raises LabError after ``timeout`` seconds.

    ``explain`` adds to the error what was there instead.
    """
    end = time.monotonic() + timeout
    while not (answer := ready()):
        if time.monotonic() > end:
            raise LabError(f"waited {timeout:.0f} s for {what}: {explain()}")
        time.sleep(PAUSE)
    return answer
