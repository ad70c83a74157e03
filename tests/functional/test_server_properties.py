# SPDX-License-Identifier: Apache-2.0
"""The filter in Nova's own pipelines: every microversion, Nova's own router, validation, policy and views."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import webob
from nova.api.openstack import api_version_request

from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.relying.shared import SharedTrust
from tests.functional import nova_api
from tests.functional.nova_api import PROJECT, Application, Servers
from tests.unit.relying.nova_api import token, trusting

SERVER = uuid.UUID(int=1)
PATH = f"/v2.1/servers/{SERVER}"
LATEST = int(api_version_request.max_api_version().get_string().partition(".")[2])
STORED = {"role": "web"}
# These differ from one request to the next.
PASSING = {"content-length", "x-openstack-request-id", "x-compute-request-id"}

Ask = Callable[..., webob.Response]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Application, Application]]:
    """Nova's application without and with the filter."""
    plain, filtered = (tmp_path_factory.mktemp(name) for name in ("plain", "filtered"))
    with nova_api.bus():
        yield nova_api.load(plain, str), nova_api.load(filtered)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The metadata that Nova has of the one server; a verdict on that server is in the cache."""
    cache = trusting(token(str(SERVER), Verdict.UNTRUSTED))
    monkeypatch.setattr(SharedTrust, "get", lambda *given, **named: cache)
    server = nova_api.server(SERVER, dict(STORED))
    with nova_api.standing_in(Servers(server)):
        yield server


@pytest.fixture
def nova(pipelines: tuple[Application, Application], stored: Any) -> Ask:
    return asking(pipelines[1])


@pytest.fixture
def without(pipelines: tuple[Application, Application], stored: Any) -> Ask:
    return asking(pipelines[0])


def asking(application: Application) -> Ask:
    def ask(
        path: str, method: str = "GET", body: Any = None, version: int | None = None, **environ: str
    ) -> webob.Response:
        request = webob.Request.blank(path, method=method, environ=environ or None)
        if version is not None:
            request.headers["OpenStack-API-Version"] = f"compute 2.{version}"
        if isinstance(body, bytes):
            request.body = body
        elif body is not None:
            request.json = body
            request.content_type = "application/json"
        return request.get_response(application)

    return ask


def headers(answer: webob.Response) -> list[tuple[str, str]]:
    return [(name, value) for name, value in answer.headers.items() if name.lower() not in PASSING]


def inserted(plain: bytes, changed: bytes) -> bytes:
    """What was put into a body at one place; nothing else may differ."""
    before = next(n for n, pair in enumerate(itertools.zip_longest(plain, changed)) if len(set(pair)) > 1)
    behind = len(plain) - before
    assert changed.endswith(plain[before:])
    return changed[before : len(changed) - behind]


@pytest.mark.parametrize("version", range(1, LATEST + 1))
def test_every_microversion(version: int, nova: Ask, without: Ask) -> None:
    for path in (PATH, "/v2.1/servers/detail", f"{PATH}/metadata", f"/v2.1/{PROJECT}/servers/{SERVER}"):
        plain, changed = without(path, version=version), nova(path, version=version)
        assert (plain.status_int, changed.status) == (200, plain.status)
        assert headers(changed) == headers(plain)
        assert changed.content_length == len(changed.body)
        added = json.loads(
            b"{" + inserted(plain.body, changed.body).removeprefix(b", ").removesuffix(b"}") + b"}"
        )
        assert (added["trust:verdict"], len(added)) == ("untrusted", 6)
        for untouched in ("/v2.1/servers", f"{PATH}/metadata/role"):
            assert nova(untouched, version=version).body == without(untouched, version=version).body


@pytest.mark.parametrize("version", [1, 54, 75, 93, LATEST])
@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        (PATH, "PUT", {"server": {"name": "web é"}}),
        (f"{PATH}/metadata", "POST", {"metadata": {"a": "1"}}),
        (f"{PATH}/metadata", "PUT", {"metadata": {"a": "1"}}),
    ],
)
def test_answers_to_writes(version: int, path: str, method: str, body: Any, nova: Ask, stored: Any) -> None:
    stored.save = lambda *given, **named: None
    answer = nova(path, method, body, version)
    assert answer.status_int == 200
    shown = answer.json.get("server", answer.json)["metadata"]
    assert shown["trust:verdict"] == "untrusted"
    assert stored.metadata == {name: value for name, value in shown.items() if not name.startswith("trust:")}


@pytest.mark.parametrize("version", [1, 57, 75, LATEST])
def test_the_answer_to_a_rebuild(version: int, nova: Ask, stored: Any) -> None:
    image = str(uuid.uuid4())
    answer = nova(f"{PATH}/action", "POST", {"rebuild": {"imageRef": image, "metadata": {"a": "1"}}}, version)
    assert answer.status_int == 202
    assert answer.json["server"]["metadata"]["trust:verdict"] == "untrusted"
    refused = nova(
        f"{PATH}/action", "POST", {"rebuild": {"imageRef": image, "metadata": {"trust:x": "1"}}}, version
    )
    assert refused.status_int == 403
    assert stored.metadata == {"a": "1"}


def test_one_item(nova: Ask) -> None:
    assert nova(f"{PATH}/metadata/trust:verdict").json == {"meta": {"trust:verdict": "untrusted"}}
    missing = nova(f"{PATH}/metadata/trust:nothing", version=60)
    assert missing.status_int == 404
    assert headers(missing) == headers(nova(f"{PATH}/metadata/nothing", version=60))
    assert missing.body == nova(f"{PATH}/metadata/nothing", version=60).body


def test_other_projects_and_other_servers(nova: Ask) -> None:
    for path in (PATH, f"{PATH}/metadata", f"{PATH}/metadata/trust:verdict"):
        other = nova(path, HTTP_X_AUTH_TOKEN="another")
        assert other.status_int == 404
        assert b"trust" not in other.body
        assert nova(path.replace(str(SERVER), str(uuid.UUID(int=9)))).status_int == 404
        assert nova(path, version=999).status_int == 406


def test_stored_forgeries_are_never_shown(nova: Ask, without: Ask, stored: Any) -> None:
    stored.metadata = {"trust:verdict": "trusted", "Trust:note": "all is well", "role": "web"}
    assert b'"trust:verdict": "trusted"' in without(PATH).body
    for path in (PATH, "/v2.1/servers/detail", f"{PATH}/metadata", f"/v2/servers/{SERVER}", f"{PATH}%0A"):
        shown = nova(path)
        assert shown.status_int == 200
        assert b'"trust:verdict": "untrusted"' in shown.body
        assert b'"trust:verdict": "trusted"' not in shown.body
        assert b"all is well" not in shown.body
    assert nova(f"{PATH}/metadata/Trust:note").status_int == 404


# Each of them works in Nova alone: the attack is real.
ATTACKS = [
    (f"{PATH}/metadata", "POST", {"metadata": {"trust:verdict": "trusted"}}),
    (f"{PATH}/metadata", "PUT", {"metadata": {"trust:verdict": "trusted"}}),
    (f"{PATH}/metadata/trust:verdict", "PUT", {"meta": {"trust:verdict": "trusted"}}),
    (f"{PATH}/metadata", "POST", {"metadata": {" Trust:verdict": "trusted"}}),
    (f"{PATH}/metadata", "POST", {"metadata": {"trust:verdict\n": "trusted"}}),
    (f"{PATH}/metadata?_method=PUT", "POST", {"metadata": {"trust:verdict": "trusted"}}),
    (f"{PATH}/metadata/trust:verdict?_method=PUT", "POST", {"meta": {"trust:verdict": "trusted"}}),
    (f"{PATH}/metadata/trust:verdict%0A", "PUT", {"meta": {"trust:verdict": "trusted"}}),
    (f"/v2/{PROJECT}/servers/{SERVER}/metadata", "POST", {"metadata": {"trust:verdict": "trusted"}}),
]


@pytest.mark.parametrize(("path", "method", "body"), ATTACKS)
def test_nobody_writes_our_prefix(
    path: str, method: str, body: Any, nova: Ask, without: Ask, stored: Any
) -> None:
    answer = nova(path, method, body, version=2)
    assert (answer.status_int, answer.json["forbidden"]["code"]) == (403, 403)
    assert stored.metadata == STORED
    assert without(path, method, body).status_int == 200
    assert any("trust" in name.lower() for name in stored.metadata)


@pytest.mark.parametrize("method", ["DELETE", "GET", "POST"])
def test_nobody_deletes_what_is_ours(method: str, nova: Ask, without: Ask, stored: Any) -> None:
    path = f"{PATH}/metadata/trust:old" + ("" if method == "DELETE" else "?_method=DELETE")
    stored.metadata = {"trust:old": "1"}
    assert nova(path, method).status_int == 403
    assert stored.metadata == {"trust:old": "1"}
    # Nova hands a body to whatever a POST is routed to, and this method takes none.
    assert without(path, method).status_int == (500 if method == "POST" else 204)


def test_a_form_changes_no_method(nova: Ask, stored: Any) -> None:
    answer = nova(
        f"{PATH}/metadata", "POST", b"_method=PUT", CONTENT_TYPE="application/x-www-form-urlencoded"
    )
    assert answer.status_int == 415
    assert stored.metadata == STORED


def test_the_old_api_has_no_headers_of_versions(nova: Ask, without: Ask) -> None:
    path = f"/v2/servers/{SERVER}"
    assert headers(nova(path, version=90)) == headers(without(path, version=90))
    refused = nova(f"{path}/metadata/trust:x", "DELETE", version=90)
    assert refused.status_int == 403
    assert not {"OpenStack-API-Version", "Vary"} & set(refused.headers)


def test_below_another_path(nova: Ask) -> None:
    shown = nova(PATH, SCRIPT_NAME="/compute")
    assert shown.json["server"]["metadata"]["trust:verdict"] == "untrusted"


def test_errors_are_novas_own(nova: Ask, without: Ask) -> None:
    for path, method, body in (
        ("/v2.1/servers/x", "GET", None),
        ("/v2.1/servers/detail?limit=x", "GET", None),
        (f"{PATH}/metadata/", "GET", None),
        (PATH, "HEAD", None),
        (f"{PATH}/metadata", "POST", {"metadata": {"bad/key": "1"}}),
        (f"{PATH}/metadata", "POST", [1]),
        (f"{PATH}/action", "POST", {"rebuild": {}, "os-stop": None}),
    ):
        plain, changed = without(path, method, body), nova(path, method, body)
        assert plain.status_int >= 400
        assert (changed.status, headers(changed), changed.body) == (plain.status, headers(plain), plain.body)


def test_the_metadata_service_is_left_alone() -> None:
    changed = nova_api.with_filter(nova_api.api_paste())
    lines = [line for line in changed.splitlines() if " trust " in line]
    assert len(lines) == 2
    assert all(line.startswith("keystone = ") for line in lines)
    assert "pipeline = cors http_proxy_to_wsgi metaapp" in changed


def test_the_time_of_the_check(nova: Ask) -> None:
    shown = nova(PATH).json["server"]["metadata"]["trust:checked_at"]
    assert abs(datetime.fromisoformat(shown).timestamp() - time.time()) < 600
