# SPDX-License-Identifier: Apache-2.0
"""The filter among Nova's own: its loader, its filter handler, its HostState and RequestSpec."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import evidence_examples as examples
import nova.conf
import oslo_messaging
import pytest
from nova import objects
from nova.scheduler import filters, host_manager

from nova_vmi_attest import messaging
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    Verdict,
    sign_result,
)
from nova_vmi_attest.relying.demand import Operation, Server
from nova_vmi_attest.relying.requests import LookUp
from nova_vmi_attest.relying.scheduler_filter import VMIAttestationFilter
from nova_vmi_attest.relying.shared import SharedTrust
from nova_vmi_attest.relying.trust import TrustCache

objects.register_all()

KEY = examples.key("verifier")
NAME = "nova_vmi_attest.relying.scheduler_filter.VMIAttestationFilter"
GOOD, ALTERED, NEW = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
NOW = int(time.time())


class FixedTrust(SharedTrust):
    """A cache that the test fills itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = TrustCache([KEY.public_key()], "nova-vmi-attest")

    def get(self, conf: object, program: str = "nova", patience: float = 0.0) -> TrustCache:
        return self.cache


def token(
    host: str,
    verdict: Verdict = Verdict.TRUSTED,
    *,
    issued: int = NOW,
    lifetime: int = 3600,
    sequence: int = 1,
) -> str:
    guests = (
        GuestResult(uuid.UUID(GOOD), Verdict.TRUSTED),
        GuestResult(
            uuid.UUID(ALTERED), Verdict.UNTRUSTED, (Reason("text", "sys_getdents64", 5, 12, "patched"),)
        ),
    )
    shown = guests if host == "trusted" else ()
    result = AttestationResult(HostResult(host, verdict), shown, issued, issued + lifetime, sequence)
    return sign_result(result, KEY, "nova-vmi-attest")


@pytest.fixture
def shared() -> FixedTrust:
    shared = FixedTrust()
    shared.cache.ingest(token("trusted"), NOW)
    shared.cache.ingest(token("untrusted", Verdict.UNTRUSTED), NOW)
    shared.cache.ingest(token("stale", issued=NOW - 100, lifetime=50), NOW - 80)
    return shared


@pytest.fixture
def overrides(shared: FixedTrust) -> Iterator[Callable[[str, str], None]]:
    VMIAttestationFilter(shared)
    yield lambda name, value: nova.conf.CONF.set_override(name, value, "relying")
    for name in ("trust_host", "trust_guest", "verifier_keys", "transport_url"):
        nova.conf.CONF.clear_override(name, "relying")


HOSTS = [
    host_manager.HostState(name, name, uuid.uuid4()) for name in ("trusted", "untrusted", "stale", "unseen")
]


def request(server: str | None = NEW, **extra_specs: str) -> objects.RequestSpec:
    spec = objects.RequestSpec(
        flavor=objects.Flavor(
            extra_specs={name.replace("_", ":"): value for name, value in extra_specs.items()}
        )
    )
    if server is not None:
        spec.instance_uuid = server
    return spec


def nova_says(spec: objects.RequestSpec) -> Server:
    """A new server is built, and another one migrates while it runs."""
    server = uuid.UUID(spec.instance_uuid) if "instance_uuid" in spec else None
    operation = Operation.BUILD if server in (None, uuid.UUID(NEW)) else Operation.LIVE_MIGRATE
    return Server(server, operation, running=operation is not Operation.BUILD, properties={})


def passing(shared: SharedTrust, spec: objects.RequestSpec, look_up: LookUp = nova_says) -> list[str]:
    """The hosts that Nova's filter handler lets pass."""
    handler = filters.HostFilterHandler()
    kept = handler.get_filtered_objects([VMIAttestationFilter(shared, look_up)], HOSTS, spec)
    return [host.host for host in kept or ()]


def test_nova_loads_the_filter_by_its_name() -> None:
    handler = filters.HostFilterHandler()
    assert handler.get_matching_classes([NAME]) == [VMIAttestationFilter]


def test_only_trusted_hosts_take_a_new_server(shared: FixedTrust) -> None:
    assert passing(shared, request()) == ["trusted"]
    assert passing(shared, request(None)) == ["trusted"]


def test_a_trusted_server_moves_and_an_altered_one_does_not(shared: FixedTrust) -> None:
    assert passing(shared, request(GOOD)) == ["trusted"]
    assert passing(shared, request(ALTERED)) == []


