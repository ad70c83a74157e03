# SPDX-License-Identifier: Apache-2.0
"""What the verifier concluded, as a signed EAT attestation result (EAR, draft-ietf-rats-ear).

A result is one JWT for one host: a submodule ``host`` and one for each guest, named by its UUID.
``ear.status`` and the AR4SI trustworthiness vector (draft-ietf-rats-ar4si) say the verdict in terms that
others understand; what they have no words for is under ``nova_vmi_attest``. A reader accepts only a status
and a vector that agree with the verdict.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding, jws
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW, MAX_HOST, ChallengeError, host_octets
from nova_vmi_attest.evidence.encoding import MAX_INTEGER, EncodingError
from nova_vmi_attest.evidence.log import MAX_GUESTS
from nova_vmi_attest.evidence.measurement_codec import MAX_DETAIL, MAX_NAME, MAX_RELEASE, MAX_SYMBOL

KIND = "eat+jwt"
PROFILE = "tag:github.com,2023:veraison/ear"
VERIFIER = {"build": "nova-vmi-attest 1", "developer": "https://opendev.org/x/nova-vmi-attest"}
PRIVATE = "nova_vmi_attest"
MAX_REASONS = 64
MAX_RESULT_BYTES = 16 << 20
MAX_AUDIENCE = 256
# A result may not outlive a day: its expiry is all that ever withdraws it.
MAX_LIFETIME = 86400


class ResultError(AttestError):
    """A result is malformed, forged, for another audience, or not valid at this time."""


class Verdict(enum.StrEnum):
    """Only ``trusted`` admits. ``stale`` never travels: a relying party derives it from the expiry."""

    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"
    UNKNOWN = "unknown"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a verdict is not ``trusted``: which check, and where. ``offset`` and ``length`` are in bytes."""

    check: str
    symbol: str = ""
    offset: int = 0
    length: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class GuestResult:
    """One guest.

    ``release`` and ``reference`` (hex digest of the manifest) are empty when it was not measured.
    ``modules`` and ``processes`` are counts; ``microseconds`` is how long the measurement took.
    """

    guest: uuid.UUID
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    release: str = ""
    reference: str = ""
    code_bytes: int = 0
    unexplained_bytes: int = 0
    modules: int = 0
    processes: int = 0
    reader: str = ""
    microseconds: int = 0


@dataclass(frozen=True, slots=True)
class HostResult:
    """The host itself: its identity, its quote, its log and its PCRs."""

    host: str
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """One appraisal.

    ``issued`` and ``expires`` are seconds since 1970. ``sequence`` grows with every result of a host, so a
    reader that remembers it can refuse an older result that is sent again. ``guests`` ascend by UUID bytes.
    """

    host: HostResult
    guests: tuple[GuestResult, ...]
    issued: int
    expires: int
    sequence: int


def sign_result(result: AttestationResult, key: ec.EllipticCurvePrivateKey, audience: str) -> str:
    """The result as a compact JWS (ES256, ``typ`` :data:`KIND`) for one audience.

    :raises ResultError: if :func:`verify_result` would refuse it.
    """
    claims: dict[str, Any] = {
        "aud": audience,
        "ear.verifier-id": VERIFIER,
        "eat_profile": PROFILE,
        "exp": result.expires,
        "iat": result.issued,
        PRIVATE: {"format": 1, "sequence": result.sequence},
    }
    try:
        guests = {str(item.guest): _guest_to(item) for item in result.guests}
        claims["submods"] = {"host": _host_to(result.host), **guests}
        encoding.text(claims, "aud", MAX_AUDIENCE)
        if _from_claims(claims) != result:
            raise ResultError(f"the guests in the result of {result.host.host} are out of order or twice")
        token = jws.sign(claims, key, KIND)
    except EncodingError as error:
        raise ResultError(f"the result of host {result.host.host} cannot be sent: {error.message}") from error
    if len(token) > MAX_RESULT_BYTES:
        raise ResultError(f"the result of host {result.host.host} has {len(token)} bytes")
    return token


def verify_result(
    token: str, public_keys: Iterable[ec.EllipticCurvePublicKey], audience: str, now: float
) -> AttestationResult:
    """The result in a token that a trusted verifier signed for this audience and that holds at ``now``.

    :param now: seconds since 1970.
    :raises ResultError: naming what is wrong. NOT checked: whether a newer result exists; compare
        ``sequence``.
    """
    try:
        claims, _ = jws.verify(token, public_keys, KIND, MAX_RESULT_BYTES)
        result = _from_claims(claims)
        if encoding.text(claims, "aud", MAX_AUDIENCE) != audience:
            raise ResultError(f"the result of host {result.host.host} is for another audience")
    except (jws.SignatureError, EncodingError) as error:
        raise ResultError(f"result refused: {error.message}") from error
    if result.issued > now + CLOCK_SKEW:
        raise ResultError(
            f"the result of host {result.host.host} was issued {result.issued - now:.0f} s in the future",
            "compare the clocks of this machine and the verifier",
        )
    if result.expires <= now:
        raise ResultError(f"the result of host {result.host.host} expired {now - result.expires:.0f} s ago")
    return result


