# SPDX-License-Identifier: Apache-2.0
"""Attestation of Nova guests by introspection, bound to the TPM of their host."""
