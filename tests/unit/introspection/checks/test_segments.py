# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from nova_vmi_attest.introspection.checks.segments import _legal

TASK_LOW, TASK_HIGH = 0x8B0030004087, 0xFFFFFE00


def legal(index: int, value: int) -> bool:
    table = np.zeros(512, np.uint64)
    table[index] = value
    return _legal(index, table)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (8, TASK_LOW),
        (8, 0x890030004087),
        (9, TASK_HIGH),
        (10, 0),
        (10, 0x82FFFF0000FFFF & ~(0xFF << 40) | 0x82 << 40),
        (11, TASK_HIGH),
        (12, 0),
        (13, 0xCFF3000000FFFF),
        (15, 0x40F50000000001),
    ],
)
def test_what_the_kernel_writes_is_legal(index: int, value: int) -> None:
    assert legal(index, value)


@pytest.mark.parametrize("index", [*range(8), 8, 10, 12, 13, 14, 15, 16, 511])
@pytest.mark.parametrize("kind", [0x8C, 0xEC, 0xE5, 0xEE, 0xEF])
def test_a_gate_is_not(index: int, kind: int) -> None:
    assert not legal(index, kind << 40 | 0x100000)


@pytest.mark.parametrize("index", [2, 16, 400])
def test_code_beyond_the_table_or_in_the_place_of_the_kernels_is_not(index: int) -> None:
    assert not legal(index, 0xAF9B000000FFFE)


@pytest.mark.parametrize("index", [9, 11])
def test_the_upper_half_of_an_address_has_nothing_above_it(index: int) -> None:
    assert not legal(index, 0xEC00 << 32 | TASK_HIGH)
