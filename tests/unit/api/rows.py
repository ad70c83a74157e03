# SPDX-License-Identifier: Apache-2.0
"""What verifiers, authority and schedulers would have stored of a small cloud of two projects."""

from __future__ import annotations

import json
import time
import uuid

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from tests.unit.api.cloud import OTHER, PROJECT

HOST, SECOND, DECOY, SILENT = "compute-1", "compute-2", "compute-9", "compute-3"
GOOD, BAD, NEW, OLD, MOVING, SHOWN_TWICE, THEIRS, GONE, STRANGER = (
    str(uuid.UUID(int=(number << 96) | 0x4000_8000_0000_0000_0000)) for number in range(1, 10)
)
MINE = (GOOD, BAD, NEW, OLD, MOVING, SHOWN_TWICE)
DIGEST = "d" * 64
SECRET_DETAIL = f"host {HOST}: PCR 0 is not approved"
MODULE = ["modules", "evil", 16, 4, "not in the reference package"]


def fill(database: Database) -> None:
    """Put the cloud into an empty database."""
    now = int(time.time())
    with database.writer() as session:
        session.add_all([*_servers(now), *_results(now), *_guests(now), *_hosts(now), *_events(now)])


def server(guest: str, project: str, host: str, now: int, **values: object) -> models.ServerRow:
    columns: dict[str, object] = {
        "name": f"name of {guest[:8]}", "allowed_host": "", "required": bool(host), "status": "ACTIVE",
        "task_state": "", "seen_at": now, "deleted_at": None,
    }  # fmt: skip
    return models.ServerRow(guest=guest, project=project, host=host, **(columns | values))


def guest_result(
    guest: str, host: str, verdict: str, now: int, age: int = 10, lifetime: int = 300, reasons: object = ()
) -> models.GuestResultRow:
    return models.GuestResultRow(
        guest=guest, host=host, verdict=verdict, reasons=json.dumps(list(reasons)),  # type: ignore[call-overload]
        sequence=1, issued=now - age, expires=now - age + lifetime, release="6.1.0-56-cloud-amd64",
    )  # fmt: skip


def _servers(now: int) -> list[models.ServerRow]:
    return [
        server(GOOD, PROJECT, HOST, now),
        server(BAD, PROJECT, HOST, now),
        server(NEW, PROJECT, "", now, status="BUILD"),
        server(OLD, PROJECT, SILENT, now),
        server(MOVING, PROJECT, HOST, now, allowed_host=SECOND, required=False, task_state="migrating"),
        server(SHOWN_TWICE, PROJECT, HOST, now),
        server(THEIRS, OTHER, SECOND, now),
        server(GONE, PROJECT, "", now, status="DELETED", deleted_at=now - 60),
    ]


def _results(now: int) -> list[models.ResultRow]:
    def result(host: str, verdict: str, reasons: object, age: int = 10) -> models.ResultRow:
        return models.ResultRow(
            host=host, sequence=1, verdict=verdict, reasons=json.dumps(reasons), issued=now - age,
            expires=now - age + 300, token="token",
        )  # fmt: skip

    return [
        result(HOST, "trusted", []),
        result(SECOND, "untrusted", [["pcr", "", 0, 0, "PCR 0 is not approved"]]),
        result(SILENT, "trusted", [], age=1000),
    ]


def _guests(now: int) -> list[models.GuestResultRow]:
    host_reason = ["host_untrusted", "", 0, 0, SECRET_DETAIL]
    return [
        guest_result(GOOD, HOST, "trusted", now),
        guest_result(
            BAD, HOST, "untrusted", now, reasons=[MODULE, ["text", "", 0, 1, SECRET_DETAIL], host_reason]
        ),
        guest_result(OLD, SILENT, "trusted", now, age=1000),
        guest_result(MOVING, HOST, "trusted", now, age=1000),
        guest_result(MOVING, SECOND, "trusted", now),
        guest_result(SHOWN_TWICE, HOST, "trusted", now),
        guest_result(SHOWN_TWICE, DECOY, "unknown", now),
        guest_result(THEIRS, SECOND, "untrusted", now),
        guest_result(STRANGER, HOST, "trusted", now),
    ]


def _hosts(now: int) -> list[models.Base]:
    def known(name: str) -> models.KnownHost:
        return models.KnownHost(
            name=name, tpm="tpm", certificate="pem", announced_at=now, challenged_at=now, answered_at=None,
            last_error="",
        )  # fmt: skip

    return [
        models.Host(name=HOST, ek_digest="1" * 64, ek_certificate="pem", registered_at=now),
        models.Host(name="compute-4", ek_digest="4" * 64, ek_certificate="pem", registered_at=now),
        known(HOST),
        known(SECOND),
        models.PendingHostRow(
            host="compute-5", ek_digest=DIGEST, ek_certificate="pem", asked_at=now, asked_last=now
        ),
        models.OverrideRow(
            host=SECOND, reason="board swap", made_by="c" * 32, made_at=now, expires=now + 60, lifted_at=None
        ),
    ]


def _events(now: int) -> list[models.Base]:
    def change(guest: str, previous: str, verdict: str) -> models.VerdictChange:
        return models.VerdictChange(
            at=now, kind="guest", subject=guest, host=HOST, previous=previous, verdict=verdict,
            reasons=json.dumps([MODULE, ["host_untrusted", "", 0, 0, SECRET_DETAIL]]),
        )  # fmt: skip

    def refusal(guest: str, project: str) -> models.RefusalRow:
        hosts = json.dumps([[HOST, "host is untrusted"]])
        return models.RefusalRow(
            at=now,
            server=guest,
            project=project,
            request="build req-1",
            level="required",
            total=1,
            hosts=hosts,
        )

    return [
        *(change(guest, "", "trusted") for guest in (BAD, GONE, THEIRS, STRANGER)),
        *(change(guest, "trusted", "untrusted") for guest in (BAD, GONE, THEIRS)),
        refusal(NEW, PROJECT),
        refusal(THEIRS, OTHER),
        models.AuditRecord(
            at=now, action="issue", host_name=HOST, outcome="issued", detail=f"serial 1, EK {'1' * 64}"
        ),
    ]
