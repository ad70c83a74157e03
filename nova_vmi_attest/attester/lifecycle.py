# SPDX-License-Identifier: Apache-2.0
"""Which guests this host runs, as libvirt says.

Every lifecycle event of libvirt makes the agent compare its guests with libvirt's list of active domains,
and so does a timer, which heals what an event missed. An event is only a reason to look: a reboot may show
as an end followed by a start, and acting on the event itself would forget a guest that is there. The
callback that libvirt calls only enqueues, because it runs on the event loop's thread and a query from there
would deadlock.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from typing import Any

import libvirt
from oslo_log import log

from nova_vmi_attest.attester.guests import GuestRecord, GuestRegistry, GuestState
from nova_vmi_attest.errors import AttestError

LOG = log.getLogger(__name__)

# Seconds between probes of a silent libvirtd, and how many may go unanswered.
_KEEPALIVE = (5, 3)

# Seconds before the event loop goes on after an error.
_LOOP_PAUSE = 1.0

_PAUSED = frozenset({libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED})


class HypervisorError(AttestError):
    """libvirt did not answer."""


class _EventLoop:
    """libvirt's event loop: one for a process, since its registration is global and cannot be undone."""

    _lock = threading.Lock()
    _running = False

    @classmethod
    def ensure(cls) -> None:
        """Start the loop unless it runs. Must come before the first connection that wants events."""
        with cls._lock:
            if cls._running:
                return
            libvirt.virEventRegisterDefaultImpl()
            # Errors are raised; libvirt would print each of them as well.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            threading.Thread(target=cls._run, name="libvirt-events", daemon=True).start()
            cls._running = True

    @staticmethod
    def _run() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                # It must run on: without it a connection that died is noticed late, and no event arrives.
                LOG.warning("libvirt's event loop: %s", error)
                time.sleep(_LOOP_PAUSE)


class Lifecycle:
    """Keeps a :class:`GuestRegistry` in step with libvirt.

    libvirt is trusted: it is part of the host whose own state the quote covers.
    """

    def __init__(self, uri: str, registry: GuestRegistry, reconcile_interval: float) -> None:
        self._uri = uri
        self._registry = registry
        self._interval = reconcile_interval
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._connection: Any = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Connect, take stock, and follow the events.

        :raises HypervisorError: libvirt cannot be reached.
        """
        _EventLoop.ensure()
        self.reconcile()
        self._thread = threading.Thread(target=self._follow, name="guest-lifecycle", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following. Idempotent."""
        self._stopped.set()
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def live_xml(self, guest: uuid.UUID) -> str:
        """The live XML of a domain.

        :raises HypervisorError: it does not run, or libvirt does not answer.
        """
        try:
            xml: str = self._connect().lookupByUUID(guest.bytes).XMLDesc(0)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"guest {guest}: {error}") from error
        return xml

    def reconcile(self) -> None:
        """Compare with the active domains of libvirt.

        :raises HypervisorError: libvirt does not answer; the registry is left as it was.
        """
        try:
            domains = self._connect().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            present = [record for record in map(_record, domains) if record is not None]
        except libvirt.libvirtError as error:
            raise HypervisorError(f"libvirt at {self._uri}: {error}", "is libvirtd running?") from error
        appeared, vanished = self._registry.reconcile(present)
        for guest in appeared:
            LOG.info("guest %s is on this host", guest)
        for guest in vanished:
            LOG.info("guest %s left this host", guest)

    def _connect(self) -> Any:
        with self._lock:
            if self._connection is None or not self._connection.isAlive():
                try:
                    self._connection = libvirt.openReadOnly(self._uri)
                    self._connection.setKeepAlive(*_KEEPALIVE)
                    self._connection.domainEventRegisterAny(
                        None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._enqueue, None
                    )
                except libvirt.libvirtError as error:
                    self._connection = None
                    raise HypervisorError(
                        f"cannot connect to libvirt at {self._uri}: {error}", "is libvirtd running?"
                    ) from error
            return self._connection

    def _enqueue(self, _connection: Any, _domain: Any, _event: int, _detail: int, _opaque: Any) -> None:
        self._queue.put(None)

    def _follow(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=self._interval)
                while True:  # one look answers all events so far
                    self._queue.get_nowait()
            if self._stopped.is_set():
                return
            try:
                self.reconcile()
            except HypervisorError as error:
                LOG.warning("guests cannot be followed: %s", error)


def _record(domain: Any) -> GuestRecord | None:
    """The registry's view of a domain; None when it ended between the list and the question."""
    try:
        state, _reason = domain.state()
        incarnation = domain.ID()
        name = domain.name()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    if incarnation < 0:
        return None
    paused = GuestState.PAUSED if state in _PAUSED else GuestState.RUNNING
    return GuestRecord(uuid.UUID(bytes=domain.UUID()), name, incarnation, paused)
