# SPDX-License-Identifier: Apache-2.0
"""Where nova-compute says that it did something with an instance: a unix datagram socket of the agent.

A hint is a reason to compare with libvirt now, and nothing else: what it says is checked for its form,
logged, and not believed. Hints come as fast as their sender likes, so they are taken in sips: one look
answers all that came, and a pause follows each.

The socket lies where only the agent's user or root can put files, and is reached without following a symbolic
link: otherwise whoever owns the directory could have the agent remove or offer a file of his choice.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import re
import select
import socket
import stat
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oslo_log import log

from nova_vmi_attest.errors import AttestError

LOG = log.getLogger(__name__)

# Octets of a hint at most; the kernel cuts off what is longer, which is then malformed.
MAX_BYTES = 4096

# Seconds between two looks that hints cause, and how many hints are taken at a time.
_PAUSE = 0.5
_SIP = 256

# How often a wait looks whether to stop, in seconds.
_POLL = 0.5

_EVENT = re.compile(r"[a-z0-9_]{1,64}(\.[a-z0-9_]{1,64}){0,7}", re.ASCII)
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class HintError(AttestError):
    """A hint is malformed, or the socket cannot be made."""


@dataclass(frozen=True, slots=True)
class Hint:
    """nova-compute says that ``event`` (as its notifications call it) happened to ``instance``."""

    event: str
    instance: uuid.UUID


def parse(data: bytes) -> Hint:
    """A datagram: {"event": ..., "instance": uuid}.

    :raises HintError: it is anything else.
    """
    if len(data) > MAX_BYTES:
        raise HintError("a hint is too long")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HintError("a hint is no JSON") from error
    if not isinstance(value, dict) or value.keys() != {"event", "instance"}:
        raise HintError("a hint has other members than event and instance")
    event, instance = value["event"], value["instance"]
    if not isinstance(event, str) or not _EVENT.fullmatch(event):
        raise HintError("a hint names no event")
    try:
        guest = uuid.UUID(instance)
    except (ValueError, TypeError, AttributeError) as error:
        raise HintError("a hint names no instance") from error
    return Hint(event, guest)


class HintSocket:
    """Listens on ``path`` between :meth:`start` and :meth:`stop`, and calls ``look`` when hints came.

    :param group: the group whose members may send; empty for the agent's user alone.
    """

    def __init__(self, path: Path, group: str, look: Callable[[], None]) -> None:
        self._path = path
        self._group = group
        self._look = look
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Make the socket and listen.

        :raises HintError: the socket cannot be made safely; the message says what to do.
        """
        self._socket = _bind(self._path, self._group)
        self._thread = threading.Thread(target=self._run, args=(self._socket,), name="hints", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more. The socket's file stays for the next start to replace. Idempotent."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _run(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        while not self._stopped.is_set():
            try:
                if select.select([listening], [], [], _POLL)[0] and self._sip(listening):
                    self._look()
                    self._stopped.wait(_PAUSE)
            except Exception:
                LOG.exception("listening for hints failed unexpectedly")
                self._stopped.wait(_POLL)

    def _sip(self, listening: socket.socket) -> int:
        """Take the hints that are there; returns how many of them were well formed."""
        datagrams: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(datagrams) < _SIP:
                datagrams.append(listening.recv(MAX_BYTES + 1))
        good, complaint = 0, ""
        for data in datagrams:
            try:
                hint = parse(data)
            except HintError as error:
                complaint = str(error)
                continue
            good += 1
            LOG.debug("nova-compute: %s of instance %s", hint.event, hint.instance)
        if good < len(datagrams):
            # One line for all of them, and a pause even if none is good: garbage must not fill the log.
            LOG.warning("%d of %d hints dropped: %s", len(datagrams) - good, len(datagrams), complaint)
            if not good:
                self._stopped.wait(_PAUSE)
        return good


def _bind(path: Path, group: str) -> socket.socket:
    """A bound socket of mode 0660 and the given group, in the place of one that an agent left behind."""
    if not path.is_absolute() or path.name in ("", ".", ".."):
        raise HintError(f"{path} is no absolute path of a socket", "correct [agent] hint_socket")
    gid = _gid(group)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        directory = _open_directory(path.parent)
        try:
            _remove_stale(directory, path)
            # The name that bind makes has the mode of the socket's own inode: nobody else's from the start.
            os.fchmod(made.fileno(), 0o600)
            made.bind(f"/proc/self/fd/{directory}/{path.name}")
            if gid is not None:
                os.chown(path.name, -1, gid, dir_fd=directory, follow_symlinks=False)
                # Nobody but us can have put another file there, so following links is no matter.
                os.chmod(path.name, 0o660, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        made.close()
        raise HintError(
            f"{path} cannot be made: {error.strerror or error}",
            "give the agent a directory for [agent] hint_socket, and put its user into the group hint_group",
        ) from error
    except BaseException:
        made.close()
        raise
    return made


def _gid(group: str) -> int | None:
    if not group:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise HintError(
            f"there is no group {group}", "set [agent] hint_group to the group of nova-compute"
        ) from error


def _open_directory(path: Path) -> int:
    """A descriptor of the directory, reached without a symbolic link that somebody else could have put there.

    :raises HintError: somebody but root and this process's user owns a part of the path, or may write to it.
    :raises OSError: a part is missing, no directory, or a symbolic link.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    current = os.open("/", flags)
    try:
        for part in path.parts[1:]:
            found = os.open(part, flags, dir_fd=current)
            os.close(current)
            current = found
            status = os.fstat(current)
            writable = status.st_mode & _WRITABLE_BY_OTHERS
            # In a sticky directory (/tmp) others may add names, but not replace one of ours.
            harmless = status.st_mode & stat.S_ISVTX and part is not path.parts[-1]
            if status.st_uid not in (0, os.geteuid()) or (writable and not harmless):
                raise HintError(
                    f"somebody else may write to {part} in {path}",
                    f"make {path} and what is above it writable by the agent's user or root alone",
                )
    except BaseException:
        os.close(current)
        raise
    return current


def _remove_stale(directory: int, path: Path) -> None:
    """Remove the socket of an agent that is gone. Nothing but a socket is removed."""
    try:
        status = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise HintError(f"{path} is in the way and no socket", "remove it, or change [agent] hint_socket")
    os.unlink(path.name, dir_fd=directory)
