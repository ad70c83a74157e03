# SPDX-License-Identifier: Apache-2.0
"""The REST API for a web server: ``nova_vmi_attest.wsgi.api:application``.

The only module that works when it is imported, as web servers want it: it reads the configuration and makes
the application. Connections are made by the process that answers a request, after the server has forked.
"""

from __future__ import annotations

import os

from oslo_log import log

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.api.deploy import WsgiApp, make_application
from nova_vmi_attest.wsgi import config

_PROGRAM = "nova-vmi-attest-api"


def _application() -> WsgiApp:
    conf = configuration.load([], _PROGRAM, config.files(os.environ))
    log.setup(conf, _PROGRAM)
    return make_application(conf)


application = _application()
