# SPDX-License-Identifier: Apache-2.0
"""``/v1/hosts``: what is known of hosts, which TPM is in which, and an operator's word for one."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.api import host_query, schemas
from nova_vmi_attest.api.challenges import challenge
from nova_vmi_attest.api.host_query import HostView
from nova_vmi_attest.api.operations import Answer, Call, Operation
from nova_vmi_attest.api.problems import Problem, not_found
from nova_vmi_attest.api.schemas import object_of, page, page_of, reason_of, time_of
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.policies import hosts as rules
from nova_vmi_attest.records.overrides import MAX_REASON, OverrideError, Overrides
from nova_vmi_attest.records.pending import PendingHosts
from nova_vmi_attest.records.registry import HostRegistry, RegistryError
from nova_vmi_attest.tpm.endorsement import EndorsementError

_HOUR = 3600
_MAX_CERTIFICATE = 1 << 16

_OVERRIDE = object_of(
    {
        "reason": schemas.TEXT,
        "made_by": {**schemas.TEXT, "description": "ID of the user."},
        "made_at": schemas.TIME,
        "expires": schemas.TIME,
    }
)
_LISTED = {
    "name": schemas.TEXT,
    "verdict": schemas.VERDICT,
    "last_verdict": {"enum": ["trusted", "untrusted", "unknown", None]},
    "checked_at": schemas.TIME_OR_NULL,
    "valid_until": schemas.TIME_OR_NULL,
    "registered": {"type": "boolean", "description": "Whether its TPM is known."},
    "override": {"anyOf": [_OVERRIDE, {"type": "null"}], "description": "An operator's word for it."},
}
_HOST = object_of(
    {
        **_LISTED,
        "reasons": schemas.REASONS,
        "ek_digest": {
            "anyOf": [schemas.DIGEST, {"type": "null"}],
            "description": "Of the known TPM.",
        },
        "registered_at": schemas.TIME_OR_NULL,
        "announced_at": schemas.TIME_OR_NULL,
        "challenged_at": schemas.TIME_OR_NULL,
        "answered_at": schemas.TIME_OR_NULL,
        "last_error": {
            **schemas.TEXT,
            "description": "Why the newest evidence in its name was refused. Anybody may have sent it.",
        },
        "servers": {
            "type": "object",
            "additionalProperties": schemas.COUNT,
            "description": "How many guests it shows, by what its result says of them.",
        },
        "unknown_to_nova": {
            "type": "array",
            "items": schemas.UUID,
            "description": "Guests that it shows and Nova does not know, at most 100.",
        },
    }
)
_PENDING = object_of(
    {"name": schemas.TEXT, "ek_digest": schemas.DIGEST, "asked_at": schemas.TIME, "asked_last": schemas.TIME}
)
_ENROL = object_of(
    {
        "name": schemas.HOST_NAME,
        "ek_certificate": {
            "type": "string",
            "minLength": 1,
            "maxLength": _MAX_CERTIFICATE,
            "description": "Certificate of the TPM's endorsement key, PEM.",
        },
    }
)
_APPROVE = object_of({"ek_digest": schemas.DIGEST})
_VOUCH = object_of(
    {
        "reason": {"type": "string", "minLength": 1, "maxLength": MAX_REASON},
        "hours": {"type": "integer", "minimum": 1, "maximum": 24},
    }
)
_CHALLENGE = object_of({"nonce": schemas.NONCE}, optional=("nonce",))
_CHALLENGED = object_of({"nonce": schemas.NONCE})


def _list(call: Call) -> Answer:
    verdict, limit = call.query.get("verdict"), schemas.limit_of(call)
    filtered = None if verdict is None else Verdict(verdict)
    with call.services.database.reader() as session:
        names = host_query.names(session, call.query.get("marker", ""), limit + 1, filtered, call.now)
        following = names[limit - 1] if len(names) > limit else None
        views = host_query.views(session, names[:limit], call.now, reasons=False)
    documents = [_listed(view) for view in views]
    return Answer(page(call, "/v1/hosts", "hosts", documents, following))


def _list_pending(call: Call) -> Answer:
    limit = schemas.limit_of(call)
    name, _, digest = call.query.get("marker", "").partition(":")
    found = PendingHosts(call.services.database).page((name, digest), limit + 1)
    following = f"{found[limit - 1].host}:{found[limit - 1].ek_digest}" if len(found) > limit else None
    documents = [
        {
            "name": item.host,
            "ek_digest": item.ek_digest,
            "asked_at": time_of(item.asked_at),
            "asked_last": time_of(item.asked_last),
        }
        for item in found[:limit]
    ]
    return Answer(page(call, "/v1/hosts/pending", "pending", documents, following))


def _show(call: Call) -> Answer:
    return Answer(_shown(call, call.path["host"]))


def _enrol(call: Call) -> Answer:
    name, pem = call.body["name"], call.body["ek_certificate"]
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
        HostRegistry(call.services.database).register(name, certificate.public_bytes(Encoding.DER))
    except (ValueError, EndorsementError) as error:
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            "ek_certificate is no certificate of an endorsement key in PEM",
            "write it on the host with: nova-vmi-attest-manage tpm ek-certificate",
        ) from error
    except RegistryError as error:
        raise Problem(HTTPStatus.CONFLICT, error.message, error.remedy) from error
    PendingHosts(call.services.database).forget(name)
    return Answer(_shown(call, name), {"Location": f"{call.base}/v1/hosts/{name}"})


def _approve(call: Call) -> Answer:
    name = call.path["host"]
    pending = PendingHosts(call.services.database)
    if pending.get(name, call.body["ek_digest"]) is None:
        raise not_found("a request of this host with that endorsement key")
    try:
        pending.approve(name, call.body["ek_digest"], call.now)
    except RegistryError as error:
        raise Problem(HTTPStatus.CONFLICT, error.message, error.remedy) from error
    return Answer(_shown(call, name))


def _revoke(call: Call) -> Answer:
    try:
        HostRegistry(call.services.database).unregister(call.path["host"])
    except RegistryError as error:
        raise not_found("an enrolment of the host") from error
    return Answer()


def _override(call: Call) -> Answer:
    name = call.path["host"]
    if not _exists(call, name):
        raise not_found("the host")
    lifetime = call.body["hours"] * _HOUR
    try:
        Overrides(call.services.database).set(name, call.body["reason"], _caller(call), lifetime, call.now)
    except OverrideError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, error.message, error.remedy) from error
    return Answer(_shown(call, name))


def _lift(call: Call) -> Answer:
    try:
        Overrides(call.services.database).lift(call.path["host"], _caller(call), call.now)
    except OverrideError as error:
        raise not_found("an override of the host") from error
    return Answer()


def _challenge(call: Call) -> Answer:
    if not _exists(call, call.path["host"]):
        raise not_found("the host")
    return Answer({"nonce": challenge(call, call.path["host"], hide=False)})


def _caller(call: Call) -> str:
    return str(call.context.user_id or "unknown")[:255]


def _exists(call: Call, name: str) -> bool:
    with call.services.database.reader() as session:
        return bool(host_query.views(session, [name], call.now, reasons=False))


def _shown(call: Call, name: str) -> dict[str, Any]:
    with call.services.database.reader() as session:
        views = host_query.views(session, [name], call.now, reasons=True)
        if not views:
            raise not_found("the host")
        servers, strangers = host_query.guests(session, name)
    view = views[0]
    return {
        **_listed(view),
        "reasons": [reason_of(reason) for reason in view.standing.reasons],
        "ek_digest": view.ek_digest or None,
        "registered_at": time_of(view.registered_at),
        "announced_at": time_of(view.announced_at),
        "challenged_at": time_of(view.challenged_at),
        "answered_at": time_of(view.answered_at),
        "last_error": view.last_error,
        "servers": servers,
        "unknown_to_nova": strangers,
    }


def _listed(view: HostView) -> dict[str, Any]:
    override = None
    if view.override is not None:
        override = {
            "reason": view.override.reason,
            "made_by": view.override.made_by,
            "made_at": time_of(view.override.made_at),
            "expires": time_of(view.override.expires),
        }
    return {
        "name": view.name,
        "verdict": view.standing.verdict.value,
        "last_verdict": view.standing.last.value if view.standing.last else None,
        "checked_at": time_of(view.standing.issued),
        "valid_until": time_of(view.standing.expires),
        "registered": view.registered_at is not None,
        "override": override,
    }


_ONE = (schemas.HOST,)
_PENDING_MARKER = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,253}:[0-9a-f]{64}$"}
_TAKEN = {409: "The host has another endorsement key, or the key another host."}

OPERATIONS = (
    Operation(
        "GET", "/v1/hosts", "list_hosts", "List hosts, by name", _list, rules.LIST,
        query=(schemas.LIMIT, schemas.marker(schemas.HOST_NAME), schemas.FILTER_VERDICT),
        answer=page_of("hosts", object_of(_LISTED)),
    ),
    Operation(
        "GET", "/v1/hosts/pending", "list_pending_hosts", "List requests to enrol that wait for approval",
        _list_pending, rules.LIST, query=(schemas.LIMIT, schemas.marker(_PENDING_MARKER)),
        answer=page_of("pending", _PENDING),
    ),
    Operation(
        "POST", "/v1/hosts", "enrol_host", "Say which TPM is in a host", _enrol, rules.ENROL, body=_ENROL,
        status=201, answer=_HOST, problems=_TAKEN,
    ),
    Operation("GET", "/v1/hosts/{host}", "show_host", "Show a host", _show, rules.SHOW, _ONE, answer=_HOST),
    Operation(
        "DELETE", "/v1/hosts/{host}", "revoke_host", "Withdraw the enrolment of a host", _revoke,
        rules.REVOKE, _ONE, status=204,
    ),
    Operation(
        "POST", "/v1/hosts/{host}/approve", "approve_host",
        "Enrol a host with the TPM that asked in its name; compare the digest on the host before", _approve,
        rules.ENROL, _ONE, body=_APPROVE, answer=_HOST, problems=_TAKEN,
    ),
    Operation(
        "PUT", "/v1/hosts/{host}/override", "override_host", "Vouch for a host for some hours", _override,
        rules.OVERRIDE, _ONE, body=_VOUCH, answer=_HOST,
    ),
    Operation(
        "DELETE", "/v1/hosts/{host}/override", "lift_override", "End an override now", _lift, rules.OVERRIDE,
        _ONE, status=204,
    ),
    Operation(
        "POST", "/v1/hosts/{host}/challenges", "challenge_host", "Challenge a host now", _challenge,
        rules.CHALLENGE, _ONE, body=_CHALLENGE, status=202, answer=_CHALLENGED,
        problems={409: "The host cannot be challenged just now."},
    ),
)  # fmt: skip
