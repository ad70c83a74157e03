# SPDX-License-Identifier: Apache-2.0
"""A strategy for bytes that are nearly right: they get deeper into a parser than arbitrary ones."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError

_INTERESTING = st.sampled_from(
    [b"\0", b"\xff", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff" * 8, b"\x7f"]
)


def refusal(use: Callable[[], object]) -> str | None:
    """The message of the typed error that ``use`` raises, or None; any other error is the test's failure."""
    try:
        use()
    except AttestError as error:
        return error.message
    return None


@st.composite
def mutated(draw: st.DrawFn, original: bytes, around: tuple[int, int] | None = None) -> bytes:
    """``original`` with a few places overwritten (between the offsets ``around``, when given), or cut off."""
    low, high = around or (0, len(original))
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(low, min(high, len(original) - 1)))
        piece = draw(st.one_of(_INTERESTING, st.binary(min_size=1, max_size=8)))
        data[at : at + len(piece)] = piece
    if draw(st.integers(0, 9)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)