def _from_claims(claims: dict[str, Any]) -> AttestationResult:
    encoding.exact_keys(claims, _CLAIMS, "a result")
    if claims["eat_profile"] != PROFILE:
        raise EncodingError("the result has another EAT profile")
    identity = encoding.exact_keys(claims["ear.verifier-id"], ("build", "developer"), "ear.verifier-id")
    encoding.text(identity, "build", MAX_DETAIL)
    encoding.text(identity, "developer", MAX_DETAIL)
    private = encoding.exact_keys(claims[PRIVATE], ("format", "sequence"), PRIVATE)
    encoding.integer(private, "format", 1, 1)
    submods = claims["submods"]
    if not isinstance(submods, dict) or "host" not in submods or len(submods) > MAX_GUESTS + 1:
        raise EncodingError(f"submods is not an object of a host and at most {MAX_GUESTS} guests")
    guests = [_guest_from(name, value) for name, value in submods.items() if name != "host"]
    result = AttestationResult(
        host=_host_from(submods["host"]),
        guests=tuple(sorted(guests, key=lambda item: item.guest.bytes)),
        issued=encoding.integer(claims, "iat"),
        expires=encoding.integer(claims, "exp"),
        sequence=encoding.integer(private, "sequence"),
    )
    if not 0 < result.expires - result.issued <= MAX_LIFETIME:
        raise EncodingError(f"a result lives 1 to {MAX_LIFETIME} seconds")
    return result


# AR4SI values: 2 affirming (approved), 0 no claim, 96 contraindicated.
_STATUS = {Verdict.TRUSTED: "affirming", Verdict.UNTRUSTED: "contraindicated", Verdict.UNKNOWN: "none"}
_VALUE = {Verdict.TRUSTED: 2, Verdict.UNTRUSTED: 96, Verdict.UNKNOWN: 0}


def _submod(verdict: Verdict, claim: str, private: dict[str, Any]) -> dict[str, Any]:
    if verdict not in _STATUS:
        raise EncodingError(f"the verdict {verdict} is never sent")
    return {
        "ear.status": _STATUS[verdict],
        "ear.trustworthiness-vector": {claim: _VALUE[verdict]},
        PRIVATE: {**private, "verdict": str(verdict)},
    }


def _private(value: Any, claim: str, names: frozenset[str], what: str) -> tuple[Verdict, dict[str, Any]]:
    members = encoding.exact_keys(value, ("ear.status", "ear.trustworthiness-vector", PRIVATE), what)
    private = encoding.exact_keys(members[PRIVATE], names | {"verdict"}, what)
    try:
        verdict = Verdict(encoding.text(private, "verdict", MAX_NAME))
    except ValueError as error:
        raise EncodingError(f"the verdict of {what} is not one that is known") from error
    if members != _submod(verdict, claim, {name: private[name] for name in names}):
        raise EncodingError(f"status or trustworthiness vector of {what} contradict its verdict")
    return verdict, private


def _host_to(result: HostResult) -> dict[str, Any]:
    private = {"name": result.host, "reasons": [_reason_to(reason) for reason in result.reasons]}
    return _submod(result.verdict, "instance-identity", private)


def _host_from(value: Any) -> HostResult:
    verdict, private = _private(value, "instance-identity", _HOST_KEYS, "the host")
    host = encoding.text(private, "name", MAX_HOST)
    try:
        host_octets(host)
    except ChallengeError as error:
        raise EncodingError(error.message) from error
    return HostResult(host, verdict, _reasons_from(private))


def _guest_to(result: GuestResult) -> dict[str, Any]:
    private = {
        "code_bytes": result.code_bytes,
        "microseconds": result.microseconds,
        "modules": result.modules,
        "processes": result.processes,
        "reader": result.reader,
        "reasons": [_reason_to(reason) for reason in result.reasons],
        "reference": result.reference,
        "release": result.release,
        "unexplained_bytes": result.unexplained_bytes,
    }
    return _submod(result.verdict, "executables", private)


def _guest_from(name: str, value: Any) -> GuestResult:
    guest = encoding.uuid({"the name of a guest's submodule": name}, "the name of a guest's submodule")
    verdict, private = _private(value, "executables", _GUEST_KEYS, f"guest {guest}")
    reference = encoding.text(private, "reference", 64)
    return GuestResult(
        guest=guest,
        verdict=verdict,
        reasons=_reasons_from(private),
        release=encoding.text(private, "release", MAX_RELEASE),
        reference=encoding.hexdigest_text(reference, "reference") if reference else "",
        code_bytes=encoding.integer(private, "code_bytes"),
        unexplained_bytes=encoding.integer(private, "unexplained_bytes"),
        modules=encoding.integer(private, "modules"),
        processes=encoding.integer(private, "processes"),
        reader=encoding.text(private, "reader", MAX_NAME),
        microseconds=encoding.integer(private, "microseconds"),
    )


def _reason_to(reason: Reason) -> dict[str, Any]:
    return {
        "check": reason.check,
        "detail": reason.detail,
        "length": reason.length,
        "offset": reason.offset,
        "symbol": reason.symbol,
    }


def _reasons_from(private: dict[str, Any]) -> tuple[Reason, ...]:
    return tuple(_reason_from(item) for item in encoding.items(private, "reasons", MAX_REASONS))


def _reason_from(value: Any) -> Reason:
    members = encoding.exact_keys(value, ("check", "detail", "length", "offset", "symbol"), "a reason")
    return Reason(
        check=encoding.text(members, "check", MAX_NAME),
        symbol=encoding.text(members, "symbol", MAX_SYMBOL),
        offset=encoding.integer(members, "offset", -MAX_INTEGER),
        length=encoding.integer(members, "length"),
        detail=encoding.text(members, "detail", MAX_DETAIL),
    )


_CLAIMS = frozenset(("aud", "ear.verifier-id", "eat_profile", "exp", "iat", PRIVATE, "submods"))
_HOST_KEYS = frozenset(("name", "reasons"))
_GUEST_KEYS = frozenset(
    (
        "code_bytes", "microseconds", "modules", "processes", "reader", "reasons", "reference", "release",
        "unexplained_bytes",
    )
)  # fmt: skip
