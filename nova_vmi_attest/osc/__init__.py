# SPDX-License-Identifier: Apache-2.0
"""The plugin of the openstack command: the nouns of the attestation API on the command line."""
