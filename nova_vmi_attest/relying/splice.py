# SPDX-License-Identifier: Apache-2.0
"""Exact changes to a JSON text: members of an object are left out and added, every other byte stays.

A document that is parsed and written anew is another one: white space, escapes and names that occur twice
are lost. So its parts are found by their positions, and what lies between two changes is copied. A text that
is not JSON as RFC 8259 has it is refused: nobody could tell what its reader makes of it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from nova_vmi_attest.errors import AttestError

# Nova's longest page has 1,000 servers, each with up to 64 KiB of user data for an administrator.
MAX_BYTES = 128 << 20

_SPACE = re.compile(r"[ \t\n\r]+")
_ESCAPED_LETTER = re.compile(r"\\u00[4-7]")


class SpliceError(AttestError):
    """A text is too long, nested too deeply, or not JSON."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


class Document:
    """A JSON text that is read from its beginning to its end, and the changes to it.

    ``position`` is where the next value or bracket starts. Each value is read by whichever method suits the
    caller, and skipped where none is called. Nesting costs stack inside :meth:`value` only, which bounds it.
    Once :meth:`result` returned, all of the text has been checked.

    :param body: UTF-8, at most :data:`MAX_BYTES`.
    :raises SpliceError: like every method.
    """

    def __init__(self, body: bytes) -> None:
        if len(body) > MAX_BYTES:
            raise SpliceError(f"the document has {len(body)} bytes, of which at most {MAX_BYTES} are read")
        try:
            self._text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SpliceError(f"the document is not UTF-8 at byte {error.start}") from error
        self._changes: list[tuple[int, int, str]] = []
        self._end = self.position = 0
        self._go_on(0)

    def at(self, token: str) -> bool:
        """Whether a character comes next, such as the bracket that opens an object or array."""
        return self._text.startswith(token, self.position)

    def value(self) -> Any:
        """Read the next value, with all that is in it."""
        try:
            value, end = _DECODER.raw_decode(self._text, self.position)
        except RecursionError as error:
            raise SpliceError(f"the document is nested too deeply at character {self.position}") from error
        except ValueError as error:
            raise SpliceError(f"the document is not JSON: {error}") from error
        self._go_on(end)
        return value

    def members(self) -> Iterator[tuple[str, int]]:
        """Enter the object that comes next: the name of each member, and where that name starts."""
        self._take("{")
        more = not self.at("}")
        while more:
            start = self.position
            name = self._name()
            unread = self.position
            yield name, start
            if self.position == unread:
                self.value()
            more = self._comma()
        self._take("}")

    def elements(self) -> Iterator[None]:
        """Enter the array that comes next, and stop before each element."""
        self._take("[")
        more = not self.at("]")
        while more:
            unread = self.position
            yield
            if self.position == unread:
                self.value()
            more = self._comma()
        self._take("]")

    def again(self, start: int, name: str) -> Iterator[None]:
        """Return to an object that was just read and has a member ``name``; stop before the value of each.

        :param name: of lower case letters. Where none is written as an escape, the name stands in the text
            as it is; and a quotation mark before it that is no escape begins a string, since the text is
            JSON. So if it stands there once, it is the member's, and nothing else has to be read again.
        """
        end, quoted = self.position, f'"{name}"'
        found = self._text.find(quoted, start, end)
        again = self._text.find(quoted, found + 1, end)
        escaped = self._text[found - 1] == "\\" or _ESCAPED_LETTER.search(self._text, start, end)
        if found >= 0 and again < 0 and not escaped:
            self._go_on(found + len(quoted))
            self._take(":")
            yield
        else:
            self.position = start
            for member, _ in self.members():
                if member == name:
                    yield
        self.position = end

    def amend(self, unwanted: Callable[[str], bool], added: dict[str, str]) -> None:
        """Read the object that comes next; leave out members by name, and add strings behind the others."""
        spans: list[tuple[bool, int, int]] = []
        opened = self.position + 1
        for name, start in self.members():
            self.value()
            spans.append((unwanted(name), start, self._end))
        kept = [end for drop, _, end in spans if not drop]
        for (drop, start, end), (_, following, _) in itertools.pairwise(spans):
            if drop and kept and end < kept[-1]:
                self._changes.append((start, following, ""))
        behind = kept[-1] if kept else spans[0][1] if spans else opened
        text = json.dumps(added)[1:-1]
        comma = ", " if kept and text else ""
        self._changes.append((behind, spans[-1][2] if spans else opened, comma + text))

    def result(self) -> bytes:
        """The text with its changes, after its end has been reached."""
        if self.position != len(self._text):
            raise SpliceError(f"the document goes on at character {self.position}, where it should end")
        parts, copied = [], 0
        for start, end, text in sorted(self._changes):
            parts += [self._text[copied:start], text]
            copied = end
        return "".join([*parts, self._text[copied:]]).encode("utf-8")

    def _name(self) -> str:
        if not self.at('"'):
            raise SpliceError(f"the document is not JSON: no name at character {self.position}")
        name: str = self.value()
        self._take(":")
        return name

    def _comma(self) -> bool:
        if not self.at(","):
            return False
        self._take(",")
        return True

    def _take(self, token: str) -> None:
        if not self.at(token):
            raise SpliceError(f"the document is not JSON: no {token} at character {self.position}")
        self._go_on(self.position + 1)

    def _go_on(self, end: int) -> None:
        """Remember where a token ended, and go to the next."""
        self._end = self.position = end
        if self._text.startswith((" ", "\t", "\n", "\r"), end) and (space := _SPACE.match(self._text, end)):
            self.position = space.end()
