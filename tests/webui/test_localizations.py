"""Everything of ours that the page shows has an entry in each language, and no entry is for nothing."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from klora.hosts.webui import accordion
from klora.settings import FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings

from .conftest import FakeHost
from .test_page import in_node

ROOT = Path(__file__).parents[2]
LANGUAGES = sorted((ROOT / "localizations").glob("*.json"))

#: Where sentences come from that the accordion shows; those about the inside of a file stay English.
ROOMS = (
    *("hosts/webui", "hosts/common", "hosts/which.py", "settings", "options", "presets", "planning", "rules"),
    "schedule",
)
#: Answers of the HTTP routes, checks of a plot's axes, refusals of the command `merge`.
NOT_IN_THE_PAGE = (
    "hosts/webui/routes.py",
    "hosts/webui/requests.py",
    "hosts/webui/axes.py",
    "planning/static.py",
)
FOR_PROGRAMMERS = ("settings do not change; use replace({}=...)", "there is no setting {}")
#: Nothing but what it is filled with, or so little more that it would be taken for any sentence.
TOO_SHORT = ("{}{}.", "{}: {}", "{} is {}; {}.")

_PLACE = re.compile(r"\{\w*\}")
_SAID = re.compile(r"""\bsay\(\s*["']([^"']+)["']""")


def words(file: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def bare(text: str) -> str:
    """A sentence without the names of its places and without our own name in front."""
    return _PLACE.sub("{}", text).removeprefix("K-LoRA: ")


def of_settings() -> set[str]:
    told = {text for one in Settings.offered() for text in (one.label, one.help)}
    return told | {FIRST_IN_PROMPT, SECOND_IN_PROMPT}


def of_components(host: FakeHost) -> set[str]:
    """Labels, help, buttons and fixed sentences of the accordion as it is built."""
    accordion.build(False, lambda name: f"txt2img_klora_{name}")
    told: set[str] = set()
    for one in host.gradio.made:
        if one.arguments.get("visible") is False:
            continue
        texts = [one.label, *(one.arguments.get(name) for name in ("info", "tooltip"))]
        if one.kind in ("Button", "Accordion", "InputAccordion"):
            texts.append(one.value)
        if one.kind == "HTML":
            texts += re.findall(r">([^<>]+)<", str(one.value))
        told |= {text for text in texts if isinstance(text, str) and text.strip()}
    return told


def of_scripts() -> set[str]:
    """What the page's scripts say, and the parts of the live line."""
    told = set()
    for file in (ROOT / "javascript").glob("*.js"):
        told |= set(_SAID.findall(file.read_text(encoding="utf-8")))
    line = "k.lineOf({content: 'a', style: 'b', content_picked: given, style_picked: given, extras: ['c'], "
    for is_picked in (True, False):
        parts = in_node("klora.js", line + "problem: null})", is_picked)
        told |= {text for name, text in parts if name != "klora-name"}
    return told


def of_notes() -> set[str]:
    """Fixed words in the HTML that Python writes."""
    told = {"made for", "rank", "base model unknown", "Add to the prompt", "Content", "Style"}
    source = (ROOT / "klora/hosts/webui/preset_controls.py").read_text(encoding="utf-8")
    return told | set(re.findall(r'"(\w+:)"', source))


def template(node: ast.expr) -> str | None:
    """A text with ``{}`` where it is filled in; ``None`` for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def raised() -> Iterator[tuple[str, str]]:
    """(file, sentence) of every error that is made in the rooms."""
    for room in ROOMS:
        place = ROOT / "klora" / room
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            name = file.relative_to(ROOT / "klora").as_posix()
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args:
                    called = ast.unparse(node.func).rpartition(".")[2]
                    text = template(node.args[0])
                    if called.endswith("Error") and called != "ValueError" and text:
                        yield name, bare(text)


def of_errors() -> set[str]:
    pair = "K-LoRA needs two LoRAs, found {}: add the {} LoRA to the prompt or pick it in the accordion."
    told = {text for name, text in raised() if name not in NOT_IN_THE_PAGE}
    told -= {*FOR_PROGRAMMERS, *TOO_SHORT, "{}"}
    return told | {pair.replace("the {}", f"the {role}") for role in ("content", "style")}


def test_there_are_two_languages() -> None:
    assert [one.stem for one in LANGUAGES] == ["ja_JP", "zh_CN"]


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda one: one.stem)
def test_every_text_has_an_entry(file: Path, host: FakeHost) -> None:
    known = words(file)
    texts = of_settings() | of_components(host) | of_scripts() | of_notes()
    assert sorted(texts - known.keys()) == []
    assert sorted(of_errors() - {bare(one) for one in known}) == []


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda one: one.stem)
def test_a_translation_fills_in_what_the_sentence_does(file: Path) -> None:
    for text, translation in words(file).items():
        assert translation.strip(), text
        assert set(re.findall(r"\{\w+\}", translation)) == set(re.findall(r"\{\w+\}", text)), text


def test_the_languages_have_the_same_entries() -> None:
    first, *others = (set(words(one)) for one in LANGUAGES)
    assert all(one == first for one in others)


def test_the_page_translates_the_sentences_of_the_server() -> None:
    sentence = (
        "K-LoRA: LoRA a.b is made for SDXL, but the loaded checkpoint is SD1; load a checkpoint of SDXL or "
        "pick a LoRA for SD1."
    )
    told: Any = in_node("klora_words.js", "k.translated(given[0], given[1])", [sentence, words(LANGUAGES[0])])
    assert told.startswith("K-LoRA: LoRA a.b は SDXL 用ですが")


def test_the_japanese_readme_has_the_same_settings_in_the_words_of_the_page() -> None:
    japanese = words(next(one for one in LANGUAGES if one.stem == "ja_JP"))
    shown = (ROOT / "README.ja.md").read_text(encoding="utf-8")
    rows = [
        line.split(" | ") for line in shown.splitlines() if re.match(r"\| .* \| `\w+` \| .* \| .* \|", line)
    ]
    told = {row[1].strip("`"): (row[0].removeprefix("| "), row[-1].removesuffix(" |")) for row in rows}
    for setting in Settings.offered():
        assert told[setting.name] == (
            japanese[setting.label],
            japanese[setting.help].replace("|", "\\|").replace("<", "&lt;"),
        )
