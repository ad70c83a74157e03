# SPDX-License-Identifier: Apache-2.0
"""Options of the verifiers' own access to Nova and Placement: credentials, and what is asked with them.

The options of keystoneauth are its own: those that every kind of credentials has are registered here, and
those of the kind that ``auth_type`` names when it is loaded. The sample shows the ones of ``password``.
"""

from __future__ import annotations

from keystoneauth1 import loading
from oslo_config import cfg

GROUP = cfg.OptGroup("openstack", title="Nova and Placement, as the verifiers ask them")

OPTIONS = [
    cfg.StrOpt(
        "region_name",
        help="""
The region whose Nova and Placement are asked. Needed only where the service catalogue has several.
""",
    ),
    cfg.StrOpt(
        "interface",
        default="internal",
        choices=("internal", "admin", "public"),
        help="""
Which endpoints of the service catalogue are used.
""",
    ),
    cfg.IntOpt(
        "placement_reconcile",
        default=60,
        min=5,
        max=3600,
        help="""
Seconds between two questions to Nova which servers changed. One of the verifiers asks for all of them.

Nova's notifications and a look at a host whose evidence disagrees make it quicker than this; it is what heals
what those missed.
""",
    ),
    cfg.IntOpt(
        "placement_lifetime",
        default=900,
        min=30,
        max=86400,
        help="""
Seconds after which what was learnt of Nova no longer counts, when Nova cannot be asked.

Then no guest is trusted any more (``placement_unchecked``), because nobody knows whether it is where it
belongs. Raise it to ride out longer outages of Nova's API; keep it above ``placement_reconcile``.
""",
    ),
    cfg.StrOpt(
        "notification_exchange",
        default="nova",
        help="""
The exchange on which Nova publishes its versioned notifications (``control_exchange`` of Nova's services);
empty to leave them alone.

They are hints only: each makes the verifiers ask Nova's API for that server. Nova sends them when its
``[notifications] notification_format`` is ``versioned`` or ``both``. The bus is the one of
``[oslo_messaging_notifications] transport_url``, or else of ``[DEFAULT] transport_url``.
""",
    ),
    cfg.StrOpt(
        "trait",
        default="CUSTOM_VMI_ATTESTED",
        regex="^(CUSTOM_[A-Z0-9_]{1,248})?$",
        help="""
The trait that the compute nodes of trusted hosts have in Placement, for ``trait:<name>=required``
in flavors; empty to leave Placement alone.

The verifiers own it: whatever else sets it is undone. Change it only while no verifier runs, and remove the
old one from the compute nodes by hand.
""",
    ),
    cfg.IntOpt(
        "trait_interval",
        default=5,
        min=1,
        max=300,
        help="""
Seconds between two comparisons of the hosts' verdicts with their traits, besides those that a new verdict
brings about at once.
""",
    ),
]


def adopted() -> list[cfg.Opt]:
    """What else is registered; keystoneauth's, with a bound on the time that a request takes, since its own
    default is to wait for ever.
    """
    options: list[cfg.Opt] = loading.get_session_conf_options()
    cfg.set_defaults(options, timeout=20)
    return [*loading.get_auth_common_conf_options(), *options]


def shown() -> list[cfg.Opt]:
    """What the sample file shows besides. Not registered: other kinds of credentials have other options of
    the same names.
    """
    options: list[cfg.Opt] = loading.get_auth_plugin_conf_options("password")
    return options


def is_configured(conf: cfg.ConfigOpts) -> bool:
    """Whether there are credentials at all."""
    return bool(conf.openstack.auth_type or conf.openstack.auth_section)
