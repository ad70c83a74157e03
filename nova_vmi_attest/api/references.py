# SPDX-License-Identifier: Apache-2.0
"""``/v1/references``: the kernels that servers may run. A kernel is approved by being in the store.

The store is a directory that the API shares with the verifiers. A package goes to a temporary file first, so
that its size is bounded before anything reads it; what it holds is checked by the store.
"""

from __future__ import annotations

import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from oslo_log import log

from nova_vmi_attest.api import schemas
from nova_vmi_attest.api.operations import Answer, Call, Operation, Parameter
from nova_vmi_attest.api.problems import Problem, not_found, unavailable
from nova_vmi_attest.api.schemas import object_of, page, page_of
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.policies import references as rules
from nova_vmi_attest.references.manifest import Manifest
from nova_vmi_attest.references.store import StoreError

LOG = log.getLogger(__name__)

_PIECE = 1 << 20

_LISTED = {
    "digest": {**schemas.DIGEST, "description": "Of the manifest; the name of the reference everywhere."},
    "release": schemas.TEXT,
    "build_id": schemas.TEXT,
    "package": schemas.TEXT,
    "version": schemas.TEXT,
    "package_digest": {**schemas.DIGEST, "description": "SHA-256 of the package that was imported."},
    "modules": schemas.COUNT,
}
_REFERENCE = object_of(
    {
        **_LISTED,
        "image_digest": schemas.DIGEST,
        "banner_digest": schemas.DIGEST,
        "module_digests": {
            "type": "object",
            "additionalProperties": schemas.DIGEST,
            "description": "SHA-256 of each module's file, by the module's name.",
        },
    }
)


def _list(call: Call) -> Answer:
    limit, after = schemas.limit_of(call), call.query.get("marker", "")
    try:
        manifests = call.services.references.manifests()
    except StoreError as error:
        raise _unusable(error) from error
    found = sorted((item for item in manifests if item.digest > after), key=lambda item: item.digest)
    following = found[limit - 1].digest if len(found) > limit else None
    documents = [_listed(item) for item in found[:limit]]
    return Answer(page(call, "/v1/references", "references", documents, following))


def _show(call: Call) -> Answer:
    return Answer(_document(_manifest(call)))


def _import(call: Call) -> Answer:
    if not call.services.uploads.acquire(blocking=False):
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "another package is being read",
            "come again in a minute",
            {"Retry-After": "60"},
        )
    try:
        manifest = _import_stream(call)
    finally:
        call.services.uploads.release()
    LOG.info("user %s approved kernel %s as %s", call.context.user_id, manifest.release, manifest.digest)
    return Answer(_document(manifest), {"Location": f"{call.base}/v1/references/{manifest.digest}"})


def _import_stream(call: Call) -> Manifest:
    directory = call.services.conf.api.upload_path or None
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix="nova-vmi-attest-") as file:
            _receive(call, file.file)
            return call.services.references.import_package(Path(file.name))
    except StoreError as error:
        raise _unusable(error) from error
    except OSError as error:
        LOG.error("a package cannot be kept while it is read: %s", error)
        raise unavailable() from error
    except Problem:
        raise
    except AttestError as error:
        message = error.message.replace(file.name, "the package")
        raise Problem(HTTPStatus.BAD_REQUEST, message, error.remedy) from error


def _receive(call: Call, file: IO[bytes]) -> None:
    left = call.length
    while left > 0:
        piece = call.stream.read(min(left, _PIECE))
        if not piece:
            raise Problem(HTTPStatus.BAD_REQUEST, "the package ended before its length", "send it again")
        file.write(piece)
        left -= len(piece)
    file.flush()


def _delete(call: Call) -> Answer:
    manifest = _manifest(call)
    try:
        call.services.references.delete(manifest.digest)
    except StoreError as error:
        raise _unusable(error) from error
    LOG.info("user %s withdrew kernel %s, %s", call.context.user_id, manifest.release, manifest.digest)
    return Answer()


def _manifest(call: Call) -> Manifest:
    found = call.path["digest"]
    store = call.services.references
    try:
        known = {item.digest: item for item in store.manifests()}
    except StoreError as error:
        raise _unusable(error) from error
    if found not in known:
        raise not_found("the reference")
    return known[found]


def _unusable(error: StoreError) -> Problem:
    LOG.error("the references cannot be used: %s", error)
    return unavailable()


def _listed(manifest: Manifest) -> dict[str, Any]:
    return {
        "digest": manifest.digest,
        "release": manifest.release,
        "build_id": manifest.build_id,
        "package": manifest.source.package,
        "version": manifest.source.version,
        "package_digest": manifest.source.digest,
        "modules": len(manifest.modules),
    }


def _document(manifest: Manifest) -> dict[str, Any]:
    return {
        **_listed(manifest),
        "image_digest": manifest.image.digest,
        "banner_digest": manifest.banner_digest,
        "module_digests": {module.name: module.digest for module in manifest.modules},
    }


_ONE = (Parameter("digest", schemas.DIGEST, "Digest of the reference."),)

OPERATIONS = (
    Operation(
        "GET", "/v1/references", "list_references", "List approved kernels, by digest", _list, rules.LIST,
        query=(schemas.LIMIT, schemas.marker(schemas.DIGEST)),
        answer=page_of("references", object_of(_LISTED)),
    ),
    Operation(
        "POST", "/v1/references", "import_reference", "Approve the kernel in a package (.deb, .rpm)",
        _import, rules.IMPORT, upload=True, status=201, answer=_REFERENCE,
        problems={411: "The size of the package is missing."},
    ),
    Operation(
        "GET", "/v1/references/{digest}", "show_reference", "Show an approved kernel and its modules", _show,
        rules.SHOW, _ONE, answer=_REFERENCE,
    ),
    Operation(
        "DELETE", "/v1/references/{digest}", "delete_reference", "Withdraw the approval of a kernel", _delete,
        rules.DELETE, _ONE, status=204,
    ),
)  # fmt: skip
