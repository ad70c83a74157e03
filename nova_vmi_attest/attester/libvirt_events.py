# SPDX-License-Identifier: Apache-2.0
"""libvirt's event loop: one for a process, since its registration is global and cannot be undone."""

from __future__ import annotations

import threading
import time

import libvirt
from oslo_log import log

LOG = log.getLogger(__name__)

# Seconds before the loop goes on after an error.
_PAUSE = 1.0

_lock = threading.Lock()
_thread: threading.Thread | None = None


def ensure_loop() -> None:
    """Start the loop unless it runs. Must come before the first connection that wants events."""
    global _thread
    with _lock:
        if _thread is not None:
            return
        libvirt.virEventRegisterDefaultImpl()
        # Errors are raised; libvirt would print each of them as well.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
        _thread.start()


def _run() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            # It must run on: without it a connection that died is noticed late, and no event arrives.
            LOG.warning("libvirt's event loop: %s", error)
            time.sleep(_PAUSE)
