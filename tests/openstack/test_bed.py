# SPDX-License-Identifier: Apache-2.0
"""The test bed itself: what it starts it ends, whoever started it, and samples become configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import cache_dir
from lab.cloud import ini
from lab.cloud.processes import CONTROL, Processes
from lab.cloud.waiting import until
from lab.errors import LabError

from tests.openstack.conftest import end_orphans, left_behind

# No process has this id: it is above the kernel's limit (PID_MAX_LIMIT).
KILLED_RUN = "4194305"
SAMPLE = "[DEFAULT]\n#debug = false\n\n[agent]\n# Words.\n#host = <host name>\n"


def test_the_cloud_of_a_killed_run_is_ended_with_its_daemons_and_mounts() -> None:
    clouds = cache_dir() / f"orphans-{KILLED_RUN}"
    directory = clouds / KILLED_RUN
    processes = Processes(directory)
    processes.space(CONTROL, f"mkdir '{directory}/m'; mount -t tmpfs none '{directory}/m'")
    # A daemon: a session of its own, and a parent that does not wait for it.
    script = f"(setsid sh -c 'sleep 1000; : {directory}' &); sleep 1000"
    processes.start("daemon", ["sh", "-c", script], space=CONTROL)
    until(lambda: len(list(processes.members())) >= 5, "the daemon", 10)
    end_orphans(clouds)
    clouds.rmdir()
    assert left_behind(directory) == []


def test_a_process_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("broken", ["sh", "-c", "echo no such luck; exit 3"])
    with pytest.raises(LabError, match=r"broken has ended.*\n.*no such luck"):
        processes.until(lambda: False, "broken", 10)


def test_a_process_comes_back_as_it_was_started(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("sleeper", ["sh", "-c", 'echo "$WORD"; exec sleep 1000'], environment={"WORD": "hello"})
    first = processes.pid("sleeper")
    until(lambda: processes.log("sleeper").read_text() == "hello\n", "the first start", 10)
    processes.stop("sleeper")
    assert not processes.alive("sleeper")
    Processes(tmp_path).restart("sleeper")
    assert processes.pid("sleeper") != first
    until(lambda: processes.log("sleeper").read_text() == "hello\nhello\n", "the second start", 10)
    processes.stop_all()
    assert not processes.alive("sleeper")


def test_options_are_set_where_the_sample_shows_them() -> None:
    filled = ini.fill(SAMPLE, {"agent": {"host": "compute-1"}})
    assert filled == f"{SAMPLE}host = compute-1\n"


def test_an_option_that_the_sample_lacks_is_an_error() -> None:
    with pytest.raises(LabError, match=r"no option \[agent\] debug"):
        ini.fill(SAMPLE, {"agent": {"debug": "true"}})
