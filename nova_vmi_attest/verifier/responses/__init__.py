# SPDX-License-Identifier: Apache-2.0
"""Responses: what an operator lets the verifiers do by themselves when a verdict changed. Nothing by default.

:mod:`.base` says what a response is, one module each is a response, :mod:`.plugins` loads and contains them,
:mod:`.queue` decides in the database whose turn it is, :mod:`.runner` puts these together.
"""
