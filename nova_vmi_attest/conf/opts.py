# SPDX-License-Identifier: Apache-2.0
"""All options of this package, for ``oslo-config-generator`` and for :func:`nova_vmi_attest.conf.load`."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from nova_vmi_attest.conf import agent, authority, policy, references, relying, tpm, verifier

_MODULES = (agent, tpm, authority, verifier, policy, references, relying)


def list_opts() -> list[tuple[cfg.OptGroup, Sequence[cfg.Opt]]]:
    """Every group with its options, as the entry point ``oslo.config.opts`` wants them."""
    return [(module.GROUP, module.OPTIONS) for module in _MODULES]


def register(conf: cfg.ConfigOpts) -> None:
    """Register every option on ``conf``; repeating it does nothing."""
    for group, options in list_opts():
        conf.register_group(group)
        conf.register_opts(options, group=group)
