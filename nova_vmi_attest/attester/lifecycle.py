# SPDX-License-Identifier: Apache-2.0
"""Which guests this host runs, as libvirt says.

Every lifecycle event of libvirt makes the agent compare its guests with libvirt's list of active domains,
and so does a hint from nova-compute, and a timer, which heals what both missed. An event is only a reason to
look: a reboot may show as an end followed by a start, and acting on the event itself would forget a guest
that is there. The callbacks that libvirt calls only enqueue, because they run on the event loop's thread and
a query from there would deadlock.

A libvirt that is away, at start or later, is waited for: guests that run need no libvirt to be measured.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import libvirt
from oslo_log import log

from nova_vmi_attest.attester import libvirt_events
from nova_vmi_attest.attester.domain_state import state_of
from nova_vmi_attest.attester.guests import Changes, GuestRecord, GuestRegistry
from nova_vmi_attest.errors import AttestError

LOG = log.getLogger(__name__)

# Seconds between probes of a silent libvirtd, and how many may go unanswered.
_KEEPALIVE = (5, 3)

# Seconds before a libvirt that is away is tried again, at first and at most.
_RETRY, _LONGEST_RETRY = 1.0, 30.0

# Seconds from one look to the next at least: a guest that resets itself makes events as fast as it likes.
_APART = 0.1


class HypervisorError(AttestError):
    """libvirt did not answer."""


class Lifecycle:
    """Keeps a :class:`GuestRegistry` in step with libvirt.

    libvirt is trusted: it is part of the host whose own state the quote covers.

    :param on_change: told what each look found changed; called from several threads, one at a time.
    :param on_reset: told of each guest whose machine was reset, on a thread of its own.
    """

    def __init__(
        self,
        uri: str,
        registry: GuestRegistry,
        reconcile_interval: float,
        on_change: Callable[[Changes], None] = lambda changes: None,
        on_reset: Callable[[uuid.UUID], None] = lambda guest: None,
    ) -> None:
        self._uri = uri
        self._registry = registry
        self._interval = reconcile_interval
        self._on_change = on_change
        self._on_reset = on_reset
        self._queue: queue.SimpleQueue[uuid.UUID | None] = queue.SimpleQueue()
        self._connection: Any = None
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._known = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def known(self) -> bool:
        """Whether libvirt has said even once which guests there are."""
        return self._known.is_set()

    def start(self) -> None:
        """Take stock if libvirt answers, and follow the events as soon as it does."""
        libvirt_events.ensure_loop()
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
            self._disconnect()

    def look(self) -> None:
        """Compare with libvirt soon, on the thread that follows it. Returns at once."""
        self._queue.put(None)

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
        # One at a time: an older list must not overwrite what a newer one said.
        with self._looking:
            try:
                domains = self._connect().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
                present = [record for record in map(_record, domains) if record is not None]
            except libvirt.libvirtError as error:
                raise HypervisorError(f"libvirt at {self._uri}: {error}", "is libvirtd running?") from error
            changes = self._registry.reconcile(present)
            self._known.set()
            for guest in changes.left:
                LOG.info("guest %s left this host", guest)
            for guest in changes.appeared:
                LOG.info("guest %s is on this host", guest)
            if changes != Changes():
                self._on_change(changes)

    def _connect(self) -> Any:
        with self._lock:
            if self._connection is None or not self._connection.isAlive():
                self._disconnect()
                try:
                    connection = self._connection = libvirt.openReadOnly(self._uri)
                    connection.setKeepAlive(*_KEEPALIVE)
                    connection.domainEventRegisterAny(
                        None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._changed, None
                    )
                    connection.domainEventRegisterAny(
                        None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._was_reset, None
                    )
                    # Without it a libvirtd that restarts would be missed until the next timer.
                    connection.registerCloseCallback(self._closed, None)
                except libvirt.libvirtError as error:
                    self._disconnect()
                    raise HypervisorError(
                        f"cannot connect to libvirt at {self._uri}: {error}", "is libvirtd running?"
                    ) from error
            return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _changed(self, _connection: Any, _domain: Any, _event: int, _detail: int, _opaque: Any) -> None:
        self._queue.put(None)

    def _was_reset(self, _connection: Any, domain: Any, _opaque: Any) -> None:
        self._queue.put(uuid.UUID(bytes=domain.UUID()))

    def _closed(self, _connection: Any, _reason: int, _opaque: Any) -> None:
        self._queue.put(None)

    def _follow(self) -> None:
        retry = _RETRY
        while not self._stopped.is_set():
            pause, began = self._interval, time.monotonic()
            try:
                self.reconcile()
                retry = _RETRY
            except HypervisorError as error:
                LOG.error("guests cannot be followed: %s", error)
                pause, retry = min(retry, self._interval), min(2 * retry, _LONGEST_RETRY)
            except Exception:
                LOG.exception("following the guests failed unexpectedly")
            for guest in self._drain(pause):
                LOG.info("guest %s was reset", guest)
                self._on_reset(guest)
            self._stopped.wait(max(0.0, began + _APART - time.monotonic()))

    def _drain(self, timeout: float) -> set[uuid.UUID]:
        """Wait for a reason to look; one look answers all that came so far. Returns the guests reset."""
        reset: set[uuid.UUID] = set()
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(timeout=timeout)
            while True:
                if item is not None:
                    reset.add(item)
                item = self._queue.get_nowait()
        return reset


def _record(domain: Any) -> GuestRecord | None:
    """The registry's view of a domain; None when it ended between the list and the question."""
    try:
        state, reason = domain.state()
        incarnation = domain.ID()
        name = domain.name()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    if incarnation < 0:
        return None
    return GuestRecord(uuid.UUID(bytes=domain.UUID()), name, incarnation, state_of(state, reason))
