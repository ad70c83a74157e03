# SPDX-License-Identifier: Apache-2.0
"""The guests of this host as the rounds see them: who is here now, and what each measures like.

Puts together the libvirt side (which guests there are), the hints of nova-compute, the measurer (which keeps
their memory open) and the settling of those that appeared.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oslo_log import log

from nova_vmi_attest.attester.guests import GuestRegistry
from nova_vmi_attest.attester.hints import HintError, HintSocket
from nova_vmi_attest.attester.lifecycle import HypervisorError, Lifecycle
from nova_vmi_attest.attester.measuring import GuestMeasurer
from nova_vmi_attest.attester.references import ReferenceCache
from nova_vmi_attest.attester.settling import Settler
from nova_vmi_attest.evidence.measurement import Measurement

LOG = log.getLogger(__name__)


class GuestFollower:
    """Follows and measures the guests of this host between :meth:`start` and :meth:`stop`.

    :param options: the group [agent].
    :param request: asks the verifiers for a challenge, with the reason.
    """

    def __init__(self, options: Any, references: ReferenceCache, request: Callable[[str], None]) -> None:
        self._measurer = GuestMeasurer(self._live_xml, references, options.reader, options.measure_threads)
        self._registry = GuestRegistry(self._measurer.forget)
        self._settler = Settler(self._registry.snapshot, self._measurer.measure_all, request)
        self._lifecycle = Lifecycle(
            options.libvirt_uri,
            self._registry,
            options.reconcile_interval,
            on_change=self._settler.changed,
            on_reset=self._reset,
        )
        self._hints: HintSocket | None = None
        if options.hint_socket:
            self._hints = HintSocket(Path(options.hint_socket), options.hint_group, self._lifecycle.look)
        self._cleanup = contextlib.ExitStack()

    def start(self) -> None:
        """Begin to follow. libvirt and nova-compute may come later."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._measurer.close)
            stack.callback(self._settler.stop)
            self._settler.start()
            stack.callback(self._lifecycle.stop)
            self._lifecycle.start()
            if self._hints is not None:
                stack.callback(self._hints.stop)
                self._listen(self._hints)
            self._cleanup = stack.pop_all()

    def stop(self) -> None:
        """Stop following, then let go of every guest's memory. Idempotent."""
        self._cleanup.close()

    def measure(self) -> Sequence[Measurement]:
        """Measure every guest that runs here, each as the incarnation that does so at the end.

        A guest that ended or left meanwhile is left out: another host answers for it, or nobody has to. One
        that appeared meanwhile is in the next round.

        :raises HypervisorError: libvirt has not said yet which guests there are.
        """
        self._refresh()
        before = self._registry.snapshot()
        measurements = {found.guest: found for found in self._measurer.measure_all(before)}
        self._refresh()
        after = {record.guest: record for record in self._registry.snapshot()}
        restarted = [
            after[record.guest]
            for record in before
            if record.guest in after and after[record.guest].incarnation != record.incarnation
        ]
        measurements.update((found.guest, found) for found in self._measurer.measure_all(restarted))
        here = tuple(found for guest, found in measurements.items() if guest in after)
        self._settler.observed(here)
        return here

    def _refresh(self) -> None:
        """Compare with libvirt. When it is away, what it said last holds: no guest starts without it."""
        try:
            self._lifecycle.reconcile()
        except HypervisorError:
            if not self._lifecycle.known:
                raise
            # Whoever follows the events logs it, too; a guest that ended is found out by its memory.
            LOG.warning("libvirt is away: measuring the guests that it named last")

    def _listen(self, hints: HintSocket) -> None:
        try:
            hints.start()
        except HintError as error:
            LOG.warning("no hints from nova-compute, following libvirt alone: %s", error)

    def _reset(self, guest: uuid.UUID) -> None:
        self._measurer.reset(guest)
        self._settler.unsettle(guest)

    def _live_xml(self, guest: uuid.UUID) -> str:
        return self._lifecycle.live_xml(guest)
