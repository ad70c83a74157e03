# SPDX-License-Identifier: Apache-2.0
"""One real cloud for all tests in this directory (lab.cloud), and what every one of them needs.

With NOVA_VMI_ATTEST_CLOUD in the environment, the directory of a running cloud (`make cloud` says it), the
tests use that one and leave it running; it is quicker while a test is written.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import cache_dir
from lab.cloud.cloud import Cloud
from lab.cloud.launch import start
from lab.cloud.processes import Processes
from lab.processes import alive
from openstack.compute.v2.server import Server

HERE = Path(__file__).parent
CLOUD = "NOVA_VMI_ATTEST_CLOUD"

Boot = Callable[..., Server]


def pytest_configure(config: pytest.Config) -> None:
    # OpenStack's libraries warn of each other's next versions at every call.
    for module in ("futurist", "openstack", "webob"):
        config.addinivalue_line("filterwarnings", f"ignore::Warning:{module}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.functional)


@pytest.fixture(scope="session")
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """The cloud. When a test failed, a copy of all logs is kept, and the summary says where."""
    if running := os.environ.get(CLOUD):
        yield Cloud.attach(Path(running))
        return
    # One directory for each run, so that two runs on a machine do not meet.
    clouds = cache_dir() / "test-clouds"
    end_orphans(clouds)
    directory = clouds / str(os.getpid())
    failed = True
    try:
        cloud = start(directory, print)
        yield cloud
        cloud.stop()
        assert left_behind(directory) == []
        failed = request.session.testsfailed > 0
    finally:
        if failed:
            keep_logs(directory / "log")
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def boot(cloud: Cloud) -> Iterator[Boot]:
    """`Cloud.boot`, whose servers are deleted when the test is over."""
    with ExitStack() as servers:

        def booted(name: str, **arguments: object) -> Server:
            server = cloud.boot(name, **arguments)  # type: ignore[arg-type]
            servers.callback(cloud.delete, server)
            return server

        yield booted


def end_orphans(clouds: Path) -> None:
    """End the clouds of test runs that were killed."""
    for directory in clouds.glob("*"):
        if not alive(int(directory.name)):
            Processes(directory).stop_all()
            shutil.rmtree(directory, ignore_errors=True)


def left_behind(directory: Path) -> list[str]:
    """Processes and mounts of the machine that name the cloud's directory."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(directory) in line]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in command:
            found.append(f"{process.parent.name}: {command}")
    return found


def keep_logs(logs: Path) -> None:
    """Copy the logs to where the next run does not remove them."""
    kept = cache_dir() / "cloud-logs" / time.strftime("%Y%m%d-%H%M%S")
    if logs.exists():
        shutil.copytree(logs, kept)
        print(f"\nThe logs of all services are in {kept}")
