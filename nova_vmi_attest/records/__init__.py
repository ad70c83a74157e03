# SPDX-License-Identifier: Apache-2.0
"""What more than one service reads or writes in the database: one subject a module."""
