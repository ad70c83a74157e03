# SPDX-License-Identifier: Apache-2.0
"""Real parts for the demo, the functional tests and the benchmarks: guests, a hypervisor, a TPM, a bus.

Everything is started by hand from Debian's packages, keeps its state in a directory that the caller gives,
and is stopped by the context manager that started it. What takes long to make (kernels, initramfs, the test
module) is kept in one cache directory. Nothing that already runs on the machine is touched.
"""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """Return the directory that outlives a run, made on first use."""
    path = Path(os.environ.get("NOVA_VMI_ATTEST_CACHE") or REPOSITORY / ".cache").absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path
