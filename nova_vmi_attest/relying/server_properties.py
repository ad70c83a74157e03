# SPDX-License-Identifier: Apache-2.0
"""A paste filter for nova-api: the live verdict on a server, among the metadata that Nova shows of it.

Put it into ``api-paste.ini`` right before ``osapi_compute_app_v21``, and into no other pipeline: above all
not into the one of the metadata service, since a guest must not read its own verdict. Nothing is stored in
Nova, verdicts are looked up in memory, and nobody can write metadata that begins with ``trust:``.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import nova.conf
import webob
from nova import exception
from nova.api.openstack import wsgi
from oslo_log import log
from webob import exc

from nova_vmi_attest.conf import relying as options
from nova_vmi_attest.conf.opts import register_group
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.relying.answers import Answer, AnswerError, StartResponse
from nova_vmi_attest.relying.compute_requests import (
    PREFIX,
    ComputeRequest,
    Kind,
    is_reserved,
    recognise,
    written_keys,
)
from nova_vmi_attest.relying.properties import properties
from nova_vmi_attest.relying.server_documents import SHOWING, Look, annotate
from nova_vmi_attest.relying.shared import SHARED, SharedTrust
from nova_vmi_attest.relying.splice import Document, SpliceError
from nova_vmi_attest.relying.trust import Trust, TrustCache

LOG = log.getLogger(__name__)

Environ = dict[str, Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

_NEVER_SEEN = Trust(Verdict.UNKNOWN)


class RefusalError(AttestError):
    """A request that is not handed to Nova, or an answer that is not handed to the client.

    :param fault: what the client gets, with the message as explanation.
    """

    def __init__(self, fault: type[exc.HTTPError], message: str) -> None:
        super().__init__(message)
        self.fault = fault


def filter_factory(global_conf: Mapping[str, str], **local_conf: str) -> Callable[[Application], Application]:
    """What ``paste.filter_factory`` names. All options are in nova.conf, in the group ``[relying]``."""
    if local_conf:
        LOG.warning("options of this filter in api-paste.ini are ignored: %s", ", ".join(sorted(local_conf)))
    register_group(nova.conf.CONF, options.GROUP, options.OPTIONS)
    return ServerProperties


class ServerProperties:
    """The filter, around what comes after it. Thread-safe.

    The cache is made by the first request that needs it: by then a worker has been forked, and it listens in
    that worker.
    """

    def __init__(self, application: Application, shared: SharedTrust = SHARED) -> None:
        self._application = application
        self._shared = shared

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request as PEP 3333 has it."""
        request = recognise(environ.get("PATH_INFO", ""))
        if request is None:
            return self._application(environ, start_response)
        try:
            answer = self._answer(request, environ)
        except RefusalError as refusal:
            return _fault(refusal.fault, refusal.message, environ, start_response)
        except (AnswerError, SpliceError) as error:
            LOG.error("an answer of Nova's is withheld, since it could not be checked: %s", error)
            message = f"The compute service's answer cannot be shown: {error}"
            return _fault(exc.HTTPBadGateway, message, environ, start_response)
        return answer.send(start_response)

    def _answer(self, request: ComputeRequest, environ: Environ) -> Answer:
        method = _method(environ)
        body = _body(request, environ)
        if request.kind is Kind.ITEM and is_reserved(request.key) and method == "GET":
            return self._item(request, environ)
        if method in ("POST", "PUT", "DELETE"):
            _refuse_ours(request, body)
        # Of all actions only this one is answered with the server.
        if request.kind not in SHOWING or (request.kind is Kind.ACTION and "rebuild" not in body):
            return self._ask(environ)
        answer, document = self._read(environ, environ["PATH_INFO"])
        changed = annotate(document, request, self._look()) if document else document
        return answer if changed == document else answer.with_document(changed)

    def _item(self, request: ComputeRequest, environ: Environ) -> Answer:
        """The answer to a request for one of our keys: Nova does not have it, but knows who may see it."""
        answer, document = self._read(environ, request.path)
        if not document:
            return answer
        found = Document(document).value()
        if not isinstance(found, dict) or "metadata" not in found:
            raise AnswerError("the answer has no metadata")
        value = self._look()(request.server, "").get(request.key)
        if value is None:
            raise RefusalError(exc.HTTPNotFound, "Metadata item was not found")
        return answer.with_document(json.dumps({"meta": {request.key: value}}).encode())

    def _read(self, environ: Environ, path: str) -> tuple[Answer, bytes]:
        """Nova's answer to the request under a path, and the document in it; empty if there is none."""
        with _instead(environ, path):
            answer = self._ask(environ)
            if not answer.is_document:
                return answer, b""
            if environ["REQUEST_METHOD"] == "HEAD":
                return answer.headless(), b""
            answer = answer.whole()
            return answer, answer.document()

    def _ask(self, environ: Environ) -> Answer:
        return Answer(*webob.Request(environ).call_application(self._application, catch_exc_info=True))

    def _look(self) -> Look:
        """A look into the cache, at one moment for a whole page. Nova answers even if there is no cache."""
        try:
            return partial(_properties, self._shared.get(nova.conf.CONF, "nova-api"), time.time())
        except Exception:
            LOG.exception("no verdict can be shown: there is no cache of results")
            return lambda server, status: properties(_NEVER_SEEN, Verdict.UNKNOWN, status)


