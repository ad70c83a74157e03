# SPDX-License-Identifier: Apache-2.0
"""``openstack trust proof``: what commands that check a proof share, and the check of a saved one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cryptography import x509
from osc_lib.command import command

from nova_vmi_attest.evidence import given
from nova_vmi_attest.osc import rows, verification
from nova_vmi_attest.osc.verification import Verified

_MAX_FILE = 4 << 20


class VerifiedCommand(command.ShowOne):
    """Shows what a valid proof says; the exit status is 1 when it shows a kernel that is not sound."""

    _sound = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "--ca", type=Path, required=True, metavar="<file>", help="certificates of the authority (PEM)"
        )
        return parser

    def found(self, parsed_args: argparse.Namespace, authorities: list[x509.Certificate]) -> Verified:
        """The proof that the command is about, verified against ``authorities``."""
        raise NotImplementedError

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        found = self.found(parsed_args, given.certificates(_read(parsed_args.ca), parsed_args.ca))
        self._sound = found.summary.sound
        return rows.record(_columns(found))

    def run(self, parsed_args: argparse.Namespace) -> int:
        status = int(super().run(parsed_args) or 0)
        return status or int(not self._sound)


class VerifyProof(VerifiedCommand):
    """Check a proof that was saved before; no service is asked

    A saved proof is worth as much as the nonce in it: only who drew the nonce knows that the proof is not
    older.
    """

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("proof", type=Path, metavar="<file>", help="the saved proof")
        parser.add_argument(
            "--nonce", required=True, metavar="<hex>", help="the nonce that was asked with, 64 hex digits"
        )
        parser.add_argument(
            "--at", metavar="<time>", help="when the proof was made (ISO 8601), if its certificate has ended"
        )
        return parser

    def found(self, parsed_args: argparse.Namespace, authorities: list[x509.Certificate]) -> Verified:
        nonce, moment = given.nonce(parsed_args.nonce), given.moment(parsed_args.at)
        return verification.verify(_read(parsed_args.proof), authorities, nonce, moment)


def _columns(found: Verified) -> dict[str, Any]:
    summary = found.summary
    return {
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


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise verification.VerificationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise verification.VerificationError(f"{path} is larger than {_MAX_FILE} bytes")
    return data
