# SPDX-License-Identifier: Apache-2.0
"""How every service program runs: configuration, logging, the bus, then the service until a signal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import oslo_messaging
from oslo_config import cfg
from oslo_log import log
from oslo_service import service

from nova_vmi_attest import conf as configuration
from nova_vmi_attest import messaging
from nova_vmi_attest.errors import AttestError

LOG = log.getLogger(__name__)


class RunnableService(Protocol):
    """What services offer: ``start`` raises AttestError, ``stop`` is idempotent, ``wait`` waits for it."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def wait(self) -> None: ...


class _Adapter(service.ServiceBase):  # type: ignore[misc]
    """Our services as oslo.service wants them."""

    def __init__(self, inner: RunnableService) -> None:
        self._inner = inner

    def start(self) -> None:
        self._inner.start()

    def stop(self) -> None:
        self._inner.stop()

    def wait(self) -> None:
        self._inner.wait()

    def reset(self) -> None:
        """SIGHUP has no meaning for these services: their state is on disk and in the TPM."""


def run_service(
    program: str,
    factory: Callable[[cfg.ConfigOpts, oslo_messaging.Transport], RunnableService],
    argv: Sequence[str] | None = None,
) -> int:
    """Run the service that ``factory`` makes. SIGTERM stops it in order; returns the exit status.

    A service that cannot start says why in one line and what to do about it, and exits with 1.
    """
    try:
        conf = configuration.load(sys.argv[1:] if argv is None else argv, program)
        log.setup(conf, program)
        inner = factory(conf, messaging.get_transport(conf))
        # One process and no fork: the connections to the TPM and to libvirt belong to the process that
        # opened them.
        launcher = service.ProcessLauncher(conf, no_fork=True)
        launcher.launch_service(_Adapter(inner))
    except AttestError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0
