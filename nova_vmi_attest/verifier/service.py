# SPDX-License-Identifier: Apache-2.0
"""The verifier as a whole: what it is made of, and in which order that starts and stops.

What runs in the background is made of parts with a ``start`` and a ``stop``: challenging in turn
(:mod:`.turns`), what needs Nova and Placement (:mod:`.cloud`), and what follows from results
(:mod:`.aftermath`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import oslo_messaging
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.conf.policy import ALL_CHECKS
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.result import AttestationResult, verify_result
from nova_vmi_attest.records.refusals import Refusals
from nova_vmi_attest.references.store import ReferenceStore
from nova_vmi_attest.verifier.aftermath import Aftermath
from nova_vmi_attest.verifier.challenges import Challenges
from nova_vmi_attest.verifier.cloud import Cloud
from nova_vmi_attest.verifier.endpoint import VerifierEndpoint
from nova_vmi_attest.verifier.hosts import Hosts
from nova_vmi_attest.verifier.policy import Policy
from nova_vmi_attest.verifier.references import ApprovedReferences
from nova_vmi_attest.verifier.results import Results
from nova_vmi_attest.verifier.rounds import Rounds
from nova_vmi_attest.verifier.turns import TICK, Turns

LOG = log.getLogger(__name__)


class VerifierError(AttestError):
    """The verifier cannot start, or does not know what it is asked about."""


class VerifierService:
    """Starts and stops the parts in the right order. ``conf`` holds [verifier], [policy], [references],
    [openstack] and [responses].

    :param key: the key that signs challenges, results and indexes; agents and relying parties know its public
        half.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        transport: oslo_messaging.Transport,
        database: Database,
        key: EllipticCurvePrivateKey,
    ) -> None:
        self._conf = conf
        self._transport = transport
        self._database = database
        self._key = key
        self._stopped = threading.Event()
        self._cleanup = contextlib.ExitStack()
        self._asked: dict[str, bytes] = {}

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts, transport: oslo_messaging.Transport) -> VerifierService:
        """The service with the database and the key that the options name.

        :raises AttestError: when the key cannot be used.
        """
        key = keys.load_private_key(Path(conf.verifier.private_key))
        return cls(conf, transport, Database(conf.database.connection), key)

    def start(self) -> None:
        """Check everything that is needed, then listen and challenge.

        :raises AttestError: the schema is not current, or a file or option cannot be used; says what to do.
        """
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._cleanup = stack.pop_all()
        LOG.info("verifier %s appraises evidence", self._conf.verifier.host)

    def stop(self) -> None:
        """Stop listening, then challenging. Idempotent."""
        self._stopped.set()
        self._cleanup.close()

    def wait(self) -> None:
        """Wait until :meth:`stop` was called."""
        self._stopped.wait()

    def challenge(self, host: str) -> None:
        """Challenge one host now, out of its turn.

        :raises VerifierError: when it never announced itself.
        """
        if self._hosts.get(host) is None:
            raise VerifierError(f"host {host} never announced itself", "start nova-vmi-attest-agent on it")
        self._asked[host] = self._rounds.challenge(host, int(time.time()))

    def sequence(self, host: str) -> int:
        """The number of the newest result of a host; 0 when there is none."""
        newest = self._results.newest(host)
        return newest.sequence if newest else 0

    def wait_for_result(self, host: str, after_sequence: int, timeout: float) -> AttestationResult:
        """The newest result of a host, once its number is above ``after_sequence``.

        After :meth:`challenge` it is the answer to that challenge, or to a later one.

        :param timeout: seconds to wait at most.
        :raises VerifierError: when none came in time, with the last error in the host's name.
        """
        deadline = time.monotonic() + timeout
        while True:
            # In this order: an answer that comes in between is then seen, and an older one is not taken for
            # it.
            answered = not self._is_asked(host)
            newest = self._results.newest(host)
            if answered and newest is not None and newest.sequence > after_sequence:
                public = [self._key.public_key()]
                return verify_result(newest.token, public, self._conf.verifier.audience, newest.issued)
            left = deadline - time.monotonic()
            if left <= 0:
                known = self._hosts.get(host)
                cause = known.last_error if known and known.last_error else "it did not answer"
                raise VerifierError(f"host {host} gave no new result within {timeout:.0f} s: {cause}")
            self._rounds.wait_for_change(min(left, TICK))

    def _is_asked(self, host: str) -> bool:
        nonce = self._asked.get(host)
        return nonce is not None and self._rounds.is_open(host, nonce, int(time.time()))

    def _start(self, stack: contextlib.ExitStack) -> None:
        options = self._conf.verifier
        if options.result_lifetime <= options.interval:
            raise VerifierError(
                "every result would be stale before the next",
                "raise [verifier] result_lifetime above interval",
            )
        self._database.require_current()
        policy = Policy.from_options(self._conf.policy)
        for relaxation in policy.relaxations(ALL_CHECKS):
            LOG.warning("the policy is weaker than the default: %s", relaxation)
        references = ApprovedReferences(ReferenceStore(self._conf.references.path), self._key)
        if not references.approved():
            LOG.warning("no kernel is approved yet: import one with nova-vmi-attest-manage reference import")
        self._hosts = Hosts(self._database)
        self._results = Results(
            self._database, self._key, options.audience, options.result_lifetime, options.history_days
        )
        cloud = Cloud.from_conf(self._conf, self._database)
        self._rounds = self._make_rounds(policy, references, cloud)
        turns = Turns(self._hosts, self._rounds, options)
        refusals = Refusals(self._database)
        endpoint = VerifierEndpoint(self._rounds, turns, references, self._results, refusals)
        server = messaging.get_server(self._transport, messaging.VERIFIER_TOPIC, options.host, endpoint)
        aftermath = Aftermath(self._conf, self._transport, self._database, self._results, cloud.compute)
        self._stopped.clear()
        stack.callback(self._database.close)
        for part in (turns, *cloud.parts, aftermath):
            # Before it starts: one that fails halfway is stopped like the others.
            stack.callback(part.stop)
            part.start()
        stack.callback(self._stopped.set)
        server.start()
        stack.callback(server.wait)
        stack.callback(server.stop)

    def _make_rounds(self, policy: Policy, references: ApprovedReferences, cloud: Cloud) -> Rounds:
        options = self._conf.verifier
        return Rounds(
            transport=self._transport,
            database=self._database,
            thumbprint=keys.thumbprint(self._key.public_key()),
            authorities=load_authorities(Path(options.authority_certificates)),
            policy=policy,
            references=references,
            hosts=self._hosts,
            challenges=Challenges(
                self._database, self._key, options.challenge_lifetime, options.challenges_per_host
            ),
            results=self._results,
            placements=cloud.placements,
            changed=cloud.changed,
        )


def load_authorities(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of the enrolment authority in a PEM file, at least one.

    :raises VerifierError: when it cannot be read or holds none.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise VerifierError(
            f"{path} holds no readable certificate: {error}",
            "copy the authority's certificate there ([verifier] authority_certificates)",
        ) from error
