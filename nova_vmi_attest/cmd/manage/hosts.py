# SPDX-License-Identifier: Apache-2.0
"""``host``: which TPM belongs to which host, what the verifiers know of the hosts, and which one an operator
vouches for.
"""

from __future__ import annotations

import argparse
import getpass
import os
import socket
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.cmd.manage.context import CommandError, Context, Nouns, moment, read_file
from nova_vmi_attest.records.overrides import Override, Overrides
from nova_vmi_attest.records.registry import HostRegistry, RegisteredHost
from nova_vmi_attest.verifier.hosts import Hosts, KnownHost

_MAX_CERTIFICATE = 1 << 16
_HOUR = 3600


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
        ("lift-override", _lift, "end an override before its time"),
    ):
        parser = verbs.add_parser(verb, parents=[common], help=text)
        parser.add_argument("name")
        parser.set_defaults(run=run)
    verbs.add_parser("list", parents=[common], help="list hosts").set_defaults(run=_list)
    override = verbs.add_parser(
        "override", parents=[common],
        help="break glass: have a host trusted for some hours whatever its evidence says; recorded and shown",
    )  # fmt: skip
    override.add_argument("name", help="the host as Nova names it")
    override.add_argument("--reason", required=True, help="why; shown with the verdict")
    override.add_argument(
        "--hours",
        type=int,
        default=4,
        choices=range(1, 25),
        metavar="N",
        help="for how long, 1 to 24; 4 if not given",
    )
    override.set_defaults(run=_override)


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


def _override(args: argparse.Namespace, context: Context) -> None:
    database, now = context.database(), int(time.time())
    made = Overrides(database).set(args.name, args.reason, _operator(), args.hours * _HOUR, now)
    known = Hosts(database).get(args.name) is not None
    context.done(
        f"host {made.host} is trusted until {moment(made.expires)} whatever its evidence says; its guests "
        "are judged as before" + ("" if known else "; note that the verifiers know no host of this name"),
        name=made.host,
        expires=made.expires,
        known=known,
    )


def _lift(args: argparse.Namespace, context: Context) -> None:
    Overrides(context.database()).lift(args.name, _operator(), int(time.time()))
    context.done(f"host {args.name} is trusted as far as its evidence says, again", name=args.name)


def _operator() -> str:
    """Who runs this, for the record: as far as the operating system knows."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _list(args: argparse.Namespace, context: Context) -> None:
    database = context.database()
    registered = {host.name: host for host in HostRegistry(database).hosts()}
    known = {host.name: host for host in Hosts(database).all()}
    overrides = {item.host: item for item in Overrides(database).all(int(time.time()))}
    rows = [
        _row(context, name, registered.get(name), known.get(name), overrides.get(name))
        for name in sorted(registered.keys() | known.keys() | overrides.keys())
    ]
    columns = ("name", "registered_at", "announced_at", "answered_at", "last_error", "override")
    context.table(columns, rows)


def _show(args: argparse.Namespace, context: Context) -> None:
    database = context.database()
    registered, known = HostRegistry(database).host(args.name), Hosts(database).get(args.name)
    override = Overrides(database).active(args.name, int(time.time()))
    if registered is None and known is None and override is None:
        raise CommandError(f"there is no host {args.name}", "see 'host list' and 'host register'")
    fields = _row(context, args.name, registered, known, override)
    state = Hosts(database).state(args.name).state
    if state is not None:
        fields |= {
            "tpm_resets": state.reset_count,
            "tpm_restarts": state.restart_count,
            "log_record": state.recnum,
        }
    context.record(fields)


def _row(
    context: Context,
    name: str,
    registered: RegisteredHost | None,
    known: KnownHost | None,
    override: Override | None,
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
        "override": _vouched(context, override),
    }


def _vouched(context: Context, override: Override | None) -> Any:
    if override is None:
        return None
    if not context.as_json:
        return f"by {override.made_by} until {moment(override.expires)}: {override.reason}"
    names = ("made_by", "made_at", "expires", "reason")
    return {name: getattr(override, name) for name in names}


def _der(data: bytes) -> bytes:
    if not data.lstrip().startswith(b"-----BEGIN"):
        return data
    try:
        return x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
    except ValueError as error:
        raise CommandError(f"the certificate cannot be read: {error}") from error
