# SPDX-License-Identifier: Apache-2.0
"""The middleware around the application, and why it is in this order.

Outermost is what learns from a proxy how the client reached us; then every request gets its id, so that
whatever refuses it can be found in the log. A health check and what anybody may know ask for no token; all
else has to pass Keystone's middleware, whose refusals are put into our form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from keystonemiddleware.auth_token import AuthProtocol
from oslo_config import cfg
from oslo_log import log
from oslo_middleware.healthcheck import Healthcheck
from oslo_middleware.http_proxy_to_wsgi import HTTPProxyToWSGI
from oslo_middleware.request_id import RequestId
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from nova_vmi_attest.api import problems
from nova_vmi_attest.api.app import make_app
from nova_vmi_attest.api.catalogue import OPERATIONS
from nova_vmi_attest.api.problems import Problem
from nova_vmi_attest.api.services import Services

LOG = log.getLogger(__name__)

# Headers by which Keystone's middleware says who asks.
_IDENTITY = (
    "HTTP_X_IDENTITY_",
    "HTTP_X_ROLE",
    "HTTP_X_USER",
    "HTTP_X_PROJECT",
    "HTTP_X_TENANT",
    "HTTP_X_IS_",
)

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def make_application(conf: cfg.ConfigOpts) -> WsgiApp:
    """The whole application; opens nothing yet.

    :raises PolicyError: of oslo.policy, when the policy file cannot be used.
    """
    inner: Any = make_app(Services(conf), OPERATIONS)
    guarded = _Problems(AuthProtocol(inner, {"oslo_config_config": conf, "delay_auth_decision": False}))
    public = {path for item in OPERATIONS if item.rule is None for path in (item.path, f"{item.path}/")}
    gate = _Gate(inner, guarded, frozenset({"", *public}))
    routed = DispatcherMiddleware(gate, {"/healthcheck": Healthcheck(None, conf)})
    application: WsgiApp = HTTPProxyToWSGI(RequestId(routed, conf), conf)
    return application


class _Gate:
    """Lets everybody go to some exact paths, and on to Keystone's middleware for all others."""

    def __init__(self, application: WsgiApp, guarded: WsgiApp, public: frozenset[str]) -> None:
        self._application = application
        self._guarded = guarded
        self._public = public

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "") in self._public:
            # Nobody vouches for who sends these.
            claimed = [name for name in environ if name.startswith(_IDENTITY)]
            for name in claimed:
                del environ[name]
            return self._application(environ, start_response)
        return self._guarded(environ, start_response)


class _Problems:
    """Says in our form what Keystone's middleware says in its own: above all, that Keystone is away."""

    def __init__(self, application: WsgiApp) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
            code, kind = int(status[:3]), dict(headers).get("Content-Type", "")
            if code < 400 or kind.startswith(problems.MEDIA_TYPE):
                writer: Callable[..., Any] = start_response(status, headers, exc_info)
                return writer
            started.append((status, headers))
            return lambda data: None

        try:
            body = self._application(environ, start)
        except Exception:  # our edge: the application answers for itself, so it is Keystone's middleware
            LOG.exception("a token could not be validated")
            answer = problems.response(problems.unavailable(), environ.get("openstack.request_id", ""))
            return answer(environ, start_response)
        if not started:
            return body
        if hasattr(body, "close"):
            body.close()
        answer = problems.response(_problem(*started[0]), environ.get("openstack.request_id", ""))
        return answer(environ, start_response)


def _problem(status: str, headers: list[tuple[str, str]]) -> Problem:
    code = int(status[:3])
    if code == HTTPStatus.SERVICE_UNAVAILABLE:
        return problems.unavailable()
    challenge = {name: value for name, value in headers if name.lower() == "www-authenticate"}
    if code == HTTPStatus.UNAUTHORIZED:
        return problems.unauthenticated(challenge)
    return Problem(code, "the request was refused")
