# SPDX-License-Identifier: Apache-2.0
"""Configuration: one place that knows which options there are and which files they come from.

The values are handed on as one ``ConfigOpts``, made for each program that starts; nothing here is global. The
exception is what runs inside nova-scheduler, which registers ``[relying]`` on Nova's own configuration.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
from collections.abc import Sequence

from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest.conf import database, opts
from nova_vmi_attest.errors import AttestError

PROJECT = "nova-vmi-attest"


class ConfigurationError(AttestError):
    """The configuration files or the command line cannot be used."""


def load(
    argv: Sequence[str], program: str | None = None, default_files: Sequence[str] | None = None
) -> cfg.ConfigOpts:
    """The configuration of one program: command line over configuration files over defaults.

    :param argv: the arguments without the program's name.
    :param program: name of the program, for its help and for its own file beside ``nova-vmi-attest.conf``.
    :param default_files: read when ``argv`` names none; ``None`` looks in the usual places of OpenStack
        services.
    :raises ConfigurationError: naming the file or option at fault.
    """
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    opts.register(conf)
    database.register(conf)
    _register_messaging(conf)
    try:
        conf(
            list(argv),
            project=PROJECT,
            prog=program,
            version=importlib.metadata.version(PROJECT),
            default_config_files=None if default_files is None else list(default_files),
        )
        for group, options in opts.list_registered():
            for option in options:
                # A value is parsed when it is read: a wrong one is to stop the program now, not some time
                # later.
                getattr(conf[group.name], option.dest)
    except cfg.Error as error:
        raise ConfigurationError(
            f"the configuration cannot be used: {error}", "correct the file or the --config-file argument"
        ) from error
    return conf


def _register_messaging(conf: cfg.ConfigOpts) -> None:
    """Register what oslo.messaging reads from every configuration but registers on the global one only."""
    for name in ("tracing", "metrics"):
        with contextlib.suppress(ImportError, AttributeError):
            client = importlib.import_module(f"oslo_messaging._{name}.client")
            group = f"oslo_messaging_{name}"
            conf.register_opts(getattr(client, group), group=group)
