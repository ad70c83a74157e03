# SPDX-License-Identifier: Apache-2.0
"""Whose word counts on which guest: what Nova places on a host against what the host shows. Pure.

A host vouches for what it measured, and it can measure a clean machine under any name. So a guest that Nova
places elsewhere is left out of its result altogether and named among the host's reasons: relying parties
count the worst of what several hosts say of a guest, and no host may harm another one's guests by showing
them, nor help them. A guest that Nova places here and that the host does not show is unknown, as is one that
Nova does not know. Where Nova's word is missing or too old, nothing is trusted.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nova_vmi_attest.evidence.result import MAX_REASONS, GuestResult, Reason, Verdict
from nova_vmi_attest.verifier.policy import reason

MISSING = "guest_missing"
ELSEWHERE = "not_placed_here"
FOREIGN = "not_known_to_nova"
UNCHECKED = "placement_unchecked"

# How many guests that are none of Nova's a result names; a host can make up any number of them.
_MOST_STRANGERS = 256
# How many guests of other hosts are named one by one among the host's reasons.
_MOST_NAMED = 16


@dataclass(frozen=True, slots=True)
class Placed:
    """What Nova says about one host and the guests that it shows.

    :param required: guests that run on the host and must be shown.
    :param allowed: guests that may be shown: the required ones, and those that come, go or stand still.
    :param elsewhere: guests among those shown that Nova has, but not here.
    :param foreign: guests among those shown that Nova was asked for and does not have.
    :param checked: whether this is recent enough to trust anything.
    """

    required: frozenset[uuid.UUID]
    allowed: frozenset[uuid.UUID]
    elsewhere: frozenset[uuid.UUID] = frozenset()
    foreign: frozenset[uuid.UUID] = frozenset()
    checked: bool = True

    def doubtful(self, shown: Iterable[uuid.UUID]) -> frozenset[uuid.UUID]:
        """The guests on which host and Nova disagree, or of which nothing is known."""
        seen = frozenset(shown)
        return (self.required - seen) | (seen - self.allowed - self.foreign)


def hold(
    results: Sequence[GuestResult], placed: Placed
) -> tuple[tuple[GuestResult, ...], tuple[Reason, ...]]:
    """The verdicts that a host's result may carry, and notes on the host.

    :param results: of the guests that the host shows, each once.
    :returns: the guests, ascending by UUID bytes, and reasons for the host's result.
    """
    kept = [result for result in results if result.guest in placed.allowed]
    strange = [result for result in results if result.guest not in placed.allowed | placed.elsewhere]
    named = strange[:_MOST_STRANGERS]
    held = [result if placed.checked else _unchecked(result) for result in kept]
    held += [_foreign(result) if result.guest in placed.foreign else _unseen(result) for result in named]
    shown = {result.guest for result in results}
    held += [_missing(guest, placed.checked) for guest in placed.required - shown]
    elsewhere = [result.guest for result in results if result.guest in placed.elsewhere]
    return _sorted(held), _notes(elsewhere, len(strange) - len(named))


def concerned(shown: Iterable[uuid.UUID], placed: Placed) -> tuple[uuid.UUID, ...]:
    """The guests that a failure of the whole host concerns, ascending by bytes."""
    guests = placed.required | (placed.allowed & frozenset(shown))
    return tuple(sorted(guests, key=lambda guest: guest.bytes))


def _sorted(results: Iterable[GuestResult]) -> tuple[GuestResult, ...]:
    return tuple(sorted(results, key=lambda result: result.guest.bytes))


def _capped(result: GuestResult, why: Reason) -> GuestResult:
    return replace(result, verdict=Verdict.UNKNOWN, reasons=(why, *result.reasons)[:MAX_REASONS])


def _unchecked(result: GuestResult) -> GuestResult:
    """What was found in a guest stands, for it was here when Nova was heard last; being clean does not."""
    why = reason(UNCHECKED, detail="Nova has not said for too long where this guest is")
    verdict = Verdict.UNKNOWN if result.verdict is Verdict.TRUSTED else result.verdict
    return replace(result, verdict=verdict, reasons=(why, *result.reasons)[:MAX_REASONS])


def _foreign(result: GuestResult) -> GuestResult:
    return _capped(
        result, reason(FOREIGN, detail="Nova has no server of this id: a domain that it did not make")
    )


def _unseen(result: GuestResult) -> GuestResult:
    return _capped(result, reason(UNCHECKED, detail="Nova could not be asked for this guest"))


def _missing(guest: uuid.UUID, checked: bool) -> GuestResult:
    if checked:
        why = reason(MISSING, detail="not in the evidence of its host")
    else:
        why = reason(UNCHECKED, detail="not shown by the host where Nova had it when it was heard last")
    return GuestResult(guest, Verdict.UNKNOWN, (why,))


def _notes(elsewhere: Sequence[uuid.UUID], left_out: int) -> tuple[Reason, ...]:
    detail = "shown by this host, and placed elsewhere or nowhere by Nova: its verdict is not this host's"
    notes = [reason(ELSEWHERE, str(guest), detail=detail) for guest in elsewhere[:_MOST_NAMED]]
    if further := len(elsewhere) - len(notes):
        notes.append(reason(ELSEWHERE, detail=f"{further} more guests that Nova places elsewhere"))
    if left_out > 0:
        notes.append(reason(FOREIGN, detail=f"{left_out} more guests that Nova is not known to have"))
    return tuple(notes)
