# SPDX-License-Identifier: Apache-2.0
"""``tpm``: what the operator reads from the TPM of the host on which the command runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.cmd.manage.context import CommandError, Context, Nouns, moment
from nova_vmi_attest.tpm.device import Tpm
from nova_vmi_attest.tpm.endorsement import certified_key, ek_digest


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    noun = nouns.add_parser(
        "tpm", help="the TPM of this host ([tpm] tcti); stop the agent first on a software TPM"
    )
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    certificate = verbs.add_parser(
        "ek-certificate",
        parents=[common],
        help="write the endorsement key's certificate, for 'host register'",
    )
    certificate.add_argument("file", type=Path, help="PEM file to write")
    certificate.set_defaults(run=_ek_certificate)


def _ek_certificate(args: argparse.Namespace, context: Context) -> None:
    with Tpm(context.conf.tpm.tcti) as tpm:
        der = tpm.ek_certificate()
    try:
        certificate = x509.load_der_x509_certificate(der)
        args.file.write_bytes(certificate.public_bytes(Encoding.PEM))
        end = int(certificate.not_valid_after_utc.timestamp())
        digest = ek_digest(certified_key(certificate))
    except ValueError as error:
        raise CommandError(f"the TPM's endorsement key certificate cannot be parsed: {error}") from error
    except OSError as error:
        raise CommandError(f"{args.file} cannot be written: {error.strerror}") from error
    context.done(
        f"wrote {args.file}: key {digest}, valid until {moment(end)}",
        file=str(args.file),
        ek_digest=digest,
        not_after=end,
    )
