# SPDX-License-Identifier: Apache-2.0
"""``ca``: the key and certificate of the enrolment authority."""

from __future__ import annotations

import argparse
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from nova_vmi_attest.authority.ca import create_ca, load_authorities
from nova_vmi_attest.cmd.manage.context import Context, Nouns, moment


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    noun = nouns.add_parser("ca", help="the enrolment authority's certificate")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    create = verbs.add_parser(
        "create", parents=[common], help="make key and certificate; existing ones are kept"
    )
    create.add_argument("--years", type=int, default=10, choices=range(1, 31), metavar="N", help="validity")
    create.set_defaults(run=_create)
    show = verbs.add_parser("show", parents=[common], help="show the certificate")
    show.set_defaults(run=_show)


def _create(args: argparse.Namespace, context: Context) -> None:
    options = context.conf.authority
    certificate = create_ca(Path(options.private_key), Path(options.certificate), years=args.years)
    context.done(
        f"made {options.private_key} and {options.certificate}, which agents, verifiers and tenants need",
        private_key=options.private_key,
        certificate=options.certificate,
        not_after=int(certificate.not_valid_after_utc.timestamp()),
    )


def _show(args: argparse.Namespace, context: Context) -> None:
    certificate = load_authorities(Path(context.conf.authority.certificate))[0]
    end = int(certificate.not_valid_after_utc.timestamp())
    context.record(
        {
            "path": context.conf.authority.certificate,
            "subject": certificate.subject.rfc4514_string(),
            "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
            "not_after": end if context.as_json else moment(end),
        }
    )
