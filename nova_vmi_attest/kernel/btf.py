# SPDX-License-Identifier: Apache-2.0
"""Where the members of a kernel's structures are, from the type information (BTF) that the kernel carries.

Parsing only steps over the types; names are looked up and members searched when somebody asks, and
remembered.

Source: Documentation/bpf/btf.rst, include/uapi/linux/btf.h.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nova_vmi_attest.errors import AttestError

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_MAX_SIZE = 128 << 20
_ARRAY, _STRUCT, _UNION, _ENUM, _TYPEDEF, _ENUM64 = 3, 4, 5, 6, 8, 19
_TRANSPARENT = frozenset((_TYPEDEF, 9, 10, 11, 18))  # typedef, volatile, const, restrict, type tag
_SIZED = frozenset((1, _STRUCT, _UNION, _ENUM, 16, _ENUM64))
# Words that follow the three of every type: a fixed number, or a number for each of its members.
_FIXED = {1: 1, _ARRAY: 3, 14: 1, 17: 1}
_PER_MEMBER = {_STRUCT: 3, _UNION: 3, _ENUM: 2, 13: 2, 15: 3, _ENUM64: 3}
_KINDS = 20
_MAX_CHAIN = 64  # typedefs of typedefs; a longer chain is a loop
_MAX_NAME = 512
_POINTER_SIZE = 8


class BtfError(AttestError):
    """Type information that is malformed, or that has no such structure or member."""


@dataclass(frozen=True, slots=True)
class _Type:
    name_offset: int
    kind: int
    members: int
    bit_fields: bool
    size_or_type: int


@dataclass(frozen=True, slots=True, eq=False)
class Btf:
    """The types of one kernel. Immutable apart from what it remembers; safe to share between threads."""

    _words: npt.NDArray[np.uint32]
    _strings: bytes
    _positions: npt.NDArray[np.uint32]
    _offsets: dict[tuple[str, str], int] = field(default_factory=dict)
    _found: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Btf:
        """Read a ``.BTF`` section.

        Raises BtfError. Types that refer to each other in a loop are met on use.
        """
        if not _HEADER.size <= len(data) <= _MAX_SIZE:
            raise BtfError(f"{len(data)} bytes are not type information")
        magic, version, _, header, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise BtfError("the type information does not begin as version 1 does")
        types_at, strings_at = header + types_at, header + strings_at
        if types_at + types_size > len(data) or strings_at + strings_size > len(data) or types_size % 4:
            raise BtfError("the parts of the type information lie outside of it")
        words = np.frombuffer(bytes(data[types_at : types_at + types_size]), "<u4")
        positions = _positions(words)
        return cls(words, bytes(data[strings_at : strings_at + strings_size]), positions)

    def __len__(self) -> int:
        return len(self._positions)

    def offset(self, struct_name: str, path: str) -> int:
        """The byte offset of member ``path`` ("a.b.c") in a structure, union or typedef of one.

        Anonymous members are searched through, an array stands for its first element, and a bit-field gives
        the byte in which it begins. Raises BtfError.
        """
        key = struct_name, path
        known = self._offsets.get(key)
        if known is None:
            known = self._offsets[key] = self._resolve(struct_name, path)[0] // 8
        return known

    def has(self, struct_name: str, path: str = "") -> bool:
        """Whether a structure exists and, when ``path`` is given, has that member."""
        try:
            if path:
                self.offset(struct_name, path)
            else:
                self._find(struct_name)
        except BtfError:
            return False
        return True

    def size(self, name: str, path: str = "") -> int:
        """The size in bytes of a structure, or of its member ``path`` (an array as a whole).

        Raises BtfError.
        """
        return self._size_of(self._resolve(name, path)[1] if path else self._find(name))

    def length(self, name: str, path: str) -> int:
        """How many elements the array member ``path`` has. Raises BtfError when it is not an array."""
        index, kind = self._strip(self._resolve(name, path)[1])
        if kind.kind != _ARRAY:
            raise BtfError(f"{name}.{path} is not an array")
        return self._array(index)[1]

    def enumerator(self, name: str, enum_name: str | None = None) -> int:
        """The value of an enumeration constant, of ``enum_name`` or of whichever has it first.

        Raises BtfError.
        """
        wanted = self._name_offset(name)
        kinds = self._kinds()
        if enum_name is None:
            candidates = np.flatnonzero((kinds == _ENUM) | (kinds == _ENUM64))
        else:
            offset = self._name_offset(enum_name)
            same = self._words[self._positions] == offset
            candidates = np.flatnonzero(same & ((kinds == _ENUM) | (kinds == _ENUM64)))
        for index in (candidates + 1).tolist():
            kind = self._type(index)
            at = int(self._positions[index - 1]) + 3
            width = _PER_MEMBER[kind.kind]
            rows = self._words[at : at + width * kind.members].reshape(-1, width)
            hits = np.flatnonzero(rows[:, 0] == wanted)
            if len(hits):
                return _enum_value(rows[hits[0]], signed=kind.bit_fields)
        raise BtfError(f"no enumeration has the constant {name}")

    def _resolve(self, name: str, path: str) -> tuple[int, int]:
        """(bit offset, type) of a member of ``name``."""
        index = self._find(name)
        total = 0
        for part in path.split("."):
            found = self._member(index, part, set())
            if found is None:
                raise BtfError(f"{name} has no member {path}")
            total += found[0]
            index = found[1]
        return total, index

    def _find(self, name: str) -> int:
        """The first structure or union called ``name``, else the first typedef."""
        known = self._found.get(name)
        if known is not None:
            return known
        offset = self._name_offset(name)
        kinds = self._kinds()
        same = self._words[self._positions] == offset
        for wanted in ((kinds == _STRUCT) | (kinds == _UNION), kinds == _TYPEDEF, kinds == _ENUM):
            hits = np.flatnonzero(same & wanted)
            if len(hits):
                self._found[name] = int(hits[0]) + 1
                return int(hits[0]) + 1
        raise BtfError(f"the kernel has no structure {name}")

    def _kinds(self) -> npt.NDArray[np.uint32]:
        kinds: npt.NDArray[np.uint32] = self._words[self._positions + np.uint32(1)] >> 24 & 31
        return kinds

    def _name_offset(self, name: str) -> int:
        encoded = name.encode("utf-8", "surrogatepass")
        at = self._strings.find(b"\0" + encoded + b"\0")
        if not encoded or at < 0:
            raise BtfError(f"the kernel's types do not mention {name}")
        return at + 1

    def _type(self, index: int) -> _Type:
        if not 1 <= index <= len(self._positions):
            raise BtfError(f"type {index} does not exist")
        at = int(self._positions[index - 1])
        name, info, value = self._words[at : at + 3].tolist()
        return _Type(name, info >> 24 & 31, info & 0xFFFF, bool(info >> 31), value)

    def _strip(self, index: int) -> tuple[int, _Type]:
        """The type behind typedefs and qualifiers."""
        for _ in range(_MAX_CHAIN):
            kind = self._type(index)
            if kind.kind not in _TRANSPARENT:
                return index, kind
            index = kind.size_or_type
        raise BtfError(f"type {index} is defined by itself")

    def _array(self, index: int) -> tuple[int, int]:
        """(element type, number of elements) of an array type."""
        at = int(self._positions[index - 1]) + 3
        element, _, count = self._words[at : at + 3].tolist()
        return element, count

    def _structure(self, index: int) -> tuple[int, _Type]:
        """The structure that ``index`` is, or is an array of."""
        for _ in range(_MAX_CHAIN):
            index, kind = self._strip(index)
            if kind.kind != _ARRAY:
                return index, kind
            index = self._array(index)[0]
        raise BtfError(f"type {index} is an array of itself")

    def _members(self, index: int, kind: _Type) -> Iterator[tuple[int, int, int]]:
        """(name offset, type, bit offset) of every member; above a bit-field's offset stands its width."""
        at = int(self._positions[index - 1]) + 3
        for name, member, offset in self._words[at : at + 3 * kind.members].reshape(-1, 3).tolist():
            yield name, member, offset & 0xFFFFFF if kind.bit_fields else offset

    def _member(self, index: int, name: str, seen: set[int]) -> tuple[int, int] | None:
        """(bit offset, type) of a member; anonymous structures are searched too, each once."""
        index, kind = self._structure(index)
        if kind.kind not in (_STRUCT, _UNION) or index in seen or len(seen) > _MAX_CHAIN:
            return None
        seen.add(index)
        for name_offset, member, offset in self._members(index, kind):
            if self._named(name_offset, name):
                return offset, member
            if name_offset == 0:
                found = self._member(member, name, seen)
                if found is not None:
                    return offset + found[0], found[1]
        return None

    def _named(self, offset: int, name: str) -> bool:
        if offset == 0 or len(name) > _MAX_NAME:
            return False
        encoded = name.encode("utf-8", "surrogatepass") + b"\0"
        return self._strings[offset : offset + len(encoded)] == encoded

    def _size_of(self, index: int) -> int:
        count = 1
        for _ in range(_MAX_CHAIN):
            index, kind = self._strip(index)
            if kind.kind != _ARRAY:
                return count * (kind.size_or_type if kind.kind in _SIZED else _POINTER_SIZE)
            index, elements = self._array(index)
            count *= elements
        raise BtfError(f"type {index} is an array of itself")


def _positions(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Where each type begins, in words. The first type has number 1."""
    found = array("I")
    view = words.data  # plain integers, without numpy's cost for each
    at, end = 0, len(view)
    while at < end:
        if at + 3 > end:
            raise BtfError("the last type is cut off")
        info = view[at + 1]
        kind = info >> 24 & 31
        if not 0 < kind < _KINDS:
            raise BtfError(f"a type of kind {kind} is not known")
        found.append(at)
        at += 3 + _FIXED.get(kind, 0) + _PER_MEMBER.get(kind, 0) * (info & 0xFFFF)
    if at != end:
        raise BtfError("the last type is cut off")
    positions = np.array(found, np.uint32)
    positions.setflags(write=False)
    return positions


def _enum_value(row: npt.NDArray[np.uint32], *, signed: bool) -> int:
    """The value of one enumerator: 32 bits, or 64 in two words."""
    return int.from_bytes(row[1:].astype("<u4").tobytes(), "little", signed=signed)
