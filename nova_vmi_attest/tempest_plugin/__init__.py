# SPDX-License-Identifier: Apache-2.0
"""Tests for a deployed cloud, found by tempest through its plugin interface."""
