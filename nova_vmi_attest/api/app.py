# SPDX-License-Identifier: Apache-2.0
"""From a request to a call of one operation: token, rule, path, query and body, and problems as answers.

Nothing here knows a noun: what is checked is what the operation says (:mod:`.operations`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import oslo_messaging
from flask import Flask, Response, json, request
from oslo_context.context import RequestContext
from oslo_log import log
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from nova_vmi_attest.api import problems, validation
from nova_vmi_attest.api.operations import Answer, Call, Operation
from nova_vmi_attest.api.problems import Problem
from nova_vmi_attest.api.services import Services
from nova_vmi_attest.db.session import DatabaseError
from nova_vmi_attest.errors import AttestError

LOG = log.getLogger(__name__)

# The most bytes that any body has but a package.
MAX_BODY = 128 << 10

_JSON = "application/json"
_UPLOADS = ("application/octet-stream", "application/vnd.debian.binary-package", "application/x-rpm")


def make_app(services: Services, operations: Sequence[Operation]) -> Flask:
    """The WSGI application without its middleware: it believes the identity headers that it gets."""
    app = Flask("nova_vmi_attest.api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    for operation in operations:
        app.add_url_rule(
            operation.path.replace("{", "<").replace("}", ">"),
            endpoint=operation.name,
            view_func=_view(services, operation),
            methods=[operation.method],
        )
    app.before_request(_identify)
    app.after_request(_seal)
    app.register_error_handler(Exception, _failed)
    return app


def _identify() -> None:
    """Who asks, as the middleware before us established it; also what log lines and problems refer to."""
    request.environ["attestation.context"] = RequestContext.from_environ(request.environ)


def _view(services: Services, operation: Operation) -> Callable[..., Response]:
    checked = validation.Validation(operation)

    def view(**path: str) -> Response:
        context = request.environ["attestation.context"]
        _authorise(services, operation, context)
        if operation.upload:
            request.max_content_length = services.conf.api.max_upload
        call = Call(
            services=services,
            context=context,
            path=checked.path(path),
            query=checked.query(request.args),
            body=_document(checked) if operation.body is not None else None,
            stream=request.stream,  # type: ignore[arg-type]
            length=_upload_length(services.conf.api.max_upload) if operation.upload else 0,
            now=int(time.time()),
            base=request.script_root,
        )
        return _response(operation, operation.handler(call))

    return view


def _authorise(services: Services, operation: Operation, context: RequestContext) -> None:
    if operation.rule is None:
        return
    if request.environ.get("HTTP_X_IDENTITY_STATUS") != "Confirmed":
        raise problems.unauthenticated()
    call = Call(services, context, {}, {}, None, request.stream, 0, 0, "")  # type: ignore[arg-type]
    if not call.allows(operation.rule):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "your roles do not allow this",
            f"the rule is attestation:{operation.rule}; ask whoever gives out roles in your cloud",
        )


def _document(checked: validation.Validation) -> Any:
    if request.mimetype != _JSON:
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body has to be JSON", f"send it as {_JSON}")
    return checked.body(request.get_data(cache=False))


def _upload_length(most: int) -> int:
    if request.mimetype not in _UPLOADS:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the body has to be a kernel package",
            f"send the file itself as {_UPLOADS[0]}",
        )
    length = request.content_length
    if length is None:
        raise Problem(HTTPStatus.LENGTH_REQUIRED, "the size of the package is missing", "send Content-Length")
    if length > most:
        raise RequestEntityTooLarge
    return length


def _response(operation: Operation, answer: Answer) -> Response:
    if operation.answer is None:
        return Response(status=operation.status, headers=dict(answer.headers))
    document = answer.document
    data = document if isinstance(document, bytes) else json.dumps(document)
    return Response(data, operation.status, dict(answer.headers), content_type=_JSON)


def _seal(response: Response) -> Response:
    """Answers depend on the token, and none of them is for a cache."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["Vary"] = "X-Auth-Token"
    return response


def _failed(error: Exception) -> Response | HTTPException:
    """The outermost edge: whatever went wrong, as a problem. What nobody foresaw stays in our log."""
    if isinstance(error, Problem):
        return problems.response(error)
    if isinstance(error, HTTPException):
        return _refused(error)
    if isinstance(error, DatabaseError | oslo_messaging.MessagingException):
        LOG.error("%s %s: %s", request.method, request.path, error)
        return problems.response(problems.unavailable())
    if isinstance(error, AttestError):
        LOG.error("%s %s: %s", request.method, request.path, error)
    else:
        LOG.error("%s %s failed unexpectedly", request.method, request.path, exc_info=error)
    return problems.response(
        Problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "the API failed to answer",
            "tell the operator the request's id; the cause is in the log of the API",
        )
    )


def _refused(error: HTTPException) -> Response | HTTPException:
    """What Flask and Werkzeug refuse: no such path, another method, too large a body."""
    if error.code is None or error.code < HTTPStatus.BAD_REQUEST:
        return error
    details = {
        HTTPStatus.NOT_FOUND: "there is nothing at this path",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method:.16} is not possible here",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the body is larger than is accepted",
    }
    detail = details.get(HTTPStatus(error.code), "the request cannot be understood")
    allow = {name: value for name, value in error.get_headers() if name == "Allow"}
    return problems.response(Problem(error.code, detail, headers=allow))
