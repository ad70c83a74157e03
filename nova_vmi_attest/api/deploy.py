# SPDX-License-Identifier: Apache-2.0
"""The middleware around the application, and why it is in this order.

Outermost is what learns from a proxy how the client reached us; then every request gets its id, so that
whatever refuses it can be found in the log; a health check asks for no token; what is inside passes
Keystone's middleware, which marks a token as good or bad and lets the application say so in its own words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from keystonemiddleware.auth_token import AuthProtocol
from oslo_config import cfg
from oslo_middleware.healthcheck import Healthcheck
from oslo_middleware.http_proxy_to_wsgi import HTTPProxyToWSGI
from oslo_middleware.request_id import RequestId
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from nova_vmi_attest.api import problems
from nova_vmi_attest.api.app import make_app
from nova_vmi_attest.api.catalogue import OPERATIONS
from nova_vmi_attest.api.problems import Problem
from nova_vmi_attest.api.services import Services

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def make_application(conf: cfg.ConfigOpts) -> WsgiApp:
    """The whole application; opens nothing yet.

    :raises PolicyError: of oslo.policy, when the policy file cannot be used.
    """
    inner: Any = make_app(Services(conf), OPERATIONS)
    settings = {"oslo_config_config": conf, "delay_auth_decision": True}
    guarded = _Problems(AuthProtocol(inner, settings))
    routed = DispatcherMiddleware(guarded, {"/healthcheck": Healthcheck(None, conf)})
    application: WsgiApp = HTTPProxyToWSGI(RequestId(routed, conf), conf)
    return application


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

        body = self._application(environ, start)
        if not started:
            return body
        if hasattr(body, "close"):
            body.close()
        status = int(started[0][0][:3])
        problem = problems.unavailable() if status == 503 else Problem(status, "the request was refused")
        answer = problems.response(problem, environ.get("openstack.request_id", ""))
        return answer(environ, start_response)
