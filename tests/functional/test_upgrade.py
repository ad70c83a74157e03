# SPDX-License-Identifier: Apache-2.0
"""Peers of the version before on a real broker, and its database: what works, and what says why it does not.

The version before spoke version 1.0 of the interfaces and had the schema 0001. Its peers are rebuilt here
from what they sent and served, so that no history of the repository is needed.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import alembic.command
import oslo_messaging
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from lab.rabbitmq import RabbitMq
from oslo_config import cfg
from sqlalchemy import create_engine, text

from nova_vmi_attest import conf as configuration
from nova_vmi_attest import messaging
from nova_vmi_attest.db import session as db
from nova_vmi_attest.db.session import Database, head_revision
from nova_vmi_attest.evidence.challenge import verify_challenge
from nova_vmi_attest.evidence.jws import verify
from nova_vmi_attest.evidence.result import (
    KIND,
    MAX_RESULT_BYTES,
    AttestationResult,
    HostResult,
    Verdict,
    sign_result,
    verify_result,
)
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.records.results import ResultReader
from nova_vmi_attest.relying.listener import ResultListener
from nova_vmi_attest.relying.trust import TrustCache
from nova_vmi_attest.verifier.hosts import Hosts
from tests.functional.test_verifier import KEY, THUMBPRINT, Cloud, guest, wait_until
from tests.unit.verifier.scenario import HOST

VECTOR = Path(__file__).parents[1] / "data" / "vectors" / "result.json"
EXCHANGE = "nova_vmi_attest"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with RabbitMq(tmp_path_factory.mktemp("rabbit")) as broker:
        yield broker.url


# -- peers of the version before -----------------------------------------------------------------------------


def old_server(transport: Any, topic: str, server: str, endpoint: object) -> Any:
    """An endpoint without a version of its own serves 1.0, and so did all of them."""
    target = oslo_messaging.Target(exchange=EXCHANGE, topic=topic, server=server, version="1.0")
    return oslo_messaging.get_rpc_server(
        transport, target, [endpoint], access_policy=oslo_messaging.ExplicitRPCAccessPolicy
    )


def old_client(transport: Any, topic: str) -> Any:
    target = oslo_messaging.Target(exchange=EXCHANGE, topic=topic, version="1.0")
    return oslo_messaging.get_rpc_client(transport, target, timeout=10)


class OldVerifier:
    """Serves what a verifier of the version before served, and notes what reaches it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.tokens: list[str] = []

    @oslo_messaging.expose
    def announce(self, ctxt: Mapping[str, Any], host: str, certificate: str) -> None:
        self.seen.append(("announce", {"host": host, "certificate": certificate}))

    @oslo_messaging.expose
    def submit(self, ctxt: Mapping[str, Any], batch: str) -> None:
        self.seen.append(("submit", {"batch": batch}))

    @oslo_messaging.expose
    def reference_index(self, ctxt: Mapping[str, Any]) -> str:
        return "a signed index"

    @oslo_messaging.expose
    def blob(self, ctxt: Mapping[str, Any], digest: str, offset: int) -> dict[str, Any]:
        return {"refused": f"no {digest} at {offset}", "remedy": ""}

    @oslo_messaging.expose
    def results(self, ctxt: Mapping[str, Any], after: str) -> dict[str, Any]:
        return {"results": self.tokens, "next": ""}


class OldAgent:
    """Answers challenges as the agent of the version before did."""

    def __init__(self, cloud: Cloud) -> None:
        self._host = cloud.agent.host
        self.guests = [guest(0), guest(1)]
        self._verifier = old_client(cloud.transport, "nova_vmi_attest.verifier")

    def announce(self) -> None:
        pem = x509.load_der_x509_certificate(self._host.certificate).public_bytes(Encoding.PEM).decode()
        self._verifier.cast({}, "announce", host=HOST, certificate=pem)

    @oslo_messaging.expose
    def attest(self, ctxt: Mapping[str, Any], challenge: str) -> None:
        asked, _ = verify_challenge(challenge, [KEY.public_key()], HOST, time.time())
        batch = self._host.answer(self.guests, nonces=[asked.nonce], since=asked.since)
        encoded = base64.b64encode(replace(batch, verifier=THUMBPRINT).encode()).decode()
        self._verifier.cast({}, "submit", batch=encoded)


