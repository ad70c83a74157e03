# SPDX-License-Identifier: Apache-2.0
"""All options of this package, for ``oslo-config-generator`` and for :func:`nova_vmi_attest.conf.load`."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from nova_vmi_attest.conf import agent, authority, policy, references, relying, responses, tpm, verifier

_MODULES = (agent, tpm, authority, verifier, policy, references, relying, responses)


def list_opts() -> list[tuple[cfg.OptGroup, Sequence[cfg.Opt]]]:
    """Every group with its options, as the entry point ``oslo.config.opts`` wants them."""
    return [(module.GROUP, module.OPTIONS) for module in _MODULES]


def register(conf: cfg.ConfigOpts) -> None:
    """Register every option on ``conf``; repeating it does nothing."""
    for group, options in list_opts():
        register_group(conf, group, options)


def register_group(conf: cfg.ConfigOpts, group: cfg.OptGroup, options: Sequence[cfg.Opt]) -> None:
    """Register one group on ``conf``; repeating it does nothing.

    A group object keeps the values that were set by a program, so each configuration gets one of its own.
    """
    conf.register_group(cfg.OptGroup(group.name, title=group.title))
    conf.register_opts(options, group=group.name)
