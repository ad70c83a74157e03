# SPDX-License-Identifier: Apache-2.0
"""The REST API for a web server: ``nova_vmi_attest.wsgi.api:application``.

The only module that works when it is imported, as web servers want it: it reads the configuration and makes
the application. Connections are made by the process that answers a request, after the server has forked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from oslo_log import log

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.api.deploy import WsgiApp, make_application

_PROGRAM = "nova-vmi-attest-api"
_DIRECTORY = "OS_NOVA_VMI_ATTEST_CONFIG_DIR"
_FILES = "OS_NOVA_VMI_ATTEST_CONFIG_FILES"
_NAMES = ("nova-vmi-attest.conf", "api.conf")


def config_files(environment: Mapping[str, str]) -> list[str] | None:
    """The configuration files that the environment names: separated by ``;``, relative to its directory.

    With a directory alone, those in it of the usual names; without either, ``None``: the usual places.
    """
    directory = environment.get(_DIRECTORY, "").strip()
    files = [name.strip() for name in environment.get(_FILES, "").split(";") if name.strip()]
    if files:
        return [str(Path(directory, name)) for name in files]
    if directory:
        return [str(path) for name in _NAMES if (path := Path(directory, name)).is_file()]
    return None


def _application() -> WsgiApp:
    conf = configuration.load([], _PROGRAM, config_files(os.environ))
    log.setup(conf, _PROGRAM)
    return make_application(conf)


application = _application()
