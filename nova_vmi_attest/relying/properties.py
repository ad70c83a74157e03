# SPDX-License-Identifier: Apache-2.0
"""What a tenant is told of a server's trust: a verdict as the properties ``trust:*`` of server metadata.

Values are short enough for Nova's clients and hold nothing but plain printable characters: a hostile guest
chooses names that appear in reasons, and would like to forge a property of its own on a screen. Of the host a
tenant learns the verdict, never the name nor what was found there.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from nova_vmi_attest.evidence.measurement import Unmeasured
from nova_vmi_attest.evidence.result import Reason, Verdict
from nova_vmi_attest.relying.trust import Trust

VERDICT = "trust:verdict"
HOST_VERDICT = "trust:host_verdict"
CHECKED_AT = "trust:checked_at"
VALID_UNTIL = "trust:valid_until"
REASON = "trust:reason"
KERNEL = "trust:kernel"

# Nova stores no longer metadata, and some clients hold answers to that.
MAX_VALUE = 255

# Server states without memory that could be measured.
_NOT_RUNNING = frozenset({"SHUTOFF", "SUSPENDED", "SHELVED", "SHELVED_OFFLOADED", "SOFT_DELETED", "DELETED"})

# Causes whose details speak of the host, or in terms that only operators know.
_CAUSES = {
    "host_untrusted": "its host is not trusted",
    "guest_missing": "its host did not measure it",
    "not_known_to_nova": "the verifiers have not heard of it from Nova yet",
    "placement_unchecked": "whether it runs where Nova has it could not be checked",
    Unmeasured.NO_KERNEL: "no Linux kernel was found in it: it is starting, or runs another system",
    Unmeasured.UNKNOWN_KERNEL: "its kernel is not among those that can be checked",
    Unmeasured.BOOTING: "its kernel has not finished its start",
    Unmeasured.ENCRYPTED: "its memory is encrypted",
    Unmeasured.GONE: "it stopped or moved while it was measured",
    Unmeasured.UNSUPPORTED: "it cannot be measured exactly",
    Unmeasured.UNREADABLE: "its memory could not be read",
    Unmeasured.INTERNAL: "it could not be measured",
}

# Everything but printable ASCII, and what quotes or markup are made of.
_UNFIT = re.compile(r"""[^ -~]|[<>&"'`\\]""")


def properties(trust: Trust, host: Verdict, status: str = "") -> dict[str, str]:
    """The properties of one server. A time, reason or kernel that does not exist is left out.

    :param trust: what is known of the guest.
    :param host: what is known of its host; unknown if it is not known which that is.
    :param status: the server's status in Nova; empty if not known.
    """
    if trust.verdict is Verdict.TRUSTED and status in _NOT_RUNNING:
        # Its memory is gone, whatever its last host said of it, and however long that result is valid.
        return {VERDICT: Verdict.UNKNOWN.value, HOST_VERDICT: host.value, REASON: _missing(status)}
    found = {VERDICT: trust.verdict.value, HOST_VERDICT: host.value}
    if trust.seen:
        found[CHECKED_AT] = _moment(trust.issued)
        found[VALID_UNTIL] = _moment(trust.expires)
    if reason := _reason(trust, status):
        found[REASON] = _cut(_UNFIT.sub("?", reason))
    if trust.release:
        found[KERNEL] = _cut(_UNFIT.sub("?", trust.release))
    return found


def _reason(trust: Trust, status: str) -> str:
    if not trust.seen:
        return _missing(status)
    if trust.verdict is Verdict.STALE:
        ended = f"the last result ({trust.last or 'unknown'}) ended at {_moment(trust.expires)}"
        return f"{ended}: it is not running" if status in _NOT_RUNNING else f"{ended}, and no newer one came"
    if not trust.reasons:
        return ""
    more = len(trust.reasons) - 1
    behind = f" (and {more} more)" if more else ""
    return _cut(_text(trust.reasons[0], trust.host), MAX_VALUE - len(behind)) + behind


def _missing(status: str) -> str:
    if status == "BUILD":
        return "not measured yet: it is being built"
    if status in _NOT_RUNNING:
        return "no result: it is not running"
    if status:
        return "no result: it was not measured yet, or results cannot be had at the moment"
    return "no result: it is not running, was not measured yet, or results cannot be had at the moment"


def _text(reason: Reason, host: str) -> str:
    if cause := _CAUSES.get(reason.check):
        return cause
    place = f" at {reason.symbol}+{reason.offset:#x}" if reason.symbol else ""
    length = f" ({reason.length} bytes)" if reason.length else ""
    detail = f": {reason.detail}" if reason.detail else ""
    text = f"{reason.check}{place}{length}{detail}"
    # No detail is meant to name the host; should one do, less has to be enough.
    named = host and re.search(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", text, re.IGNORECASE)
    return "a check whose details only the operator may see" if named else text


@lru_cache(maxsize=1024)
def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cut(text: str, most: int = MAX_VALUE) -> str:
    """The text, or as many whole words of it as fit."""
    if len(text) <= most:
        return text
    head = text[: most - 4]
    space = head.rfind(" ")
    return (head[:space] if space > most // 2 else head) + " ..."
