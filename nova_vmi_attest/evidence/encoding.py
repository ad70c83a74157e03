# SPDX-License-Identifier: Apache-2.0
"""The one form in which a value is hashed and sent: RFC 8785 canonical JSON, read back without leniency.

The values are objects, arrays, strings, booleans, null and integers within 2^53. There are no floats:
addresses travel as "0x…" strings, octets as unpadded base64url, digests as lowercase hex. Object keys are
ASCII. Within these limits RFC 8785 is what the standard library's encoder writes with sorted keys and no
white space, which is much faster than a general implementation; a test holds the two against each other.

A reader accepts only the bytes that the writer would have produced, so a value has one encoding and a digest
of it means the same to everybody. The accessors below are what every decoder is made of: each takes one
member of an object, checks type and bounds, and names the member in its error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import uuid as uuid_module
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from nova_vmi_attest.errors import AttestError

MAX_INTEGER = (1 << 53) - 1
MAX_DEPTH = 32
# How many arrays, objects and further members are read: what takes two bytes here takes a hundred in memory.
MAX_ITEMS = 1 << 22
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"0x(0|[1-9a-f][0-9a-f]{0,15})")
# What moves the cursor, hides or reorders other text. A fixed list: whether a character is "printable" to
# Python depends on its version of Unicode, and host and verifier may differ in that.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


class EncodingError(AttestError):
    """A value has no canonical form, or bytes are not the canonical form of an acceptable value."""


def canonical(value: Any) -> bytes:
    """The RFC 8785 encoding of ``value``.

    :raises EncodingError: for a float, an integer beyond 2^53, a key that is not ASCII text, a string with a
        lone surrogate, nesting beyond 32 levels, or a type that JSON does not have.
    """
    _check(value, MAX_DEPTH)
    return _dump(value)


def digest(value: Any) -> bytes:
    """SHA-256 of the canonical encoding."""
    return hashlib.sha256(canonical(value)).digest()


def tagged_digest(tag: str, value: Any) -> bytes:
    """SHA-256 of ``"nova-vmi-attest " ‖ tag ‖ 0x00 ‖ canonical(value)``: one tag for each kind of value."""
    return hashlib.sha256(b"nova-vmi-attest " + tag.encode("ascii") + b"\0" + canonical(value)).digest()


def parse(data: bytes, limit: int) -> dict[str, Any]:
    """The object that ``data`` is the canonical encoding of.

    :param limit: the most bytes to look at; a longer input is refused unread.
    :raises EncodingError: if the input is too long, not UTF-8, not JSON, not an object, not canonical, nested
        deeper than 32 levels, has a duplicate key, a float, or an integer beyond 2^53.
    """
    if len(data) > limit:
        raise EncodingError(f"{len(data)} bytes where at most {limit} are accepted")
    if sum(map(data.count, (b"[", b"{", b","))) > MAX_ITEMS:
        raise EncodingError(f"more than {MAX_ITEMS} values")
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise EncodingError(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise EncodingError(f"nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise EncodingError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EncodingError("not a JSON object")
    _check_containers(value)
    if _dump(value) != data:  # a key that occurs twice is lost in the value, and found here
        raise EncodingError("not in canonical form (RFC 8785), or a key occurs twice in an object")
    return value


def base64url(data: bytes) -> str:
    """Unpadded base64url (RFC 4648 section 5), as RFC 7515 uses it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(value: str, maximum: int) -> bytes:
    """The inverse of :func:`base64url`; only the one encoding of each octet string is accepted.

    :param maximum: the most octets to accept.
    :raises EncodingError: otherwise.
    """
    if len(value) > (maximum * 4 + 2) // 3:
        raise EncodingError(f"more than {maximum} octets")
    try:
        data = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except (binascii.Error, ValueError) as error:
        raise EncodingError("not base64url") from error
    if base64url(data) != value:
        raise EncodingError("not unpadded base64url")
    return data


def visible(value: str) -> bool:
    """Whether a string holds no control, format, bidirectional, tag or surrogate characters.

    All that ``str.isprintable`` accepts is visible, whatever the version of Unicode.
    """
    return value.isprintable() or _HIDDEN.search(value) is None


# -- one member of an object ---------------------------------------------------------------------------------


def exact_keys(value: Any, names: Iterable[str], what: str) -> dict[str, Any]:
    """``value`` as an object with exactly the members ``names``; ``what`` names it in the error."""
    if not isinstance(value, dict):
        raise EncodingError(f"{what} is not an object")
    expected = frozenset(names)
    if value.keys() != expected:
        missing = sorted(expected - value.keys())
        unknown = sorted(str(name)[:64] for name in value.keys() - expected)
        raise EncodingError(f"{what} lacks {missing[:8]} and has unknown {unknown[:8]}")
    return value


