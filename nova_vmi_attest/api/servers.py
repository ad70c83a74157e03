# SPDX-License-Identifier: Apache-2.0
"""``/v1/servers``: the verdicts on servers, how they changed, and the evidence for one.

Whose a server is says Nova, through the verifiers. A server of another project and one that does not exist
get the same answer. Of hosts a tenant learns the verdict, and no name but the one inside a proof.
"""

from __future__ import annotations

import re
import uuid
from http import HTTPStatus
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from nova_vmi_attest.api import schemas, standing
from nova_vmi_attest.api.challenges import challenge
from nova_vmi_attest.api.operations import Answer, Call, Operation, Parameter
from nova_vmi_attest.api.problems import Problem, not_found
from nova_vmi_attest.api.proofs import find_proof
from nova_vmi_attest.api.schemas import object_of, page, page_of, reason_of, time_of
from nova_vmi_attest.api.standing import NEVER_SEEN, Standing
from nova_vmi_attest.db.models import ServerRow, VerdictChange
from nova_vmi_attest.evidence.result import Reason, Verdict
from nova_vmi_attest.policies import servers as rules
from nova_vmi_attest.records.results import decode_reasons

# Reasons whose details speak of the host.
_OF_HOSTS = frozenset({"host_untrusted", "guest_missing", "not_known_to_nova", "placement_unchecked"})

_LISTED = {
    "id": schemas.UUID,
    "name": schemas.TEXT,
    "project_id": {"type": ["string", "null"]},
    "status": {**schemas.TEXT, "description": "As Nova says, when the verifiers asked last."},
    "verdict": schemas.VERDICT,
    "last_verdict": {
        "enum": ["trusted", "untrusted", "unknown", None],
        "description": "What a stale verdict said.",
    },
    "host_verdict": schemas.VERDICT,
    "checked_at": schemas.TIME_OR_NULL,
    "valid_until": schemas.TIME_OR_NULL,
    "kernel": {**schemas.TEXT, "description": "Release of its kernel; empty when it was not measured."},
    "host": {"type": ["string", "null"], "description": "Where it runs, for operators."},
}
_SHOWN_BY = object_of({"host": schemas.TEXT, "verdict": schemas.VERDICT})
_SERVER = {
    **_LISTED,
    "deleted_at": schemas.TIME_OR_NULL,
    "reasons": schemas.REASONS,
    "shown_by": {
        "type": "array",
        "items": _SHOWN_BY,
        "description": "The hosts that show it, for operators. More than one is a migration, or a decoy.",
    },
}
_CHANGE = object_of(
    {
        "at": schemas.TIME,
        "previous": {"enum": ["trusted", "untrusted", "unknown", None]},
        "verdict": schemas.VERDICT,
        "reasons": schemas.REASONS,
        "host": {"type": ["string", "null"], "description": "Whose result changed, for operators."},
    },
    optional=("host",),
)
_CHALLENGE = object_of({"nonce": schemas.NONCE})


def _list(call: Call) -> Answer:
    host, verdict = call.query.get("host"), call.query.get("verdict")
    # A token for the whole cloud has no project of its own to list.
    everything = call.query.get("all_projects", False) or not call.context.project_id
    may_all = call.allows(rules.LIST_ALL)
    if (everything or host is not None) and not may_all:
        raise Problem(
            HTTPStatus.FORBIDDEN, "only operators may list servers by host or of all projects", "leave it out"
        )
    row, limit = ServerRow, schemas.limit_of(call)
    wanted = select(row).where(row.deleted_at.is_(None)).order_by(row.guest).limit(limit + 1)
    if not everything and host is None:
        wanted = wanted.where(row.project == call.context.project_id)
    if host is not None:
        wanted = wanted.where(or_(row.host == host, row.allowed_host == host))
    if verdict is not None:
        wanted = wanted.where(standing.guest_is(Verdict(verdict), call.now))
    if "marker" in call.query:
        wanted = wanted.where(row.guest > call.query["marker"].lower())
    sees_hosts = call.allows(rules.SHOW_HOST)
    with call.services.database.reader() as session:
        rows = list(session.scalars(wanted))
        following = rows[limit - 1].guest if len(rows) > limit else None
        # Some databases compare without regard to case.
        mine = [item for item in rows[:limit] if may_all or item.project == call.context.project_id]
        documents = _documents(session, call, mine, sees_hosts)
    return Answer(page(call, "/v1/servers", "servers", documents, following))


