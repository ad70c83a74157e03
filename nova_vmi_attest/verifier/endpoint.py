# SPDX-License-Identifier: Apache-2.0
"""What the bus may call of a verifier. Nothing that a caller sends makes more happen than it proves.

An announcement may be a copy of a genuine one, so all it brings about is a challenge; evidence is appraised;
indexes, files and results are public to whoever is on the bus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import oslo_messaging
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.verifier.references import ApprovedReferences
from nova_vmi_attest.verifier.results import Results
from nova_vmi_attest.verifier.rounds import Rounds

LOG = log.getLogger(__name__)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _expected(method: _Method) -> _Method:
    """Let our own errors go to the caller without a traceback in this log."""
    wrapped: _Method = oslo_messaging.expected_exceptions(AttestError)(method)
    return wrapped


class VerifierEndpoint:
    """See :class:`nova_vmi_attest.messaging.VerifierEndpoint`."""

    def __init__(self, rounds: Rounds, references: ApprovedReferences, results: Results) -> None:
        self._rounds = rounds
        self._references = references
        self._results = results

    @messaging.exposed
    def announce(self, ctxt: Mapping[str, Any], host: str, certificate: str) -> None:
        """A host says that it is ready; it is challenged when its certificate is good and it is new to us."""
        try:
            self._rounds.announce(host, certificate, int(time.time()))
        except AttestError as error:
            LOG.warning("announcement of host %.253r dropped: %s", host, error)
        except Exception:
            LOG.exception("announcement of host %.253r failed unexpectedly", host)

    @messaging.exposed
    def submit(self, ctxt: Mapping[str, Any], batch: str) -> None:
        """Evidence: appraised, stored and published. Its sender gets no answer."""
        try:
            self._rounds.submit(batch, int(time.time()))
        except AttestError as error:
            LOG.warning("evidence dropped: %s", error)
        except Exception:
            LOG.exception("a batch could not be appraised")

    @messaging.exposed
    @_expected
    def reference_index(self, ctxt: Mapping[str, Any]) -> str:
        """The signed index of approved references."""
        return self._references.index(int(time.time()))

    @messaging.exposed
    @_expected
    def blob(self, ctxt: Mapping[str, Any], digest: str, offset: int) -> dict[str, Any]:
        """One piece of a file of an approved reference."""
        return self._references.piece(digest, offset)

    @messaging.exposed
    @_expected
    def results(self, ctxt: Mapping[str, Any]) -> list[str]:
        """The newest signed result of every host, as far as it is valid."""
        return self._results.valid_tokens(int(time.time()))
