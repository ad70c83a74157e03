# SPDX-License-Identifier: Apache-2.0
"""Hints: what is taken, how often it counts, and where the socket may lie."""

from __future__ import annotations

import grp
import json
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.attester import hints
from nova_vmi_attest.attester.hints import MAX_BYTES, Hint, HintError, HintSocket, parse

GUEST = uuid.UUID(int=7)
GOOD = json.dumps({"event": "instance.power_off.end", "instance": str(GUEST)}).encode()
OWN_GROUP = grp.getgrgid(os.getgid()).gr_name


def test_a_hint_names_event_and_instance() -> None:
    assert parse(GOOD) == Hint("instance.power_off.end", GUEST)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{",
        b"[" * 4000,
        b'{"event": "a"}',
        b'{"event": "a", "instance": 7}',
        b'{"event": "a", "instance": null}',
        b'{"event": "a", "instance": ["x"]}',
        b'{"event": "a", "instance": "x"}',
        json.dumps({"event": 7, "instance": str(GUEST)}).encode(),
        json.dumps({"event": "", "instance": str(GUEST)}).encode(),
        json.dumps({"event": "a\nb", "instance": str(GUEST)}).encode(),
        json.dumps({"event": "a\n", "instance": str(GUEST)}).encode(),
        json.dumps({"event": "\x1b[2J", "instance": str(GUEST)}).encode(),
        json.dumps({"event": "a." * 100 + "a", "instance": str(GUEST)}).encode(),
        json.dumps({"event": "a", "instance": str(GUEST), "host": "x"}).encode(),
        GOOD + b" " * MAX_BYTES,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(HintError):
        parse(data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_datagram_raises_anything_else(data: bytes) -> None:
    with pytest.raises(HintError):
        parse(data)


class Listener:
    """The agent's end in a directory of its own, and how often it would have looked."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "hints.sock"
        self.looks = 0
        self.seen = threading.Event()
        self.socket = HintSocket(self.path, OWN_GROUP, self.look)

    def look(self) -> None:
        self.looks += 1
        self.seen.set()

    def send(self, *datagrams: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for datagram in datagrams:
                sender.sendto(datagram, str(self.path))


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o755)
    listener = Listener(directory)
    yield listener
    listener.socket.stop()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_hint_makes_the_agent_look(listener: Listener) -> None:
    listener.socket.start()
    listener.send(GOOD)
    assert listener.seen.wait(10)


def test_the_socket_is_for_its_group_alone(listener: Listener) -> None:
    before = os.umask(0)
    try:
        listener.socket.start()
    finally:
        os.umask(before)
    status = listener.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == os.getgid()


def test_without_a_group_it_is_for_its_user_alone(listener: Listener) -> None:
    listener.socket = HintSocket(listener.path, "", listener.look)
    listener.socket.start()
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600


def test_a_flood_is_a_few_looks(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "_PAUSE", 3600.0)
    listener.socket.start()
    flooding = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            while not flooding.is_set():
                try:
                    sender.sendto(GOOD, str(listener.path))
                except BlockingIOError:
                    time.sleep(0.001)

    sender = threading.Thread(target=flood)
    sender.start()
    assert listener.seen.wait(10)
    time.sleep(0.3)
    assert listener.looks == 1
    flooding.set()
    sender.join(10)


def test_garbage_is_one_line_in_the_log_and_no_look(
    listener: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "_PAUSE", 0.05)
    listener.socket.start()
    listener.send(b"\x00" * 100, b"x" * 60000, b"\n\n")
    until(lambda: "dropped" in caplog.text)
    assert listener.looks == 0
    assert len(caplog.records) <= 3
    assert all(record.getMessage().isprintable() for record in caplog.records)
    listener.send(b"garbage", GOOD)
    assert listener.seen.wait(10)


def test_the_socket_of_an_agent_that_ended_is_replaced(listener: Listener) -> None:
    listener.socket.start()
    listener.socket.stop()
    assert listener.path.exists()
    listener.socket = HintSocket(listener.path, OWN_GROUP, listener.look)
    listener.socket.start()
    listener.send(GOOD)
    assert listener.seen.wait(10)


@pytest.mark.parametrize("kind", ["file", "directory", "link to a file", "link to a socket"])
def test_nothing_but_a_socket_is_replaced(listener: Listener, tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    if kind == "link to a socket":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(victim))
    else:
        victim.write_text("precious")
    if kind == "file":
        victim.rename(listener.path)
    elif kind == "directory":
        listener.path.mkdir()
    else:
        listener.path.symlink_to(victim)
    with pytest.raises(HintError, match="no socket"):
        listener.socket.start()
    assert os.path.lexists(listener.path)
    assert kind in ("file", "directory") or victim.exists()


def test_a_directory_behind_a_link_is_refused(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(listener.path.parent)
    with pytest.raises(HintError, match="cannot be made"):
        HintSocket(tmp_path / "link" / "hints.sock", OWN_GROUP, listener.look).start()
    with pytest.raises(HintError, match="cannot be made"):
        HintSocket(tmp_path / "link" / ".." / "hints.sock", OWN_GROUP, listener.look).start()


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(listener: Listener, mode: int) -> None:
    listener.path.parent.chmod(mode)
    with pytest.raises(HintError, match="somebody else may write to run"):
        listener.socket.start()
    assert not listener.path.exists()


def test_so_is_one_below_such_a_directory(listener: Listener, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(HintError, match="somebody else"):
        listener.socket.start()
    tmp_path.chmod(0o1777)  # as /tmp: nobody can replace what is ours
    listener.socket.start()
    assert listener.path.exists()


def test_a_directory_of_somebody_else_is_refused(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = os.fstat

    def given_away(descriptor: int) -> os.stat_result:
        fields = list(genuine(descriptor))
        fields[stat.ST_UID] = 65534
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", given_away)
    with pytest.raises(HintError, match="somebody else"):
        listener.socket.start()


@pytest.mark.parametrize(
    ("path", "group", "message"),
    [
        ("relative/hints.sock", "", "no absolute path"),
        ("/", "", "no absolute path"),
        ("/nonexistent/run/hints.sock", "", "No such file"),
        ("/dev/null/hints.sock", "", "Not a directory"),
        ("/run/hints.sock", "no-such-group", "no group"),
    ],
)
def test_what_cannot_be_made_says_why(path: str, group: str, message: str) -> None:
    with pytest.raises(HintError, match=message):
        HintSocket(Path(path), group, lambda: None).start()


def test_a_name_longer_than_a_socket_address_is_an_error_and_leaves_no_descriptor(listener: Listener) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HintError):
        HintSocket(listener.path.with_name("x" * 200), "", listener.look).start()
    assert len(os.listdir("/proc/self/fd")) == before