def _show(call: Call) -> Answer:
    with call.services.database.reader() as session:
        row = _own(session, call, rules.SHOW)
        guest = call.path["server_id"].lower()
        sees_hosts = call.allows(rules.SHOW_HOST)
        shown = standing.of_guests(session, [guest], call.now, reasons=True).get(guest, ())
        if row is None and not (shown and sees_hosts):
            raise not_found("the server")
        first = shown[0] if shown else NEVER_SEEN
        host = row.host if row and row.host else first.host
        hosts = standing.of_hosts(session, [host], call.now, reasons=False)
        names = {host, *(item.host for item in shown)} - {""}
        document = _document(guest, row, first, hosts.get(host, NEVER_SEEN), sees_hosts)
    document["deleted_at"] = time_of(row.deleted_at) if row else None
    document["reasons"] = _reasons(first.reasons, names, sees_hosts)
    if sees_hosts:
        document["shown_by"] = [{"host": item.host, "verdict": item.verdict.value} for item in shown]
    return Answer(document)


def _history(call: Call) -> Answer:
    guest, limit = call.path["server_id"].lower(), schemas.limit_of(call)
    row = VerdictChange
    wanted = select(row).where(row.kind == "guest", row.subject == guest)
    wanted = wanted.order_by(row.id.desc()).limit(limit + 1)
    if "marker" in call.query:
        wanted = wanted.where(row.id < call.query["marker"])
    sees_hosts = call.allows(rules.SHOW_HOST)
    with call.services.database.reader() as session:
        known = _own(session, call, rules.HISTORY) is not None
        rows = list(session.scalars(wanted))
        if not known and not (rows and sees_hosts):
            raise not_found("the server")
        following = str(rows[limit - 1].id) if len(rows) > limit else None
        documents = [_change(item, sees_hosts) for item in rows[:limit]]
    return Answer(page(call, f"/v1/servers/{guest}/history", "history", documents, following))


def _challenge(call: Call) -> Answer:
    with call.services.database.reader() as session:
        row = _own(session, call, rules.CHALLENGE)
        if row is None:
            raise not_found("the server")
        host = row.host
    if not host:
        raise Problem(HTTPStatus.CONFLICT, "the server is on no host", "start it first")
    return Answer({"nonce": challenge(call, host, hide=not call.allows(rules.SHOW_HOST))})


def _proof(call: Call) -> Answer:
    guest = uuid.UUID(call.path["server_id"])
    with call.services.database.reader() as session:
        row = _own(session, call, rules.PROOF)
        if row is None:
            raise not_found("the server")
        hosts = [host for host in (row.host, row.allowed_host) if host]
        proof = find_proof(session, guest, hosts, call.query.get("nonce"))
    return Answer(proof)


def _own(session: Session, call: Call, rule: str) -> ServerRow | None:
    """The row of the server in the path.

    :returns: ``None`` for a server that Nova does not know, which only operators learn.
    :raises Problem: it is not the caller's to see.
    """
    guest = call.path["server_id"].lower()
    row = session.get(ServerRow, guest)
    if not call.allows(rule, row.project if row else ""):
        raise not_found("the server")
    return row


def _documents(session: Session, call: Call, rows: list[ServerRow], sees_hosts: bool) -> list[dict[str, Any]]:
    guests = standing.of_guests(session, [row.guest for row in rows], call.now, reasons=False)
    first = {row.guest: guests.get(row.guest, (NEVER_SEEN,))[0] for row in rows}
    names = {row.host or first[row.guest].host for row in rows} - {""}
    hosts = standing.of_hosts(session, names, call.now, reasons=False)
    return [
        _document(
            row.guest,
            row,
            first[row.guest],
            hosts.get(row.host or first[row.guest].host, NEVER_SEEN),
            sees_hosts,
        )
        for row in rows
    ]


