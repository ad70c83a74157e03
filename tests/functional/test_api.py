# SPDX-License-Identifier: Apache-2.0
"""Made-up requests against the whole application and a real database, without Keystone and the bus.

What is sent comes from the OpenAPI document, as it says and against it; the answers have to be as it says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from nova_vmi_attest.api.catalogue import OPERATIONS
from nova_vmi_attest.messaging import VerifierClient
from tests.unit.api.cloud import Api, running
from tests.unit.api.rows import BAD, DIGEST, HOST, fill
from tests.unit.tpm.maker import Chip, Maker

# Generating what a schema does not allow costs more than answering it.
EXAMPLES = 15
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
KNOWN = {"server_id": BAD, "host": HOST, "digest": DIGEST}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api")) as found, pytest.MonkeyPatch.context() as patch:
        fill(found.database)
        Path(found.conf.relying.verifier_keys).write_text('{"keys": [{"kty": "EC", "d": "private"}]}')
        certificate = x509.load_der_x509_certificate(Chip(Maker()).ek_certificate())
        Path(found.conf.verifier.authority_certificates).write_bytes(certificate.public_bytes(Encoding.PEM))
        patch.setattr(VerifierClient, "challenge", lambda client, host, nonce: nonce or "0" * 64)
        yield found


@pytest.fixture(scope="module")
def described(api: Api) -> Any:
    return schemathesis.openapi.from_wsgi("/v1/openapi.json", api.application)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("role", ["admin", "member"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_answers_are_what_the_document_says(
    api: Api, described: Any, operation: Any, role: str, mode: GenerationMode
) -> None:
    token = api.login(role)
    takes = bool(operation.parameters or operation.query or operation.body is not None)
    found, sent = described[operation.path][operation.method], 0
    if mode is GenerationMode.NEGATIVE and takes:
        cases = found.as_strategy(mode)
    else:
        # A place that there is, so that what follows it is looked at.
        places = {item.name: KNOWN[item.name] for item in operation.parameters}
        cases = found.as_strategy(GenerationMode.POSITIVE, path_parameters=places or None)

    @settings(max_examples=EXAMPLES if takes else 1, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def send(case: Any) -> None:
        nonlocal sent
        case.call_and_validate(headers={"X-Auth-Token": token}, checks=CHECKS)
        sent += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        send()
    assert sent
