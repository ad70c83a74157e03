# SPDX-License-Identifier: Apache-2.0
"""How often something may be done for each of many names, when strangers decide how often it is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_MOST_NAMES = 100_000


class Ration:
    """Some at once, and then one every so many seconds, for each name. Thread-safe.

    :param burst: how many may follow each other at once.
    :param every: seconds after which one more is allowed.
    """

    def __init__(self, burst: int, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        # When the whole burst is there again; names for which it is are not kept.
        self._full_at: dict[str, float] = {}

    def take(self, name: str) -> bool:
        """Whether one more is allowed for ``name`` now; if so, it counts as done."""
        with self._lock:
            now = self._clock()
            if len(self._full_at) >= _MOST_NAMES:
                self._full_at = {key: moment for key, moment in self._full_at.items() if moment > now}
            full_at = max(self._full_at.get(name, now), now) + self._every
            if full_at - now > self._burst * self._every or len(self._full_at) >= _MOST_NAMES:
                return False
            self._full_at[name] = full_at
            return True
