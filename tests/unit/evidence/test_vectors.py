# SPDX-License-Identifier: Apache-2.0
"""The code against the vectors that are checked in, and the vectors against the script that makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import make_vectors
import pytest
import token_vectors
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from nova_vmi_attest.evidence import challenge, encoding, keys, log, measurement_codec, merkle, result
from nova_vmi_attest.evidence.batch import Batch
from nova_vmi_attest.evidence.leaf import guest_leaf
from nova_vmi_attest.evidence.log import LogEntry
from nova_vmi_attest.evidence.proof import GuestProof, ProofError, verify_proof
from nova_vmi_attest.tpm.quote import QuoteError, verify_quote


def load(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((make_vectors.DIRECTORY / f"{name}.json").read_text("utf-8"))
    return value


def of(name: str, member: str) -> list[Any]:
    values: list[Any] = load(name)[member]
    return values


def public(pem: str) -> Any:
    return load_pem_public_key(pem.encode())


@pytest.mark.parametrize("name", make_vectors.VECTORS)
def test_script_reproduces_the_file(name: str) -> None:
    assert (make_vectors.DIRECTORY / f"{name}.json").read_text("utf-8") == make_vectors.render(name)


def test_script_writes_all_files(tmp_path: Path) -> None:
    assert make_vectors.main([str(tmp_path)]) == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in make_vectors.DIRECTORY.iterdir()}


@pytest.mark.parametrize("case", of("encoding", "cases"))
def test_encoding(case: dict[str, str]) -> None:
    data = bytes.fromhex(case["canonical"])
    assert encoding.digest(encoding.parse(data, len(data))).hex() == case["sha256"]


@pytest.mark.parametrize("case", of("encoding", "refused"), ids=lambda case: case["why"])
def test_encoding_refuses(case: dict[str, str]) -> None:
    with pytest.raises(encoding.EncodingError):
        encoding.parse(bytes.fromhex(case["input"]), 1000)


@pytest.mark.parametrize("tree", of("merkle", "trees"), ids=lambda tree: tree["size"])
def test_merkle(tree: dict[str, Any]) -> None:
    hashes = [bytes.fromhex(leaf) for leaf in of("merkle", "leaf_hashes")][: tree["size"]]
    root = bytes.fromhex(tree["root"])
    assert merkle.tree_root(hashes) == root
    for index, nodes in enumerate(tree["paths"]):
        merkle.verify_inclusion(hashes[index], index, tree["size"], [bytes.fromhex(n) for n in nodes], root)


@pytest.mark.parametrize("case", of("keys", "keys"), ids=lambda case: case["label"])
def test_keys(case: dict[str, str]) -> None:
    key: Any = load_pem_private_key(case["private"].encode(), None)
    assert key.public_key() == public(case["public"])
    assert keys.thumbprint(key.public_key()).hex() == case["thumbprint"]
    assert key.public_key() in keys.decode_jwks(load("keys")["jwks"].encode())


@pytest.mark.parametrize("case", of("challenge", "bindings"), ids=lambda case: case["host"])
def test_binding(case: dict[str, Any]) -> None:
    nonces = [bytes.fromhex(nonce) for nonce in case["nonces"]]
    assert challenge.binding(case["host"], bytes.fromhex(case["verifier"]), nonces).hex() == case["binding"]


def test_challenge() -> None:
    case = load("challenge")["challenge"]
    found, _ = challenge.verify_challenge(case["token"], [public(case["public"])], case["host"], case["now"])
    assert (found.nonce.hex(), found.since, found.issued, found.expires) == (
        case["nonce"],
        case["since"],
        case["issued"],
        case["expires"],
    )


@pytest.mark.parametrize("bad", of("challenge", "refused"), ids=lambda case: case["why"])
def test_challenge_refuses(bad: dict[str, str]) -> None:
    case = load("challenge")["challenge"]
    with pytest.raises(challenge.ChallengeError):
        challenge.verify_challenge(bad["token"], [public(case["public"])], case["host"], case["now"])


@pytest.mark.parametrize("case", of("measurement", "measurements"), ids=range(3))
def test_measurement_and_leaf(case: dict[str, Any]) -> None:
    measurement = measurement_codec.decode_measurement(encoding.parse(case["encoded"].encode(), 1 << 20))
    sections = measurement_codec.section_digests(measurement)
    digest = measurement_codec.measurement_digest(measurement)
    salt, binding = bytes.fromhex(case["salt"]), bytes.fromhex(case["binding"])
    assert {name: value.hex() for name, value in sections.items()} == case["sections"]
    assert digest.hex() == case["digest"]
    assert guest_leaf(salt, measurement.guest, digest, binding).hex() == case["leaf"]


def test_log() -> None:
    vectors = load("log")
    entries = [LogEntry.decode(record["encoded"].encode()) for record in vectors["records"]]
    log.check_chain(entries, bytes(32), 0)
    value = bytes.fromhex(vectors["initial"])
    for entry, record in zip(entries, vectors["records"], strict=True):
        value = log.extend(value, entry.digest)
        assert (entry.digest.hex(), value.hex()) == (record["digest"], record["pcr"])


def quote_arguments(case: dict[str, Any]) -> tuple[Any, bytes, bytes, bytes, dict[int, bytes]]:
    octets = [bytes.fromhex(case[name]) for name in ("attest", "signature", "qualifying_data")]
    pcrs = {int(index): bytes.fromhex(value) for index, value in case["pcrs"].items()}
    return public(case["public"]), octets[0], octets[1], octets[2], pcrs


@pytest.mark.parametrize("case", of("quote", "quotes"), ids=lambda case: case["name"])
def test_quote(case: dict[str, Any]) -> None:
    arguments = quote_arguments(case)
    assert verify_quote(*arguments).pcrs == arguments[-1]


@pytest.mark.parametrize("case", of("quote", "refused"), ids=lambda case: case["name"])
def test_quote_refuses(case: dict[str, Any]) -> None:
    with pytest.raises(QuoteError, match=f"^step {case['step']},"):
        verify_quote(*quote_arguments(case))


def test_batch() -> None:
    vectors = load("batch")
    batch = Batch.decode(vectors["encoded"].encode())
    assert batch.binding.hex() == vectors["binding"]
    assert [leaf.hex() for leaf in batch.leaves] == vectors["leaves"]
    assert merkle.tree_root(batch.leaves).hex() == batch.entry.root.hex() == vectors["root"]
    assert log.replay(bytes(32), batch.entries).hex() == vectors["log_pcr"]
    assert batch.quote.pcrs[batch.entry.pcr].hex() == vectors["log_pcr"]


def proof_of(encoded: str) -> Any:
    vectors = load("proof")
    ca = x509.load_pem_x509_certificate(vectors["ca"].encode())
    nonce = bytes.fromhex(vectors["nonce"])
    return verify_proof(GuestProof.decode(encoded.encode()), [ca], nonce, vectors["now"])


def test_proof() -> None:
    vectors = load("proof")
    measurement = proof_of(vectors["encoded"])
    assert measurement_codec.measurement_digest(measurement).hex() == vectors["measurement_digest"]


@pytest.mark.parametrize("bad", of("proof", "refused"), ids=lambda case: case["why"])
def test_proof_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ProofError, match=f"^step {bad['step']},"):
        proof_of(bad["encoded"])


def test_result() -> None:
    vectors = load("result")
    trusted = [public(vectors["public"])]
    found = result.verify_result(vectors["token"], trusted, vectors["audience"], vectors["now"])
    assert found == token_vectors.example_result()
    assert vectors["token"].split(".")[1] == encoding.base64url(vectors["claims"].encode())


@pytest.mark.parametrize("bad", of("result", "refused"), ids=lambda case: case["why"])
def test_result_refuses(bad: dict[str, str]) -> None:
    vectors = load("result")
    trusted = [public(vectors["public"])]
    with pytest.raises(result.ResultError):
        result.verify_result(bad["token"], trusted, vectors["audience"], vectors["now"])
