"""What the browser computes, asked of node: shares, colours, translated sentences; and how much it loads."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klora.hosts.webui.plan_data import plan_data
from klora.options.locks import CHOICES, NO_LOCKS, normal_locks, parse_locks
from klora.pictures.heat_map import colours
from klora.schedule import Plan
from klora.settings import Settings

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "javascript"
MOST_BYTES = 60_000


def in_node(script: str, expression: str, given: object) -> Any:
    """The value of ``expression``, in which ``k`` is the script and ``given`` what was given."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    program = (
        f"const k = require({json.dumps(str(SCRIPTS / script))});"
        "const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        f"console.log(JSON.stringify({expression}));"
    )
    done = subprocess.run(
        [node, "-e", program], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def plan_of(shares: np.ndarray) -> Plan:
    layers = tuple(f"down_blocks.0.layer{at}" for at in range(shares.shape[1]))
    return Plan(loras=("fox", "ink"), layers=layers, shares=shares)


def test_script_and_style_are_light() -> None:
    files = [*SCRIPTS.glob("*.js"), ROOT / "style.css"]
    assert len(files) >= 4
    assert sum(one.stat().st_size for one in files) < MOST_BYTES


def test_the_page_makes_no_markup_of_text() -> None:
    """Names and sentences come from files and prompts: they are set as text and attributes alone."""
    ways = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "srcdoc",
    )
    scripts = {one.name: one.read_text(encoding="utf-8") for one in SCRIPTS.glob("*.js")}
    assert [(name, way) for name, text in scripts.items() for way in ways if way in text] == []


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=6, max_size=6))
def test_the_page_mixes_the_colours_of_the_printed_plan(numbers: list[tuple[float, float]]) -> None:
    plan = plan_of(np.round(np.array(numbers).reshape(3, 2, 2), 3))
    data = plan_data(plan, Settings())
    told = in_node(
        "klora_plan.js",
        "(() => {const s = k.sharesOf(given); return Array.from({length: s.length / 2}, "
        "(_, at) => k.colourOf(s[2 * at], s[2 * at + 1]));})()",
        data["shares"],
    )
    assert np.allclose(np.array(told).reshape(3, 2, 3) / 255, colours(plan), atol=2e-3)


def test_the_page_counts_what_a_step_touches_and_what_the_style_gets() -> None:
    shares = np.array([[[1, 0], [1, 0]], [[1, 0], [0, 1]], [[0, 1], [0, 1]], [[0, 1], [0, 1]]], dtype=float)
    plan = plan_of(shares)
    data = plan_data(plan, Settings())
    told = in_node("klora_plan.js", "k.stepsOf(given, k.sharesOf(given.shares))", data)
    assert [one["touched"] for one in told] == [0, 1, 1, 0]
    assert sum(one["touched"] for one in told) == plan.flips
    assert [one["style"] for one in told] == [0, 0.5, 1, 1]


def test_shares_are_read_with_their_sign() -> None:
    sent = base64.b64encode(np.array([-1500, 250], dtype="<i2").tobytes()).decode()
    assert in_node("klora_plan.js", "[...k.sharesOf(given)]", sent) == [-1.5, 0.25]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plan", "P"),
        ("unknown", "unknown"),
        ("LoRA a {b} was lost", "a {b} ist weg"),
        ("1 and 2 (x)", "2, 1"),
        ("1 and 2 (y)", "1 and 2 (y)"),
        ("toString", "toString"),
    ],
)
def test_sentences_with_names_in_them_are_translated(text: str, expected: str) -> None:
    words = {"Plan": "P", "LoRA {name} was lost": "{name} ist weg", "{a} and {b} (x)": "{b}, {a}"}
    assert in_node("klora_words.js", "k.translated(given[0], given[1])", [text, words]) == expected


BLOCKS = ["in1", "in2", "in4", "in5", "mid", "out3", "out4", "double0", "double1", "single10"]
LOCKS = st.lists(
    st.builds(
        "{}={}".format,
        st.sampled_from([*BLOCKS, "IN1-5", "out0-11", "double0-19", "block3"]),
        st.sampled_from([*CHOICES, "c", "BOTH"]),
    ),
    max_size=5,
).map(" ".join)


def said_of(text: str, block: str) -> str:
    """What a text of locks says of a block: the last that holds it."""
    found = re.fullmatch(r"([a-z]+)(\d*)", block)
    assert found is not None
    number = int(found[2] or 0)
    locks = [one for one in parse_locks(text) if one.group == found[1] and one.first <= number <= one.last]
    return locks[-1].choice if locks else NO_LOCKS


@settings(max_examples=25, deadline=None)
@given(LOCKS, st.sampled_from(BLOCKS))
def test_a_press_on_a_block_changes_its_lock_and_no_other(text: str, block: str) -> None:
    told = in_node(
        "klora_locks.js",
        "[k.choicesOf(given[0], given[1]), k.pressed(given[0], given[1], given[2])]",
        [text, BLOCKS, block],
    )
    before = {one: said_of(text, one) for one in BLOCKS}
    assert dict(zip(BLOCKS, told[0], strict=True)) == before
    after = {one: said_of(told[1], one) for one in BLOCKS}
    order = ("auto", "C", "S", "both", "none", "auto")
    assert after == {**before, block: order[order.index(before[block]) + 1]}
    assert normal_locks(told[1]) == told[1]
    assert said_of(told[1], "block3") == said_of(text, "block3")


def test_a_text_that_is_no_lock_shows_every_block_free() -> None:
    told = in_node("klora_locks.js", "k.choicesOf(given[0], given[1])", ["in4 = what", BLOCKS])
    assert set(told) == {NO_LOCKS}


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("", "ohwx", "ohwx"),
        ("a fox ", "ohwx", "a fox, ohwx"),
        ("a fox, ", "ohwx", "a fox, ohwx"),
        ("a fox in the snow", "fox", "a fox in the snow"),
        ("a (fox:1.2)", "fox", "a (fox:1.2)"),
        ("a foxglove", "fox", "a foxglove, fox"),
        ("a füchsin", "f", "a füchsin, f"),
        ("snow <lora:ohwx:1>", "ohwx", "snow <lora:ohwx:1>, ohwx"),
        ("snow", "fox (animal)", r"snow, fox \(animal\)"),
        (r"a fox \(animal\)", "fox (animal)", r"a fox \(animal\)"),
    ],
)
def test_a_trigger_word_is_added_unless_the_prompt_says_it(prompt: str, word: str, expected: str) -> None:
    """A LoRA is often called by its trigger word: its tag does not say the word to the model."""
    assert in_node("klora.js", "k.withWord(given[0], given[1])", [prompt, word]) == expected


@settings(max_examples=15, deadline=None)
@given(
    st.text(alphabet="fox o(,<:>\\.é*", max_size=12), st.text(alphabet="fox(.)*é+", min_size=1, max_size=5)
)
def test_a_trigger_word_is_added_once_and_nothing_else_changes(prompt: str, word: str) -> None:
    once, twice = in_node(
        "klora.js",
        "[k.withWord(given[0], given[1]), k.withWord(k.withWord(given[0], given[1]), given[1])]",
        [prompt, word],
    )
    assert twice == once
    assert once.startswith(prompt.rstrip())
