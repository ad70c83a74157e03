# SPDX-License-Identifier: Apache-2.0
"""``openstack trust host``: hosts, their verdicts, their TPMs, and an operator's word for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from osc_lib.command import command

from nova_vmi_attest.osc import rows
from nova_vmi_attest.osc.client import ClientError, client_of

_MAX_CERTIFICATE = 1 << 16
_HOURS = 4


class _HostCommand(command.ShowOne):
    """Common to all commands about one host."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("host", metavar="<host>", help="name of the host, as Nova knows it")
        return parser


class ListHosts(command.Lister):
    """List hosts with their verdicts"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "--verdict", choices=("trusted", "untrusted", "unknown", "stale"), help="only hosts that are so"
        )
        parser.add_argument("--pending", action="store_true", help="hosts that wait for approval instead")
        parser.add_argument("--limit", type=int, metavar="<count>", help="at most this many hosts")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        client = client_of(self)
        if parsed_args.pending:
            pending = client.list("hosts/pending", parsed_args.limit)
            return rows.table(("name", "ek_digest", "asked_at"), pending)
        columns = ("name", "verdict", "checked_at", "valid_until", "registered", "override")
        return rows.table(columns, client.list("hosts", parsed_args.limit, verdict=parsed_args.verdict))


class ShowHost(_HostCommand):
    """Show a host, its verdict and why"""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return rows.record(client_of(self).show("hosts", parsed_args.host))


class EnrolHost(_HostCommand):
    """Say which TPM is in a host, by the TPM's endorsement key certificate

    On the host, nova-vmi-attest-manage tpm ek-certificate writes that file.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "certificate", type=Path, metavar="<file>", help="endorsement key certificate of its TPM (PEM)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        body = {"name": parsed_args.host, "ek_certificate": _text(parsed_args.certificate)}
        return rows.record(client_of(self).create("hosts", body=body))


class ApproveHost(_HostCommand):
    """Enrol a host with the TPM that it showed when it asked

    Compare the digest with what the host itself says before you approve: whoever is on the message bus can
    ask in a host's name, with a TPM of his own.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "ek_digest", metavar="<digest>", help="SHA-256 of the endorsement key, as the host says it"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        body = {"ek_digest": parsed_args.ek_digest}
        return rows.record(client_of(self).create("hosts", parsed_args.host, "approve", body=body))


class RevokeHost(command.Command):
    """Withdraw a host's enrolment: its next evidence is refused, and its verdict expires"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("host", metavar="<host>", help="name of the host, as Nova knows it")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        client_of(self).delete("hosts", parsed_args.host)


class OverrideHost(_HostCommand):
    """Have a host count as trusted for some hours, whatever its evidence says

    Break-glass: it is recorded, shown with every verdict on the host, and ends by itself. The verdicts on its
    servers stay what they are.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        choice = parser.add_mutually_exclusive_group(required=True)
        choice.add_argument("--reason", metavar="<text>", help="why; everybody who sees the verdict sees it")
        choice.add_argument("--lift", action="store_true", help="end the override now")
        parser.add_argument(
            "--hours", type=int, default=_HOURS, metavar="<hours>", help=f"1 to 24, default: {_HOURS}"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        if parsed_args.lift:
            client_of(self).delete("hosts", parsed_args.host, "override")
        else:
            body = {"reason": parsed_args.reason, "hours": parsed_args.hours}
            client_of(self).replace("hosts", parsed_args.host, "override", body=body)
        return rows.record(client_of(self).show("hosts", parsed_args.host))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CERTIFICATE + 1)
        if len(data) > _MAX_CERTIFICATE:
            raise ClientError(f"{path} is larger than {_MAX_CERTIFICATE} bytes")
        return data.decode("ascii")
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClientError(f"{path} is not PEM text") from error
