# SPDX-License-Identifier: Apache-2.0
"""From the guests of this host to their measurements: open each memory once, measure all in every round.

Whatever happens with one guest is stated about that guest and never keeps another one from being measured.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

from oslo_log import log

from nova_vmi_attest.attester.guests import GuestRecord, GuestState
from nova_vmi_attest.attester.lifecycle import HypervisorError
from nova_vmi_attest.attester.references import ReferenceCache
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.encoding import EncodingError
from nova_vmi_attest.evidence.measurement import Measurement, Unmeasured
from nova_vmi_attest.evidence.measurement_codec import measurement_digest
from nova_vmi_attest.introspection.measure import Measurer, unmeasured, unmeasured_reason
from nova_vmi_attest.introspection.memory.base import GuestGone, GuestMemory
from nova_vmi_attest.introspection.memory.domain import parse_domain
from nova_vmi_attest.introspection.memory.select import choose, open_memory

LOG = log.getLogger(__name__)

# After these the memory is opened anew for the next round.
_CLOSING = (Unmeasured.GONE, Unmeasured.UNREADABLE)

# Seconds after a reset in which the kernel that ended may still lie in memory whole, page tables, trampoline
# and all: firmware and boot loader overwrite little of it.
_REMAINS = 3.0


def _reason(error: AttestError) -> Unmeasured:
    """What went wrong here, or else with the guest's memory."""
    if isinstance(error, HypervisorError):
        return Unmeasured.GONE
    if isinstance(error, EncodingError):
        return Unmeasured.INTERNAL
    return unmeasured_reason(error)


@dataclass(frozen=True, slots=True)
class _Opened:
    """The memory of one incarnation. Who reads it holds ``lock``, and so does who closes it."""

    incarnation: int
    memory: GuestMemory
    lock: Lock = field(default_factory=Lock)


class GuestMeasurer:
    """Measures guests, keeping their memory open and their kernels known between rounds.

    :param live_xml: gives a guest's live domain XML.
    :param reader: the one reader to use; empty to choose by the XML.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        live_xml: Callable[[uuid.UUID], str],
        references: ReferenceCache,
        reader: str,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live_xml = live_xml
        self._references = references
        self._reader = reader
        self._measurer = Measurer(references)
        self._threads = threads
        self._lock = Lock()
        self._open: dict[uuid.UUID, _Opened] = {}
        self._clock = clock
        self._reset: dict[uuid.UUID, float] = {}

    def measure_all(self, guests: Sequence[GuestRecord]) -> tuple[Measurement, ...]:
        """One measurement for each guest, in the same order."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="measure") as pool:
            return tuple(pool.map(self._measure, guests))

    def forget(self, guest: uuid.UUID) -> None:
        """Close the memory of an incarnation that ended, and believe nothing that was learnt of it.

        Waits for a pass that reads it: a descriptor that is closed under a reader may be another file's by
        then.
        """
        with self._lock:
            opened = self._open.pop(guest, None)
        if opened is not None:
            with opened.lock:
                opened.memory.close()
        self._measurer.forget(guest)

    def reset(self, guest: uuid.UUID) -> None:
        """The guest's machine was reset: believe nothing that was learnt, and let the remains perish."""
        with self._lock:
            self._reset[guest] = self._clock()
        self.forget(guest)

    def close(self) -> None:
        """Close every guest's memory."""
        for guest in tuple(self._open):
            self.forget(guest)

    def _measure(self, record: GuestRecord) -> Measurement:
        if record.state is GuestState.FILLING:
            detail = "its memory is still on its way from another host (post-copy migration)"
            return unmeasured(record.guest, Unmeasured.UNSUPPORTED, detail)
        if self._was_reset(record.guest):
            return unmeasured(record.guest, Unmeasured.BOOTING, "the guest was reset just now")
        try:
            measurement = self._read(record)
            # What cannot travel must not keep the evidence of the whole host from travelling.
            measurement_digest(measurement)
        except AttestError as error:
            LOG.warning("guest %s (%s) cannot be measured: %s", record.guest, record.name, error)
            self.forget(record.guest)
            return unmeasured(record.guest, _reason(error), str(error))
        except Exception:
            LOG.exception("guest %s (%s): the measurement failed unexpectedly", record.guest, record.name)
            self.forget(record.guest)
            return unmeasured(record.guest, Unmeasured.INTERNAL, "see the agent's log")
        LOG.debug("guest %s measured in %d us", record.guest, measurement.observation.microseconds)
        return measurement

    def _was_reset(self, guest: uuid.UUID) -> bool:
        now = self._clock()
        with self._lock:
            self._reset = {one: when for one, when in self._reset.items() if now - when < _REMAINS}
            return guest in self._reset

    def _read(self, record: GuestRecord) -> Measurement:
        opened = self._opened(record)
        measurement = self._pass(record.guest, opened)
        if measurement.integrity.reason is Unmeasured.UNKNOWN_KERNEL and self._references.fetch_missing():
            measurement = self._pass(record.guest, opened)
        if measurement.integrity.reason in _CLOSING:
            # An open reader would keep the memory of an ended guest on the host.
            self.forget(record.guest)
        return measurement

    def _pass(self, guest: uuid.UUID, opened: _Opened) -> Measurement:
        with opened.lock:
            with self._lock:
                current = self._open.get(guest) is opened
            if not current:
                raise GuestGone(f"guest {guest} ended before it was measured")
            return self._measurer.measure(guest, opened.memory, opened.memory.name)

    def _opened(self, record: GuestRecord) -> _Opened:
        with self._lock:
            known = self._open.get(record.guest)
        if known is not None:
            if known.incarnation == record.incarnation:
                return known
            self.forget(record.guest)
        domain = parse_domain(self._live_xml(record.guest))
        choice = choose(domain, self._reader or None)
        LOG.info("guest %s (%s): reading by %s: %s", record.guest, record.name, choice.reader, choice.reason)
        opened = _Opened(record.incarnation, open_memory(domain, choice.reader))
        with self._lock:
            self._open[record.guest] = opened
        return opened
