# SPDX-License-Identifier: Apache-2.0
"""The verifier: asks hosts, appraises their evidence and signs what it concludes."""
