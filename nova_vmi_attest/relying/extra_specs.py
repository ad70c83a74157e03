# SPDX-License-Identifier: Apache-2.0
"""Lets nova-api check the extra specs ``trust:*`` when an operator sets them on a flavor.

Nova enforces validators since microversion 2.86; what was set past them asks for most.
"""

from __future__ import annotations

from nova.api.validation.extra_specs.base import ExtraSpecValidator

from nova_vmi_attest.conf.relying import LEVELS

_DESCRIPTIONS = {
    "trust:host": "Whether servers of this flavor may only be placed on hosts that are trusted.",
    "trust:guest": "Whether servers of this flavor may only be moved when they are trusted themselves.",
    "trust:neighbours": "Whether servers of this flavor may only be placed where all others are trusted.",
}


def register() -> list[ExtraSpecValidator]:
    """The validators, as the entry point ``nova.api.extra_spec_validators`` wants them."""
    return [
        ExtraSpecValidator(name, description, {"type": str, "enum": list(LEVELS)})
        for name, description in _DESCRIPTIONS.items()
    ]
