"""Everything of ours that the page shows has an entry in each language, and no entry is for nothing."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from klora.errors import SettingsError
from klora.hosts.webui import accordion, pair_tags
from klora.settings import FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings

from .conftest import FakeHost
from .test_page import in_node

ROOT = Path(__file__).parents[2]
LANGUAGES = sorted((ROOT / "localizations").glob("*.json"))

#: Where sentences come from that a user of a WebUI reads; those about the inside of a file stay English.
ROOMS = (
    *("hosts/webui", "hosts/common", "hosts/which.py", "hosts/a1111", "hosts/forge_family", "hosts/forge"),
    *("hosts/model_patcher", "settings", "options", "presets", "planning", "rules", "schedule", "weights"),
)
#: Where settings check a text: the ``ValueError`` becomes the second half of "beta is 'x'; write a number.".
ROOMS_OF_CHECKS = ("options", "rules", "settings")
#: What is called with such a half, and which of its arguments that is.
REFUSALS = {"ValueError": 0, "_refuse": 1}
#: Answers of the HTTP routes, checks of a plot's axes, refusals of the command `merge`.
NOT_IN_THE_PAGE = (
    "hosts/webui/routes.py",
    "hosts/webui/requests.py",
    "hosts/webui/axes.py",
    "planning/static.py",
)
FOR_PROGRAMMERS = ("settings do not change; use replace({}=...)", "there is no setting {}")
#: Sentences around another one, which are looked for with that one filled in.
FRAMES = ("{}.", "{} is {}; {}.", "K-LoRA needs two LoRAs, found {}: {}.")
#: What fills them, where it is told apart from them: the pass, and what is missing of a pair.
FILLED = ("{} in the hires prompt.",)
PAIR = "K-LoRA needs two LoRAs, found {}: add {} to the prompt or pick {} in the accordion."
MISSING = (
    ("the content LoRA", "it"),
    ("the style LoRA", "it"),
    ("the content LoRA and the style LoRA", "them"),
)

#: No value of any setting, and parts of locks that are no lock for three different reasons.
WRONG = ("?", "", "in4=", "in9-2=C")
#: Words of the English sentences about a wrong value.
_ENGLISH = re.compile(r"\b(is|write|names|does|has|may)\b")

_PLACE = re.compile(r"\{\w*\}")
_SAID = re.compile(r"""\bsay\(\s*["']([^"']+)["']""")


def once(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """The entries of a file, of which JSON would keep the last where one stands twice."""
    keys = [key for key, _ in pairs]
    assert sorted({key for key in keys if keys.count(key) > 1}) == []
    return dict(pairs)


def words(file: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once)
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
    if isinstance(node, ast.BinOp):
        parts = [template(node.left), template(node.right)]
        return "".join(part or "{}" for part in parts) if any(parts) else None
    return None


def trees(rooms: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    """(file, its syntax) of all files of the rooms."""
    for room in rooms:
        place = ROOT / "klora" / room
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            name = file.relative_to(ROOT / "klora").as_posix()
            yield name, ast.parse(file.read_text(encoding="utf-8"))


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """(what is called, without what it belongs to, and the call)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2], node


def told_in(tree: ast.Module) -> Iterator[str]:
    """What is made an error of, or reported beside the work; and sentences that a function returns."""
    for called, node in calls(tree):
        is_error = called.endswith("Error") and called != "ValueError"
        if node.args and (is_error or called in ("__init__", "_error", "_report")):
            yield template(node.args[0]) or ""
        if called == "_comment":
            yield template(node.args[1]) or ""
    for returned in ast.walk(tree):
        if isinstance(returned, ast.Return) and returned.value is not None:
            text = template(returned.value) or ""
            if text.startswith("K-LoRA") and text.endswith("."):
                yield text


def of_errors() -> set[str]:
    found = ((name, bare(text)) for name, tree in trees(ROOMS) for text in told_in(tree))
    told = {text for name, text in found if name not in NOT_IN_THE_PAGE and text.strip("{}")}
    told -= {*FOR_PROGRAMMERS, *FRAMES}
    return told | set(FILLED) | {PAIR.format("{}", *missing) for missing in MISSING}


