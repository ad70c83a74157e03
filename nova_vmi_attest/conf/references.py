# SPDX-License-Identifier: Apache-2.0
"""Options of the store of kernel reference values."""

from __future__ import annotations

from oslo_config import cfg

GROUP = cfg.OptGroup("references", title="Reference kernels")

OPTIONS = [
    cfg.StrOpt(
        "path",
        default="/var/lib/nova-vmi-attest/references",
        help="""
Directory with the approved kernels: images, modules and their manifests, named by their digests.

``nova-vmi-attest-manage reference import`` fills it. A kernel is approved by being here, so keep the
directory writable by the operator alone. With several verifiers it must be the same on all of them: share it,
or copy it.
""",
    ),
]
