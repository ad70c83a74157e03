# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration of the manual."""

project = "nova-vmi-attest"
author = "nova-vmi-attest contributors"
extensions = ["oslo_config.sphinxext", "oslo_policy.sphinxext", "reno.sphinxext"]
html_theme = "alabaster"
exclude_patterns: list[str] = []
