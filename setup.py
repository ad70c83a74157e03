# SPDX-License-Identifier: Apache-2.0
"""Kept for pbr: without it package data is left out of the wheel."""

import setuptools

setuptools.setup(setup_requires=["pbr>=6.1.1"], pbr=True)
