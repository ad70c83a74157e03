# SPDX-License-Identifier: Apache-2.0
"""Every operation of the API."""

from __future__ import annotations

from nova_vmi_attest.api import audit, cloud, hosts, openapi, references, refusals, servers, versions
from nova_vmi_attest.api.operations import Operation

_NOUNS: tuple[Operation, ...] = (
    *versions.OPERATIONS,
    *servers.OPERATIONS,
    *hosts.OPERATIONS,
    *references.OPERATIONS,
    *cloud.OPERATIONS,
    *refusals.OPERATIONS,
    *audit.OPERATIONS,
)

OPERATIONS: tuple[Operation, ...] = (*_NOUNS, openapi.operation(_NOUNS))
