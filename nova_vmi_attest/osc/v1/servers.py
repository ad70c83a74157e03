# SPDX-License-Identifier: Apache-2.0
"""``openstack trust server``: the verdicts on servers, and a tenant's own check of one."""

from __future__ import annotations

import argparse
import time
import uuid
from pathlib import Path
from typing import Any

from cryptography import x509
from osc_lib.command import command

from nova_vmi_attest.evidence import given
from nova_vmi_attest.osc import rows, verification
from nova_vmi_attest.osc.client import client_of
from nova_vmi_attest.osc.v1.proofs import VerifiedCommand
from nova_vmi_attest.osc.verification import Verified

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


class VerifyServer(VerifiedCommand):
    """Have a server's host answer a nonce of yours, and check the proof yourself

    The proof is checked on this machine against the certificate of the cloud's enrolment authority, which you
    must have from a source that you trust: the cloud's API cannot vouch for itself.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="ID of the server")
        parser.add_argument(
            "--nonce", metavar="<hex>", help="64 hex digits; without it a random one is drawn"
        )
        parser.add_argument(
            "--save", type=Path, metavar="<file>", help="keep the proof in a new file, for trust proof verify"
        )
        parser.add_argument(
            "--timeout", type=int, default=_WAIT, metavar="<seconds>", help=f"default: {_WAIT}"
        )
        return parser

    def found(self, parsed_args: argparse.Namespace, authorities: list[x509.Certificate]) -> Verified:
        guest = _uuid(parsed_args.server)
        nonce = given.nonce(parsed_args.nonce) if parsed_args.nonce else verification.new_nonce()
        data = verification.ask(client_of(self), guest, nonce, parsed_args.timeout)
        found = verification.verify(data, authorities, nonce, time.time())
        if found.guest != guest:
            raise verification.VerificationError(f"the proof is about server {found.guest}, not {guest}")
        if parsed_args.save:
            _save(parsed_args.save, data)
        return found


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise verification.VerificationError(f"{text!r} is not the ID of a server") from error


def _save(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise verification.VerificationError(f"{path} cannot be written: {error.strerror}") from error
