# SPDX-License-Identifier: Apache-2.0
"""Keeps a trust cache filled: results as they are published, and all of them when some may have been missed.

The bus gives no sign when a connection was lost and made again, so a long silence counts as one: the
verifiers are then asked for every newest result. While they cannot be asked, what is cached goes stale, which
denies.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import oslo_messaging
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.challenge import MAX_HOST
from nova_vmi_attest.relying.trust import TrustCache

LOG = log.getLogger(__name__)

# Seconds of silence after which results may have been missed; seconds between two attempts to ask for them.
_SILENCE = 120.0
_RETRY = 5.0

# Pages that are asked for at most; each has one result or more.
_MOST_PAGES = 65536


class PageError(AttestError):
    """What claims to be a verifier's answer is none."""


class ResultListener:
    """Listens for results in the background.

    :param name: of this process on the bus; must differ between relying parties.
    :param silence: seconds without a result after which all are asked for.
    """

    def __init__(
        self, transport: oslo_messaging.Transport, cache: TrustCache, name: str, silence: float = _SILENCE
    ) -> None:
        self._transport = transport
        self._cache = cache
        self._name = f"{name}.{uuid.uuid4().hex[:8]}"
        self._silence = silence
        self._verifiers = messaging.VerifierClient(transport, timeout=30)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._heard = 0.0
        self._filled = threading.Event()

    @messaging.exposed
    def result(self, ctxt: Mapping[str, Any], token: str) -> None:
        """See :class:`nova_vmi_attest.messaging.ResultEndpoint`."""
        self._ingest(token)

    def start(self) -> None:
        """Begin to listen. Returns at once, whether the bus can be reached or not."""
        self._thread = threading.Thread(target=self._run, name="vmi-attest-results", daemon=True)
        self._thread.start()

    def wait_filled(self, timeout: float) -> bool:
        """Wait until all results have been asked for once, for so many seconds at most."""
        return self._filled.wait(max(timeout, 0.0))

    def stop(self) -> None:
        """Stop listening; what is cached stays, and goes stale."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def _run(self) -> None:
        server = None
        while not self._stopped.is_set():
            try:
                if server is None:
                    server = messaging.get_server(self._transport, messaging.RESULTS_TOPIC, self._name, self)
                    server.start()
                if not self._filled.is_set() or time.monotonic() - self._heard > self._silence:
                    self._fill()
            except (AttestError, oslo_messaging.MessagingException) as error:
                LOG.warning("no verifier could be asked for results: %s", error)
            except Exception:
                LOG.exception("listening for results failed unexpectedly")
            self._stopped.wait(_RETRY)
        if server is not None:
            server.stop()
            server.wait()

    def _fill(self) -> None:
        """Ask for all results, page by page. Anybody on the bus may be the one who answers."""
        after, seen, new = "", 0, 0
        for _ in range(_MOST_PAGES):
            tokens, following = _page(self._verifiers.results(after))
            seen += len(tokens)
            new += sum(self._ingest(token) for token in tokens)
            if not following or following == after or self._stopped.is_set():
                break
            after = following
        self._heard = time.monotonic()
        self._filled.set()
        LOG.info("the verifiers hold %d valid results, %d of them new here", seen, new)

    def _ingest(self, token: str) -> bool:
        try:
            new = self._cache.ingest(token, time.time())
        except AttestError as error:
            LOG.warning("result dropped: %s", error)
            return False
        if new:
            # Neither forged nor repeated results may keep us from asking for what we missed.
            self._heard = time.monotonic()
        return new


def _page(answer: object) -> tuple[list[str], str]:
    """The results in an answer, and the name after which the next page begins; empty at the end."""
    if isinstance(answer, Mapping):
        tokens, following = answer.get("results"), answer.get("next")
        if isinstance(tokens, list) and isinstance(following, str) and len(following) <= MAX_HOST:
            return tokens, following
    raise PageError("the answer of a verifier is malformed")
