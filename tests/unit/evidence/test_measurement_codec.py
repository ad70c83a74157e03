# SPDX-License-Identifier: Apache-2.0
"""Measurements survive the wire, and nothing else gets through."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from typing import Any

import evidence_examples as example
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.evidence import measurement as model
from nova_vmi_attest.evidence import measurement_codec as codec
from nova_vmi_attest.evidence.encoding import EncodingError
from nova_vmi_attest.evidence.measurement import Finding, Integrity, Measurement, Module, Process

from .hostile import bounded, json_values, mutated

numbers = st.integers(0, encoding.MAX_INTEGER)
u32 = st.integers(0, 2**32 - 1)
hexdigests = st.binary(min_size=32, max_size=32).map(bytes.hex)
samples = st.binary(max_size=32)


def text(maximum: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=maximum)


findings = st.builds(
    Finding, text(64), text(256), st.integers(-encoding.MAX_INTEGER, encoding.MAX_INTEGER), numbers,
    st.integers(0, 2**64 - 1), samples, samples, text(60),
)  # fmt: skip
checks = st.builds(
    model.CheckResult, text(64), st.sampled_from(model.Outcome), numbers,
    st.lists(findings, max_size=3).map(tuple), numbers, text(60),
)  # fmt: skip
integrities = st.builds(
    Integrity,
    status=st.sampled_from(model.Status),
    reason=st.none() | st.sampled_from(model.Unmeasured),
    detail=text(60),
    kernel=st.none() | st.builds(model.KernelIdentity, hexdigests, text(128), text(40)),
    checks=st.lists(checks, max_size=3).map(tuple),
    modules=st.lists(st.builds(Module, text(64), st.just("") | hexdigests, numbers), max_size=3).map(tuple),
    code_bytes=numbers,
    unexplained_bytes=numbers,
)
inventories = st.builds(
    model.Inventory,
    st.lists(st.builds(Process, u32, text(64), u32, text(60)), max_size=4).map(tuple),
    numbers,
)
measurements = st.builds(
    Measurement,
    st.uuids(),
    integrities,
    inventories,
    st.builds(model.Observation, text(64), numbers, numbers),
)
EXAMPLES = (example.healthy(), example.altered(), example.booting())


@bounded
@given(measurements)
def test_measurements_survive(measurement: Measurement) -> None:
    value = codec.encode_measurement(measurement)
    assert codec.decode_measurement(encoding.parse(encoding.canonical(value), 1 << 20)) == measurement


@bounded
@given(st.one_of(*(mutated(codec.encode_measurement(item)) for item in EXAMPLES)) | json_values)
def test_changed_measurements_are_read_or_refused(value: Any) -> None:
    try:
        measurement = codec.decode_measurement(value)
    except EncodingError:
        return
    assert codec.encode_measurement(measurement) == value


@bounded
@given(mutated(codec.encode_measurement(example.altered())))
def test_another_measurement_has_another_digest(value: Any) -> None:
    try:
        measurement = codec.decode_measurement(value)
    except EncodingError:
        return
    same = measurement == example.altered()
    assert (codec.measurement_digest(measurement) == codec.measurement_digest(example.altered())) == same


def test_digests_are_those_that_are_documented() -> None:
    measurement = example.healthy()
    value = codec.encode_measurement(measurement)
    sections = {
        name: hashlib.sha256(b"nova-vmi-attest %s v1\0" % name.encode() + rfc8785.dumps(value[name])).digest()
        for name in ("integrity", "inventory", "observation")
    }
    assert codec.section_digests(measurement) == sections
    whole = {"format": 1, "guest": str(measurement.guest)} | {k: v.hex() for k, v in sections.items()}
    data = b"nova-vmi-attest measurement v1\0" + rfc8785.dumps(whole)
    assert codec.measurement_digest(measurement) == hashlib.sha256(data).digest()


def test_sections_change_apart() -> None:
    measurement = example.healthy()
    later = dataclasses.replace(
        measurement, observation=dataclasses.replace(measurement.observation, bytes_read=1)
    )
    before, after = codec.section_digests(measurement), codec.section_digests(later)
    assert [name for name in before if before[name] != after[name]] == ["observation"]
    assert codec.measurement_digest(measurement) != codec.measurement_digest(later)


def hostile_integrity(**change: Any) -> Measurement:
    measurement = example.altered()
    return dataclasses.replace(measurement, integrity=dataclasses.replace(measurement.integrity, **change))


FINDING = example.altered().integrity.checks[0].findings[0]
CHECK = example.altered().integrity.checks[0]


@pytest.mark.parametrize(
    "measurement",
    [
        hostile_integrity(detail="x" * 513),
        hostile_integrity(detail="a\x1b[2Jb"),
        hostile_integrity(detail="\ud800"),
        hostile_integrity(code_bytes=2**53),
        hostile_integrity(code_bytes=-1),
        hostile_integrity(checks=(CHECK,) * 65),
        hostile_integrity(modules=(Module("m", "", 1),) * 4097),
        hostile_integrity(modules=(Module("m", "zz", 1),)),
        hostile_integrity(modules=(Module("m" * 65, "", 1),)),
        hostile_integrity(kernel=model.KernelIdentity("", "6.1", "")),
        hostile_integrity(checks=(dataclasses.replace(CHECK, findings=(FINDING,) * 65),)),
        *(
            hostile_integrity(
                checks=(dataclasses.replace(CHECK, findings=(dataclasses.replace(FINDING, **change),)),)
            )
            for change in (
                {"address": 2**64}, {"address": -1}, {"expected": bytes(33)}, {"length": -1},
                {"symbol": "s" * 257},
            )
        ),
        *(
            dataclasses.replace(example.healthy(), inventory=model.Inventory(processes))
            for processes in (
                (Process(1, "p", 0, ""),) * 4097,
                (Process(-1, "p", 0, ""),),
                (Process(1, "p\n", 0, ""),),
                (Process(1, "p", 2**32, ""),),
                (Process(1, "p", 0, "/" * 4097),),
            )
        ),
    ],
)  # fmt: skip
def test_out_of_bounds_is_refused_where_it_was_read(measurement: Measurement) -> None:
    with pytest.raises(EncodingError):
        codec.encode_measurement(measurement)


@pytest.mark.parametrize("value", [[], [1, "p", 0], [1, "p", 0, "", 0], {"pid": 1}, None, "abcd"])
def test_rows_have_one_length(value: object) -> None:
    whole = codec.encode_measurement(example.healthy())
    whole["inventory"]["processes"] = [value]
    with pytest.raises(EncodingError, match="a process is not an array of 4"):
        codec.decode_measurement(whole)


def test_guest_is_part_of_the_digest() -> None:
    other = dataclasses.replace(example.healthy(), guest=uuid.UUID(int=9))
    assert codec.section_digests(other) == codec.section_digests(example.healthy())
    assert codec.measurement_digest(other) != codec.measurement_digest(example.healthy())
