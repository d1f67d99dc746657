"""The plan as it is asked for by the page, for real small files."""

from __future__ import annotations

import base64
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from klora.files.overlay import Overlay
from klora.hosts.webui import live_plan
from klora.hosts.webui.plan_data import SHARE_UNIT, plan_data, told
from klora.planning import plan_files
from klora.presets import BUILT_IN
from klora.settings import Settings, shown
from tests.engine.lora_files import write_lora
from tests.published import published

from .conftest import FakeHost

PAIR = "<lora:fox:1> <lora:Ink Wash:0.8>"
STRONG = next(one for one in BUILT_IN if one.name == "Strong style")


@pytest.fixture
def on_disk(host: FakeHost, tmp_path: Path) -> FakeHost:
    for entry in host.networks.on_disk:
        entry.filename = str(write_lora(tmp_path / f"{entry.name}.safetensors", seed=len(entry.name)))
    return host


def ask(settings: Settings | None = None, **page: object) -> dict[str, Any]:
    values = (settings or Settings(enabled=True)).values
    arguments = [values[one.name] for one in Settings.offered()]
    answer: dict[str, Any] = json.loads(
        live_plan.answer(json.dumps({"prompt": PAIR, "steps": "8", "key": "k1", **page}), *arguments)
    )
    return answer


def shares_in(data: dict[str, Any]) -> np.ndarray:
    whole = np.frombuffer(base64.b64decode(data["shares"]), dtype="<i2")
    return whole.reshape(data["steps"], len(data["layers"]), 2) / SHARE_UNIT


@pytest.mark.parametrize("rule", ["K-LoRA", "smooth", "weights"])
def test_the_page_gets_the_plan_that_the_command_line_makes(
    on_disk: FakeHost, tmp_path: Path, rule: str
) -> None:
    settings = published(enabled=True, rule=rule, balance=0.2)
    answer = ask(settings)
    plan = plan_files(tmp_path / "fox.safetensors", tmp_path / "ink.safetensors", settings, 8)
    assert answer["key"] == "k1"
    assert answer["plan"]["layers"] == list(plan.layers)
    assert np.abs(shares_in(answer["plan"]) - plan.shares).max() <= 0.5 / SHARE_UNIT
    assert answer["plan"]["part"] == pytest.approx(plan.content_share, abs=1e-4)


def test_shares_beyond_what_is_sent_are_cut_and_not_turned_over(on_disk: FakeHost, tmp_path: Path) -> None:
    settings = published(rule="weights", content_from=10, content_to=-10)
    plan = plan_files(tmp_path / "fox.safetensors", tmp_path / "ink.safetensors", settings, 8)
    plan.shares[0, 0, 0] = 1000
    assert shares_in(plan_data(plan, settings))[0, 0, 0] == pytest.approx(32.767)


def test_the_plan_says_whose_and_what_it_is(on_disk: FakeHost) -> None:
    answer = ask(published(enabled=True, alpha=2, balance=0.4))["plan"]
    assert answer["loras"] == ["fox", "ink"]
    assert ["Alpha", "2"] in answer["settings"]
    assert answer["preset"] == "none"
    assert (
        ask(Settings(enabled=True, **STRONG.complete(), preset=STRONG.name))["plan"]["preset"] == STRONG.name
    )


def test_what_is_told_begins_with_rule_and_balance() -> None:
    first = [Settings.declaration(name) for name in ("rule", "balance")]
    assert [one.label for one in first] == ["Rule", "Balance"]
    assert told(Settings()) == [(one.label, shown(one, one.default)) for one in first]
    assert told(published())[:2] == [("Rule", "K-LoRA"), ("Balance", "0")]


def test_windows_and_a_tag_in_the_prompt_count(on_disk: FakeHost) -> None:
    late = shares_in(ask(prompt="<lora:fox:1> <lora:ink:1:start=0.5>", steps=8)["plan"])
    assert not late[:4, :, 1].any()
    tagged = ask(prompt="<klora:ink:fox:balance=1>")["plan"]
    assert tagged["loras"] == ["ink", "fox"]
    assert not shares_in(tagged)[:, :, 0].any()


def test_img2img_has_the_steps_that_are_left(on_disk: FakeHost) -> None:
    # What AUTOMATIC1111 calls the model: 4 times of 6 steps at a strength of 0.5, 2 times at 0.25.
    assert ask(steps="6", strength="0.5")["plan"]["steps"] == 4
    assert ask(steps="6", strength="0.25")["plan"]["steps"] == 2
    assert ask(steps="6", strength="1")["plan"]["steps"] == 6


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ({"prompt": "<lora:fox:1>"}, "found 1 (fox)"),
        ({"prompt": "<lora:fox:1><lora:nobody:1>"}, "nobody was not found"),
        ({"steps": "many"}, "write a whole number"),
    ],
)
def test_an_obstacle_is_a_sentence_and_no_plan(
    on_disk: FakeHost, page: dict[str, object], sentence: str
) -> None:
    answer = ask(**page)
    assert sentence in answer["problem"]
    assert "plan" not in answer


def test_of_rewritten_pairs_the_last_alone_is_kept(on_disk: FakeHost) -> None:
    """Each holds the tensors that were rewritten in memory: hundreds of megabytes with large files."""
    before = _overlays()
    plans = [
        ask(published(enabled=True, transform="NP-LoRA", mu=one / 2))["plan"]["shares"] for one in range(1, 9)
    ]
    assert len(_overlays() - before) == 1
    again = ask(published(enabled=True, transform="NP-LoRA", mu=0.5))["plan"]
    assert again["shares"] == plans[0]


def _overlays() -> set[Overlay]:
    gc.collect()
    return {one for one in gc.get_objects() if isinstance(one, Overlay)}


def test_progress_is_nothing_while_nothing_is_scored() -> None:
    assert json.loads(live_plan.progress()) == [0, 0]
