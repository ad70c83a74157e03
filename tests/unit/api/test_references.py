# SPDX-License-Identifier: Apache-2.0
"""Kernels are approved by uploading their package, within bounds, and withdrawn by their digest."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from nova_vmi_attest.references.manifest import Manifest
from nova_vmi_attest.references.store import ReferenceStore
from tests.unit.api.cloud import Api
from tests.unit.references.packages import kernel_deb

KIND = "application/octet-stream"


@pytest.fixture(scope="module")
def package() -> bytes:
    return kernel_deb()


def upload(api: Api, data: bytes, **arguments: Any) -> Any:
    return api.request(
        "POST", "/v1/references", api.login("admin"), data=data, content_type=KIND, **arguments
    )


def test_a_package_is_approved_listed_shown_and_withdrawn(empty_api: Api, package: bytes) -> None:
    api, admin = empty_api, empty_api.login("admin")
    made = upload(api, package)
    assert made.status_code == 201
    path = f"/v1/references/{made.json['digest']}"
    assert made.headers["Location"].endswith(path)
    listed = api.get("/v1/references", api.login("reader")).json["references"]
    assert [item["digest"] for item in listed] == [made.json["digest"]]
    assert api.get(path, api.login("reader")).json == made.json
    assert api.request("DELETE", path, admin).status_code == 204
    assert api.request("DELETE", path, admin).status_code == 404
    assert api.get("/v1/references", admin).json["references"] == []


@pytest.mark.parametrize("data", [b"x", b"!<arch>\n", b"\x1f\x8b" * 100, b"\xed\xab\xee\xdb" + bytes(200)])
def test_what_is_no_kernel_package_is_not_approved(empty_api: Api, data: bytes) -> None:
    answer = upload(empty_api, data)
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")
    assert "/tmp" not in answer.text
    assert empty_api.get("/v1/references", empty_api.login("reader")).json["references"] == []


def test_nothing_is_left_of_an_upload(empty_api: Api, package: bytes, tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    directory.mkdir()
    empty_api.conf.set_override("upload_path", str(directory), "api")
    assert [upload(empty_api, data).status_code for data in (package, b"x")] == [201, 400]
    assert list(directory.iterdir()) == []


def test_a_directory_for_uploads_that_is_not_there(empty_api: Api, package: bytes, tmp_path: Path) -> None:
    empty_api.conf.set_override("upload_path", str(tmp_path / "none"), "api")
    answer = upload(empty_api, package)
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text


def test_a_package_that_is_too_large_is_not_read(empty_api: Api) -> None:
    empty_api.conf.set_override("max_upload", 1 << 20, "api")
    stream = io.BytesIO(bytes((1 << 20) + 1))
    answer = empty_api.request(
        "POST", "/v1/references", empty_api.login("admin"), input_stream=stream, content_type=KIND,
        content_length=(1 << 20) + 1,
    )  # fmt: skip
    assert (answer.status_code, stream.tell()) == (413, 0)


def test_a_package_without_a_length(empty_api: Api) -> None:
    answer = empty_api.request("POST", "/v1/references", empty_api.login("admin"), content_type=KIND)
    assert answer.status_code == 411


def test_a_package_that_ends_early(empty_api: Api) -> None:
    answer = empty_api.request(
        "POST", "/v1/references", empty_api.login("admin"), input_stream=io.BytesIO(b"x"), content_type=KIND,
        content_length=100,
    )  # fmt: skip
    assert answer.status_code == 400


def test_one_package_at_a_time_and_the_next_after_it(
    empty_api: Api, package: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, meanwhile = ReferenceStore.import_package, []

    def slow(store: ReferenceStore, path: Path) -> Manifest:
        meanwhile.append(upload(empty_api, package))
        return read(store, path)

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceStore, "import_package", slow)
        assert upload(empty_api, package).status_code == 201
    assert [(answer.status_code, answer.headers["Retry-After"]) for answer in meanwhile] == [(503, "60")]
    assert upload(empty_api, package).status_code == 201


def test_references_have_pages(empty_api: Api, package: bytes) -> None:
    first = upload(empty_api, package).json["digest"]
    token = empty_api.login("reader")
    page = empty_api.get(f"/v1/references?limit=1&marker={'0' * 64}", token).json
    assert [item["digest"] for item in page["references"]] == [first]
    assert empty_api.get(f"/v1/references?marker={first}", token).json["references"] == []


def test_a_store_that_cannot_be_read(empty_api: Api, tmp_path: Path) -> None:
    file = tmp_path / "references"
    file.mkdir(exist_ok=True)
    (file / "manifests").write_text("a file")
    answer = empty_api.get("/v1/references", empty_api.login("reader"))
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text
