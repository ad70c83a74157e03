# SPDX-License-Identifier: Apache-2.0
"""Two verifiers that follow up on one database: notifications on a real broker, Nova's API over real HTTP."""

from __future__ import annotations

import http.server
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evidence_examples as examples
import jsonschema
import oslo_messaging
import pytest
from keystoneauth1 import session as ks_session
from keystoneauth1.noauth import NoAuth
from lab.rabbitmq import RabbitMq
from sqlalchemy import func, select

from nova_vmi_attest import conf as configuration
from nova_vmi_attest import messaging
from nova_vmi_attest.db.models import CursorRow
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import GuestResult, HostResult, Reason, Verdict, verify_result
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.records.responses import ResponseReader
from nova_vmi_attest.verifier.aftermath import Aftermath
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.notifications import SCHEMAS
from nova_vmi_attest.verifier.openstack import OpenStack
from nova_vmi_attest.verifier.responses.nova import ComputeApi
from nova_vmi_attest.verifier.results import Results

KEY = examples.key("verifier")
BAD = Reason("text", "sys_read", 4, 2, "altered")
TRUSTED, UNTRUSTED = Verdict.TRUSTED, Verdict.UNTRUSTED
SERVICE = "5a1c0d3e-0000-4000-8000-000000000001"


def guest(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


class ComputeStub(http.server.ThreadingHTTPServer):
    """The calls of the Compute API that responses make, on servers that are all on host ``h``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.actions: list[tuple[str, str]] = []
        self.failing = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ComputeStub

    def do_GET(self) -> None:
        if self.path.startswith("/os-services"):
            service = {"id": SERVICE, "host": "h", "status": "enabled", "disabled_reason": None}
            self._answer(200, {"services": [service]})
            return
        locked = ("lock", self.path.rsplit("/", 1)[1]) in self.server.actions
        server = {
            "OS-EXT-SRV-ATTR:host": "h", "OS-EXT-STS:task_state": None, "status": "ACTIVE", "locked": locked,
        }  # fmt: skip
        self._answer(503 if self.server.failing else 200, {"server": server})

    def do_POST(self) -> None:
        self._note(next(iter(self._body())), self.path.split("/")[2])
        self._answer(202, None)

    def do_PUT(self) -> None:
        assert self._body()["status"] == "disabled"
        self._note("disable", self.path.split("/")[2])
        self._answer(200, {"service": {}})

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def _note(self, what: str, subject: str) -> None:
        self.server.actions.append((what, subject))

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Subscriber:
    """Listens as an operator's tool would, on the topic that the manual names."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, ctxt: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any) -> None:
        self.heard.append((publisher_id, event_type, payload))

    error = info

    def of(self, event_type: str) -> list[dict[str, Any]]:
        return [payload for _, kind, payload in self.heard if kind == event_type]


class Cloud:
    def __init__(self, directory: Path, url: str, nova: ComputeStub) -> None:
        self.directory, self.nova = directory, nova
        path = directory / "test.conf"
        path.write_text(
            f"""[DEFAULT]
transport_url = {url}
[database]
connection = sqlite:///{directory}/attest.sqlite
[oslo_messaging_notifications]
driver = messagingv2
[verifier]
host = verifier-1
[responses]
on_guest_untrusted = notify, lock, pause
on_host_untrusted = disable_service
confirm_after = 0
limit = 3
"""
        )
        self.conf = configuration.load(["--config-file", str(path)], "test")
        self.transport = messaging.get_transport(self.conf)
        self.database = Database(self.conf.database.connection)
        self.database.upgrade()
        self.results = Results(self.database, KEY, "cloud", 300, 1)
        self.parts = [self.verifier(), self.verifier()]
        self.subscriber = Subscriber()
        target = oslo_messaging.Target(topic=messaging.NOTIFICATIONS_TOPIC)
        self.listener = oslo_messaging.get_notification_listener(
            oslo_messaging.get_notification_transport(self.conf), [target], [self.subscriber]
        )

    def verifier(self) -> Aftermath:
        """One verifier's follow-up, with connections of its own."""
        database = Database(self.conf.database.connection)
        results = Results(database, KEY, "cloud", 300, 1)
        session = ks_session.Session(NoAuth(endpoint=self.nova.url))
        openstack = OpenStack(session)
        return Aftermath(self.conf, self.transport, database, results, ComputeApi(openstack))

    def start(self) -> None:
        self.listener.start()
        for part in self.parts:
            part.start()
        # Verdicts from before the first look are history.
        self.show()
        wait_until(lambda: self._begun() == 2, "the first look")

    def _begun(self) -> int:
        with self.database.reader() as session:
            names = CursorRow.name.in_(("responses", "notifications"))
            return session.scalar(select(func.count()).select_from(CursorRow).where(names)) or 0

    def stop(self) -> None:
        for part in self.parts:
            part.stop()
        self.listener.stop()
        self.listener.wait()
        self.transport.cleanup()

    def show(self, verdict: Verdict = TRUSTED, **guests: Verdict) -> None:
        shown = tuple(
            GuestResult(guest(int(name[1:])), judged, () if judged is TRUSTED else (BAD,))
            for name, judged in guests.items()
        )
        reasons = () if verdict is TRUSTED else (BAD,)
        with self.database.writer() as session:
            appraisal = Appraisal(True, HostResult("h", verdict, reasons), shown)
            self.results.record(session, appraisal, int(time.time()))

    def outcomes(self) -> list[tuple[str, str]]:
        rows = ResponseReader(self.database).newest(limit=1000)
        return sorted((item.response, item.outcome.value) for item in rows)

    def ended(self) -> list[tuple[str, str]]:
        return [item for item in self.outcomes() if item[1] not in ("pending", "acting")]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with RabbitMq(tmp_path_factory.mktemp("rabbit")) as broker:
        yield broker.url


@pytest.fixture
def nova() -> Iterator[ComputeStub]:
    stub = ComputeStub()
    thread = threading.Thread(target=stub.serve_forever, daemon=True)
    thread.start()
    yield stub
    stub.shutdown()
    stub.server_close()
    thread.join(10)


@pytest.fixture
def cloud(tmp_path: Path, broker: str, nova: ComputeStub) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path, broker, nova)
    cloud.start()
    try:
        yield cloud
    finally:
        cloud.stop()