def test_the_reason_is_logged(shared: FixedTrust, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        passing(shared, request(ALTERED))
        passing(shared, request())
    reasons = (
        "host untrusted is refused: it is untrusted",
        "host stale is refused: it is stale",
        "host unseen is refused: it is unknown: never_seen",
        f"host trusted is refused: server {ALTERED} is untrusted: text sys_getdents64 patched",
    )
    assert [reason for reason in reasons if reason not in caplog.text] == []


def test_an_altered_server_may_be_rebuilt_where_the_host_is_trusted(shared: FixedTrust) -> None:
    rebuilt = Server(uuid.UUID(ALTERED), Operation.REBUILD, running=False, properties={})
    assert VMIAttestationFilter.RUN_ON_REBUILD
    assert passing(shared, request(ALTERED), lambda spec: rebuilt) == ["trusted"]


def test_the_hint_by_which_nova_marks_rebuilds_opens_no_way(shared: FixedTrust) -> None:
    """A tenant can set it on a server that is then migrated."""
    spec = request(ALTERED)
    spec.scheduler_hints = {"_nova_check_type": ["rebuild"]}
    assert passing(shared, spec) == []


@pytest.mark.parametrize(
    ("level", "hosts"),
    [
        ("required", ["trusted"]),
        ("preferred", ["trusted", "stale", "unseen"]),
        ("ignored", ["trusted", "untrusted", "stale", "unseen"]),
        ("nonsense", ["trusted"]),
    ],
)
def test_flavors_and_options_set_the_level_for_hosts(
    shared: FixedTrust, overrides: Callable[[str, str], None], level: str, hosts: list[str]
) -> None:
    assert passing(shared, request(trust_host=level)) == hosts
    if level != "nonsense":
        overrides("trust_host", level)
        assert passing(shared, request()) == hosts


def test_flavors_set_the_level_for_servers(shared: FixedTrust) -> None:
    assert passing(shared, request(ALTERED, trust_guest="preferred")) == []
    assert passing(shared, request(ALTERED, trust_guest="ignored")) == ["trusted"]


def test_a_stale_server_moves_only_where_that_is_preferred(shared: FixedTrust) -> None:
    cache = TrustCache([KEY.public_key()], "nova-vmi-attest")
    cache.ingest(token("trusted", issued=NOW - 100, lifetime=50), NOW - 80)
    cache.ingest(token("other"), NOW)
    shared.cache = cache
    other = [host_manager.HostState("other", "other", uuid.uuid4())]
    check = VMIAttestationFilter(shared, nova_says)
    assert not check.host_passes(other[0], request(GOOD))
    assert check.host_passes(other[0], request(GOOD, trust_guest="preferred"))


def test_what_goes_wrong_refuses_the_host(shared: FixedTrust, caplog: pytest.LogCaptureFixture) -> None:
    check = VMIAttestationFilter(shared, nova_says)
    assert not check.host_passes(HOSTS[0], objects.RequestSpec())
    assert not check.host_passes(None, request())
    assert "could not be looked up" in caplog.text
    assert "cannot be understood" in caplog.text


def test_without_keys_every_host_is_unknown(overrides: Callable[[str, str], None], tmp_path: Path) -> None:
    overrides("verifier_keys", str(tmp_path / "none.jwks"))
    assert passing(SharedTrust(), request()) == []


def test_results_come_over_the_bus(
    overrides: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter listens as nova.conf says; a verifier publishes, and the next request sees it."""
    monkeypatch.setattr("nova_vmi_attest.relying.requests._PATIENCE", 0.1)
    path = tmp_path / "verifier.jwks"
    path.write_bytes(keys.encode_jwks([KEY.public_key()]))
    overrides("verifier_keys", str(path))
    overrides("transport_url", "fake://filter/")
    shared = SharedTrust()
    publisher = messaging.ResultsClient(
        oslo_messaging.get_rpc_transport(nova.conf.CONF, url="fake://filter/")
    )
    end, sequence = time.monotonic() + 20, 0
    while passing(shared, request()) != ["trusted"]:
        assert time.monotonic() < end, "no result arrived"
        sequence += 1
        publisher.result(token("trusted", sequence=sequence))
        time.sleep(0.1)
    assert shared.get(nova.conf.CONF) is shared.get(nova.conf.CONF)
