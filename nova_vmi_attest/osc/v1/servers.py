# SPDX-License-Identifier: Apache-2.0
"""``openstack trust server``: the verdicts on servers, and a tenant's own check of one."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osc_lib.command import command

from nova_vmi_attest.evidence import given
from nova_vmi_attest.osc import rows, verification
from nova_vmi_attest.osc.client import client_of
from nova_vmi_attest.osc.verification import Verified

_MAX_FILE = 4 << 20
_WAIT = 60


class ListServers(command.Lister):
    """List the servers that you may see, with their verdicts"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "--verdict", choices=("trusted", "untrusted", "unknown", "stale"), help="only servers that are so"
        )
        parser.add_argument("--host", metavar="<host>", help="only servers on this host (admin only)")
        parser.add_argument(
            "--all-projects", action="store_true", help="servers of every project (admin only)"
        )
        parser.add_argument("--limit", type=int, metavar="<count>", help="at most this many servers")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        query = {
            "verdict": parsed_args.verdict,
            "host": parsed_args.host,
            "all_projects": "true" if parsed_args.all_projects else None,
        }
        columns = ["id", "name", "verdict", "host_verdict", "checked_at", "valid_until", "kernel"]
        if parsed_args.all_projects or parsed_args.host:
            columns += ["project_id", "host"]
        return rows.table(columns, client_of(self).list("servers", parsed_args.limit, **query))


class ShowServer(command.ShowOne):
    """Show the verdict on a server and why"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="ID of the server")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return rows.record(client_of(self).show("servers", parsed_args.server))


class ServerHistory(command.Lister):
    """List the changes of a server's verdict, the newest first"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="ID of the server")
        parser.add_argument("--limit", type=int, default=100, metavar="<count>", help="default: 100")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        changes = client_of(self).list(f"servers/{_uuid(parsed_args.server)}/history", parsed_args.limit)
        return rows.table(("at", "previous", "verdict", "reasons"), changes)


class VerifyServer(command.ShowOne):
    """Have a server's host answer a nonce of yours, and check the proof yourself

    The proof is checked on this machine against the certificate of the cloud's enrolment authority, which you
    must have from a source that you trust: the cloud's API cannot vouch for itself. With --file a proof that
    was saved before is checked, and no service is asked.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="ID of the server")
        parser.add_argument(
            "--ca", type=Path, required=True, metavar="<file>", help="certificates of the authority (PEM)"
        )
        parser.add_argument(
            "--nonce", metavar="<hex>", help="64 hex digits; without it a random one is drawn"
        )
        parser.add_argument("--file", type=Path, metavar="<file>", help="check this saved proof")
        parser.add_argument("--save", type=Path, metavar="<file>", help="keep the proof in a new file")
        parser.add_argument(
            "--at",
            metavar="<time>",
            help="when a saved proof was made (ISO 8601), if it is old",
        )
        parser.add_argument(
            "--timeout", type=int, default=_WAIT, metavar="<seconds>", help=f"default: {_WAIT}"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        guest = _uuid(parsed_args.server)
        authorities = given.certificates(_read(parsed_args.ca), parsed_args.ca)
        data, nonce = self._proof(guest, parsed_args)
        found = verification.verify(data, guest, authorities, nonce, given.moment(parsed_args.at))
        if parsed_args.save:
            _save(parsed_args.save, data)
        self._sound = found.summary.sound
        return _columns(found)

    def run(self, parsed_args: argparse.Namespace) -> int:
        """As every command, but with status 1 when a valid proof shows a kernel that is not sound."""
        status = int(super().run(parsed_args) or 0)
        return status or int(not self._sound)

    def _proof(self, guest: uuid.UUID, arguments: argparse.Namespace) -> tuple[bytes, bytes]:
        if arguments.file is None:
            nonce = given.nonce(arguments.nonce) if arguments.nonce else verification.new_nonce()
            return verification.ask(client_of(self), guest, nonce, arguments.timeout), nonce
        if not arguments.nonce:
            raise verification.VerificationError(
                "a saved proof is worth as much as the nonce in it",
                "give with --nonce the one that you asked with",
            )
        return _read(arguments.file), given.nonce(arguments.nonce)


def _columns(found: Verified) -> tuple[Sequence[str], Sequence[Any]]:
    summary = found.summary
    return rows.record(
        {
            "proof": "valid",
            "server": str(found.guest),
            "host": found.host,
            "nonce": found.nonce.hex(),
            "log_record": found.log_record,
            "evidence": "sound" if summary.sound else "NOT SOUND",
            "status": summary.status,
            "kernel": summary.release,
            "reference": summary.reference,
            "code_bytes": summary.code_bytes,
            "unexplained_bytes": summary.unexplained_bytes,
            "modules": summary.modules,
            "processes": summary.processes,
            "checks": list(summary.checks),
            "findings": list(summary.findings),
        }
    )


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise verification.VerificationError(f"{text!r} is not the ID of a server") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise verification.VerificationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise verification.VerificationError(f"{path} is larger than {_MAX_FILE} bytes")
    return data


def _save(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise verification.VerificationError(f"{path} cannot be written: {error.strerror}") from error
