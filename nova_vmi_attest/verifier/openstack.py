# SPDX-License-Identifier: Apache-2.0
"""Requests to the services of OpenStack with the verifiers' own credentials: bounded, and with errors that
say which kind of trouble it was.

keystoneauth finds the endpoints, renews a token that expired (also when a service refuses it in between) and
repeats what failed for the moment. Each request states its microversion. What a service answers is as true as
the operator's control plane and its TLS; size and form are checked all the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from keystoneauth1 import adapter, loading
from keystoneauth1 import exceptions as ksa_exceptions
from oslo_config import cfg

from nova_vmi_attest.conf import openstack as options
from nova_vmi_attest.errors import AttestError

COMPUTE = "compute"
PLACEMENT = "placement"

MAX_ANSWER = 64 << 20
_PIECE = 1 << 16
# Seconds that one answer may take altogether, whatever the time between two pieces of it.
_WHOLE_ANSWER = 120


class OpenStackError(AttestError):
    """A service of OpenStack did not do what it was asked to do."""


class UnavailableError(OpenStackError):
    """It cannot be reached, is overloaded or broken, or does not take our credentials: nothing was learnt."""


class NotFoundError(OpenStackError):
    """It has no such thing."""


class ConflictError(OpenStackError):
    """The thing changed since it was read, or is in a state that forbids what was asked."""


class BadRequestError(OpenStackError):
    """It understood the request and refuses it."""


class OpenStack:
    """Thread-safe. Nothing is sent before the first request.

    :param session: a ``keystoneauth1.session.Session`` with credentials, or what behaves like one.
    """

    def __init__(self, session: Any, interface: str = "internal", region_name: str | None = None) -> None:
        self._session = session
        self._interface = interface
        self._region = region_name
        self._services: dict[str, adapter.Adapter] = {}

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> OpenStack | None:
        """As ``[openstack]`` says; ``None`` when it names no credentials.

        :raises OpenStackError: when they are incomplete.
        """
        if not options.is_configured(conf):
            return None
        group = options.GROUP.name
        try:
            auth = loading.load_auth_from_conf_options(conf, group)
            session = loading.load_session_from_conf_options(conf, group, auth=auth)
        except (ksa_exceptions.ClientException, cfg.Error, ValueError) as error:
            raise OpenStackError(
                f"the credentials cannot be used: {error}", "correct the options in [openstack]"
            ) from error
        return cls(session, conf.openstack.interface, conf.openstack.region_name)

    def call(
        self,
        service: str,
        method: str,
        path: str,
        microversion: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:
        """The decoded JSON body of the answer, ``None`` when it has none.

        :param service: a service type, such as :data:`COMPUTE`.
        :param path: below the service's endpoint, beginning with a slash; the caller quotes what it puts in.
        :raises OpenStackError: of the kind that fits the answer, or :class:`UnavailableError`.
        """
        what = f"{service}: {method} {path}"
        kwargs: dict[str, Any] = {"microversion": microversion, "params": dict(query or {})}
        if body is not None:
            kwargs["json"] = body
        try:
            answer = self._service(service).request(path, method, raise_exc=False, stream=True, **kwargs)
            with answer:
                data = _read(answer, what)
        except (ksa_exceptions.ClientException, OSError) as error:
            raise UnavailableError(f"{what}: {_line(error)}", _remedy(error)) from error
        if answer.status_code >= 300:
            _refuse(answer.status_code, what, data)
        return _decode(data, what) if data else None

    def _service(self, service: str) -> adapter.Adapter:
        if service not in self._services:
            self._services[service] = adapter.Adapter(
                self._session, service_type=service, interface=self._interface, region_name=self._region,
                user_agent="nova-vmi-attest", connect_retries=1, status_code_retries=2,
                retriable_status_codes=[429, 503],
            )  # fmt: skip
        return self._services[service]


def _read(answer: Any, what: str) -> bytes:
    """The body, as far as it is bounded in size and time."""
    deadline, size = time.monotonic() + _WHOLE_ANSWER, 0
    pieces: list[bytes] = []
    for piece in answer.iter_content(_PIECE):
        size += len(piece)
        if size > MAX_ANSWER:
            raise UnavailableError(f"{what}: the answer has more than {MAX_ANSWER} bytes")
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what}: the answer took longer than {_WHOLE_ANSWER} s")
        pieces.append(piece)
    return b"".join(pieces)


def _decode(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnavailableError(f"{what}: the answer is no JSON: {_line(error)}") from error


def _refuse(status: int, what: str, data: bytes) -> NoReturn:
    text = f"{what}: answered {status}: {_line(data[:1024].decode(errors='replace'))}"
    if status == 404:
        raise NotFoundError(text)
    if status == 409:
        raise ConflictError(text)
    if status in (401, 403):
        raise UnavailableError(text, "give the user in [openstack] the role admin in its project")
    if status == 429 or status < 400 or status >= 500:
        raise UnavailableError(text)
    raise BadRequestError(text)


def _remedy(error: Exception) -> str:
    if isinstance(error, ksa_exceptions.Unauthorized):
        return "correct the credentials in [openstack]"
    if isinstance(error, ksa_exceptions.CatalogException):
        return "correct region_name and interface in [openstack]"
    return "check the service and [openstack] auth_url"


def _line(text: object) -> str:
    """One line for a log: a message of another service is not ours to trust with line breaks."""
    line = "".join(sign if sign.isprintable() else " " for sign in str(text)[:1024])
    return " ".join(line.split())[:300]
