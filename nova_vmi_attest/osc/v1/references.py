# SPDX-License-Identifier: Apache-2.0
"""``openstack trust reference``: the kernels that servers may run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from osc_lib.command import command

from nova_vmi_attest.osc import rows
from nova_vmi_attest.osc.client import ClientError, client_of


class ListReferences(command.Lister):
    """List the approved kernels"""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        client = client_of(self)
        return rows.table(("digest", "release", "package", "version", "modules"), client.list("references"))


class ImportReference(command.ShowOne):
    """Approve the kernel in a package, such as linux-image-6.1.0-...-amd64.deb"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("package", type=Path, metavar="<file>", help="kernel package (.deb or .rpm)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        client = client_of(self)
        try:
            with parsed_args.package.open("rb") as file:
                return rows.record(client.upload("references", file=file))
        except OSError as error:
            raise ClientError(f"{parsed_args.package} cannot be read: {error.strerror}") from error


class DeleteReference(command.Command):
    """Withdraw the approval of kernels: servers that run them become unknown in the next round"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("digest", nargs="+", metavar="<digest>", help="digest of the reference")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        for digest in parsed_args.digest:
            client_of(self).delete("references", digest)
