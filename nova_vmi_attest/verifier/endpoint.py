# SPDX-License-Identifier: Apache-2.0
"""What the bus may call of a verifier. Nothing that a caller sends makes more happen than it proves.

An announcement may be a copy of a genuine one, so all it brings about is a challenge, and so does an event;
evidence is appraised; indexes, files and results are public to whoever is on the bus. Who may ask for a
challenge is decided by the API; on the bus it is rationed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nova_vmi_attest import messaging
from nova_vmi_attest.records.refusals import Refusals
from nova_vmi_attest.verifier.rate import Ration
from nova_vmi_attest.verifier.references import ApprovedReferences
from nova_vmi_attest.verifier.results import Results
from nova_vmi_attest.verifier.rounds import Rounds
from nova_vmi_attest.verifier.turns import Turns

# Refusals that may follow each other at once, and seconds until one more may: what comes beyond is dropped
# before it costs a transaction, for which evidence would have to wait.
_REFUSALS, _REFUSAL_EVERY = 200, 1.0


class VerifierEndpoint:
    """See :class:`nova_vmi_attest.messaging.VerifierEndpoint`."""

    def __init__(
        self,
        rounds: Rounds,
        turns: Turns,
        references: ApprovedReferences,
        results: Results,
        refusals: Refusals,
    ) -> None:
        self._rounds = rounds
        self._turns = turns
        self._references = references
        self._results = results
        self._refusals = refusals
        self._refusals_left = Ration(_REFUSALS, _REFUSAL_EVERY)

    @messaging.exposed
    def announce(self, ctxt: Mapping[str, Any], host: str, certificate: str) -> None:
        """A host says that it is ready; it is challenged when its certificate is good and it is new to us."""
        self._rounds.announce(host, certificate, int(time.time()))

    @messaging.exposed
    def submit(self, ctxt: Mapping[str, Any], batch: str) -> None:
        """Evidence: appraised, stored and published. Its sender gets no answer."""
        self._rounds.submit(batch, int(time.time()))

    @messaging.exposed
    def reference_index(self, ctxt: Mapping[str, Any]) -> str:
        """The signed index of approved references."""
        return self._references.index(int(time.time()))

    @messaging.exposed
    def blob(self, ctxt: Mapping[str, Any], digest: str, offset: int) -> dict[str, Any]:
        """One piece of a file of an approved reference."""
        return self._references.piece(digest, offset)

    @messaging.exposed
    def results(self, ctxt: Mapping[str, Any], after: str) -> dict[str, Any]:
        """The newest signed results, as far as they are valid, of some hosts after a name."""
        tokens, following = self._results.valid_tokens(after, int(time.time()))
        return {"results": tokens, "next": following}

    @messaging.exposed
    def event(self, ctxt: Mapping[str, Any], host: str, reason: str) -> None:
        """Something happened on a host: it is challenged soon, and the reason is not even read."""
        self._turns.soon(host)

    @messaging.exposed
    def refused(self, ctxt: Mapping[str, Any], refusal: dict[str, Any]) -> None:
        """What a scheduler refused, for people."""
        if self._refusals_left.take(""):
            self._refusals.add(refusal, int(time.time()))

    @messaging.exposed
    def challenge(self, ctxt: Mapping[str, Any], host: str, nonce: str) -> dict[str, Any]:
        """A challenge on demand."""
        return {"nonce": self._turns.demand(host, nonce).hex()}
