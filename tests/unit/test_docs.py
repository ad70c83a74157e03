# SPDX-License-Identifier: Apache-2.0
"""The manual is held to the code: every command, option, file and page that it names exists."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from oslo_config import cfg

from nova_vmi_attest import policies
from nova_vmi_attest.cmd import manage
from nova_vmi_attest.conf import opts
from nova_vmi_attest.verifier import notifications

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "doc" / "source"
PAGES = sorted(SOURCE.rglob("*.rst"))
TEXTS = [ROOT / "README.md", *PAGES]
SCRIPTS = {
    entry.name
    for entry in importlib.metadata.entry_points(group="console_scripts")
    if "vmi-attest" in entry.name
}
VERBS = {
    entry.name.replace("_", " "): entry
    for entry in importlib.metadata.entry_points(group="openstack.attestation.v1")
}
OWN_GROUPS: dict[str, set[str]] = {}
for group, options in opts.list_opts():
    OWN_GROUPS.setdefault(group.name, set()).update(option.dest for option in options)
ANY = "any text"

Case = tuple[str, str]


def blocks(text: str, language: str) -> Iterator[str]:
    """The blocks of a language, in Markdown or reStructuredText."""
    for found in re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield str(found)
    for found in re.findall(rf"^\.\. code-block:: {language}\n\n((?: {{3,}}.*\n|\n)+)", text, re.MULTILINE):
        yield str(found)


def code(text: str) -> Iterator[str]:
    """Commands in console blocks, continued lines joined and comments cut off."""
    for block in blocks(text, "console"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if found := re.match(r"\s*(?:[\w-]+)?[$#] (.+)", line):
                yield re.split(r" +#|[>|]", found[1])[0].strip()


def literals(text: str) -> Iterator[str]:
    """What is set in ``two back quotes`` (or `one`, in Markdown), white space as one space."""
    for found in re.findall(r"``([^`]+)``|(?<!`)`([^`]+)`(?!`)", text):
        yield " ".join("".join(found).split())


def said(beginning: str, find: Callable[[str], Iterator[str]]) -> list[Case]:
    """(page, command) for each command with this beginning that ``find`` finds."""
    found = [(path.name, line) for path in TEXTS for line in find(path.read_text())]
    return sorted({case for case in found if case[1].startswith(beginning)})


class Strict(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise AssertionError(message)


def stand_in(words: list[str]) -> list[str]:
    """The words of a command with a placeholder for a name or a number as the manual writes them."""
    return [ANY if word.isupper() else word for word in words]


def parse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Parse words that are a whole command."""
    for one in [parser, *subparsers(parser)]:
        one.error = Strict.error.__get__(one)  # type: ignore[method-assign]
    parser.parse_args(stand_in(words))


def subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child
                yield from subparsers(child)


def command_of(line: str) -> tuple[str, list[str]]:
    """The name of a command of ``openstack``, and the words after it."""
    words = shlex.split(line)[1:]
    count = min(3, len(words))
    return " ".join(words[:count]), words[count:]


