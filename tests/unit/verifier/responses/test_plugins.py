# SPDX-License-Identifier: Apache-2.0
"""Responses are found by name, fit their option, and cannot take the verifier with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nova_vmi_attest.evidence.result import Reason, Verdict
from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.records.results import Change
from nova_vmi_attest.references.store import StoreError as SomeError
from nova_vmi_attest.verifier.responses.base import GUEST, Moot, Response, ResponseError, Tools, why
from nova_vmi_attest.verifier.responses.plugins import Plugins
from tests.unit.verifier.responses.scene import UNTRUSTED, FakeNova, Reports, Scene, configure, guest

ITEM = NumberedChange(7, Change(5, GUEST, str(guest(1)), "h", Verdict.TRUSTED, Verdict.UNTRUSTED, ()))


def plugins(directory: Path, nova: FakeNova | None = None, **options: object) -> Plugins:
    return Plugins(configure(directory, **options), Tools(nova, Reports()))


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("on_guest_untrusted", "explode", "no such response"),
        ("on_guest_untrusted", "disable_service", "does not respond to a guest"),
        ("on_host_untrusted", "lock", "does not respond to a host"),
        ("on_host_stale", "pause", "does not respond to a host"),
        ("on_guest_untrusted", "Lock", "no such response"),
    ],
)
def test_names_that_make_no_sense_are_refused_at_start(
    tmp_path: Path, option: str, value: str, fault: str
) -> None:
    with pytest.raises(ResponseError, match=fault):
        plugins(tmp_path, FakeNova(), **{option: value})


def test_what_needs_nova_is_refused_without_it(tmp_path: Path) -> None:
    with pytest.raises(ResponseError, match=r"needs access to Nova.*\[openstack\]"):
        plugins(tmp_path, on_guest_untrusted="notify,lock")
    assert plugins(tmp_path, on_guest_untrusted="notify").names_for(ITEM) == ("notify",)


def test_a_name_said_twice_counts_once(tmp_path: Path) -> None:
    assert plugins(tmp_path, FakeNova(), on_guest_untrusted="lock,pause,lock").names_for(ITEM) == (
        "lock",
        "pause",
    )


class Odd(Response):
    """Does what it is told to."""

    kinds = frozenset((GUEST,))
    act: Callable[[], object] = staticmethod(lambda: "done")

    def respond(self, item: NumberedChange, tools: Tools) -> str:
        return self.act()  # type: ignore[return-value]


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Plugins, Odd]:
    loaded = plugins(tmp_path, FakeNova(), on_guest_untrusted="lock", timeout=1)
    response = Odd(configure(tmp_path))
    loaded._loaded = {"odd": response}
    return loaded, response


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ResponseError("Nova is away"), "Nova is away"),
        (SomeError("of another kind"), "of another kind"),
        (ValueError("secret"), "it failed unexpectedly: ValueError"),
        (RecursionError(), "RecursionError"),
        (SystemExit(3), "did not come to an end"),
    ],
)
def test_whatever_it_raises_is_its_failure(
    odd: tuple[Plugins, Odd], error: BaseException, message: str
) -> None:
    loaded, response = odd
    response.act = raising(error)  # type: ignore[method-assign]
    with pytest.raises(ResponseError, match=message):
        loaded.call("odd", ITEM)


def test_moot_stays_moot(odd: tuple[Plugins, Odd]) -> None:
    loaded, response = odd
    response.act = raising(Moot("gone"))  # type: ignore[method-assign]
    with pytest.raises(Moot):
        loaded.call("odd", ITEM)


def test_one_that_hangs_is_left_to_itself_and_not_piled_up(odd: tuple[Plugins, Odd]) -> None:
    loaded, response = odd
    released = threading.Event()
    response.act = lambda: released.wait(60)  # type: ignore[method-assign]
    with pytest.raises(ResponseError, match="did not come to an end within 1 s"):
        loaded.call("odd", ITEM)
    with pytest.raises(ResponseError, match="still busy"):
        loaded.call("odd", ITEM)
    released.set()
    loaded._busy["odd"].join(10)
    response.act = lambda: "done"  # type: ignore[method-assign]
    assert loaded.call("odd", ITEM) == "done"


def test_whatever_it_says_is_text(odd: tuple[Plugins, Odd]) -> None:
    loaded, response = odd
    response.act = lambda: None  # type: ignore[method-assign]
    assert loaded.call("odd", ITEM) == "None"


def test_one_that_fails_holds_up_no_other(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_guest_untrusted="lock,pause", timeout=1)
    broken = Odd(scene.conf)
    broken.act = raising(KeyError("x"))  # type: ignore[method-assign]
    scene.runner._plugins._loaded["lock"] = broken  # type: ignore[index]
    scene.turn(g1=UNTRUSTED)
    assert scene.run() == [("pause", str(guest(1)))]
    assert scene.states() == ["pending", "done"]


def test_the_reason_for_nova_is_short_and_printable() -> None:
    reasons = (Reason("text", "s\x1b[31m", 0, 0, "x" * 500 + "\n\u202e"),)
    change = Change(5, GUEST, str(guest(1)), "h", Verdict.TRUSTED, Verdict.UNTRUSTED, reasons)
    said = why(NumberedChange(7, change))
    assert len(said) == 255
    assert said.isprintable()
    assert said.startswith("attestation: untrusted, text s?[31m xxx")
    assert why(ITEM) == "attestation: untrusted (change 7)"


@pytest.mark.parametrize(
    "found",
    [
        Reason("host_untrusted", detail="host_pcr: PCR 4 has the value 00, which is not approved"),
        Reason("text", "sys_read", 0, 4, "read on compute-1 by its agent"),
        Reason("guest_missing", detail="not in the evidence of its host"),
    ],
)
def test_what_nova_shows_to_a_tenant_says_nothing_of_the_host(found: Reason) -> None:
    change = Change(5, GUEST, str(guest(1)), "COMPUTE-1", Verdict.TRUSTED, Verdict.UNKNOWN, (found,))
    assert why(NumberedChange(7, change)) == f"attestation: unknown, {found.check} (change 7)"
