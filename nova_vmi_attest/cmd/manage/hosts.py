# SPDX-License-Identifier: Apache-2.0
"""``host``: which TPM belongs to which host, and what the verifiers know of the hosts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.cmd.manage.context import CommandError, Context, Nouns, moment, read_file
from nova_vmi_attest.records.registry import HostRegistry, RegisteredHost
from nova_vmi_attest.verifier.hosts import Hosts, KnownHost

_MAX_CERTIFICATE = 1 << 16


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    noun = nouns.add_parser("host", help="compute hosts and their TPMs")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    register = verbs.add_parser(
        "register", parents=[common], help="say which TPM is in a host, so it can enrol"
    )
    register.add_argument("name", help="the host as Nova names it")
    register.add_argument(
        "ek_certificate", type=Path, metavar="EK_CERTIFICATE",
        help="certificate of the TPM's endorsement key (PEM or DER), read on the host itself",
    )  # fmt: skip
    register.set_defaults(run=_register)
    for verb, run, text in (
        ("unregister", _unregister, "withdraw a host's TPM and its certificate"),
        ("show", _show, "show one host"),
        ("forget", _forget, "drop the verifiers' state of a host that is gone or lost its log"),
    ):
        parser = verbs.add_parser(verb, parents=[common], help=text)
        parser.add_argument("name")
        parser.set_defaults(run=run)
    verbs.add_parser("list", parents=[common], help="list hosts").set_defaults(run=_list)


def _register(args: argparse.Namespace, context: Context) -> None:
    der = _der(read_file(args.ek_certificate, _MAX_CERTIFICATE))
    host = HostRegistry(context.database()).register(args.name, der)
    context.done(
        f"host {host.name} may enrol with the TPM whose EK digest is {host.ek_digest}",
        name=host.name,
        ek_digest=host.ek_digest,
    )


def _unregister(args: argparse.Namespace, context: Context) -> None:
    database = context.database()
    HostRegistry(database).unregister(args.name)
    Hosts(database).forget(args.name)
    context.done(
        f"host {args.name} can no longer enrol, and verifiers refuse its certificate; its results "
        "end by themselves",
        name=args.name,
    )


def _forget(args: argparse.Namespace, context: Context) -> None:
    if not Hosts(context.database()).forget(args.name):
        raise CommandError(f"the verifiers know no host {args.name}", "see 'host list'")
    context.done(f"host {args.name} is forgotten until it announces itself again", name=args.name)


def _list(args: argparse.Namespace, context: Context) -> None:
    database = context.database()
    registered = {host.name: host for host in HostRegistry(database).hosts()}
    known = {host.name: host for host in Hosts(database).all()}
    rows = [
        _row(context, name, registered.get(name), known.get(name))
        for name in sorted(registered.keys() | known.keys())
    ]
    context.table(("name", "registered_at", "announced_at", "answered_at", "last_error"), rows)


def _show(args: argparse.Namespace, context: Context) -> None:
    database = context.database()
    registered, known = HostRegistry(database).host(args.name), Hosts(database).get(args.name)
    if registered is None and known is None:
        raise CommandError(f"there is no host {args.name}", "see 'host list' and 'host register'")
    fields = _row(context, args.name, registered, known)
    state = Hosts(database).state(args.name).state
    if state is not None:
        fields |= {
            "tpm_resets": state.reset_count,
            "tpm_restarts": state.restart_count,
            "log_record": state.recnum,
        }
    context.record(fields)


def _row(
    context: Context, name: str, registered: RegisteredHost | None, known: KnownHost | None
) -> dict[str, Any]:
    times = {
        "registered_at": registered.registered_at if registered else None,
        "announced_at": known.announced_at if known else None,
        "challenged_at": known.challenged_at if known else None,
        "answered_at": known.answered_at if known else None,
    }
    return {
        "name": name,
        "ek_digest": registered.ek_digest if registered else (known.tpm if known else ""),
        **(times if context.as_json else {key: moment(value) for key, value in times.items()}),
        "last_error": known.last_error if known else "",
    }


def _der(data: bytes) -> bytes:
    if not data.lstrip().startswith(b"-----BEGIN"):
        return data
    try:
        return x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
    except ValueError as error:
        raise CommandError(f"the certificate cannot be read: {error}") from error
