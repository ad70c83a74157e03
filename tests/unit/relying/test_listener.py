# SPDX-License-Identifier: Apache-2.0
"""Whoever answers a listener may be a stranger: only signed results count, and no answer hangs it."""

from __future__ import annotations

import time
from typing import Any

import evidence_examples as examples
import oslo_messaging
import pytest
from oslo_config import cfg

from nova_vmi_attest.evidence.result import AttestationResult, HostResult, Verdict, sign_result
from nova_vmi_attest.relying.listener import PageError, ResultListener
from nova_vmi_attest.relying.trust import TrustCache

KEY = examples.key("verifier")
BAD_PAGES: list[tuple[object, object]] = [("x", ""), ([], 7), ([], "x" * 999), ({}, "")]


class Answers:
    """Plays the verifiers: gives one page after another, then the last one for ever."""

    def __init__(self, *pages: Any) -> None:
        self.pages = list(pages)
        self.asked: list[str] = []

    def results(self, after: str) -> Any:
        self.asked.append(after)
        return self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]


def token(host: str) -> str:
    now = int(time.time())
    result = AttestationResult(HostResult(host, Verdict.TRUSTED), (), now, now + 300, 1)
    return sign_result(result, KEY, "cloud")


def listener(*pages: Any) -> tuple[ResultListener, Answers, TrustCache]:
    conf = cfg.ConfigOpts()
    transport = oslo_messaging.get_rpc_transport(conf, url="fake:/")
    cache = TrustCache([KEY.public_key()], "cloud")
    made, answers = ResultListener(transport, cache, "test"), Answers(*pages)
    made._verifiers = answers  # type: ignore[assignment]
    return made, answers, cache


def test_all_pages_are_asked_for() -> None:
    made, answers, cache = listener(
        {"results": [token("a"), token("b")], "next": "b"},
        {"results": [token("c")], "next": "c"},
        {"results": [], "next": ""},
    )
    made._fill()
    assert answers.asked == ["", "b", "c"]
    assert [cache.host(name, time.time()).verdict for name in "abc"] == [Verdict.TRUSTED] * 3


@pytest.mark.parametrize(
    "page",
    [
        None,
        7,
        [],
        {},
        *({"results": results, "next": following} for results, following in BAD_PAGES),
    ],
)
def test_malformed_answers_are_errors(page: object) -> None:
    with pytest.raises(PageError):
        listener(page)[0]._fill()


def test_an_answer_without_end_ends() -> None:
    made, answers, cache = listener({"results": [None, 7, {}, "a.b.c", ["x"]], "next": "b"})
    made._fill()
    assert answers.asked == ["", "b"]
    assert not cache.host("b", time.time()).seen


def test_answers_that_go_round_in_circles_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.relying.listener._MOST_PAGES", 6)
    circle = [{"results": [], "next": name} for name in "abababab"]
    made, answers, _ = listener(*circle)
    made._fill()
    assert len(answers.asked) == 6


def test_forged_and_repeated_results_do_not_pass_for_news() -> None:
    """Who floods the bus with them would else keep the listener from asking for what it missed."""
    made, _, _ = listener({})
    made.result({}, token("a"))
    heard = made._heard
    assert heard > 0
    for noise in ("", "a.b.c", token("a")):
        made.result({}, noise)
    assert made._heard == heard