def test_an_altered_guest_is_announced_locked_and_paused_once(cloud: Cloud) -> None:
    cloud.show(g1=TRUSTED, g2=TRUSTED)
    cloud.show(g1=UNTRUSTED, g2=TRUSTED)
    done = [("lock", "done"), ("notify", "done"), ("pause", "done")]
    wait_until(lambda: cloud.outcomes() == done, "the responses")
    assert sorted(cloud.nova.actions) == [("lock", str(guest(1))), ("pause", str(guest(1)))]
    heard = cloud.subscriber
    wait_until(lambda: len(heard.of("attestation.guest.verdict.changed")) >= 3, "the changes")
    wait_until(lambda: len(heard.of("attestation.guest.alert")) == 1, "the alert")
    wait_until(lambda: len(heard.of("attestation.response.done")) == 3, "the outcomes")
    changes = [item for item in heard.of("attestation.guest.verdict.changed") if item["previous"]]
    assert [(item["guest"], item["previous"], item["verdict"]) for item in changes] == [
        (str(guest(1)), "trusted", "untrusted")
    ]
    assert changes[0]["reasons"][0]["symbol"] == "sys_read"
    for _, event_type, payload in heard.heard:
        jsonschema.validate(payload, SCHEMAS[event_type])
    assert {publisher for publisher, _, _ in heard.heard} == {"nova-vmi-attest-verifier.verifier-1"}


def test_each_change_is_announced_once_by_whichever_verifier(cloud: Cloud) -> None:
    for verdict in (TRUSTED, UNTRUSTED, Verdict.UNKNOWN, TRUSTED):
        cloud.show(g9=verdict)
    event = "attestation.guest.verdict.changed"
    wait_until(lambda: len(cloud.subscriber.of(event)) >= 4, "the changes")
    cloud.show(UNTRUSTED, g9=TRUSTED)
    wait_until(lambda: cloud.subscriber.of("attestation.host.verdict.changed") != [], "the host's change")
    verdicts = [item["verdict"] for item in cloud.subscriber.of(event)]
    assert verdicts == ["trusted", "untrusted", "unknown", "trusted"]


def test_a_mass_of_changes_meets_the_limit(cloud: Cloud) -> None:
    many = [f"g{number}" for number in range(1, 21)]
    cloud.show(**dict.fromkeys(many, TRUSTED))
    cloud.show(**dict.fromkeys(many, UNTRUSTED))
    wait_until(lambda: len(cloud.ended()) == 60, "the end of all of them")
    locked = [subject for what, subject in cloud.nova.actions if what == "lock"]
    assert (len(locked), len(set(locked))) == (3, 3)
    assert cloud.outcomes().count(("lock", "limited")) == 17
    limited = "attestation.response.limit_reached"
    wait_until(lambda: len(cloud.subscriber.of(limited)) == 3, "one word for each response")
    assert {item["response"] for item in cloud.subscriber.of(limited)} == {"lock", "notify", "pause"}


def test_nova_that_fails_for_a_while(cloud: Cloud) -> None:
    cloud.nova.failing = True
    cloud.show(g1=TRUSTED)
    cloud.show(g1=UNTRUSTED)
    wait_until(lambda: ("notify", "done") in cloud.outcomes(), "what needs no Nova")
    rows = ResponseReader(cloud.database)
    wait_until(lambda: any("503" in item.detail for item in rows.newest()), "the failure on record")
    assert cloud.nova.actions == []
    cloud.nova.failing = False
    wait_until(lambda: cloud.outcomes().count(("lock", "done")) == 1, "the lock")


def test_an_override_is_published_and_spares_the_host(cloud: Cloud) -> None:
    heard: list[str] = []

    class Endpoint:
        @messaging.exposed
        def result(self, ctxt: Any, token: str) -> None:
            heard.append(token)

    server = messaging.get_server(cloud.transport, messaging.RESULTS_TOPIC, "relying", Endpoint())
    server.start()
    try:
        Overrides(cloud.database).set("h", "known", "ops", 600, int(time.time()))
        cloud.show(UNTRUSTED)
        Overrides(cloud.database).set("other", "its TPM is broken", "ops", 600, int(time.time()))
        wait_until(lambda: len(heard) >= 1, "the result of the host that does not answer")
    finally:
        server.stop()
        server.wait()
    result = verify_result(heard[0], [KEY.public_key()], "cloud", time.time())
    assert (result.host.host, result.host.verdict, result.guests) == ("other", TRUSTED, ())
    newest = cloud.results.newest("h")
    assert newest is not None
    assert (newest.verdict, newest.reasons[0].check) == (TRUSTED, "override")
    assert cloud.nova.actions == []


def test_an_untrusted_host_gets_no_more_servers(cloud: Cloud) -> None:
    cloud.show(UNTRUSTED)
    wait_until(lambda: cloud.outcomes() == [("disable_service", "done")], "the response")
    assert cloud.nova.actions == [("disable", SERVICE)]
