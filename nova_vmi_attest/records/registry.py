# SPDX-License-Identifier: Apache-2.0
"""Which TPM is in which host, as the operator says: the fact that no certificate of a TPM maker states.

Without it a host could enrol with the TPM of another one and relay its challenges there. One host has one EK
and one EK one host; a change is an unregistration and a registration, both recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from nova_vmi_attest.db.models import AkCertificate, Host
from nova_vmi_attest.db.session import Database, DuplicateError
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.records import audit, overrides
from nova_vmi_attest.tpm.ak_certificate import is_host_name
from nova_vmi_attest.tpm.endorsement import certified_key, ek_digest, load_certificate

_REGISTER = "nova-vmi-attest-manage host register"


class RegistryError(AttestError):
    """A host and an EK do not belong together, or cannot be registered."""


class NotRegistered(RegistryError):  # noqa: N818 - says what is the case
    """Neither the host nor the EK is registered."""


@dataclass(frozen=True, slots=True)
class RegisteredHost:
    """One host of the registry. ``registered_at``: seconds since 1970."""

    name: str
    ek_digest: str
    ek_certificate: str
    registered_at: int


class HostRegistry:
    """The registry in the database. Every change is recorded in the same transaction."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def register(self, name: str, ek_certificate: bytes) -> RegisteredHost:
        """Say that the TPM with this EK certificate (DER) is in this host. Repeating it changes nothing.

        NOT checked: the certificate's chain; enrolment checks that.

        :raises RegistryError: the host has another EK, the EK another host, or the name is no host name.
        :raises EndorsementError: the certificate cannot be read.
        """
        certificate = load_certificate(ek_certificate)
        digest = ek_digest(certified_key(certificate))
        pem = certificate.public_bytes(Encoding.PEM).decode()
        try:
            with self._database.writer() as session:
                return add(session, name, digest, pem, int(self._clock()), "by the operator")
        except DuplicateError as error:
            # Two registrations at once: the second one meets the first one's row.
            raise RegistryError(
                f"host {name} or its EK was registered at the same moment", "look again"
            ) from error

    def unregister(self, name: str) -> None:
        """Forget a host and revoke the certificates issued to it; its name and its EK are free again. Nobody
        vouches for it any more either: an override that is in force ends.

        Verifiers that share the database refuse those certificates from now on. For everybody else, such as a
        tenant with a proof, they are valid until they end: see ``[authority] certificate_lifetime``.

        :raises RegistryError: there is no such host.
        """
        with self._database.writer() as session:
            host = session.get(Host, name)
            if host is None:
                raise RegistryError(f"host {name} is not registered")
            now, detail = int(self._clock()), f"EK {host.ek_digest}"
            issued = AkCertificate.host_name == name, AkCertificate.revoked_at.is_(None)
            session.execute(update(AkCertificate).where(*issued).values(revoked_at=now))
            session.delete(host)
            audit.record(session, now, "unregister", name, audit.DONE, detail)
            overrides.end(session, name, "with the host's registration", now)

    def host(self, name: str) -> RegisteredHost | None:
        """One host, or None."""
        with self._database.reader() as session:
            row = session.get(Host, name)
            return None if row is None else _registered(row)

    def hosts(self) -> tuple[RegisteredHost, ...]:
        """Every host, by name."""
        with self._database.reader() as session:
            return tuple(_registered(row) for row in session.scalars(select(Host).order_by(Host.name)))

    def require(self, name: str, digest: str) -> None:
        """Check that this EK is registered to exactly this host.

        :raises NotRegistered: neither is registered.
        :raises RegistryError: one of them is registered with another.
        """
        with self._database.reader() as session:
            require(session, name, digest)


def require(session: Session, name: str, digest: str) -> None:
    """:meth:`HostRegistry.require` within a transaction."""
    host = session.get(Host, name)
    if host is not None and host.name != name:
        # Some databases compare without regard to case; names here are compared letter for letter.
        raise RegistryError(f"host {name} is not registered, {host.name} is", "write it as Nova does")
    holder = session.scalars(select(Host).where(Host.ek_digest == digest)).one_or_none()
    if holder is not None and holder.name != name:
        raise RegistryError(
            f"the EK {digest[:16]}… is registered to host {holder.name}, not to {name}",
            "if the board was moved, unregister the old host first",
        )
    if host is None:
        raise NotRegistered(
            f"host {name} is not registered",
            f"compare the EK digest {digest} on the host and use {_REGISTER}",
        )
    if host.ek_digest != digest:
        raise RegistryError(
            f"host {name} is registered with the EK {host.ek_digest[:16]}…, not with {digest[:16]}…",
            f"if its TPM was replaced, unregister the host and use {_REGISTER}",
        )


def add(session: Session, name: str, digest: str, certificate: str, now: int, how: str) -> RegisteredHost:
    """Register within a transaction.

    :param certificate: the EK certificate in PEM.
    :param how: for the audit record.
    :raises RegistryError: the name is no host name, or name or EK are taken.
    """
    if not is_host_name(name):
        raise RegistryError(
            f"{name[:64]!r} is not a host name", "use letters, digits, '.', '-' and '_', at most 253 of them"
        )
    try:
        require(session, name, digest)
    except NotRegistered:
        row = Host(name=name, ek_digest=digest, ek_certificate=certificate, registered_at=now)
        session.add(row)
        audit.record(session, now, "register", name, audit.DONE, f"EK {digest} {how}")
        session.flush()
    else:
        row = session.get_one(Host, name)
    return _registered(row)


def _registered(row: Host) -> RegisteredHost:
    return RegisteredHost(row.name, row.ek_digest, row.ek_certificate, row.registered_at)
