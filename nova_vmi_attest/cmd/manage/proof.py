# SPDX-License-Identifier: Apache-2.0
"""``proof``: cut one guest's evidence out for its owner, and verify it offline as that owner would."""

from __future__ import annotations

import argparse
import dataclasses
import os
import uuid
from pathlib import Path
from typing import Any

from nova_vmi_attest.cmd.manage.context import CommandError, Context, Nouns, read_file
from nova_vmi_attest.evidence import given
from nova_vmi_attest.evidence.batch import Batch
from nova_vmi_attest.evidence.measurement import Measurement
from nova_vmi_attest.evidence.measurement_codec import encode_measurement
from nova_vmi_attest.evidence.proof import MAX_PROOF_BYTES, GuestProof, make_proof, verify_proof
from nova_vmi_attest.evidence.summary import summarize
from nova_vmi_attest.records.results import ResultReader

_MAX_CERTIFICATES = 1 << 20


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    noun = nouns.add_parser("proof", help="one guest's evidence, for its owner")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    export = verbs.add_parser("export", parents=[common], help="write the newest proof of a guest to a file")
    export.add_argument("guest", help="UUID of the guest")
    export.add_argument("file", type=Path, help="must not exist")
    export.set_defaults(run=_export)
    verify = verbs.add_parser(
        "verify", parents=[common], help="verify a proof; needs no service and no database"
    )
    verify.add_argument("file", type=Path)
    verify.add_argument(
        "--ca", type=Path, required=True, metavar="FILE", help="the authority's certificates (PEM)"
    )
    verify.add_argument("--nonce", required=True, metavar="HEX", help="the nonce that was asked with")
    verify.add_argument(
        "--at", metavar="TIME", help="when the proof was made (ISO 8601), for one whose certificate has ended"
    )
    verify.set_defaults(run=_verify)


def _export(args: argparse.Namespace, context: Context) -> None:
    try:
        guest = uuid.UUID(args.guest)
    except ValueError as error:
        raise CommandError(f"{args.guest!r} is not a UUID") from error
    stored = ResultReader(context.database()).batch_of(guest)
    if stored is None:
        raise CommandError(f"no evidence of guest {guest} is kept", "see 'result list'")
    proof = make_proof(Batch.decode(stored.batch), guest, stored.pcr_before)
    _write(args.file, proof.encode())
    nonces = [nonce.hex() for nonce in proof.nonces]
    context.done(
        f"wrote {args.file}: guest {guest} on host {proof.host}, nonces {', '.join(nonces)}",
        file=str(args.file),
        guest=str(guest),
        host=proof.host,
        nonces=nonces,
    )


def _verify(args: argparse.Namespace, context: Context) -> None:
    proof = GuestProof.decode(read_file(args.file, MAX_PROOF_BYTES))
    measurement = verify_proof(
        proof,
        given.certificates(read_file(args.ca, _MAX_CERTIFICATES), args.ca),
        given.nonce(args.nonce),
        given.moment(args.at),
    )
    if context.as_json:
        context.json(
            {
                "guest": str(proof.guest),
                "host": proof.host,
                "log_record": proof.entry.recnum,
                "measurement": encode_measurement(measurement),
            }
        )
    else:
        context.record(
            {"proof": "valid", "guest": str(proof.guest), "host": proof.host, **_facts(measurement)}
        )


def _facts(measurement: Measurement) -> dict[str, Any]:
    """What the proof shows, for people: facts, not a verdict."""
    return dataclasses.asdict(summarize(measurement))


def _write(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from error
