# SPDX-License-Identifier: Apache-2.0
"""Relying parties: they verify signed results and act on them, without asking anybody."""
