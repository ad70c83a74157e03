# SPDX-License-Identifier: Apache-2.0
"""What the lab raises when a part cannot be made or does not come up."""

from __future__ import annotations

from nova_vmi_attest.errors import AttestError


class LabError(AttestError):
    """A part of the lab is missing, did not start, or died."""