def _document(
    guest: str, row: ServerRow | None, shown: Standing, host: Standing, sees_hosts: bool
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": guest,
        "name": row.name if row else "",
        "project_id": row.project if row else None,
        "status": row.status if row else "",
        "verdict": shown.verdict.value,
        "last_verdict": shown.last.value if shown.last else None,
        "host_verdict": host.verdict.value,
        "checked_at": time_of(shown.issued),
        "valid_until": time_of(shown.expires),
        "kernel": shown.release,
    }
    if sees_hosts:
        document["host"] = (row.host if row else shown.host) or None
    return document


def _change(row: VerdictChange, sees_hosts: bool) -> dict[str, Any]:
    reasons = decode_reasons(row.reasons)
    document: dict[str, Any] = {
        "at": time_of(row.at),
        "previous": row.previous or None,
        "verdict": row.verdict,
        "reasons": _reasons(reasons, {row.host}, sees_hosts),
    }
    if sees_hosts:
        document["host"] = row.host
    return document


def _reasons(reasons: tuple[Reason, ...], hosts: set[str], sees_hosts: bool) -> list[dict[str, Any]]:
    return [reason_of(reason if sees_hosts else _for_tenants(reason, hosts)) for reason in reasons]


def _for_tenants(reason: Reason, hosts: set[str]) -> Reason:
    """The reason without what it says of a host."""
    named = any(re.search(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", reason.detail, re.I) for host in hosts)
    if not named and reason.check not in _OF_HOSTS:
        return reason
    detail = "the operator may see the details"
    return Reason(reason.check, reason.symbol, reason.offset, reason.length, detail)


_NONCE = Parameter("nonce", schemas.NONCE, "Only a proof that answers this nonce.")
_ALL = Parameter("all_projects", {"type": "boolean"}, "Servers of every project, for operators.")
_ON_HOST = Parameter("host", schemas.HOST_NAME, "Only servers on this host, for operators.")
_ONE = (schemas.SERVER_ID,)
_HISTORY_MARKER = schemas.marker({"type": "integer", "minimum": 0})

OPERATIONS = (
    Operation(
        "GET", "/v1/servers", "list_servers", "List verdicts on servers, by id", _list, rules.LIST,
        query=(schemas.LIMIT, schemas.marker(schemas.UUID), schemas.FILTER_VERDICT, _ALL, _ON_HOST),
        answer=page_of("servers", object_of(_LISTED, optional=("host",))),
    ),
    Operation(
        "GET", "/v1/servers/{server_id}", "show_server", "Show the verdict on a server and why", _show,
        rules.SHOW, _ONE, answer=object_of(_SERVER, optional=("host", "shown_by")),
    ),
    Operation(
        "GET", "/v1/servers/{server_id}/history", "show_server_history",
        "List the changes of a server's verdict, the newest first", _history, rules.HISTORY, _ONE,
        query=(schemas.LIMIT, _HISTORY_MARKER), answer=page_of("history", _CHANGE),
    ),
    Operation(
        "GET", "/v1/servers/{server_id}/proof", "show_server_proof", "Get the newest evidence for a server",
        _proof, rules.PROOF, _ONE, query=(_NONCE,), answer={"type": "object"},
        problems={409: "The newest evidence does not answer that nonce, yet or any more."},
    ),
    Operation(
        "POST", "/v1/servers/{server_id}/challenges", "challenge_server",
        "Have a server's host answer a nonce; its proof follows in some seconds", _challenge, rules.CHALLENGE,
        _ONE, body=_CHALLENGE, status=202, answer=_CHALLENGE,
        problems={409: "The host cannot be challenged just now."},
    ),
)  # fmt: skip
