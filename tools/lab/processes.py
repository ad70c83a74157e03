# SPDX-License-Identifier: Apache-2.0
"""Stopping exactly the processes that the lab started, and finding free ports for them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from lab.errors import LabError


def stop(
    process: subprocess.Popen[bytes], first: signal.Signals = signal.SIGTERM, patience: float = 10.0
) -> None:
    """End a child with `first`, after `patience` seconds with SIGKILL, and reap it."""
    if process.poll() is None:
        process.send_signal(first)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def alive(pid: int) -> bool:
    """Say whether a process (a zombie not counted) has this id."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill_pid(pid: int, patience: float = 10.0) -> None:
    """End a process that is not our child: SIGTERM, then SIGKILL, and wait until it is gone."""
    for kind, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, kind)
        except ProcessLookupError:
            return
        end = time.monotonic() + seconds
        while alive(pid) and time.monotonic() < end:
            time.sleep(0.02)


def until(
    ready: Callable[[], bool], what: str, timeout: float, process: subprocess.Popen[bytes], log: Path
) -> None:
    """Wait until `ready()`. Raises LabError after `timeout` seconds, or when `process` ended before.

    The error carries the end of `log`, which the process writes.
    """
    end = time.monotonic() + timeout
    while not ready():
        problem = ""
        if process.poll() is not None:
            problem = f"ended with status {process.returncode}"
        elif time.monotonic() > end:
            problem = f"was not ready in {timeout:.0f} s"
        if problem:
            raise LabError(f"{what} {problem}: {log.read_text(errors='replace').strip()[-1500:]}")
        time.sleep(0.02)


def free_ports(count: int = 1) -> int:
    """Return the first of `count` neighbouring TCP ports that are free on 127.0.0.1."""
    for _ in range(100):
        sockets: list[socket.socket] = []
        try:
            first = _bound(0, sockets)
            for port in range(first + 1, first + count):
                _bound(port, sockets)
            return first
        except (OSError, OverflowError):
            continue
        finally:
            for one in sockets:
                one.close()
    raise LabError(f"found no {count} neighbouring free ports on 127.0.0.1")


def _bound(port: int, keep: list[socket.socket]) -> int:
    one = socket.socket()
    keep.append(one)
    one.bind(("127.0.0.1", port))
    return int(one.getsockname()[1])
