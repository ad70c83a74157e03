# SPDX-License-Identifier: Apache-2.0
"""The processes of a cloud: started into namespaces of the cloud, written down, ended, and nothing else's.

Each runs in a mount namespace that the cloud made (of the control plane or of one compute host). So whatever
they start in their turn, guests and helpers that leave their parent included, is known by its namespace, and
a cloud can be ended by another process than the one that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.cloud.layout import program
from lab.errors import LabError

CONTROL = "control"
"""The namespace of the control plane."""

LOG_TAIL = 2000
# Nothing of the caller's environment: no proxies, no settings of a client or of another cloud.
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One process that was started. ``born`` (clock ticks since boot) tells it from a later one of its id."""

    name: str
    pid: int
    born: int
    command: tuple[str, ...]
    environment: dict[str, str]
    space: str
    network: str
    directory: str


class Processes:
    """The processes of the cloud in ``directory``; their list is a file there. Threads may share it."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "processes.json"
        self.logs = directory / "log"
        self._lock = threading.RLock()

    def entries(self) -> dict[str, Entry]:
        """Everything that was started and not stopped, by name; it may have died meanwhile."""
        with self._lock:
            try:
                known = json.loads(self._file.read_text())
            except FileNotFoundError:
                return {}
        return {one["name"]: Entry(**{**one, "command": tuple(one["command"])}) for one in known}

    def alive(self, name: str) -> bool:
        """Say whether a process that was started still runs."""
        entry = self.entries().get(name)
        return entry is not None and runs(entry)

    def pid(self, name: str) -> int:
        """The id of a running process. Raises LabError when it does not run."""
        entry = self.entries().get(name)
        if entry is None or not runs(entry):
            raise LabError(f"{name} does not run{self.last_words(name)}")
        return entry.pid

    def space(self, name: str, mounts: str, *, hostname: str = "") -> None:
        """Make a mount namespace (with ``hostname``: a host name and a network with loopback, too).

        ``mounts`` are lines of shell that arrange it. It lives as long as the process of this name.
        """
        flags = ["--uts", "--net"] if hostname else []
        ready = self.logs / f"{name}.ready"
        ready.unlink(missing_ok=True)
        settings = f"hostname {hostname}\nip link set lo up\n" if hostname else ""
        script = f"set -e\n{settings}{mounts}\n: >'{ready}'\nexec sleep infinity"
        self.start(name, ["unshare", "--mount", *flags, "--propagation", "private", "sh", "-c", script])
        self.until(ready.exists, name, 10)

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        space: str = "",
        network: str = "",
        directory: Path | None = None,
    ) -> None:
        """Start a process that outlives this one; it logs to ``<name>.log``.

        :param space: name of the namespace it runs in (mounts and host name).
        :param network: name of the one whose network it has; the machine's without.
        """
        entry = Entry(
            name, 0, 0, tuple(command), dict(environment or {}), space, network, str(directory or "/")
        )
        self._launch(entry)

    def run(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a Python program of this environment to its end, on the control plane; return what it printed.

        Raises LabError with the end of what it said when it failed.
        """
        done = subprocess.run(
            [*self._enter(CONTROL, "", "/"), program(name), *arguments],
            env={**ENVIRONMENT, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-LOG_TAIL:]
            raise LabError(f"{name} {' '.join(arguments)} failed: {said}")
        return done.stdout

    def restart(self, name: str) -> None:
        """Start a process that was started before once more, as it was started then."""
        entry = self.entries().get(name)
        if entry is None:
            raise LabError(f"{name} was never started")
        if runs(entry):
            raise LabError(f"{name} runs already")
        self._launch(entry)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, patience: float = 10.0) -> None:
        """End a process: ``how``, after ``patience`` seconds SIGKILL for its whole process group.

        It stays on the list, so that :meth:`restart` brings it back. No error when it does not run.
        """
        entry = self.entries().get(name)
        if entry is None or not runs(entry):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, how)
        _wait_gone(lambda: not runs(entry), patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(entry.pid, signal.SIGKILL)
        _wait_gone(lambda: not runs(entry), 5.0)

    def stop_all(self) -> None:
        """End every process of the cloud at once, and what those started. Raises LabError if any is left."""
        for _ in range(50):
            members = list(self.members())
            if not members:
                break
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                _reap(pid)
            time.sleep(0.1)
        else:
            raise LabError(f"these processes cannot be ended: {members}")
        self._file.unlink(missing_ok=True)

    def members(self) -> Iterator[int]:
        """Ids of what runs of the cloud: what was started, and whatever lives in one of its namespaces."""
        entries = [entry for entry in self.entries().values() if runs(entry)]
        outside = _namespace(os.getpid())
        spaces = {_namespace(entry.pid) for entry in entries} - {outside, ""}
        ours = {entry.pid for entry in entries}
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            pid = int(path.name)
            if pid in ours or (_namespace(pid) in spaces and _born(pid)):
                yield pid

    def until(self, ready: Callable[[], bool], name: str, timeout: float) -> None:
        """Wait until ``ready()``. LabError with the end of the log when the process dies or is too late."""
        end = time.monotonic() + timeout
        while not ready():
            problem = ""
            if not self.alive(name):
                problem = "has ended"
            elif time.monotonic() > end:
                problem = f"was not ready in {timeout:.0f} s"
            if problem:
                raise LabError(f"{name} {problem}{self.last_words(name)}")
            time.sleep(0.05)

    def last_words(self, name: str) -> str:
        """The end of a process's log, for an error message; empty without a log."""
        log = self.log(name)
        said = log.read_text(errors="replace").strip()[-LOG_TAIL:] if log.exists() else ""
        return f"; {log} ends with:\n{said}" if said else ""

    def log(self, name: str) -> Path:
        """The file that a process writes its output to."""
        return self.logs / f"{name}.log"

    def _enter(self, space: str, network: str, directory: str) -> list[str]:
        """The beginning of a command that runs in a namespace of ours."""
        if not space:
            return []
        own_network = [f"--net=/proc/{self.pid(network)}/ns/net"] if network else []
        target = f"--target={self.pid(space)}"
        return ["nsenter", target, "--root", "--mount", "--uts", *own_network, f"--wdns={directory}", "--"]

    def _launch(self, entry: Entry) -> None:
        enter = self._enter(entry.space, entry.network, entry.directory)
        self.logs.mkdir(parents=True, exist_ok=True)
        with open(self.log(entry.name), "ab") as log:
            try:
                started = subprocess.Popen(
                    [*enter, *entry.command],
                    env={**ENVIRONMENT, **entry.environment},
                    cwd=entry.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                raise LabError(
                    f"{entry.command[0]} cannot be run: {error}", "install what bindep.txt lists"
                ) from error
        # Collected by _reap when it ends while we run, by init when it outlives us.
        started.returncode = 0
        with self._lock, open(self._file.with_suffix(".lock"), "w") as lock:
            # Another process may be restarting something, too.
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = self.entries()
            entries[entry.name] = Entry(
                **{**asdict(entry), "pid": started.pid, "born": _born(started.pid), "command": entry.command}
            )
            scratch = self._file.with_suffix(".new")
            scratch.touch(0o600)
            scratch.write_text(json.dumps([asdict(one) for one in entries.values()]))
            scratch.rename(self._file)


class Service:
    """A handle on one process of a cloud."""

    def __init__(self, processes: Processes, name: str) -> None:
        self._processes = processes
        self.name = name

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._processes.alive(self.name)

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self._processes.log(self.name)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until it is gone; SIGKILL is a crash."""
        self._processes.stop(self.name, how)

    def start(self) -> None:
        """Start it as it was started at first."""
        self._processes.restart(self.name)

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it and start it again."""
        self.stop(how)
        self.start()


def runs(entry: Entry) -> bool:
    """Say whether an entry's process runs, and is not another one that has its id by now."""
    _reap(entry.pid)
    return entry.born != 0 and _born(entry.pid) == entry.born


def _born(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), field 22); 0 for none and for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def _namespace(pid: int) -> str:
    """The mount namespace of a process; empty when it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _reap(pid: int) -> None:
    """Collect a child that has ended, so that no zombie stands in for it; one that is not ours is init's."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _wait_gone(gone: Callable[[], bool], patience: float) -> None:
    end = time.monotonic() + patience
    while not gone() and time.monotonic() < end:
        time.sleep(0.02)
