# SPDX-License-Identifier: Apache-2.0
"""Starting many things at once: each step waits for the steps it names, and says when it is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

Say = Callable[[str], None]
WORKERS = 24


class SkippedError(Exception):
    """A step was not begun because an earlier one had failed."""


class Steps:
    """Steps that run beside each other. Leaving the block waits for all, and raises the first failure.

    :param say: told a line for each finished step.
    :param on_failure: called once, at the first failure, to make the other steps end soon.
    """

    def __init__(self, say: Say, on_failure: Callable[[], None]) -> None:
        self._say = say
        self._on_failure = on_failure
        self._pool = ThreadPoolExecutor(WORKERS)
        self._steps: dict[str, Future[None]] = {}
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._fail(error)
            wait(self._steps.values())
        except BaseException as interrupted:
            self._fail(interrupted)
            raise
        finally:
            self._pool.shutdown()
        if self._failure is not None and error is None:
            raise self._failure

    def go(self, name: str, work: Callable[[], object], *after: str) -> None:
        """Begin a step as soon as the steps named in ``after`` are done. They must have been named before."""
        earlier = [self._steps[one] for one in after]
        self._steps[name] = self._pool.submit(self._run, name, work, earlier)

    def _run(self, name: str, work: Callable[[], object], earlier: list[Future[None]]) -> None:
        wait(earlier)
        if self._failure is not None:
            raise SkippedError(name)
        begin = time.monotonic()
        try:
            work()
        except BaseException as error:
            self._fail(error)
            raise
        now = time.monotonic()
        self._say(f"{now - self._begin:6.1f} s  {name} ({now - begin:.1f} s)")

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
        self._on_failure()