def text(value: Mapping[str, Any], name: str, maximum: int) -> str:
    """A string of at most ``maximum`` code points, all of them visible (see :func:`visible`)."""
    member = _member(value, name)
    if not isinstance(member, str) or len(member) > maximum or not visible(member):
        raise EncodingError(f"{name} is not visible text of at most {maximum} characters")
    return member


def integer(value: Mapping[str, Any], name: str, low: int = 0, high: int = MAX_INTEGER) -> int:
    """An integer with ``low <= x <= high``."""
    member = _member(value, name)
    if type(member) is not int or not low <= member <= high:
        raise EncodingError(f"{name} is not an integer from {low} to {high}")
    return member


def octets(value: Mapping[str, Any], name: str, maximum: int, minimum: int = 0) -> bytes:
    """Base64url octets, ``minimum`` to ``maximum`` of them."""
    member = _member(value, name)
    if not isinstance(member, str):
        raise EncodingError(f"{name} is not base64url text")
    try:
        data = from_base64url(member, maximum)
    except EncodingError as error:
        raise EncodingError(f"{name}: {error.message}") from error
    if len(data) < minimum:
        raise EncodingError(f"{name} has {len(data)} octets where at least {minimum} are needed")
    return data


def hexdigest(value: Mapping[str, Any], name: str) -> bytes:
    """A SHA-256 digest: 64 lowercase hex digits on the wire, 32 bytes here."""
    return bytes.fromhex(hexdigest_text(_member(value, name), name))


def hexdigest_text(value: Any, name: str) -> str:
    """``value`` as the 64 lowercase hex digits of a SHA-256 digest."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise EncodingError(f"{name} is not a SHA-256 digest in lowercase hex")
    return value


def address(value: Mapping[str, Any], name: str) -> int:
    """An unsigned 64-bit number written as "0x…" without leading zeros."""
    member = _member(value, name)
    if not isinstance(member, str) or not _ADDRESS.fullmatch(member):
        raise EncodingError(f"{name} is not an address of the form 0x…")
    return int(member, 16)


def uuid(value: Mapping[str, Any], name: str) -> uuid_module.UUID:
    """A UUID in lowercase with hyphens."""
    member = _member(value, name)
    try:
        parsed = uuid_module.UUID(member)
    except (ValueError, AttributeError, TypeError) as error:
        raise EncodingError(f"{name} is not a UUID") from error
    if str(parsed) != member:
        raise EncodingError(f"{name} is not a UUID in lowercase with hyphens")
    return parsed


def items(value: Mapping[str, Any], name: str, maximum: int) -> list[Any]:
    """An array of at most ``maximum`` elements."""
    member = _member(value, name)
    if not isinstance(member, list) or len(member) > maximum:
        raise EncodingError(f"{name} is not an array of at most {maximum} elements")
    return member


def _member(value: Mapping[str, Any], name: str) -> Any:
    try:
        return value[name]
    except (KeyError, TypeError) as error:
        raise EncodingError(f"{name} is missing") from error


# -- the JSON text -------------------------------------------------------------------------------------------


def _dump(value: Any) -> bytes:
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise EncodingError("a string holds a lone surrogate") from error


def _check(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return
    if kind is int:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise EncodingError("an integer beyond 2^53 has no canonical form")
    elif kind is dict or kind is list:
        if depth == 0:
            raise EncodingError(f"nested deeper than {MAX_DEPTH} levels")
        if kind is dict:
            for name in value:
                if type(name) is not str or not name.isascii():
                    raise EncodingError("an object key is not ASCII text")
            value = value.values()
        for member in value:
            _check(member, depth - 1)
    else:
        raise EncodingError(f"a {kind.__name__} has no canonical form")


def _check_containers(value: Any) -> None:
    """Depth and keys of what the decoder made: it has no other types than JSON's."""
    names: set[str] = set()
    level = [value]
    for _ in range(MAX_DEPTH):
        below = []
        for parent in level:
            if type(parent) is dict:
                names.update(parent)
                parent = parent.values()
            below += [child for child in parent if type(child) is dict or type(child) is list]
        if not below:
            break
        level = below
    else:
        raise EncodingError(f"nested deeper than {MAX_DEPTH} levels")
    if not all(map(str.isascii, names)):
        raise EncodingError("an object key is not ASCII text")


def _integer(digits: str) -> int:
    if len(digits) > 17 or not -MAX_INTEGER <= (number := int(digits)) <= MAX_INTEGER:
        raise EncodingError("an integer beyond 2^53")
    return number


def _refuse(token: str) -> NoReturn:
    raise EncodingError(f"{token[:32]!r} is not an integer, and no other number is accepted")


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_refuse, parse_constant=_refuse)
