# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: ratios of two things that are measured in turn in the same run, never limits that fail."""
