# SPDX-License-Identifier: Apache-2.0
"""An API served by uwsgi, as devstack does, and what the configurations of all services share."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping

from lab.cloud import ini
from lab.cloud.layout import REGION, Layout, program
from lab.cloud.processes import CONTROL, Processes

THREADS = 8


def serve(
    layout: Layout, processes: Processes, service: str, module: str, environment: Mapping[str, str]
) -> None:
    """Start the API of a service on its port; :func:`wait` waits until it answers."""
    processes.start(
        f"{service}-api",
        [
            program("uwsgi"), "--http-socket", f"127.0.0.1:{layout.ports[service]}",
            "--module", f"{module}:application", "--master", "--processes", "1",
            "--threads", str(THREADS), "--enable-threads",
            # The application starts its threads in the process that serves, not in the one that forks it.
            "--lazy-apps", "--die-on-term", "--need-app", "--buffer-size", "65535",
            # uwsgi's HTTP socket takes one request for each connection.
            "--add-header", "Connection: close",
            # Nova sends images in chunks of 1 MiB, which with their headers are more than uwsgi takes.
            "--chunked-input-limit", str(16 << 20),
        ],
        environment=environment,
        space=CONTROL,
    )  # fmt: skip


def wait(layout: Layout, processes: Processes, service: str, timeout: float = 120) -> None:
    """Wait until an API answers, whatever it answers."""
    processes.until(lambda: _answers(layout.url(service, "/")), f"{service}-api", timeout)


def credentials(layout: Layout, user: str) -> dict[str, ini.Value]:
    """keystoneauth's options for a service user."""
    return {
        "auth_type": "password",
        "auth_url": layout.url("keystone", "/v3"),
        "username": user,
        "password": layout.password,
        "project_name": "service",
        "user_domain_id": "default",
        "project_domain_id": "default",
        "region_name": REGION,
    }


def authtoken(layout: Layout, user: str) -> dict[str, ini.Value]:
    """The options of keystonemiddleware for an API that runs as ``user``."""
    return {
        **credentials(layout, user),
        "www_authenticate_uri": layout.url("keystone", "/v3"),
        "service_token_roles_required": "true",
    }


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=30).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
