# SPDX-License-Identifier: Apache-2.0
"""The demo is what a newcomer sees first: it must come out as stated, and its report must say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lab import REPOSITORY, kernels


def test_the_demo_comes_out_as_stated(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "demo.py"), "--report", str(report)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    figures = json.loads(report.read_text())
    assert figures["failures"] == []

    before, after = figures["rounds"]
    assert [one["quotes"] for one in (before, after)] == [1, 1]
    assert {guest["name"]: guest["reader"] for guest in before["guests"]} == {
        "alice": "ram_file", "bob": "ram_file", "carol": "process", "dave": "ram_file",
    }  # fmt: skip
    for guest in before["guests"]:
        assert (guest["verdict"], guest["reasons"], guest["unexplained_bytes"]) == ("trusted", [], 0)
        assert guest["kernel"] == kernels.release()
        assert guest["code_bytes"] > 14_000_000
        assert guest["modules"] >= 10
        assert guest["processes"] > 20

    altered = {guest["name"]: guest for guest in after["guests"]}
    assert {name: guest["verdict"] for name, guest in altered.items()} == {
        "alice": "trusted", "bob": "untrusted", "carol": "trusted", "dave": "trusted",
    }  # fmt: skip
    named = [(one["check"], one["symbol"], one["offset"], one["length"]) for one in altered["bob"]["reasons"]]
    assert ("text", "tcp4_seq_show", 0x20, 4) in named
    assert altered["bob"]["unexplained_bytes"] == 4

    assert [answer["passes"] for answer in figures["filter"]] == [True, False, True, False]
    assert figures["tenant_proof"]["valid"]
    assert figures["tenant_proof"]["forgery_refused"]


def test_the_demo_says_at_once_that_it_needs_root(tmp_path: Path) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, str(REPOSITORY / "tools" / "demo.py")],
        cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "need root" in done.stdout
