# SPDX-License-Identifier: Apache-2.0
"""Options of the responses: what a verifier does by itself when a verdict changed, and how much of it."""

from __future__ import annotations

from oslo_config import cfg

GROUP = cfg.OptGroup("responses", title="Responses to changed verdicts")

OPTIONS = [
    cfg.ListOpt(
        "on_guest_untrusted",
        default=[],
        help="""
What to do when a guest becomes untrusted: any of ``notify``, ``lock``, ``pause``, and names of your own
(entry point group ``nova_vmi_attest.responses``). Nothing by default.

``lock`` locks the server so that only an operator can change it, ``pause`` stops its processors and keeps its
memory for examination. Neither is undone by itself. Run with ``notify`` alone until you know which of your
guests are found untrusted. Needs ``[openstack]``, as all responses but ``notify`` do.
""",
    ),
    cfg.ListOpt(
        "on_guest_unknown",
        default=[],
        help="""
What to do when a guest that had a verdict cannot be measured any more; as ``on_guest_untrusted``.

Guests are unknown for some seconds whenever they boot: raise ``confirm_after`` above that before you use more
than ``notify`` here.
""",
    ),
    cfg.ListOpt(
        "on_host_untrusted",
        default=[],
        help="""
What to do when a host becomes untrusted: any of ``notify``, ``disable_service``, and names of your own.
Nothing by default.

``disable_service`` disables nova-compute on the host, so that no server is placed there whatever its flavor
says; enabling it again is left to an operator. Not needed where ``[relying] trust_host`` is ``required``.
""",
    ),
    cfg.ListOpt(
        "on_host_stale",
        default=[],
        help="""
What to do when a host's last result ended and no other came; as ``on_host_untrusted``.
""",
    ),
    cfg.BoolOpt(
        "first_verdicts",
        default=False,
        help="""
Also respond to the first verdict that there ever was on a guest or host, not only to a change of one.

Leave it off while agents are rolled out or references are imported: every guest without a reference has its
first verdict then. Turn it on to stop servers that boot from altered images.
""",
    ),
    cfg.IntOpt(
        "confirm_after",
        default=30,
        min=0,
        max=86400,
        help="""
Seconds for which a verdict must have stood before it is responded to: a result that was issued so much later
has to say the same, or there was no later one at all.

With less than ``[verifier] interval`` the next result decides. 0 acts on the first one.
""",
    ),
    cfg.IntOpt(
        "limit",
        default=5,
        min=1,
        max=100000,
        help="""
How often each response acts within ``window``, in the whole cloud, whatever the number of verifiers.

What goes beyond is not done, then or later: it is logged, notified and recorded as ``limited``. So one wrong
policy, or a reboot of very many guests, does not stop a cloud. Raise it with the size of the cloud.
""",
    ),
    cfg.IntOpt(
        "window",
        default=600,
        min=1,
        max=86400,
        help="""
Seconds over which ``limit`` counts.
""",
    ),
    cfg.IntOpt(
        "disabled_hosts_percent",
        default=10,
        min=0,
        max=100,
        help="""
Percent of all nova-compute services that ``disable_service`` may have disabled at a time; one is always
allowed, unless this is 0.

Services that were disabled for other reasons do not count. Beyond it, hosts are left enabled, as with
``limit``.
""",
    ),
    cfg.IntOpt(
        "timeout",
        default=60,
        min=1,
        max=3600,
        help="""
Seconds that a response may take. One that takes longer is left to itself, and is tried again later.
""",
    ),
    cfg.IntOpt(
        "patience",
        default=3600,
        min=1,
        max=86400,
        help="""
Seconds after a change of a verdict for which a response to it is tried, when Nova or the message bus is away.
""",
    ),
]
