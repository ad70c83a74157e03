# SPDX-License-Identifier: Apache-2.0
"""Storage of the control-plane services: models, transactions and migrations."""
