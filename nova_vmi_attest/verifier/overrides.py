# SPDX-License-Identifier: Apache-2.0
"""What an operator's override makes of a host's result: trusted, and saying so before anything else.

Guests are never overridden: what was found in one stands, and what was not measured stays unknown.
"""

from __future__ import annotations

import datetime
from dataclasses import replace

from nova_vmi_attest.evidence.measurement_codec import MAX_DETAIL
from nova_vmi_attest.evidence.result import MAX_REASONS, HostResult, Reason, Verdict
from nova_vmi_attest.records.overrides import OVERRIDE, Override

# How much of the operator's text a reason repeats: the finding that it overrides has to fit, too.
_MAX_WHY = 200
_MAX_AUTHOR = 80


def overridden(result: HostResult, override: Override) -> HostResult:
    """The host's result while the override is in force.

    A host that is trusted by itself needs none and is returned as it is. Of another one the first reason says
    who overrides it, until when, why, and what was found; what was found follows in full.

    NOT checked: that the override is this host's and in force.
    """
    if result.verdict is Verdict.TRUSTED:
        return result
    found = f"appraised as {result.verdict}"
    if result.reasons:
        found += f": {_summary(result.reasons[0])}"
    reasons = (_reason(override, found), *result.reasons)[:MAX_REASONS]
    return replace(result, verdict=Verdict.TRUSTED, reasons=reasons)


def unseen(override: Override) -> HostResult:
    """The result of a host of which there is no evidence, on the word of the operator alone."""
    return HostResult(override.host, Verdict.TRUSTED, (_reason(override, "not appraised"),))


def is_overridden(result: HostResult) -> bool:
    """Whether it is an override that makes this result trusted."""
    first = result.reasons[0].check if result.reasons else ""
    return result.verdict is Verdict.TRUSTED and first == OVERRIDE


def withdrawn(result: HostResult) -> HostResult:
    """An overridden result after the override: what was found, or unknown when nothing was looked at."""
    if len(result.reasons) > 1:
        return replace(result, verdict=Verdict.UNTRUSTED, reasons=result.reasons[1:])
    lifted = Reason(OVERRIDE, detail="the operator's override ended, and the host was not appraised")
    return replace(result, verdict=Verdict.UNKNOWN, reasons=(lifted,))


def _reason(override: Override, found: str) -> Reason:
    until = datetime.datetime.fromtimestamp(override.expires, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    by, why = _cut(override.made_by, _MAX_AUTHOR), _cut(override.reason, _MAX_WHY)
    return Reason(OVERRIDE, detail=_cut(f"by {by} until {until}: {why}; {found}", MAX_DETAIL))


def _summary(reason: Reason) -> str:
    place = f" {reason.symbol}+{reason.offset:#x}" if reason.symbol else ""
    return f"{reason.check}{place} {reason.detail}".rstrip()


def _cut(text: str, maximum: int) -> str:
    return text if len(text) <= maximum else text[: maximum - 1] + "…"