class OldRelyingParty:
    """Hears results as the scheduler filter of the version before did."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    @oslo_messaging.expose
    def result(self, ctxt: Mapping[str, Any], token: str) -> None:
        self.tokens.append(token)


class RealBusCloud(Cloud):
    """The verifier of this version on a real broker."""

    def __init__(self, directory: Path, url: str) -> None:
        self._url = url
        super().__init__(directory)

    def _configure(self) -> cfg.ConfigOpts:
        super()._configure()
        path = self.directory / "test.conf"
        path.write_text(path.read_text().replace("fake:/", self._url))
        return configuration.load(["--config-file", str(path)], "test")


def shape(value: Any) -> Any:
    """The members of claims without their values; the names of guests do not matter."""
    if isinstance(value, dict):
        return {"guest" if len(name) == 36 else name: shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return shape(value[0]) if value else []
    return type(value).__name__


@pytest.fixture
def cloud(tmp_path: Path, broker: str) -> Iterator[RealBusCloud]:
    cloud = RealBusCloud(tmp_path, broker)
    cloud.database.upgrade()
    cloud.service.start()
    try:
        yield cloud
    finally:
        cloud.service.stop()
        cloud.transport.cleanup()


@pytest.fixture
def old(tmp_path: Path, broker: str) -> Iterator[tuple[OldVerifier, messaging.VerifierClient]]:
    """A verifier of the version before, and how this version speaks to it."""
    path = tmp_path / "bus.conf"
    path.write_text(f"[DEFAULT]\ntransport_url = {broker}\n")
    transport = messaging.get_transport(configuration.load(["--config-file", str(path)], "test"))
    verifier = OldVerifier()
    server = old_server(transport, "nova_vmi_attest.verifier", "old", verifier)
    server.start()
    try:
        yield verifier, messaging.VerifierClient(transport, timeout=10)
    finally:
        server.stop()
        server.wait()
        transport.cleanup()


# -- the bus -------------------------------------------------------------------------------------------------


def test_an_agent_of_the_version_before_is_appraised_and_an_old_filter_hears_of_it(
    cloud: RealBusCloud,
) -> None:
    agent, filter_ = OldAgent(cloud), OldRelyingParty()
    servers = [
        old_server(cloud.transport, "nova_vmi_attest.attester", HOST, agent),
        old_server(cloud.transport, "nova_vmi_attest.results", "old-scheduler", filter_),
    ]
    for server in servers:
        server.start()
    try:
        agent.announce()
        result = cloud.service.wait_for_result(HOST, 0, 30)
        assert [item.verdict for item in result.guests] == [Verdict.TRUSTED, Verdict.TRUSTED]
        agent.guests = [guest(0, healthy=False)]
        assert cloud.round().guests[0].verdict is Verdict.UNTRUSTED
        Overrides(cloud.database).set(HOST, "why", "ops", 60, int(time.time()))
        del cloud.agent.host.pcrs[7]
        assert cloud.round().host.reasons[0].check == "override"
        wait_until(lambda: len(filter_.tokens) >= 3, "the results at the old filter")
        page = old_client(cloud.transport, "nova_vmi_attest.verifier").call({}, "results", after="")
        assert page["next"] == HOST
        assert page["results"][0] in filter_.tokens
    finally:
        for server in servers:
            server.stop()
            server.wait()
    known = json.loads(json.loads(VECTOR.read_text())["claims"])
    for token in filter_.tokens:
        claims, _ = verify(token, [KEY.public_key()], KIND, MAX_RESULT_BYTES)
        # A reader of the version before refuses members that it does not know.
        assert shape(claims["submods"]["host"])["nova_vmi_attest"].keys() == {"name", "reasons", "verdict"}
        assert claims.keys() == known.keys()
        assert claims["nova_vmi_attest"] == {"format": 1, "sequence": claims["nova_vmi_attest"]["sequence"]}
        members = [shape(item) for name, item in known["submods"].items() if name != "host"]
        guests = [shape(item) for name, item in claims["submods"].items() if name != "host"]
        assert {frozenset(item["nova_vmi_attest"]) for item in guests} == {
            frozenset(members[0]["nova_vmi_attest"])
        }


def test_agents_of_this_version_work_with_a_verifier_of_the_one_before(
    old: tuple[OldVerifier, messaging.VerifierClient],
) -> None:
    verifier, client = old
    client.announce(HOST, "certificate")
    client.event(HOST, "a guest appeared")
    client.refused(
        {"at": 1, "server": "", "project": "", "request": "", "level": "", "total": 0, "hosts": []}
    )
    client.submit(b"evidence")
    wait_until(lambda: len(verifier.seen) >= 2, "what it knows")
    assert client.reference_index() == "a signed index"
    with pytest.raises(messaging.RefusedError, match="no abc at 7"):
        client.blob("abc", 7)
    assert sorted(name for name, _ in verifier.seen) == ["announce", "submit"]
    submitted = next(arguments for name, arguments in verifier.seen if name == "submit")
    assert submitted == {"batch": base64.b64encode(b"evidence").decode()}


def test_what_a_verifier_of_the_version_before_cannot_do_is_said(
    old: tuple[OldVerifier, messaging.VerifierClient],
) -> None:
    with pytest.raises(messaging.RefusedError, match=r"older than version 1\.1.*upgrade it first"):
        old[1].challenge(HOST)
    assert old[1].results("") == {"results": [], "next": ""}, "it goes on serving"


def test_a_relying_party_of_this_version_reads_results_of_the_one_before(
    old: tuple[OldVerifier, messaging.VerifierClient],
) -> None:
    vector = json.loads(VECTOR.read_text())
    key: Any = load_pem_public_key(vector["public"].encode())
    cache = TrustCache([key], vector["audience"])
    old[0].tokens = [vector["token"]]
    for token in old[1].results("")["results"]:
        assert cache.ingest(token, vector["now"])
    host = verify_result(vector["token"], [key], vector["audience"], vector["now"]).host.host
    assert cache.host(host, vector["now"]).verdict is Verdict.TRUSTED


def test_a_listener_of_this_version_is_filled_by_a_verifier_of_the_one_before(
    old: tuple[OldVerifier, messaging.VerifierClient],
) -> None:
    now = int(time.time())
    fresh = AttestationResult(HostResult(HOST, Verdict.TRUSTED), (), now, now + 300, 1)
    old[0].tokens = [sign_result(fresh, KEY, "nova-vmi-attest")]
    cache = TrustCache([KEY.public_key()], "nova-vmi-attest")
    listener = ResultListener(old[1]._client.transport, cache, "relying")
    listener.start()
    try:
        wait_until(lambda: cache.host(HOST, time.time()).verdict is Verdict.TRUSTED, "the fill")
    finally:
        listener.stop()
    assert cache.host(HOST, now + 301).verdict is Verdict.STALE


# -- the database --------------------------------------------------------------------------------------------

_OLD_ROWS: dict[str, dict[str, Any]] = {
    "hosts": {"name": HOST, "ek_digest": "ab" * 32, "ek_certificate": "pem", "registered_at": 5},
    "known_hosts": {
        "name": HOST, "tpm": "ab", "certificate": "pem", "announced_at": 6, "challenged_at": 7,
        "answered_at": 8, "last_error": "",
    },
    "host_states": {
        "host": HOST, "tpm": "ab", "reset_count": 1, "restart_count": 2, "clock": f"{2**64 - 1:016x}",
        "recnum": 3, "pcr_value": "00" * 32, "head": "11" * 32, "version": 4,
    },
    "results": {
        "host": HOST, "sequence": 9, "verdict": "trusted", "reasons": "[]", "issued": 8, "expires": 308,
        "token": "t",
    },
    "guest_results": {
        "guest": "00000000-0000-0000-0000-000000000001", "host": HOST, "verdict": "untrusted",
        "reasons": '[["text", "f", 1, 2, "d"]]', "sequence": 9, "issued": 8, "expires": 308,
    },
    "verdict_changes": {
        "id": 1, "at": 8, "kind": "host", "subject": HOST, "host": HOST, "previous": "", "verdict": "trusted",
        "reasons": "[]",
    },
    "audit_records": {
        "id": 1, "at": 5, "action": "register", "host_name": HOST, "outcome": "done", "detail": "",
    },
}  # fmt: skip


def insert(connection: Any, rows: Mapping[str, Mapping[str, Any]]) -> None:
    for table, row in rows.items():
        names = ", ".join(f'"{name}"' for name in row)
        values = ", ".join(f":{name}" for name in row)
        connection.execute(text(f"insert into {table} ({names}) values ({values})"), dict(row))


@pytest.fixture
def old_database(tmp_path: Path) -> str:
    """A database as the version before made it, with a row in each table that matters."""
    url = f"sqlite:///{tmp_path}/attest.sqlite"
    engine = create_engine(url)
    with engine.begin() as connection:
        config = db._alembic_config()
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")
        insert(connection, _OLD_ROWS)
    engine.dispose()
    return url


def test_the_database_of_the_version_before_is_upgraded_with_what_it_holds(old_database: str) -> None:
    database = Database(old_database)
    with pytest.raises(db.DatabaseError, match="db upgrade"):
        database.require_current()
    database.upgrade()
    assert database.revision() == head_revision()
    hosts, reader = Hosts(database), ResultReader(database)
    known, state = hosts.get(HOST), hosts.state(HOST).state
    assert known is not None
    assert state is not None
    assert (known.answered_at, state.clock, state.recnum) == (8, 2**64 - 1, 3)
    newest, shown = reader.newest(HOST), reader.guests(HOST)
    assert newest is not None
    assert (newest.sequence, newest.token) == (9, "t")
    assert (shown[0].verdict, shown[0].reasons[0].symbol) == (Verdict.UNTRUSTED, "f")
    assert [item.verdict for item in reader.history(HOST)] == [Verdict.TRUSTED]


def test_verifiers_of_the_version_before_still_write_after_the_upgrade(old_database: str) -> None:
    """They run on until they are replaced; every statement of theirs must still be good."""
    database = Database(old_database)
    database.upgrade()
    with database.writer() as session:
        session.execute(text("delete from guest_results"))
        session.execute(text("update results set sequence = 10"))
        rows = {name: _OLD_ROWS[name] for name in ("guest_results", "verdict_changes")}
        rows["verdict_changes"] = {
            key: value for key, value in rows["verdict_changes"].items() if key != "id"
        }
        insert(session, rows)
    reader = ResultReader(database)
    assert len(reader.guests(HOST)) == 1
    assert len(reader.history(HOST)) == 2


def test_upgrading_twice_and_checking_first_is_harmless(old_database: str) -> None:
    database = Database(old_database)
    assert not database.check()
    for _ in range(2):
        database.upgrade()
        assert database.check()