def assigned(tree: ast.Module) -> dict[str, list[str]]:
    """The texts that names stand for in a file."""
    texts: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = template(node.value)
            if text is not None:
                texts.setdefault(node.targets[0].id, []).append(text)
    return texts


def of_remedies() -> set[str]:
    """The second halves of all sentences about a wrong value of a setting."""
    told: set[str] = set()
    for name, tree in trees(ROOMS_OF_CHECKS):
        texts = assigned(tree)
        for called, node in calls(tree):
            if called not in REFUSALS:
                continue
            given = node.args[REFUSALS[called]]
            if ast.unparse(given) == "str(error)":  # a check has said it
                continue
            found = texts.get(given.id, [""]) if isinstance(given, ast.Name) else [template(given) or ""]
            assert "" not in found, f"{name}: {ast.unparse(node)} is not understood"
            told |= set(found)
    return told


def remedies_of(entries: Iterable[str]) -> set[str]:
    """The second halves of sentences about a wrong value that have an entry."""
    matches = (re.fullmatch(r"\S+ is \{\}; (.+)\.", bare(one)) for one in entries)
    return {found[1] for found in matches if found}


def refused() -> Iterator[tuple[str, str, str]]:
    """(setting, value, sentence) of wrong values of every setting."""
    for setting in Settings.offered():
        for value in WRONG:
            try:
                setting.parse(value)
            except SettingsError as error:
                yield setting.name, value, str(error)


def in_language(file: Path, sentences: list[str]) -> list[str]:
    """The sentences as the page shows them."""
    given = [sentences, words(file)]
    told: list[str] = in_node("klora_words.js", "given[0].map((one) => k.translated(one, given[1]))", given)
    return told


def language(name: str) -> Path:
    return next(one for one in LANGUAGES if one.stem == name)


def test_there_are_two_languages() -> None:
    assert [one.stem for one in LANGUAGES] == ["ja_JP", "zh_CN"]


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda one: one.stem)
def test_every_text_has_an_entry(file: Path, host: FakeHost) -> None:
    known = words(file)
    texts = of_settings() | of_components(host) | of_scripts() | of_notes()
    assert sorted(texts - known.keys()) == []
    assert sorted(of_errors() - {bare(one) for one in known}) == []
    assert sorted(of_remedies() - remedies_of(known)) == []


def test_no_entry_is_for_nothing(host: FakeHost) -> None:
    files = [*(ROOT / "javascript").glob("*.js"), *(ROOT / "klora/hosts/webui").glob("*.py")]
    source = "".join(one.read_text(encoding="utf-8") for one in files)
    texts = of_settings() | of_components(host) | of_scripts() | of_notes()
    sentences, remedies = of_errors(), of_remedies()
    left = [one for one in words(LANGUAGES[0]) if one not in texts and bare(one) not in sentences]
    left = [one for one in left if f'"{one}"' not in source]
    assert [one for one in left if not remedies_of([one]) & remedies] == []


def test_settings_are_checked_where_the_remedies_are_looked_for() -> None:
    checks = [one.check for one in Settings.declarations() if one.check is not None]
    assert {one.__module__.split(".")[1] for one in checks} <= set(ROOMS_OF_CHECKS)


def test_a_key_that_stands_twice_is_found() -> None:
    with pytest.raises(AssertionError, match="Save"):
        json.loads('{"Save": "a", "Rename": "b", "Save": "c"}', object_pairs_hook=once)


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda one: one.stem)
def test_a_translation_fills_in_what_the_sentence_does(file: Path) -> None:
    for text, translation in words(file).items():
        assert translation.strip(), text
        assert set(re.findall(r"\{\w+\}", translation)) == set(re.findall(r"\{\w+\}", text)), text


def test_the_languages_have_the_same_entries() -> None:
    first, *others = (set(words(one)) for one in LANGUAGES)
    assert all(one == first for one in others)


