# SPDX-License-Identifier: Apache-2.0
"""What holds for the whole cloud: the appraisal policy, and the public keys with which to check it all.

The policy is that of this configuration, which the verifiers are to share. The keys are shown for comparison
and for tools; a tenant who wants proof gets them from a source that is not the cloud.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from oslo_log import log

from nova_vmi_attest.api.operations import Answer, Call, Operation
from nova_vmi_attest.api.problems import Problem
from nova_vmi_attest.api.schemas import DIGEST, TEXT, TIME, object_of, time_of
from nova_vmi_attest.conf.policy import ALL_CHECKS
from nova_vmi_attest.policies import cloud as rules

LOG = log.getLogger(__name__)

_MAX_FILE = 1 << 20
_PCR = {"type": "integer", "minimum": 0, "maximum": 23}
_POLICY = object_of(
    {
        "required_checks": {"type": "array", "items": TEXT},
        "log_pcr": _PCR,
        "host_pcrs": {"type": "array", "items": _PCR},
        "approved_pcrs": {"type": "array", "items": TEXT, "description": "INDEX:HEX"},
        "relaxations": {
            "type": "array",
            "items": TEXT,
            "description": "In what this policy asks for less than the default one.",
        },
        "interval": {"type": "integer", "description": "Seconds between two looks at a host."},
        "result_lifetime": {"type": "integer", "description": "Seconds for which a verdict holds."},
    }
)
_CERTIFICATE = object_of({"pem": TEXT, "fingerprint": DIGEST, "not_after": TIME})
_ANCHORS = object_of(
    {
        "verifier_keys": object_of({"keys": {"type": "array", "items": {"type": "object"}}}),
        "audience": TEXT,
        "authority_certificates": {"type": "array", "items": _CERTIFICATE},
    }
)


def _show_policy(call: Call) -> Answer:
    options, verifier = call.services.conf.policy, call.services.conf.verifier
    return Answer(
        {
            "required_checks": sorted(options.required_checks),
            "log_pcr": options.log_pcr,
            "host_pcrs": sorted(options.host_pcrs),
            "approved_pcrs": list(options.approved_pcr),
            "relaxations": _relaxations(options),
            "interval": verifier.interval,
            "result_lifetime": verifier.result_lifetime,
        }
    )


def _relaxations(options: Any) -> list[str]:
    left_out = sorted(set(ALL_CHECKS) - set(options.required_checks))
    found = [f"the check {name} is not required" for name in left_out]
    if options.unsafe_tolerate_hooks:
        found.append("hooked kernels are tolerated")
    if options.unsafe_tolerate_unlisted_modules:
        found.append("modules that are in no approved package are tolerated")
    return found


def _show_anchors(call: Call) -> Answer:
    conf = call.services.conf
    certificates = _certificates(Path(conf.verifier.authority_certificates))
    return Answer(
        {
            "verifier_keys": _keys(Path(conf.relying.verifier_keys)),
            "audience": conf.verifier.audience,
            "authority_certificates": certificates,
        }
    )


def _keys(path: Path) -> dict[str, Any]:
    """The public keys in a JWKS. Whatever else stands in that file is not shown."""
    try:
        keys = json.loads(_read(path))["keys"]
        shown = ("kty", "crv", "x", "y", "kid", "alg", "use")
        return {"keys": [{name: key[name] for name in shown if name in key} for key in keys]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, "no JWKS") from error


def _certificates(path: Path) -> list[dict[str, Any]]:
    try:
        found = x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise _unreadable(path, "no certificates") from error
    return [
        {
            "pem": item.public_bytes(Encoding.PEM).decode(),
            "fingerprint": item.fingerprint(hashes.SHA256()).hex(),
            "not_after": time_of(int(item.not_valid_after_utc.timestamp())),
        }
        for item in found
    ]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise _unreadable(path, error.strerror) from error


def _unreadable(path: Path, cause: str | None) -> Problem:
    LOG.error("%s cannot be shown to clients: %s", path, cause)
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the keys of this cloud are not configured for the API",
        "the operator copies them there: [relying] verifier_keys and [verifier] authority_certificates",
    )


OPERATIONS = (
    Operation(
        "GET", "/v1/policy", "show_policy", "Show what makes servers and hosts trusted", _show_policy,
        rules.POLICY, answer=_POLICY,
    ),
    Operation(
        "GET", "/v1/trust-anchors", "show_trust_anchors", "Get the keys that verify results and proofs",
        _show_anchors, rules.TRUST_ANCHORS, answer=_ANCHORS,
    ),
)  # fmt: skip
