# SPDX-License-Identifier: Apache-2.0
"""What the filter costs nova-scheduler: per request with many hosts, and at its start."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric import ec
from nova import objects
from nova.scheduler.filters.compute_filter import ComputeFilter
from nova.scheduler.host_manager import HostState
from oslo_config import cfg
from oslo_utils import timeutils

from bench import harness
from bench.harness import Row
from nova_vmi_attest.evidence.result import AttestationResult, GuestResult, HostResult, Verdict, sign_result
from nova_vmi_attest.relying.demand import Operation, Server
from nova_vmi_attest.relying.scheduler_filter import VMIAttestationFilter
from nova_vmi_attest.relying.shared import SharedTrust
from nova_vmi_attest.relying.trust import TrustCache

HOSTS = 10_000
# Enough to time how long one takes; the rest of the hosts take as long.
SAMPLE = 500
AUDIENCE = "nova-vmi-attest"


class _FilledTrust(SharedTrust):
    """A cache that listens to nobody."""

    def __init__(self, cache: TrustCache) -> None:
        super().__init__()
        self._cache = cache

    def get(self, conf: cfg.ConfigOpts, program: str = "nova", patience: float = 0.0) -> TrustCache:
        return self._cache


def scheduler() -> Iterator[Row]:
    """Rows of one request over 10,000 hosts and of reading results at the start."""
    objects.register_all()
    key = ec.generate_private_key(ec.SECP256R1())
    cache = TrustCache([key.public_key()], AUDIENCE)
    now = int(time.time())
    for number in range(HOSTS):
        cache.ingest(_result(f"compute-{number}", 1, key, now), now)
    yield from _filters(cache)
    for guests in (1, 50):
        tokens = [_result(f"compute-{number}", guests, key, now) for number in range(SAMPLE)]
        values = []
        for _ in range(3):
            fresh = TrustCache([key.public_key()], AUDIENCE)
            begun = time.perf_counter()
            for token in tokens:
                fresh.ingest(token, now)
            values.append((time.perf_counter() - begun) * HOSTS / SAMPLE)
        yield harness.row(f"cache_start_10000_hosts_{guests}_guests", values, "s")


def _filters(cache: TrustCache) -> Iterator[Row]:
    ours = VMIAttestationFilter(_FilledTrust(cache), _new_server)
    novas = ComputeFilter()
    hosts = _hosts()
    for name, levels in (
        ("filter_vs_compute_filter", {}),
        ("filter_with_neighbours_vs_compute_filter", {"trust:neighbours": "required"}),
    ):
        spec = objects.RequestSpec(
            instance_uuid=str(uuid.uuid4()), project_id="p", flavor=objects.Flavor(extra_specs=levels)
        )
        passed = len(list(ours.filter_all(hosts, spec)))
        if passed != HOSTS or len(list(novas.filter_all(hosts, spec))) != HOSTS:
            raise AssertionError(f"only {passed} of {HOSTS} hosts pass")
        yield harness.compare(
            name,
            lambda spec=spec: list(ours.filter_all(hosts, spec)),  # type: ignore[misc]
            "Nova's ComputeFilter",
            lambda spec=spec: list(novas.filter_all(hosts, spec)),  # type: ignore[misc]
        )


def _hosts() -> list[HostState]:
    hosts = []
    for number in range(HOSTS):
        host = HostState(f"compute-{number}", f"compute-{number}", uuid.uuid4())
        seen = timeutils.utcnow(True)
        service = objects.Service(host=host.host, disabled=False, forced_down=False, last_seen_up=seen)
        # As Nova's host manager keeps it.
        host.service = dict(service)
        hosts.append(host)
    return hosts


def _new_server(spec: objects.RequestSpec) -> Server:
    return Server(uuid.UUID(spec.instance_uuid), Operation.BUILD, running=False, properties={})


def _result(host: str, guests: int, key: ec.EllipticCurvePrivateKey, now: int) -> str:
    shown = sorted((uuid.uuid4() for _ in range(guests)), key=lambda guest: guest.bytes)
    measured = tuple(
        GuestResult(
            guest, Verdict.TRUSTED, release="6.1.0-9-cloud-amd64", reference="0" * 64, code_bytes=12 << 20,
            modules=60, processes=120, reader="process", microseconds=9000,
        )
        for guest in shown
    )  # fmt: skip
    result = AttestationResult(HostResult(host, Verdict.TRUSTED), measured, now, now + 3600, 1)
    return sign_result(result, key, AUDIENCE)
