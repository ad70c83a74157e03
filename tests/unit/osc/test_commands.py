# SPDX-License-Identifier: Apache-2.0
"""The commands as they are typed: what they ask, what they print, and how they end."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from osc_lib.cli.format_columns import ListColumn

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.osc import rows
from tests.unit.osc import proofs
from tests.unit.osc.http_api import PlayedApi

Run = Callable[..., Any]

COMMANDS = {
    entry.name.replace("_", " "): entry
    for entry in importlib.metadata.entry_points(group="openstack.attestation.v1")
}


@pytest.fixture
def run(api: PlayedApi) -> Run:
    """Take the action of a command line and give back what it would print."""

    def take(line: str, *arguments: str) -> Any:
        command = COMMANDS[line].load()(api.app, None)
        return command.take_action(command.get_parser(line).parse_args(list(arguments)))

    return take


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, api: PlayedApi) -> None:
    command = COMMANDS[name].load()(api.app, None)
    assert command.get_description()
    assert "usage" in command.get_parser(f"openstack {name}").format_help()


def test_servers_are_listed_by_what_was_asked(api: PlayedApi, run: Run) -> None:
    server = {"id": "a", "name": "b", "verdict": "trusted", "host": "c", "project_id": "d"}
    api.answer = lambda method, path: (200, {"servers": [server], "next_marker": None})
    columns, found = run("trust server list", "--verdict", "trusted")
    assert dict(zip(columns, next(iter(found)), strict=True))["id"] == "a"
    assert "host" not in columns
    columns, _ = run("trust server list", "--all-projects")
    assert {"host", "project_id"} < set(columns)
    assert [path for _, path, _ in api.requests] == [
        "/v1/servers?verdict=trusted", "/v1/servers?all_projects=true",
    ]  # fmt: skip


def test_what_a_guest_named_cannot_reach_the_terminal(api: PlayedApi, run: Run) -> None:
    reason = {
        "check": "modules",
        "symbol": "evil\x1b]0;x\x07",
        "offset": 1,
        "length": 2,
        "detail": "a\nb\x9b",
    }
    api.answer = lambda method, path: (200, {"id": "a", "name": "\x1b[2J", "reasons": [reason]})
    columns, values = run("trust server show", "a")
    shown = dict(zip(columns, values, strict=True))
    text = shown["name"] + shown["reasons"].human_readable()
    assert text.isprintable()
    assert "evil?]0;x?+0x1 (2 bytes): a?b?" in text
    assert shown["reasons"].machine_readable() == [reason]


@pytest.mark.parametrize(
    ("value", "human"),
    [
        ([0, 1], "0\n1"),
        ([{"host": "a", "reason": "\x07"}], "host: a, reason: ?"),
        ({"log_pcr": 13}, "log_pcr: 13"),
    ],
)
def test_lists_and_objects_print_a_line_for_each_part(value: Any, human: str) -> None:
    _, (column,) = rows.record({"name": value})
    assert column.human_readable() == human
    assert column.machine_readable() == value
    assert isinstance(column, ListColumn) == isinstance(value, list)


def test_a_host_is_overridden_and_the_override_lifted(api: PlayedApi, run: Run) -> None:
    run("trust host override", "h", "--reason", "TPM replaced", "--hours", "2")
    run("trust host override", "h", "--lift")
    assert [(method, path) for method, path, _ in api.requests] == [
        ("PUT", "/v1/hosts/h/override"), ("GET", "/v1/hosts/h"),
        ("DELETE", "/v1/hosts/h/override"), ("GET", "/v1/hosts/h"),
    ]  # fmt: skip
    assert json.loads(api.requests[0][2]) == {"hours": 2, "reason": "TPM replaced"}


def test_an_override_needs_a_reason(run: Run) -> None:
    with pytest.raises(SystemExit):
        run("trust host override", "h")


def test_a_host_is_enrolled_by_a_file_and_approved_by_a_digest(
    api: PlayedApi, run: Run, tmp_path: Path
) -> None:
    certificate = tmp_path / "ek.pem"
    certificate.write_text("PEM")
    run("trust host enrol", "h", str(certificate))
    run("trust host approve", "h", "ab" * 32)
    run("trust host revoke", "h")
    assert json.loads(api.requests[0][2]) == {"name": "h", "ek_certificate": "PEM"}
    assert json.loads(api.requests[1][2]) == {"ek_digest": "ab" * 32}
    assert api.requests[2][:2] == ("DELETE", "/v1/hosts/h")


@pytest.mark.parametrize("content", [None, b"\xff", b"x" * 70_000])
def test_files_that_hold_no_certificate_are_refused_here(
    api: PlayedApi, run: Run, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "ek.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AttestError):
        run("trust host enrol", "h", str(path))
    assert api.requests == []


def test_kernels_are_imported_from_a_file(api: PlayedApi, run: Run, tmp_path: Path) -> None:
    package = tmp_path / "linux.deb"
    package.write_bytes(b"package")
    run("trust reference import", str(package))
    run("trust reference delete", "aa", "bb")
    assert api.requests[0] == ("POST", "/v1/references", b"package")
    assert [path for _, path, _ in api.requests[1:]] == ["/v1/references/aa", "/v1/references/bb"]
    with pytest.raises(AttestError, match="cannot be read"):
        run("trust reference import", str(tmp_path / "missing"))


class TestSavedProof:
    """``trust proof verify``, which needs no service."""

    AT = datetime.datetime.fromtimestamp(proofs.NOW, datetime.UTC).isoformat()

    @pytest.fixture
    def arguments(self, tmp_path: Path) -> Callable[..., list[str]]:
        def made(guest: Any, nonce: str) -> list[str]:
            proof, ca = tmp_path / "proof", tmp_path / "ca.pem"
            proof.write_bytes(proofs.proof(guest))
            ca.write_bytes(proofs.CA_PEM)
            return [str(proof), "--ca", str(ca), "--at", self.AT, "--nonce", nonce]

        return made

    @pytest.mark.parametrize(("guest", "status"), [(proofs.SOUND, 0), (proofs.ALTERED, 1)])
    def test_the_exit_status_says_whether_it_is_sound(
        self, api: PlayedApi, arguments: Callable[..., list[str]], guest: Any, status: int, capsys: Any
    ) -> None:
        command = COMMANDS["trust proof verify"].load()(api.app, None)
        command.app.stdout = sys.stdout
        line = [*arguments(guest, proofs.NONCE.hex()), "-f", "json"]
        assert command.run(command.get_parser("verify").parse_args(line)) == status
        shown = json.loads(capsys.readouterr().out)
        assert (shown["proof"], shown["server"]) == ("valid", str(guest))
        assert (shown["evidence"] == "sound") == (status == 0)
        assert api.requests == []

    @pytest.mark.parametrize("nonce", ["zz", "ab", "00" * 32])
    def test_without_the_right_nonce_it_proves_nothing(
        self, run: Run, arguments: Callable[..., list[str]], nonce: str
    ) -> None:
        with pytest.raises(AttestError, match="nonce"):
            run("trust proof verify", *arguments(proofs.SOUND, nonce))

    def test_files_are_read_within_bounds(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "large").write_bytes(b"x" * ((4 << 20) + 1))
        for name in ("large", "missing"):
            with pytest.raises(AttestError, match=name):
                run("trust proof verify", "p", "--ca", str(tmp_path / name), "--nonce", "00" * 32)


class TestVerify:
    """``trust server verify`` with an API that answers as a genuine one, at the time of the example."""

    @pytest.fixture(autouse=True)
    def at_the_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nova_vmi_attest.osc.v1.servers.time.time", lambda: float(proofs.NOW))

    @pytest.fixture
    def arguments(self, api: PlayedApi, tmp_path: Path) -> list[str]:
        (tmp_path / "ca.pem").write_bytes(proofs.CA_PEM)
        api.answer = lambda method, path: (200, proofs.proof(proofs.SOUND) if method == "GET" else {})
        return ["--ca", str(tmp_path / "ca.pem"), "--nonce", proofs.NONCE.hex()]

    def test_a_proof_is_kept_as_it_came(self, run: Run, arguments: list[str], tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        columns, values = run("trust server verify", str(proofs.SOUND), *arguments, "--save", str(kept))
        assert dict(zip(columns, values, strict=True))["evidence"] == "sound"
        assert kept.read_bytes() == proofs.proof(proofs.SOUND)

    def test_an_existing_file_is_not_overwritten(
        self, run: Run, arguments: list[str], tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept"
        kept.write_text("mine")
        with pytest.raises(AttestError, match="cannot be written"):
            run("trust server verify", str(proofs.SOUND), *arguments, "--save", str(kept))
        assert kept.read_text() == "mine"

    def test_the_proof_of_another_server_is_refused(self, run: Run, arguments: list[str]) -> None:
        with pytest.raises(AttestError, match="about server"):
            run("trust server verify", str(proofs.ALTERED), *arguments)

    @pytest.mark.parametrize("server", ["", "x", "../x"])
    def test_what_is_no_id_is_refused(self, run: Run, arguments: list[str], server: str) -> None:
        with pytest.raises(AttestError, match="not the ID"):
            run("trust server verify", server, *arguments)