def _properties(cache: TrustCache, now: float, server: str, status: str) -> dict[str, str]:
    try:
        guest = cache.guest(uuid.UUID(server), now)
    except ValueError:
        guest = _NEVER_SEEN
    host = cache.host(guest.host, now).verdict if guest.host else Verdict.UNKNOWN
    return properties(guest, host, status)


def _method(environ: Environ) -> str:
    """The method by which Nova's router goes: ``_method`` in the query takes the place of the real one."""
    method: str = environ["REQUEST_METHOD"]
    if "_method" not in environ.get("QUERY_STRING", ""):
        return method
    try:
        override = webob.Request(environ).GET.get("_method")
    except UnicodeDecodeError:
        override = None
    return override.upper() if override else method


def _body(request: ComputeRequest, environ: Environ) -> dict[str, Any]:
    """The object that Nova will find in the body, read as Nova does; empty if it is none, which Nova refuses.

    The body can be read again afterwards.
    """
    if environ["REQUEST_METHOD"] not in ("POST", "PUT") or request.kind is Kind.SERVER:
        return {}
    try:
        body = json.loads(webob.Request(environ).body.decode("utf-8"))
    except ValueError:
        return {}
    except RecursionError as error:
        raise RefusalError(exc.HTTPBadRequest, "The request is nested too deeply") from error
    return body if isinstance(body, dict) else {}


def _refuse_ours(request: ComputeRequest, body: Mapping[str, Any]) -> None:
    for key in written_keys(request, body):
        if is_reserved(key):
            raise RefusalError(
                exc.HTTPForbidden,
                f"Metadata whose key begins with '{PREFIX}' is set by the cloud and cannot be changed: leave "
                f"'{key[:64]}' out",
            )


def _fault(
    fault: type[exc.HTTPError], message: str, environ: Environ, start_response: StartResponse
) -> Iterable[bytes]:
    """Answer with an error in Nova's format, with the headers that Nova gives one."""
    with contextlib.suppress(exception.InvalidAPIVersionString, exception.InvalidGlobalAPIVersion):
        wsgi.Request(environ).set_api_version_request()
    answer: Iterable[bytes] = wsgi.Fault(fault(explanation=message))(environ, start_response)
    return answer


@contextlib.contextmanager
def _instead(environ: Environ, path: str) -> Iterator[None]:
    """Have Nova see another path, and no offer to compress: what it compressed had to be unpacked.

    The very environment is changed and put back, since what comes before us reads in it what Nova left there.
    """
    changed = {"PATH_INFO": environ["PATH_INFO"], "HTTP_ACCEPT_ENCODING": environ.get("HTTP_ACCEPT_ENCODING")}
    environ["PATH_INFO"] = path
    environ.pop("HTTP_ACCEPT_ENCODING", None)
    try:
        yield
    finally:
        environ.update((name, value) for name, value in changed.items() if value is not None)
