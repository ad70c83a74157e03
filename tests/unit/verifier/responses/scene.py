# SPDX-License-Identifier: Apache-2.0
"""Verdicts that change, a Nova in memory, and verifiers that respond; the clock stands still until told."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import evidence_examples as examples
from oslo_config import cfg

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import GuestResult, HostResult, Reason, Verdict
from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.records.responses import ResponseReader
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.responses.base import ComputeService, NovaServer, ResponseError, Tools
from nova_vmi_attest.verifier.responses.plugins import Plugins
from nova_vmi_attest.verifier.responses.runner import Runner
from nova_vmi_attest.verifier.results import Results

NOW = 1_000_000
BAD = Reason("text", "sys_read", 4, 2, "altered")
TRUSTED, UNTRUSTED, UNKNOWN = Verdict.TRUSTED, Verdict.UNTRUSTED, Verdict.UNKNOWN


def guest(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


class FakeNova:
    """Servers 1 to 99 are active on host ``h``; ten compute services, h0 to h8 and h. All calls are noted."""

    def __init__(self) -> None:
        active = NovaServer("h", "ACTIVE", "", False)
        self.servers = {guest(number): active for number in range(1, 100)}
        names = [*(f"h{number}" for number in range(9)), "h"]
        self.services = {name: ComputeService(name, name, False, "") for name in names}
        self.calls: list[tuple[str, str, str]] = []
        self.is_away = False

    def server(self, server: uuid.UUID) -> NovaServer | None:
        self._reach()
        return self.servers.get(server)

    def lock(self, server: uuid.UUID, reason: str) -> None:
        self._reach()
        self.servers[server] = replace(self.servers[server], is_locked=True)
        self.calls.append(("lock", str(server), reason))

    def pause(self, server: uuid.UUID) -> None:
        self._reach()
        self.servers[server] = replace(self.servers[server], status="PAUSED")
        self.calls.append(("pause", str(server), ""))

    def compute_services(self) -> tuple[ComputeService, ...]:
        self._reach()
        return tuple(self.services.values())

    def disable(self, service: ComputeService, reason: str) -> None:
        self._reach()
        self.services[service.host] = replace(service, is_disabled=True, reason=reason)
        self.calls.append(("disable", service.host, reason))

    def _reach(self) -> None:
        if self.is_away:
            raise ResponseError("Nova cannot be reached")

    @property
    def done(self) -> list[tuple[str, str]]:
        return [(what, subject) for what, subject, _ in self.calls]


class Reports:
    """What would be notified."""

    def __init__(self) -> None:
        self.alerts: list[NumberedChange] = []
        self.outcomes: list[tuple[str, str]] = []

    def alert(self, item: NumberedChange) -> None:
        self.alerts.append(item)

    def responded(self, item: NumberedChange, response: str, outcome: str, detail: str) -> None:
        self.outcomes.append((response, outcome))


class Scene:
    """``options`` are those of ``[responses]``. What was before the first verifier is history."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.database = Database(f"sqlite:///{directory}/attest.sqlite")
        self.database.upgrade()
        self.results = Results(self.database, examples.key("verifier"), "cloud", 300, 1)
        self.nova, self.reports = FakeNova(), Reports()
        self.now = NOW
        self.is_settled = True
        self.conf = configure(directory, **options)
        self.runner = self.verifier()
        self.runner.run_once()

    def verifier(self, conf: cfg.ConfigOpts | None = None) -> Runner:
        conf = conf or self.conf
        plugins = Plugins(conf, Tools(self.nova, self.reports))
        return Runner(conf, self.database, plugins, self.reports, lambda: self.is_settled, lambda: self.now)

    def show(self, host: str = "h", verdict: Verdict = TRUSTED, **guests: Verdict) -> None:
        """A new result: guests are named ``g1``, ``g2`` and so on."""
        shown = [
            GuestResult(guest(int(name[1:])), judged, () if judged is TRUSTED else (BAD,))
            for name, judged in guests.items()
        ]
        reasons = () if verdict is TRUSTED else (BAD,)
        appraisal = Appraisal(True, HostResult(host, verdict, reasons), tuple(shown))
        with self.database.writer() as session:
            self.results.record(session, appraisal, self.now)

    def turn(self, **guests: Verdict) -> None:
        """Trusted guests become what is said, and a round later it is the same."""
        self.show(**dict.fromkeys(guests, TRUSTED))
        self.show(**guests)
        self.later(60)
        self.show(**guests)

    def later(self, seconds: int) -> None:
        self.now += seconds

    def run(self, runner: Runner | None = None) -> list[tuple[str, str]]:
        """One run; what Nova was told by it."""
        before = len(self.nova.done)
        (runner or self.runner).run_once()
        return self.nova.done[before:]

    def outcomes(self) -> list[tuple[str, str, str]]:
        """(response, outcome, detail) of every row, in the order of the rows."""
        rows = ResponseReader(self.database).newest(limit=1000)
        return [(item.response, item.outcome.value, item.detail) for item in reversed(rows)]

    def states(self) -> list[str]:
        return [outcome for _, outcome, _ in self.outcomes()]


def configure(directory: Path, **options: Any) -> cfg.ConfigOpts:
    path = directory / "responses.conf"
    lines = "".join(f"{name} = {value}\n" for name, value in options.items())
    path.write_text(f"[responses]\n{lines}")
    return configuration.load(["--config-file", str(path)], "test")
