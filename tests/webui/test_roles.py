"""Who is content, who is style: the table that Python and the browser's live line both satisfy."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klora.hosts.webui.roles import assign, cast, tags_in
from klora.settings import FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "javascript" / "klora.js"
CASES: list[dict[str, Any]] = json.loads((HERE / "roles_cases.json").read_text(encoding="utf8"))


def expected(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "content": case["content"],
        "style": case["style"],
        "content_picked": case.get("content_picked", False),
        "style_picked": case.get("style_picked", False),
        "extras": case["extras"],
        "problem": case.get("problem"),
    }


def in_python(prompt: str, content: str, style: str, aliases: dict[str, str]) -> dict[str, Any]:
    roles = asdict(cast(prompt, Settings(content=content, style=style), aliases))
    return {**roles, "extras": list(roles["extras"])}


def question(case: dict[str, Any]) -> tuple[str, str, str, dict[str, str]]:
    return (
        case["prompt"],
        case.get("picked_content", FIRST_IN_PROMPT),
        case.get("picked_style", SECOND_IN_PROMPT),
        case.get("aliases", {}),
    )


def in_the_browsers_words(questions: list[tuple[str, str, str, dict[str, str]]]) -> list[dict[str, Any]]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    program = (
        f"const k = require({json.dumps(str(SCRIPT))});"
        "const questions = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "console.log(JSON.stringify(questions.map(([prompt, content, style, aliases]) =>"
        " k.cast(prompt, content, style, new Map(Object.entries(aliases))))));"
    )
    done = subprocess.run(
        [node, "-e", program], input=json.dumps(questions), capture_output=True, text=True, check=True
    )
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_the_table_in_python(case: dict[str, Any]) -> None:
    assert in_python(*question(case)) == expected(case)


def test_the_table_in_javascript() -> None:
    answers = in_the_browsers_words([question(case) for case in CASES])
    for case, answer in zip(CASES, answers, strict=True):
        assert answer == expected(case), case["case"]


def test_python_and_javascript_agree_on_every_small_prompt() -> None:
    names = ["fox", "ink", "oak"]
    prompts = ["".join(f"<lora:{n}:1>" for n in chosen) for chosen in _sequences(names, 3)]
    choices = [FIRST_IN_PROMPT, SECOND_IN_PROMPT, "fox", "ink"]
    questions: list[tuple[str, str, str, dict[str, str]]] = [
        (prompt, content, style, {}) for prompt in prompts for content in choices for style in choices
    ]
    assert in_the_browsers_words(questions) == [in_python(*one) for one in questions]


def _sequences(names: list[str], longest: int) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for _ in range(longest):
        found += [(*start, name) for start in found for name in names]
    return sorted(set(found))


def test_a_host_that_knows_no_lyco_tags_does_not_count_them() -> None:
    prompt = "<lyco:fox:1><lora:ink:1>"
    assert tags_in(prompt, ("lora",)) == ("ink",)
    roles = cast(prompt, Settings(), None, ("lora",))
    assert roles.problem is not None
    assert "found 1 (ink)" in roles.problem


@given(
    names=st.lists(st.sampled_from(["fox", "ink", "", " oak "]), max_size=3),
    values=st.lists(st.sampled_from(["balance=0.3", "rule=smooth", "smooth", "=1", "alpha=2"]), max_size=3),
    around=st.sampled_from(["", "<lora:elm:1>", "<klora:elm:oak>"]),
)
@settings(max_examples=25, deadline=None)
def test_python_and_javascript_agree_on_pair_tags(names: list[str], values: list[str], around: str) -> None:
    prompt = f"<klora:{':'.join([*names, ','.join(values)])}>{around}"
    one = (prompt, FIRST_IN_PROMPT, SECOND_IN_PROMPT, {})
    assert in_the_browsers_words([one]) == [in_python(*one)]


names = st.sampled_from(["fox", "ink", "oak", "elm"])
choices = st.sampled_from([FIRST_IN_PROMPT, SECOND_IN_PROMPT, "fox", "ink"])


@settings(deadline=None)  # a busy machine is no fault
@given(tags=st.lists(names, max_size=5), content=choices, style=choices)
def test_nothing_is_lost_and_nobody_plays_two_parts(tags: list[str], content: str, style: str) -> None:
    roles = assign(tags, Settings(content=content, style=style))
    cast_names = {roles.content, roles.style} - {None}
    assert set(tags) <= cast_names | set(roles.extras)
    assert not cast_names & set(roles.extras)
    assert roles.content_picked == (roles.content is not None and roles.content not in tags)
    assert (roles.problem is None) == (len(cast_names) == 2)


def test_the_live_line_names_the_roles_what_is_missing_and_what_is_added() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    program = (
        f"const k = require({json.dumps(str(SCRIPT))});"
        "const say = (prompt, style) => k.lineOf(k.cast(prompt,"
        f" {json.dumps(FIRST_IN_PROMPT)}, style, new Map())).map(([, text]) => text);"
        f"console.log(JSON.stringify([say('<lora:fox:1><lora:oak:1>', 'ink'),"
        f" say('<lora:fox:1>', {json.dumps(SECOND_IN_PROMPT)})]));"
    )
    done = subprocess.run([node, "-e", program], capture_output=True, text=True, check=True)
    picked, missing = json.loads(done.stdout)
    assert picked == [
        *("Content", "fox"),
        *("Style", "ink", "picked here, loaded with its own weight"),
        *("in the prompt too, added as a third LoRA:", "oak"),
    ]
    assert missing[:2] == ["Content", "fox"]
    assert "found 1 (fox): add the style LoRA" in missing[2]
