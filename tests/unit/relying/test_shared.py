# SPDX-License-Identifier: Apache-2.0
"""One listener for each process, also after a fork, and none without keys."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from oslo_config import cfg

from nova_vmi_attest.conf import relying as options
from nova_vmi_attest.conf.opts import register_group
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.relying import shared
from nova_vmi_attest.relying.listener import ResultListener
from nova_vmi_attest.relying.refusals import Refusal
from nova_vmi_attest.relying.shared import SharedTrust
from tests.unit.relying.results import KEY, NOW, signed

REFUSAL = Refusal(1, str(uuid.UUID(int=1)), "p", "build", "required", [("h", "it is stale")])


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In Nova a listener ends with its process; here, what a test started would disturb the next."""
    started: list[ResultListener] = []
    begin = ResultListener.start
    monkeypatch.setattr(ResultListener, "start", lambda part: (started.append(part), begin(part)))
    yield
    for listener in started:
        listener.stop()


@pytest.fixture
def conf(tmp_path: Path) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    register_group(conf, options.GROUP, options.OPTIONS)
    path = tmp_path / "verifier.jwks"
    path.write_bytes(keys.encode_jwks([KEY.public_key()]))
    conf.set_override("verifier_keys", str(path), "relying")
    conf.set_override("transport_url", f"fake://{tmp_path.name}/", "relying")
    conf.set_override("audience", "cloud", "relying")
    return conf


def test_a_process_has_one_cache(conf: cfg.ConfigOpts) -> None:
    trust = SharedTrust()
    assert trust.get(conf, "nova-scheduler") is trust.get(conf)
    trust.report(conf, REFUSAL)


def test_a_child_begins_anew(conf: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads end at a fork: the parent's cache would never be filled again."""
    trust = SharedTrust()
    parents = trust.get(conf)
    parents.ingest(signed("h"), NOW)
    monkeypatch.setattr(shared.os, "getpid", lambda: os.getppid())
    childs = trust.get(conf)
    assert childs is not parents
    assert not childs.host("h", NOW).seen
    assert trust.get(conf) is childs


def test_without_keys_nothing_is_started_nor_awaited(
    conf: cfg.ConfigOpts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conf.set_override("verifier_keys", str(tmp_path / "none"), "relying")
    trust = SharedTrust()
    begun = time.monotonic()
    cache = trust.get(conf, patience=600.0)
    assert time.monotonic() - begun < 60
    assert not cache.host("h", NOW).seen
    assert "no host can be trusted" in caplog.text
    trust.report(conf, REFUSAL)
