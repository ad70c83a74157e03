# SPDX-License-Identifier: Apache-2.0
"""The trait in Placement that follows the hosts' verdicts, so that a flavor can require attested hosts
without the scheduler filter.

A host has it while its newest result is valid and says trusted; whatever else is the case, it has not: a host
whose agent is dead loses it when its result ends. Placement is asked, in one request, which providers have
the trait, when a verdict changed and once a minute; only the differences are written, and the other traits of
a provider stay as they are. nova-compute leaves alone what it did not set, so a restart of it changes
nothing. Several verifiers do the same work twice at worst.

Lag: one interval after a verdict, some twenty writes a second, removals first, and of those first what Nova
has as a compute node: anybody with credentials for Placement can make providers that have the trait. A trait
is not signed and does not end by itself: while *no* verifier runs, or none can reach Placement, a host keeps
the trait that it had; so it does while a verifier that has just started cannot ask Nova for compute nodes.
Where that matters use the scheduler filter, whose results end.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Iterable

from oslo_log import log
from sqlalchemy import select

from nova_vmi_attest.db.models import ResultRow
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.verifier.nova import Nova
from nova_vmi_attest.verifier.openstack import ConflictError, NotFoundError, OpenStackError
from nova_vmi_attest.verifier.providers import Providers, ProviderTraits

LOG = log.getLogger(__name__)

# Seconds after which Placement is asked even if no verdict changed: somebody else may have written.
_ASK_EVERY = 60.0
# Seconds after which Nova is asked for its compute nodes again, and at the soonest when a host is missing.
_NODES_EVERY = 3600.0
_NODES_SOONEST = 60.0
# Seconds that one comparison writes at most: verdicts may have changed meanwhile.
_WRITING = 30.0
_GATHER = 0.2
# Providers in a row that cannot be written before the others are left for the next time.
_FAILURES = 5


class Traits:
    """A background part of the verifier.

    :param trait: its name; nobody else may use it.
    :param every: seconds between two looks at the verdicts.
    """

    def __init__(
        self, database: Database, nova: Nova, providers: Providers, trait: str, every: float
    ) -> None:
        self._database = database
        self._nova = nova
        self._providers = providers
        self._trait = trait
        self._every = every
        self._nodes: dict[str, frozenset[uuid.UUID]] = {}
        self._nodes_at = self._nodes_failed_at = float("-inf")
        # Providers that could not be written the last time: all others go first.
        self._refused: set[uuid.UUID] = set()
        self._having: set[uuid.UUID] | None = None
        self._asked_at = float("-inf")
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._failing = False

    def start(self) -> None:
        """Begin; returns at once."""
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="traits", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the write that is under way. The traits stay as they are."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10)

    def wake(self) -> None:
        """A verdict may have changed."""
        self._wake.set()

    def run_once(self, now: int) -> int:
        """Compare and write what differs; returns how many writes were made.

        :raises AttestError: Nova, Placement or the database did not answer. What could be done without an
            answer was done: neither Nova nor one provider holds up what is taken from others.
        """
        monotonic = time.monotonic()
        failures: list[OpenStackError] = []
        trusted = self._trusted(now)
        try:
            self._look_up_nodes(trusted, monotonic)
        except OpenStackError as error:
            if not self._nodes:
                raise
            self._nodes_failed_at = monotonic
            failures.append(error)
        wanted = {node for host in trusted for node in self._nodes.get(host, ())}
        if self._having is None or monotonic - self._asked_at >= _ASK_EVERY or self._having != wanted:
            # What is written has to differ from what is there, not from what we remember.
            self._having = set(self._providers.having(self._trait))
            self._asked_at = monotonic
        removed, added = self._having - wanted, wanted - self._having
        self._refused &= removed | added
        count = self._write(removed, monotonic, failures, give=False)
        count += self._write(added, monotonic, failures, give=True)
        if failures:
            raise failures[0]
        return count

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            try:
                self.run_once(int(time.time()))
            except AttestError as error:
                self._having = None
                LOG.log(log.DEBUG if self._failing else log.ERROR, "traits do not follow verdicts: %s", error)
                self._failing = True
            except Exception:
                LOG.exception("the traits of hosts failed unexpectedly")
            else:
                if self._failing:
                    LOG.info("traits follow verdicts again")
                self._failing = False
            self._wake.wait(self._every)
            # Verdicts that come one after the other are one comparison.
            time.sleep(_GATHER)

    def _trusted(self, now: int) -> frozenset[str]:
        row = ResultRow
        # What was issued by a clock that was ahead does not count, or it would for as long as that was ahead.
        valid = row.expires > now, row.issued <= now + CLOCK_SKEW
        wanted = select(row.host).where(row.verdict == Verdict.TRUSTED.value, *valid)
        with self._database.reader() as session:
            return frozenset(session.scalars(wanted))

    def _look_up_nodes(self, trusted: Collection[str], monotonic: float) -> None:
        """Nova names the compute nodes of its hosts. A node that it no longer names counts until the next
        look finds its host with others.
        """
        age = monotonic - self._nodes_at
        if min(age, monotonic - self._nodes_failed_at) < _NODES_SOONEST:
            return
        if age < _NODES_EVERY and all(host in self._nodes for host in trusted):
            return
        found: dict[str, set[uuid.UUID]] = {}
        for node in self._nova.compute_nodes():
            found.setdefault(node.host, set()).add(node.provider)
        self._nodes = {**self._nodes, **{host: frozenset(nodes) for host, nodes in found.items()}}
        self._nodes_at = monotonic
        if unknown := sorted(host for host in trusted if host not in self._nodes):
            LOG.warning("Nova has no compute node of %d trusted hosts, such as %s", len(unknown), unknown[0])

    def _write(
        self, providers: Iterable[uuid.UUID], started: float, failures: list[OpenStackError], *, give: bool
    ) -> int:
        assert self._having is not None
        nodes = {node for nodes in self._nodes.values() for node in nodes}
        count = in_a_row = 0
        for provider in sorted(providers, key=lambda x: (x in self._refused, x not in nodes, x.bytes)):
            if self._stopped or time.monotonic() - started > _WRITING or in_a_row == _FAILURES:
                break
            try:
                count += self._write_one(provider, give)
            except OpenStackError as error:
                LOG.debug("the traits of provider %s cannot be written: %s", provider, error)
                failures.append(error)
                self._refused.add(provider)
                in_a_row += 1
                continue
            in_a_row = 0
            self._refused.discard(provider)
            (self._having.add if give else self._having.discard)(provider)
        return count

    def _write_one(self, provider: uuid.UUID, give: bool) -> bool:
        try:
            now = self._providers.traits(provider)
            if (self._trait in now.traits) == give:
                return False
            traits = now.traits | {self._trait} if give else now.traits - {self._trait}
            self._providers.replace_traits(provider, ProviderTraits(now.generation, traits))
        except ConflictError:
            LOG.debug("somebody else wrote the traits of provider %s: next time", provider)
            self._asked_at = float("-inf")
            return False
        except NotFoundError:
            LOG.info("Placement has no provider %s", provider)
            self._nodes = {host: nodes - {provider} for host, nodes in self._nodes.items()}
            self._nodes_at = min(self._nodes_at, time.monotonic() - _NODES_EVERY)
            return False
        LOG.info("compute node %s %s the trait %s", provider, "has" if give else "lost", self._trait)
        return True
