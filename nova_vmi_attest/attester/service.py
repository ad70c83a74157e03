# SPDX-License-Identifier: Apache-2.0
"""The agent as a whole: it opens the TPM and the log, follows the guests, enrols the host, and answers
challenges.

Three threads besides those that follow the guests. One keeps the host enrolled and announced, and may wait
long for an authority that is away; one runs the rounds, one at a time, and never waits for it once there is
a certificate; one connects to the bus and takes challenges from it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import oslo_messaging
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.attester.challenges import ChallengeQueue
from nova_vmi_attest.attester.enrolment import Enrolment
from nova_vmi_attest.attester.following import GuestFollower
from nova_vmi_attest.attester.journal import Journal
from nova_vmi_attest.attester.references import ReferenceCache
from nova_vmi_attest.attester.rounds import RoundRunner
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.references.store import ReferenceStore
from nova_vmi_attest.tpm.device import Tpm

LOG = log.getLogger(__name__)

# Seconds before an enrolment that failed is tried again.
_ENROL_RETRY = 5.0

# Seconds to wait for an answer over the bus. A request to a service that is not up yet is lost, so better
# ask again.
_ANSWER = 10

# Seconds that the threads have to finish what they do when the service stops.
_LAST_WORK = 15.0


class AgentError(AttestError):
    """The agent cannot start."""


class AttesterEndpoint:
    """What the bus may call: it only queues."""

    def __init__(self, challenges: ChallengeQueue) -> None:
        self._challenges = challenges

    @messaging.exposed
    def attest(self, ctxt: Mapping[str, Any], challenge: str) -> None:
        """See :class:`nova_vmi_attest.messaging.AttesterEndpoint`."""
        self._challenges.offer(challenge, int(time.time()))


class AttesterService:
    """Starts and stops the parts in the right order. ``conf`` holds the groups [agent] and [tpm]."""

    def __init__(self, conf: cfg.ConfigOpts, transport: oslo_messaging.Transport) -> None:
        self._conf = conf
        self._transport = transport
        self._host: str = conf.agent.host
        self._stopped = threading.Event()
        self._listening = threading.Event()
        self._cleanup = contextlib.ExitStack()

    def start(self) -> None:
        """Open everything, then listen. What was opened is closed again when a later step fails.

        libvirt and the message bus may be away: they are waited for.

        :raises AttestError: the TPM, the log or a key file cannot be used; the message says what to do.
        """
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._cleanup = stack.pop_all()

    def stop(self) -> None:
        """Stop the threads, then close what :meth:`start` opened. Idempotent."""
        self._stopped.set()
        self._cleanup.close()

    def wait(self) -> None:
        """Wait until :meth:`stop` was called."""
        self._stopped.wait()

    def _start(self, stack: contextlib.ExitStack) -> None:
        agent, tpm_options = self._conf.agent, self._conf.tpm
        state = Path(agent.state_path)
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AgentError(
                f"{state} cannot be made: {error.strerror}", "make it, or set [agent] state_path"
            ) from error
        verifiers = keys.load_public_keys([Path(agent.verifier_keys)])

        tpm = stack.enter_context(Tpm(tpm_options.tcti))
        self._enrolment = Enrolment(
            tpm,
            messaging.AuthorityClient(self._transport, _ANSWER),
            self._host,
            state / "ak.pem",
            Path(agent.authority_certificates),
            tpm_options.ak_handle,
        )
        journal = stack.enter_context(Journal(state / "measurements.cel", tpm, tpm_options.log_pcr))

        client = messaging.VerifierClient(self._transport, _ANSWER)
        self._verifier = client
        references = ReferenceCache(ReferenceStore(state / "references"), client, verifiers)
        following = GuestFollower(agent, references, self._request)
        stack.callback(following.stop)
        following.start()

        pcrs = sorted({*tpm_options.pcrs, tpm_options.log_pcr})
        self._runner = RoundRunner(
            self._host, following.measure, tpm, journal, pcrs, self._enrolment.certificate_der
        )
        self._challenges = ChallengeQueue(self._host, verifiers)
        # Closing runs backwards: the threads' last work, then what they work with.
        threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (
                ("enrolment", self._stay_enrolled),
                ("rounds", self._answer),
                ("challenges", self._listen),
            )
        ]
        stack.callback(self._join, threads)
        for thread in threads:
            thread.start()

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        self._stopped.set()
        self._challenges.wake()
        # One that waits for the message bus cannot be woken: it ends with the process.
        deadline = time.monotonic() + _LAST_WORK
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _listen(self) -> None:
        """Take challenges from the bus until stopped. To start is to wait until the bus is there."""
        server = messaging.get_server(
            self._transport, messaging.ATTESTER_TOPIC, self._host, AttesterEndpoint(self._challenges)
        )
        server.start()
        self._listening.set()
        LOG.info("host %s answers challenges", self._host)
        self._stopped.wait()
        server.stop()
        server.wait()

    def _request(self, reason: str) -> None:
        """Ask the verifiers for a challenge. One of the version before does not know the message: lost."""
        try:
            self._verifier.event(self._host, reason)
            LOG.info("host %s asks for a challenge: %s", self._host, reason)
        except oslo_messaging.MessagingException as error:
            LOG.warning("the verifiers cannot be asked for a challenge: %s", error)

    def _stay_enrolled(self) -> None:
        """Enrol, renew in time, and announce the host, until stopped."""
        while not self._stopped.is_set():
            if not self._listening.wait(_ENROL_RETRY):
                continue  # a challenge that follows the announcement would be lost
            pause = float(self._conf.agent.announce_interval)
            try:
                certificate = self._enrolment.ensure(int(time.time()))
                self._verifier.announce(self._host, _pem(certificate))
            except (AttestError, oslo_messaging.MessagingException) as error:
                LOG.error("host %s is not enrolled: %s", self._host, error)
                pause = _ENROL_RETRY
            except Exception:
                LOG.exception("host %s: enrolment failed unexpectedly", self._host)
                pause = _ENROL_RETRY
            self._stopped.wait(pause)

    def _answer(self) -> None:
        """Run a round for the challenges that came, until stopped."""
        while not self._stopped.is_set():
            for verifier, challenges in self._challenges.take(1.0, int(time.time())).items():
                started = time.monotonic()
                try:
                    batch = self._runner.run(verifier, challenges)
                    self._verifier.submit(batch.encode())
                    LOG.info("host %s: %d guests in one quote", self._host, len(batch.guests))
                except (AttestError, oslo_messaging.MessagingException) as error:
                    LOG.error("host %s: the round failed: %s", self._host, error)
                except Exception:
                    LOG.exception("host %s: the round failed unexpectedly", self._host)
                self._stopped.wait(
                    max(0.0, self._conf.agent.minimum_round_interval - (time.monotonic() - started))
                )


def _pem(certificate: bytes) -> str:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode()
