# SPDX-License-Identifier: Apache-2.0
"""``key``: the verifiers' key, which signs challenges, results and the index of references."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nova_vmi_attest.cmd.manage.context import Context, Nouns
from nova_vmi_attest.evidence import keys


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    verbs = nouns.add_parser("key", help="the verifiers' key").add_subparsers(metavar="VERB", required=True)
    create = verbs.add_parser("create", parents=[common], help="make the key; an existing one is kept")
    create.set_defaults(run=_create)
    show = verbs.add_parser("show", parents=[common], help="show the public half")
    show.add_argument("--jwks", action="store_true", help="print the key set that agents and Nova need")
    show.set_defaults(run=_show)


def _create(args: argparse.Namespace, context: Context) -> None:
    path = Path(context.conf.verifier.private_key)
    key = keys.generate()
    keys.save_private_key(path, key)
    thumbprint = keys.key_id(key.public_key())
    context.done(
        f"made {path} with key {thumbprint}; give agents and nova-scheduler what 'key show --jwks' prints",
        path=str(path),
        thumbprint=thumbprint,
    )


def _show(args: argparse.Namespace, context: Context) -> None:
    path = Path(context.conf.verifier.private_key)
    public = keys.load_private_key(path).public_key()
    if args.jwks:
        sys.stdout.write(keys.encode_jwks([public]).decode() + "\n")
    else:
        context.record({"path": str(path), "thumbprint": keys.key_id(public)})
