# SPDX-License-Identifier: Apache-2.0
"""The authority as a service: it loads its keys and trusted makers, then answers enrolments on the bus."""

from __future__ import annotations

import base64
import binascii
import datetime
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import oslo_messaging
from cryptography.hazmat.primitives.serialization import Encoding
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.authority.ca import CertificateAuthority
from nova_vmi_attest.authority.issuance import Endorsers, Issuance, IssuanceError
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.tpm.credential import SECRET_SIZE
from nova_vmi_attest.tpm.endorsement import load_trusted

LOG = log.getLogger(__name__)


class AuthorityEndpoint:
    """What the bus may call; see :class:`nova_vmi_attest.messaging.AuthorityEndpoint` for the arguments."""

    def __init__(self, issuance: Issuance) -> None:
        self._issuance = issuance

    @messaging.exposed
    def begin_enrolment(self, ctxt: Mapping[str, Any], request: dict[str, str]) -> dict[str, str]:
        """{enrolment, credential, secret}, or {refused, remedy}."""
        offer = self._issuance.begin(request)
        return {
            "enrolment": offer.enrolment,
            "credential": base64.b64encode(offer.credential).decode(),
            "secret": base64.b64encode(offer.encrypted_secret).decode(),
        }

    @messaging.exposed
    def complete_enrolment(self, ctxt: Mapping[str, Any], enrolment: str, proof: str) -> dict[str, str]:
        """{certificate}, or {refused, remedy}."""
        certificate = self._issuance.complete(_text(enrolment), _secret(proof))
        return {"certificate": certificate.public_bytes(Encoding.PEM).decode()}


class AuthorityService:
    """Starts and stops the authority. ``conf`` holds the groups [authority] and [database]."""

    def __init__(self, conf: cfg.ConfigOpts, transport: oslo_messaging.Transport) -> None:
        self._conf = conf
        self._transport = transport
        self._server: Any = None
        self._database: Database | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Load what is needed and listen.

        :raises AttestError: a key, certificate directory or the database cannot be used; the message says
            what to do.
        """
        options = self._conf.authority
        authority = CertificateAuthority.load(Path(options.private_key), Path(options.certificate))
        endorsers = Endorsers(
            load_trusted(Path(options.ek_roots)), load_trusted(Path(options.ek_intermediates))
        )
        self._database = Database(self._conf.database.connection)
        self._database.require_current()
        if options.unsafe_trust_on_first_use:
            LOG.warning("unsafe_trust_on_first_use is on: unknown hosts register themselves")
        issuance = Issuance(
            self._database,
            authority,
            endorsers,
            datetime.timedelta(seconds=options.certificate_lifetime),
            options.unsafe_trust_on_first_use,
        )
        self._server = messaging.get_server(
            self._transport, messaging.AUTHORITY_TOPIC, options.host, AuthorityEndpoint(issuance)
        )
        self._server.start()
        LOG.info("the authority answers; %d roots of TPM makers", len(endorsers.roots))

    def stop(self) -> None:
        """Finish the calls under way, then close. Idempotent."""
        if self._server is not None:
            self._server.stop()
            self._server.wait()
            self._server = None
        if self._database is not None:
            self._database.close()
            self._database = None
        self._stopped.set()

    def wait(self) -> None:
        """Wait until :meth:`stop` was called."""
        self._stopped.wait()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise IssuanceError("the enrolment is malformed")
    return value


def _secret(value: object) -> bytes:
    try:
        if isinstance(value, str) and len(value) <= 2 * SECRET_SIZE:
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise IssuanceError(f"the proof is not base64 of {SECRET_SIZE} bytes")
