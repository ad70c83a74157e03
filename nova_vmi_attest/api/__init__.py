# SPDX-License-Identifier: Apache-2.0
"""The REST API (service type ``attestation``): one noun a file, and three that say how a request flows.

:mod:`.deploy` stacks the middleware, :mod:`.app` turns a request into a call of one operation, and each
noun's file holds its operations and handlers. What is written there is what the OpenAPI document says.
"""
