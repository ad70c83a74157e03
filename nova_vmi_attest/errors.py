# SPDX-License-Identifier: Apache-2.0
"""The one base of every error that this package raises on purpose.

A module defines its own subclass beside the code that raises it. A ``ValueError``, ``KeyError`` or
``struct.error`` that leaves a public function is a bug, whatever the input was.
"""


class AttestError(Exception):
    """An error that a person can act on.

    :param message: what happened, and to which host, guest or file.
    :param remedy: what the operator can do next; empty when there is nothing to do.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message
