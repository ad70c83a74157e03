# SPDX-License-Identifier: Apache-2.0
"""Finds the responses that the configuration names, and calls them so that none can stop the verifier."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from oslo_config import cfg
from oslo_log import log
from stevedore.named import NamedExtensionManager

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.verifier.responses.base import GUEST, HOST, NAMESPACE, Response, ResponseError, Tools

LOG = log.getLogger(__name__)

# Which option says what to do about which change.
_OPTIONS = {
    (GUEST, Verdict.UNTRUSTED): "on_guest_untrusted",
    (GUEST, Verdict.UNKNOWN): "on_guest_unknown",
    (HOST, Verdict.UNTRUSTED): "on_host_untrusted",
    (HOST, Verdict.STALE): "on_host_stale",
}


class Plugins:
    """The configured responses, loaded.

    :param tools: what they work with; without access to Nova, only such responses as need none are taken.
    :raises ResponseError: a name is unknown, cannot be loaded, or does not fit its option.
    """

    def __init__(self, conf: cfg.ConfigOpts, tools: Tools) -> None:
        self._tools = tools
        self._timeout = conf.responses.timeout
        self._names = _names(conf)
        self._loaded = load(conf, tools.nova is not None)
        self._busy: dict[str, threading.Thread] = {}

    def names_for(self, item: NumberedChange) -> tuple[str, ...]:
        """The responses to a change of this kind, to this verdict."""
        return self._names.get((item.change.kind, item.change.verdict), ())

    def has(self, name: str) -> bool:
        """Whether this verifier is configured to run a response; another one may be."""
        return name in self._loaded

    def call(self, name: str, item: NumberedChange) -> str:
        """Let a response do its work, for as long as it may take; what it says that it did.

        :raises ResponseError: it failed, in whatever way.
        """
        earlier = self._busy.get(name)
        if earlier is not None and earlier.is_alive():
            raise ResponseError(f"{name} is still busy with an earlier change")
        said: list[str | AttestError] = []
        thread = threading.Thread(
            target=self._run, args=(self._loaded[name], item, said), name=f"response-{name}", daemon=True
        )
        self._busy[name] = thread
        thread.start()
        thread.join(self._timeout)
        if not said:
            raise ResponseError(f"{name} did not come to an end within {self._timeout} s")
        if isinstance(said[0], AttestError):
            raise said[0]
        return said[0]

    def _run(self, response: Response, item: NumberedChange, said: list[str | AttestError]) -> None:
        try:
            said.append(str(response.respond(item, self._tools)))
        except ResponseError as error:
            said.append(error)
        except AttestError as error:
            said.append(ResponseError(error.message, error.remedy))
        except Exception as error:  # somebody else's code: whatever it raises is its failure, and no more
            LOG.exception("a response to change %d failed unexpectedly", item.number)
            said.append(ResponseError(f"it failed unexpectedly: {type(error).__name__}"))


def load(conf: cfg.ConfigOpts, has_nova: bool) -> Mapping[str, Response]:
    """The responses that the configuration names, by name.

    :raises ResponseError: as :class:`Plugins`.
    """
    named = _names(conf)
    loaded = _import(conf, {name for names in named.values() for name in names})
    for (kind, verdict), names in named.items():
        for name in names:
            option = _OPTIONS[kind, verdict]
            if kind not in loaded[name].kinds:
                raise ResponseError(f"[responses] {option} names {name}, which does not respond to a {kind}")
            if loaded[name].needs_nova and not has_nova:
                raise ResponseError(
                    f"[responses] {option} names {name}, which needs access to Nova", "fill in [openstack]"
                )
    return loaded


def _names(conf: cfg.ConfigOpts) -> dict[tuple[str, Verdict], tuple[str, ...]]:
    return {key: tuple(dict.fromkeys(conf.responses[option])) for key, option in _OPTIONS.items()}


def _import(conf: cfg.ConfigOpts, names: set[str]) -> Mapping[str, Response]:
    failed: list[str] = []

    def note(manager: object, entry_point: object, error: BaseException) -> None:
        failed.append(f"{entry_point}: {error}")

    # Only those that are named are imported.
    manager: Any = NamedExtensionManager(
        NAMESPACE, sorted(names), invoke_on_load=True, invoke_args=(conf,), on_load_failure_callback=note,
        warn_on_missing_entrypoint=False,
    )  # fmt: skip
    if failed:
        raise ResponseError(f"a response cannot be loaded: {failed[0]}", "correct [responses]")
    loaded: dict[str, Response] = {extension.name: extension.obj for extension in manager}
    for name in sorted(names - loaded.keys()):
        raise ResponseError(
            f"[responses] names {name}, and no such response is installed",
            f"see the entry points of the group {NAMESPACE}",
        )
    for name, response in loaded.items():
        if not isinstance(response, Response):
            raise ResponseError(f"the response {name} is no {Response.__name__}", "correct the plug-in")
    return loaded
