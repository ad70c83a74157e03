# SPDX-License-Identifier: Apache-2.0
"""Ways to read the guest-physical memory of a guest, one file each."""
