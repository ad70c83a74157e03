# SPDX-License-Identifier: Apache-2.0
"""Options of the REST API."""

from __future__ import annotations

from oslo_config import cfg

GROUP = cfg.OptGroup("api", title="The REST API")

OPTIONS = [
    cfg.IntOpt(
        "max_limit",
        default=1000,
        min=1,
        max=1000,
        help="""
The most items on one page, and as many as there are when a request names no ``limit``.

A request for more gets this many and a link to the next page. Lower it when answers are cut off by a proxy.
""",
    ),
    cfg.IntOpt(
        "max_upload",
        default=512 << 20,
        min=1 << 20,
        help="""
The largest kernel package that may be uploaded, in bytes.

Uploads go to a temporary file in ``upload_path``, so that directory needs room for ``max_uploads`` of them.
A proxy before the API has a limit of its own.
""",
    ),
    cfg.IntOpt(
        "max_uploads",
        default=1,
        min=1,
        max=16,
        help="""
How many packages one process takes at a time; whoever comes then is told to come again.

Reading a package costs a minute of one core. Raise it only together with the threads of the web server.
""",
    ),
    cfg.StrOpt(
        "upload_path",
        default="",
        help="""
Directory for packages while they are read; empty for the system's directory of temporary files.
""",
    ),
    cfg.IntOpt(
        "verifier_timeout",
        default=10,
        min=1,
        max=120,
        help="""
Seconds to wait for a verifier to take a challenge. Keep it below the timeout of the web server.
""",
    ),
]
