# SPDX-License-Identifier: Apache-2.0
"""Examples of plug-ins for nova-vmi-attest."""
