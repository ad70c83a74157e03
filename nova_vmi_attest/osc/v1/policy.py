# SPDX-License-Identifier: Apache-2.0
"""``openstack trust policy`` and ``openstack trust refusal``: what is demanded, and what came of it."""

from __future__ import annotations

import argparse
from typing import Any

from osc_lib.command import command

from nova_vmi_attest.osc import rows
from nova_vmi_attest.osc.client import client_of


class ShowPolicy(command.ShowOne):
    """Show what a server and a host must show to be trusted"""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        client = client_of(self)
        return rows.record(client.show("policy"))


class ListRefusals(command.Lister):
    """List the requests for which the scheduler refused hosts, and why, the newest first"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("--server", metavar="<server>", help="only those for this server")
        parser.add_argument("--limit", type=int, default=100, metavar="<count>", help="default: 100")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        client = client_of(self)
        columns = ("at", "server_id", "request", "level", "total", "hosts")
        return rows.table(columns, client.list("refusals", parsed_args.limit, server=parsed_args.server))
