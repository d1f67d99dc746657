"""LoRA tags that a job adds and takes out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from klora.hosts.webui import prompts
from klora.hosts.webui.roles import Roles
from klora.settings import Settings

NAMES = {"Ink Wash": "ink"}


def roles(content_picked: bool = False, style_picked: bool = False) -> Roles:
    return Roles("fox", "ink", content_picked, style_picked, (), None)


@pytest.mark.parametrize(
    ("mode", "unwanted"),
    [
        ("K-LoRA", set()),
        ("added", set()),
        ("content only", {"ink"}),
        ("style only", {"fox"}),
        ("off", {"fox", "ink"}),
    ],
)
def test_a_mode_takes_out_what_it_does_not_want(mode: str, unwanted: set[str]) -> None:
    assert prompts.changes(roles(), Settings(mode=mode)) == ([], unwanted)


def test_what_is_picked_and_not_in_the_prompt_is_added_with_its_weight() -> None:
    settings = Settings(content_weight=0.8, style_weight=-1.25)
    assert prompts.changes(roles(True, True), settings)[0] == [("fox", 0.8), ("ink", -1.25)]
    assert prompts.changes(roles(False, True), settings)[0] == [("ink", -1.25)]
    only = settings.replace(mode="content only")
    assert prompts.changes(roles(True, True), only) == ([("fox", 0.8)], {"ink"})


def test_a_missing_role_changes_nothing() -> None:
    nobody = Roles(None, None, False, False, (), "problem")
    assert prompts.changes(nobody, Settings(mode="off")) == ([], set())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a <lora:fox:1> b", "a <lora:fox:1> b"),
        ("<lora:ink:0.5>x", "x"),
        ("<lyco:ink:0.5>x<lora:Ink Wash:1>", "x"),
        ("<lora:te=0.5:ink>", ""),
        ("<hypernet:ink:1> <lora:inkling:1>", "<hypernet:ink:1> <lora:inkling:1>"),
        ("a < b > c", "a < b > c"),
    ],
)
def test_tags_go_by_name_or_alias_and_nothing_else_does(prompt: str, expected: str) -> None:
    assert prompts.changed_prompt(prompt, [], {"ink"}, NAMES) == expected


def test_tags_are_added_at_the_end() -> None:
    changed = prompts.changed_prompt("a fox", [("fox", 0.8), ("ink", 1.0)], set(), NAMES)
    assert changed == "a fox<lora:fox:0.8><lora:ink:1>"


def made(items: list[str]) -> Any:
    return SimpleNamespace(positional=items)


def parsed(*names: str) -> list[Any]:
    return [made([name, "1"]) for name in names]


def test_tags_that_the_host_has_parsed() -> None:
    tags = {"lora": parsed("fox", "Ink Wash"), "lyco": parsed("ink", "oak"), "hypernet": parsed("ink")}
    assert prompts.parsed_names(tags) == ["fox", "Ink Wash", "ink", "oak"]
    prompts.change_parsed(tags, [("elm", 0.5)], {"ink"}, NAMES, made)
    assert prompts.parsed_names(tags) == ["fox", "elm", "oak"]
    assert tags["lora"][-1].positional == ["elm", "0.5"]
    assert prompts.parsed_names({"hypernet": tags["hypernet"]}) == []
    assert len(tags["hypernet"]) == 1


def test_tags_are_made_where_there_were_none() -> None:
    tags: dict[str, list[Any]] = {}
    prompts.change_parsed(tags, [("elm", 1.0)], set(), NAMES, made)
    assert prompts.parsed_names(tags) == ["elm"]
