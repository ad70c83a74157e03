# SPDX-License-Identifier: Apache-2.0
"""The endpoint answers or refuses; what fails inside never reaches the caller."""

from __future__ import annotations

import base64
from pathlib import Path

import oslo_messaging
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from oslo_config import cfg
from oslo_messaging.conffixture import ConfFixture

from nova_vmi_attest import messaging
from nova_vmi_attest.authority.ca import AuthorityError
from nova_vmi_attest.authority.service import AuthorityEndpoint, AuthorityService
from nova_vmi_attest.conf import authority as options
from nova_vmi_attest.conf import database as database_options
from nova_vmi_attest.db.session import DatabaseError
from nova_vmi_attest.tpm.endorsement import EndorsementError
from tests.unit.authority.scene import Scene, request


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_an_enrolment_over_the_endpoint(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    offer = scene.endpoint.begin_enrolment({}, request(chip, "compute-0"))
    assert offer.keys() == {"enrolment", "credential", "secret"}
    secret = chip.activate(base64.b64decode(offer["credential"]), base64.b64decode(offer["secret"]))
    answer = scene.endpoint.complete_enrolment({}, offer["enrolment"], base64.b64encode(secret).decode())
    assert answer["certificate"].startswith("-----BEGIN CERTIFICATE-----")


def test_a_refusal_is_an_answer_with_its_remedy(scene: Scene) -> None:
    answer = scene.endpoint.begin_enrolment({}, request(scene.chip(), "compute-0"))
    assert answer.keys() == {"refused", "remedy"}
    assert "not registered" in answer["refused"]
    assert "host register" in answer["remedy"]


@pytest.mark.parametrize("claim", [None, 7, [], {}, {"host": 5}, {"host": None, "ek_certificate": {}}])
def test_whatever_arrives_is_refused_in_words(scene: Scene, claim: object) -> None:
    assert scene.endpoint.begin_enrolment({}, claim)["refused"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("enrolment", "proof"), [(None, None), (1, "AA=="), ("x", "!"), ("x", "A" * 999), ("é", "")]
)
def test_whatever_completes_is_refused_in_words(scene: Scene, enrolment: object, proof: object) -> None:
    assert scene.endpoint.complete_enrolment({}, enrolment, proof)["refused"]  # type: ignore[arg-type]


def test_a_fault_inside_shows_nothing_of_itself() -> None:
    endpoint = AuthorityEndpoint(None)  # type: ignore[arg-type]
    assert endpoint.begin_enrolment({}, {}) == {
        "refused": "internal error",
        "remedy": "see the log of the service that was called",
    }


@pytest.fixture
def conf(tmp_path: Path) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    conf.register_group(options.GROUP)
    conf.register_opts(options.OPTIONS, group=options.GROUP)
    database_options.register(conf)
    conf([], project="nova-vmi-attest", default_config_files=[])
    conf.set_override("private_key", str(tmp_path / "ca.key"), group="authority")
    conf.set_override("certificate", str(tmp_path / "ca.pem"), group="authority")
    for name in ("ek_roots", "ek_intermediates"):
        (tmp_path / name).mkdir()
        conf.set_override(name, str(tmp_path / name), group="authority")
    conf.set_override("connection", f"sqlite:///{tmp_path / 'attest.sqlite'}", group="database")
    return conf


@pytest.fixture
def transport(conf: cfg.ConfigOpts) -> oslo_messaging.Transport:
    # Making the fixture registers what oslo.messaging otherwise registers on the global configuration alone.
    ConfFixture(conf)
    return oslo_messaging.get_rpc_transport(conf, url="fake://")


def test_a_refusal_and_an_enrolment_over_the_bus(
    scene: Scene, conf: cfg.ConfigOpts, transport: oslo_messaging.Transport, tmp_path: Path
) -> None:
    (tmp_path / "ek_roots" / "maker.pem").write_bytes(scene.maker.root.public_bytes(Encoding.PEM))
    (tmp_path / "ek_intermediates" / "maker.pem").write_bytes(
        scene.maker.intermediate.public_bytes(Encoding.PEM)
    )
    service = AuthorityService(conf, transport)
    service.start()
    try:
        client = messaging.AuthorityClient(transport, timeout=10)
        assert "not registered" in client.begin_enrolment(request(scene.chip(), "compute-1"))["refused"]
        chip = scene.chip("compute-0")
        offer = client.begin_enrolment(request(chip, "compute-0"))
        secret = chip.activate(base64.b64decode(offer["credential"]), base64.b64decode(offer["secret"]))
        answer = client.complete_enrolment(offer["enrolment"], base64.b64encode(secret).decode())
        assert answer["certificate"].startswith("-----BEGIN CERTIFICATE-----")
    finally:
        service.stop()
    service.stop()
    service.wait()


def test_it_does_not_start_on_what_cannot_be_used(
    scene: Scene, conf: cfg.ConfigOpts, transport: oslo_messaging.Transport, tmp_path: Path
) -> None:
    service = AuthorityService(conf, transport)
    conf.set_override("connection", f"sqlite:///{tmp_path / 'empty.sqlite'}", group="database")
    with pytest.raises(DatabaseError, match="db upgrade"):
        service.start()
    conf.set_override("ek_roots", str(tmp_path / "missing"), group="authority")
    with pytest.raises(EndorsementError, match="missing"):
        service.start()
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(AuthorityError, match="open to other users"):
        service.start()
    service.stop()
