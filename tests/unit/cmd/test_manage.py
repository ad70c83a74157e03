# SPDX-License-Identifier: Apache-2.0
"""The commands as an operator and a tenant use them: exit status, one line for an error, JSON on request."""

from __future__ import annotations

import json
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evidence_examples as examples
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.authority.ca import CertificateAuthority
from nova_vmi_attest.cmd.manage import main
from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database, head_revision
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.log import ZERO_DIGEST, extend
from nova_vmi_attest.evidence.result import GuestResult, HostResult, Reason, Verdict
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.hosts import Hosts
from nova_vmi_attest.verifier.results import Results
from tests.unit.tpm.maker import Chip, Maker
from tests.unit.verifier import scenario
from tests.unit.verifier.scenario import GUESTS, HOST, SimulatedHost

KEY = examples.key("verifier")


class Deployment:
    """A configuration file in a directory, and the command under test."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys
        self._config = directory / "test.conf"
        self._config.write_text(
            f"""[database]
connection = sqlite:///{directory}/attest.sqlite
[verifier]
private_key = {directory}/verifier.key
[authority]
private_key = {directory}/authority.key
certificate = {directory}/authority.pem
[references]
path = {directory}/references
"""
        )

    def __call__(self, *arguments: str) -> str:
        """Run a command that must succeed; what it printed."""
        status = main(["--config-file", str(self._config), *arguments])
        output = self._capsys.readouterr()
        assert (status, output.err) == (0, "")
        return output.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def refused(self, *arguments: str) -> str:
        """Run a command that must fail; its one line."""
        status = main(["--config-file", str(self._config), *arguments])
        output = self._capsys.readouterr()
        assert (status, output.out, output.err.count("\n")) == (1, "", 1)
        return output.err

    @property
    def database(self) -> Database:
        return Database(f"sqlite:///{self.directory}/attest.sqlite")


@pytest.fixture
def manage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    return Deployment(tmp_path, capsys)


@pytest.fixture
def ready(manage: Deployment) -> Deployment:
    manage("db", "upgrade")
    return manage


def test_the_schema_is_made_on_request_only(manage: Deployment) -> None:
    assert "db upgrade" in manage.refused("db", "check")
    assert "db upgrade" in manage.refused("host", "list")
    newest = head_revision()
    assert manage.json("db", "upgrade") == {"before": None, "after": newest}
    assert str(newest) in manage("db", "check")
    assert manage.json("db", "upgrade")["before"] == newest


def test_the_key_is_made_once_and_shown(manage: Deployment) -> None:
    assert "verifier.key" in manage.refused("key", "show")
    made = manage.json("key", "create")
    path = manage.directory / "verifier.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = keys.load_private_key(path).public_key()
    assert made["thumbprint"] == keys.key_id(public)
    assert keys.decode_jwks(manage("key", "show", "--jwks").encode())[0] == public
    assert made["thumbprint"] in manage("key", "show")
    assert "exists" in manage.refused("key", "create")


def test_the_authority_is_made_once_and_shown(manage: Deployment) -> None:
    manage("ca", "create")
    certificate = x509.load_pem_x509_certificate((manage.directory / "authority.pem").read_bytes())
    assert manage.json("ca", "show")["subject"] == certificate.subject.rfc4514_string()
    assert "exists" in manage.refused("ca", "create")


def test_hosts_are_registered_listed_and_withdrawn(ready: Deployment) -> None:
    chip = Chip(Maker())
    der, pem = ready.directory / "ek.der", ready.directory / "ek.pem"
    der.write_bytes(chip.ek_certificate())
    pem.write_bytes(chip.certificate.public_bytes(Encoding.PEM))
    digest = ready.json("host", "register", HOST, str(der))["ek_digest"]
    assert ready.json("host", "register", HOST, str(pem))["ek_digest"] == digest
    assert "compute-1" in ready.refused("host", "register", "compute-2", str(der))
    assert [row["name"] for row in ready.json("host", "list")] == [HOST]
    assert ready.json("host", "show", HOST)["ek_digest"] == digest
    assert HOST in ready("host", "list")
    ready("host", "unregister", HOST)
    assert ready.json("host", "list") == []
    assert "no host" in ready.refused("host", "show", HOST)
    assert "cannot be read" in ready.refused("host", "register", HOST, str(ready.directory / "none"))
    pem.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    assert "cannot be read" in ready.refused("host", "register", HOST, str(pem))


def test_a_host_that_lost_its_log_can_be_forgotten(ready: Deployment) -> None:
    Hosts(ready.database).remember(HOST, "tpm", "pem", 1)
    assert ready.json("host", "show", HOST)["announced_at"] == 1
    ready("host", "forget", HOST)
    assert HOST in ready.refused("host", "forget", HOST)


def test_an_operator_breaks_glass_and_everybody_sees_it(
    ready: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    Hosts(ready.database).remember(HOST, "tpm", "pem", 1)
    made = ready.json("host", "override", HOST, "--reason", "firmware [bold]update", "--hours", "2")
    assert made["known"] is True
    assert made["expires"] == pytest.approx(time.time() + 7200, abs=60)
    shown = ready.json("host", "show", HOST)["override"]
    assert (shown["made_by"].split("@")[0], shown["reason"]) == ("alice", "firmware [bold]update")
    assert "firmware [bold]update" in ready("host", "show", HOST)
    assert "firmware [bold]update" in ready("host", "list")
    found = HostResult(HOST, Verdict.UNTRUSTED, (Reason("pcr_policy", detail="another value"),))
    with ready.database.writer() as session:
        Results(ready.database, KEY, "cloud", 300, 90).record(
            session, Appraisal(True, found), int(time.time())
        )
    result = ready.json("result", "show", HOST)
    assert (result["verdict"], result["reasons"][0]["check"]) == ("trusted", "override")
    assert "override: by alice@" in ready("result", "list")
    ready("host", "lift-override", HOST)
    assert ready.json("host", "show", HOST)["override"] is None
    assert "no override" in ready.refused("host", "lift-override", HOST)


def test_an_override_needs_a_reason_and_an_end(ready: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        (HOST,),
        (HOST, "--reason", "x", "--hours", "25"),
        (HOST, "--reason", "x", "--hours", "0"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["host", "override", *arguments])
        assert stopped.value.code == 2
    capsys.readouterr()
    assert "printable" in ready.refused("host", "override", HOST, "--reason", " ")
    assert "host name" in ready.refused("host", "override", "a b", "--reason", "why")
    assert "no host of this name" in ready("host", "override", "typo", "--reason", "why")
    assert ready.json("host", "show", "typo")["override"]["reason"] == "why"


def test_responses_are_listed(ready: Deployment) -> None:
    assert ready.json("response", "list") == []
    with ready.database.writer() as session:
        for number, outcome in enumerate(("done", "limited")):
            session.add(
                models.ResponseRow(
                    at=number, response="lock", change_id=7, subject=str(GUESTS[number]), outcome=outcome,
                    detail="[x]",
                )
            )  # fmt: skip
    rows = ready.json("response", "list")
    assert [(row["outcome"], row["at"], row["change"]) for row in rows] == [("limited", 1, 7), ("done", 0, 7)]
    assert [row["outcome"] for row in ready.json("response", "list", str(GUESTS[0]))] == ["done"]
    assert "[x]" in ready("response", "list", "--limit", "1")


def test_references_are_listed_and_errors_explained(manage: Deployment) -> None:
    assert manage.json("reference", "list") == []
    (manage.directory / "broken.deb").write_bytes(b"no package")
    manage.refused("reference", "import", str(manage.directory / "broken.deb"))
    manage.refused("reference", "import", str(manage.directory / "none.deb"))
    assert "0 references" in manage.refused("reference", "show", "abcd")
    assert "0 references" in manage.refused("reference", "delete", "abcd")


def test_results_and_their_history_are_shown(ready: Deployment) -> None:
    results = Results(ready.database, KEY, "cloud", 300, 90)
    bad = Reason("text", "__x64_sys_getdents64", 5, 12, "patched")
    for verdict in (Verdict.TRUSTED, Verdict.UNTRUSTED):
        reasons = (bad,) if verdict is Verdict.UNTRUSTED else ()
        with ready.database.writer() as session:
            appraisal = Appraisal(
                True, HostResult(HOST, Verdict.TRUSTED), (GuestResult(GUESTS[0], verdict, reasons),)
            )
            results.record(session, appraisal, int(time.time()))
    rows = ready.json("result", "list")
    assert [(row["kind"], row["verdict"]) for row in rows] == [("host", "trusted"), ("guest", "untrusted")]
    assert rows[1]["reasons"][0]["symbol"] == "__x64_sys_getdents64"
    assert "__x64_sys_getdents64+0x5 (12 bytes)" in ready("result", "list")
    assert ready.json("result", "show", str(GUESTS[0]))["verdict"] == "untrusted"
    assert ready.json("result", "show", HOST)["kind"] == "host"
    assert [row["previous"] for row in ready.json("result", "history", str(GUESTS[0]))] == ["trusted", None]
    assert "untrusted" in ready("result", "history")
    assert "no result" in ready.refused("result", "show", "compute-9")
    with ready.database.writer() as session:
        results.record(session, Appraisal(True, HostResult(HOST, Verdict.TRUSTED)), int(time.time()) - 400)
    assert ready.json("result", "show", HOST)["verdict"] == "stale"


@pytest.fixture
def proven(ready: Deployment) -> Callable[[], str]:
    """Evidence of one round, stored as the verifier stores it; gives the nonce."""
    ready("ca", "create")
    authority = CertificateAuthority.load(
        ready.directory / "authority.key", ready.directory / "authority.pem"
    )
    host = SimulatedHost(certificate=scenario.certificate(authority=authority, issued=int(time.time())))
    batch = host.answer([scenario.healthy(GUESTS[0]), scenario.altered(GUESTS[1])])
    before = extend(ZERO_DIGEST, batch.entries[0].digest)
    with ready.database.writer() as session:
        row = models.BatchRow(host=HOST, received=1, pcr_before=before.hex(), batch=batch.encode())
        session.add(row)
        guests = tuple(GuestResult(guest, Verdict.TRUSTED) for guest in GUESTS[:2])
        appraisal = Appraisal(True, HostResult(HOST, Verdict.TRUSTED), guests)
        Results(ready.database, KEY, "cloud", 300, 90).record(session, appraisal, int(time.time()))
    return lambda: scenario.NONCE.hex()


def test_a_proof_is_exported_and_verified_as_a_tenant_would(
    ready: Deployment, proven: Callable[[], str]
) -> None:
    path, ca = str(ready.directory / "guest.proof"), str(ready.directory / "authority.pem")
    exported = ready.json("proof", "export", str(GUESTS[1]), path)
    assert exported["nonces"] == [proven()]
    shown = ready("proof", "verify", path, "--ca", ca, "--nonce", proven())
    assert "__x64_sys_getdents64+0x5, 12 bytes" in shown
    read = ready.json("proof", "verify", path, "--ca", ca, "--nonce", proven())
    assert (read["guest"], read["host"]) == (str(GUESTS[1]), HOST)
    assert read["measurement"]["integrity"]["unexplained_bytes"] == 12
    assert "written" in ready.refused("proof", "export", str(GUESTS[1]), path)


def test_a_proof_that_does_not_hold_is_refused_with_the_step(
    ready: Deployment, proven: Callable[[], str]
) -> None:
    path, ca = ready.directory / "guest.proof", str(ready.directory / "authority.pem")
    ready("proof", "export", str(GUESTS[0]), str(path))
    verify = ("proof", "verify", str(path), "--ca", ca)
    assert "step 2" in ready.refused(*verify, "--nonce", "00" * 32)
    assert "hex digits" in ready.refused(*verify, "--nonce", "xyz")
    assert "step 1" in ready.refused(*verify, "--nonce", proven(), "--at", "2020-01-01T00:00:00Z")
    assert "not a time" in ready.refused(*verify, "--nonce", proven(), "--at", "soon")
    other = ready.directory / "other.pem"
    other.write_bytes(examples.ca_certificate("stranger").public_bytes(Encoding.PEM))
    assert "step 1" in ready.refused("proof", "verify", str(path), "--ca", str(other), "--nonce", proven())
    path.write_bytes(path.read_bytes()[:-10])
    assert "malformed" in ready.refused(*verify, "--nonce", proven())


def test_what_cannot_be_exported_is_explained(ready: Deployment) -> None:
    target = str(ready.directory / "x")
    assert "no evidence" in ready.refused("proof", "export", str(uuid.UUID(int=7)), target)
    assert "not a UUID" in ready.refused("proof", "export", "guest", target)


def test_wrong_usage_and_a_missing_file_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["nonsense"])
    assert stopped.value.code == 2
    assert main(["--config-file", str(tmp_path / "none"), "db", "check"]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.parametrize("detail", ["[/]", "[bold]x[/bold]", "[link=http://x]", "\\[", "[[[", ":smile:"])
def test_names_that_look_like_markup_are_shown_as_they_are(ready: Deployment, detail: str) -> None:
    """Module and symbol names are a guest's choice."""
    bad = (Reason("modules", detail, detail=detail),)
    with ready.database.writer() as session:
        appraisal = Appraisal(
            True, HostResult(HOST, Verdict.TRUSTED), (GuestResult(GUESTS[0], Verdict.UNTRUSTED, bad),)
        )
        Results(ready.database, KEY, "cloud", 300, 90).record(session, appraisal, int(time.time()))
    for arguments in (("list",), ("show", str(GUESTS[0])), ("history",)):
        assert f"{detail}+0x0: {detail}" in ready("result", *arguments)


def test_the_worst_of_several_hosts_verdicts_is_shown(ready: Deployment) -> None:
    results = Results(ready.database, KEY, "cloud", 300, 90)
    for host, verdict in (("a", Verdict.TRUSTED), ("b", Verdict.UNTRUSTED), ("c", Verdict.TRUSTED)):
        with ready.database.writer() as session:
            shown = (GuestResult(GUESTS[0], verdict),)
            results.record(
                session, Appraisal(True, HostResult(host, Verdict.TRUSTED), shown), int(time.time())
            )
    shown = ready.json("result", "show", str(GUESTS[0]))
    assert (shown["host"], shown["verdict"]) == ("b", "untrusted")


@pytest.mark.parametrize("argument", ["a\nb", "\x1b[31m", "\udcff", "a\0b"])
def test_arguments_that_are_no_text_are_refused(ready: Deployment, argument: str) -> None:
    assert "not printable" in ready.refused("result", "show", argument)


def test_a_damaged_database_is_one_line(ready: Deployment) -> None:
    (ready.directory / "attest.sqlite").write_bytes(b"no database" * 1000)
    assert "not a database" in ready.refused("db", "check")
    assert "not a database" in ready.refused("result", "list")