def is_named(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    """Whether there are these nouns, verbs and options; what else running text leaves out does not matter."""
    for word in words:
        if word.startswith("-"):
            return word in parser._option_string_actions
        nouns = [item for item in parser._actions if isinstance(item, argparse._SubParsersAction)]
        if not nouns:
            return True
        if word not in nouns[0].choices:
            return False
        parser = nouns[0].choices[word]
    return True


MANAGE, TRUST = "nova-vmi-attest-manage ", "openstack trust "


def test_there_is_something_to_hold_to() -> None:
    for beginning in (MANAGE, TRUST):
        assert len(said(beginning, code)) > 10
        assert len(said(beginning, literals)) > 5
    assert len(PAGES) > 15


@pytest.mark.parametrize(("page", "line"), said(MANAGE, code))
def test_manage_commands_parse(page: str, line: str) -> None:
    parse(manage._parser(), shlex.split(line)[1:])


@pytest.mark.parametrize(("page", "line"), said(MANAGE, literals))
def test_manage_commands_in_running_text_exist(page: str, line: str) -> None:
    assert is_named(manage._parser(), shlex.split(line)[1:])


@pytest.mark.parametrize(("page", "line"), said(TRUST, code))
def test_openstack_commands_parse(page: str, line: str) -> None:
    name, rest = command_of(line)
    assert name in VERBS
    parse(cast(Any, VERBS[name].load())(SimpleNamespace(), None).get_parser(name), rest)


@pytest.mark.parametrize(("page", "line"), said(TRUST, literals))
def test_openstack_commands_in_running_text_exist(page: str, line: str) -> None:
    name, rest = command_of(line)
    assert any(f"{known} ".startswith(f"{name} ") for known in VERBS)
    if name in VERBS:
        options = (
            cast(Any, VERBS[name].load())(SimpleNamespace(), None).get_parser(name)._option_string_actions
        )
        assert all(word in options for word in rest if word.startswith("-"))


@pytest.mark.parametrize(
    ("page", "name"),
    sorted(
        {
            (path.name, name)
            for path in TEXTS
            for name in re.findall(r"\bnova-vmi-attest-(?!attest)[a-z]+\b(?![.@+])", path.read_text())
        }
    ),
)
def test_programs_and_units_exist(page: str, name: str) -> None:
    units = {path.stem for path in (ROOT / "etc").rglob("*.service")}
    assert name in SCRIPTS | units


@pytest.mark.parametrize(
    ("page", "group", "name"),
    sorted(
        {
            (path.name, *found)
            for path in TEXTS
            for text in literals(path.read_text())
            for found in re.findall(r"^\[([\w-]+)\] (\w+)", text)
            if found[0] in OWN_GROUPS and not text.startswith("[openstack] <")
        }
    ),
)
def test_options_exist(page: str, group: str, name: str) -> None:
    assert name in OWN_GROUPS[group]


def test_blocks_of_configuration_hold_options_that_exist(tmp_path: Path) -> None:
    checked = 0
    for path in TEXTS:
        for block in blocks(path.read_text(), "ini"):
            file = tmp_path / "block.conf"
            file.write_text(re.sub(r"^ +", "", block, flags=re.MULTILINE))
            sections: dict[str, dict[str, list[str]]] = {}
            if "[" in block:
                cfg.ConfigParser(str(file), sections).parse()
            for group in OWN_GROUPS.keys() & sections.keys():
                assert sections[group].keys() <= OWN_GROUPS[group], path.name
                checked += len(sections[group])
    assert checked > 15


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_that_are_named_exist(path: Path) -> None:
    for title_or_target in re.findall(r":doc:`([^`]+)`", path.read_text()):
        bare = re.sub(r"^.*<(.+)>$", r"\1", title_or_target)
        base = SOURCE if bare.startswith("/") else path.parent
        assert (base / f"{bare.lstrip('/')}.rst").is_file(), f"{path.name}: {bare}"


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text()):
        assert "://" in target or (ROOT / target).exists(), target


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_of_the_repository_that_are_named_exist(path: Path) -> None:
    tops = (
        "attester/",
        "verifier/",
        "relying/",
        "introspection/",
        "kernel/",
        "evidence/",
        "api/",
        "references/",
    )
    for text in literals(path.read_text()):
        if not re.fullmatch(r"[\w./-]+\.(py|rst|md|conf|txt)", text) or "/" not in text:
            continue
        root = ROOT / "nova_vmi_attest" if text.startswith(tops) else ROOT
        if text.split("/")[0] in {item.name for item in root.iterdir()}:
            assert (root / text).exists(), text


def test_modules_classes_and_rules_that_are_named_exist() -> None:
    rules = {rule.name for rule in policies.list_rules()}
    for path in TEXTS:
        text = path.read_text()
        for name in re.findall(r":class:`~?([\w.]+)`", text):
            module, _, member = name.rpartition(".")
            assert hasattr(importlib.import_module(module), member), name
        for name in re.findall(r"``(attestation:[a-z_:]+)``", text):
            assert name in rules, name


def test_events_that_are_named_are_sent() -> None:
    text = (SOURCE / "admin" / "responses.rst").read_text()
    assert set(re.findall(r"``(attestation\.[a-z_.]+)``", text)) == set(notifications.SCHEMAS)