@pytest.mark.parametrize(
    ("name", "sentence", "expected"),
    [
        (
            "ja_JP",
            "a.b is made for SDXL and ink for SD1; pick two LoRAs of the same base model.",
            "a.b は SDXL 用、ink は SD1 用です。同じベースモデルの LoRA を 2 つ選んでください。",
        ),
        (
            "ja_JP",
            "in <klora:balance=9>, balance is '9'; write a number from -1 to 1.",
            "<klora:balance=9> の中：balance が '9' です。-1 から 1 の数を書いてください。",
        ),
        (  # a comma in the tag ends nothing
            "zh_CN",
            "in <klora:alpha=1, rule=ink>, rule is 'ink'; write one of: K-LoRA, EST.",
            "在 <klora:alpha=1, rule=ink> 中：rule 为 'ink'；请写以下之一：K-LoRA, EST。",
        ),
        (  # what is inside has an entry without places
            "ja_JP",
            "in <klora:alpha=0>, alpha is 0, but S* is taken modulo alpha; raise alpha or use S.",
            "<klora:alpha=0> の中：alpha が 0 ですが、S* は alpha を法とします。"
            "alpha を上げるか S を使ってください。",
        ),
        (  # what is inside has none, and the whole has another
            "zh_CN",
            "in <klora:fox>, 'fox' is no setting; write name=value, such as balance=0.3.",
            "<klora:fox> 中的 'fox' 不是设置；请写 名称=值，例如 balance=0.3。",
        ),
        (  # what is inside has none: better half than nothing
            "zh_CN",
            "in <klora:fox:ink>, nobody foresaw this.",
            "在 <klora:fox:ink> 中：nobody foresaw this。",
        ),
        (
            "zh_CN",
            "alpha is 'x'; write a number from 0 to 9 (in klora.json, where it is left as it is).",
            "alpha 为 'x'；请写 0 到 9 的数字（在 klora.json 中，保持原样）。",
        ),
        (
            "ja_JP",
            "content and style are both fox: choose two different LoRAs in the hires prompt.",
            "高解像度補助のプロンプト：内容と画風がどちらも fox です。異なる 2 つの LoRA を選んでください。",
        ),
        (  # it keeps its full stop
            "zh_CN",
            "LoRA oak stands in the prompt beside the pair and cannot be loaded: oak.safetensors: the file "
            "is gone; put it back or take it out of the prompt.",
            "提示词中除组合外的 LoRA oak 无法加载：oak.safetensors：文件已不存在；请放回或从提示词中移除。",
        ),
        (  # the label of a setting
            "zh_CN",
            "fox is made for SD1 and ink for SDXL; pick two LoRAs of the same base model; the LoRAs cannot "
            "be added normally, because the pair is rewritten: set Rewrite the pair to none.",
            "fox 适用于 SD1，而 ink 适用于 SDXL；请选择同一基础模型的两个 LoRA；"
            "由于组合已被改写，无法照常相加 LoRA：请把 “改写组合” 设为 none。",
        ),
        (
            "ja_JP",
            "LoRAs added normally: content and style are both fox: choose two different LoRAs.",
            "LoRA を通常どおり加算しました："
            "内容と画風がどちらも fox です。異なる 2 つの LoRA を選んでください。",
        ),
        (
            "zh_CN",
            "LoRAs left out, because they cannot be loaded: oak, elm",
            "因无法加载而略去的 LoRA：oak, elm",
        ),
    ],
)
def test_the_page_translates_the_sentences_of_the_server(name: str, sentence: str, expected: str) -> None:
    told = in_language(language(name), [sentence, f"K-LoRA: {sentence}"])
    assert told == [expected, f"K-LoRA: {expected}"]


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda one: one.stem)
def test_the_page_translates_what_is_wrong_with_a_value(file: Path) -> None:
    sentences = [sentence for _, _, sentence in refused()]
    for name, value, _ in refused():
        tag = pair_tags.of_items(["fox", "ink", f"{name}={value}"])
        with pytest.raises(SettingsError) as raised:
            tag.over(Settings())
        sentences.append(str(raised.value))
    assert [one for one in in_language(file, sentences) if _ENGLISH.search(one)] == []


def test_the_japanese_readme_has_the_same_settings_in_the_words_of_the_page() -> None:
    japanese = words(language("ja_JP"))
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
