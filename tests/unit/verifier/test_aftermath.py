# SPDX-License-Identifier: Apache-2.0
"""What follows from results goes on when one part of it hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import evidence_examples as examples
import oslo_messaging
import pytest

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.verifier import aftermath as module
from nova_vmi_attest.verifier.aftermath import Aftermath
from nova_vmi_attest.verifier.results import Results
from tests.unit.verifier.responses.scene import configure


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("hanging", ["_respond", "_notify"])
def test_an_operators_word_counts_while_nova_or_the_bus_hangs(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    monkeypatch.setattr(module, "_TICK", 0.02)
    conf = configure(tmp_path)
    transport = oslo_messaging.get_rpc_transport(conf, url="fake://")
    results = Results(database, examples.key("verifier"), "cloud", 300, 1)
    aftermath = Aftermath(conf, transport, database, results)
    hung, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(aftermath, hanging, lambda: (hung.set(), go_on.wait(60)))
    monkeypatch.setattr(aftermath, "_publish", lambda host, token: None)
    aftermath.start()
    try:
        assert hung.wait(30)
        Overrides(database).set("h", "Nova is away", "alice", 3600, int(time.time()))
        until(lambda: results.newest("h") is not None)
    finally:
        go_on.set()
        aftermath.stop()
    newest = results.newest("h")
    assert newest is not None
    assert newest.verdict is Verdict.TRUSTED
