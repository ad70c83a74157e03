# SPDX-License-Identifier: Apache-2.0
"""``nova-vmi-attest-manage``: what an operator, and a tenant with a proof, does from the command line.

One noun a module; each adds its parser and says which function carries a verb out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.cmd.manage import ca, db, hosts, keys, proof, references, responses, results, tpm
from nova_vmi_attest.cmd.manage.context import CommandError, Context
from nova_vmi_attest.errors import AttestError

PROGRAM = "nova-vmi-attest-manage"
# What libraries log is said again, in one line, by the error that comes of it.
_SILENCE = logging.NullHandler()
_NOUNS = (db, keys, ca, references, tpm, hosts, results, responses, proof)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command; the exit status is 0, 1 for an error that is explained, 2 for wrong usage."""
    logging.getLogger().addHandler(_SILENCE)
    arguments = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(arguments)
    try:
        _check_text(arguments)
        options = [f"--config-file={name}" for name in args.config_file]
        conf = configuration.load(options, PROGRAM)
        args.run(args, Context(conf, args.json))
    except AttestError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def _check_text(arguments: Sequence[str]) -> None:
    """No name, path or number here is anything but Unicode text, and no database takes anything else."""
    for argument in arguments:
        if "\0" in argument or not argument.isprintable() or not _encodable(argument):
            raise CommandError(f"the argument {argument!a} is not printable text")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Administer attestation of Nova guests.")
    parser.add_argument(
        "--config-file", action="append", default=[], metavar="PATH",
        help="read this configuration file (repeatable) instead of the usual ones",
    )  # fmt: skip
    nouns = parser.add_subparsers(metavar="NOUN", required=True)
    for noun in _NOUNS:
        noun.add_parser(nouns, common)
    return parser
