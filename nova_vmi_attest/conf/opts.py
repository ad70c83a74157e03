# SPDX-License-Identifier: Apache-2.0
"""All options of this package, for ``oslo-config-generator`` and for :func:`nova_vmi_attest.conf.load`."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from nova_vmi_attest.conf import (
    agent,
    api,
    authority,
    openstack,
    policy,
    references,
    relying,
    responses,
    tpm,
    verifier,
)

_MODULES = (agent, tpm, authority, verifier, openstack, policy, references, relying, responses, api)

Groups = list[tuple[cfg.OptGroup, Sequence[cfg.Opt]]]


def list_own() -> Groups:
    """Every group with the options that this package defines."""
    return [(module.GROUP, module.OPTIONS) for module in _MODULES]


def list_registered() -> Groups:
    """Every group with all the options that :func:`register` registers."""
    return [*list_own(), (openstack.GROUP, openstack.adopted())]


def list_opts() -> Groups:
    """What sample files show, as the entry point ``oslo.config.opts`` wants it."""
    return [*list_registered(), (openstack.GROUP, openstack.shown())]


def register(conf: cfg.ConfigOpts) -> None:
    """Register every option on ``conf``; repeating it does nothing."""
    for group, options in list_registered():
        register_group(conf, group, options)


def register_group(conf: cfg.ConfigOpts, group: cfg.OptGroup, options: Sequence[cfg.Opt]) -> None:
    """Register one group on ``conf``; repeating it does nothing.

    A group object keeps the values that were set by a program, so each configuration gets one of its own.
    """
    conf.register_group(cfg.OptGroup(group.name, title=group.title))
    conf.register_opts(options, group=group.name)
