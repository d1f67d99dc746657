"""Settings go into the infotext and come back through the host's own rules."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klora.hosts.webui import infotext
from klora.hosts.webui.infotext import FusedLora, FusedPair
from klora.settings import FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings

from .conftest import host_reads, host_writes

PAIR = FusedPair(FusedLora("fox", "1a2b3c4d5e"), FusedLora("ink", "aabbccddee"))


def pasted(settings: Settings, pair: FusedPair | None = PAIR, fallback: str | None = None) -> dict[str, str]:
    ours = infotext.written(settings, pair, fallback)
    return host_reads(host_writes({"Steps": 20, **ours, "Seed": 1, "Version": "v1.10.1"}))


def restored(parameters: dict[str, str]) -> dict[str, object]:
    return {one.name: infotext.restored(one, parameters) for one in Settings.declarations()}


def test_what_a_reader_sees() -> None:
    assert infotext.written(Settings(enabled=True), PAIR, None) == {
        "K-LoRA": "fox (1a2b3c4d5e) + ink (aabbccddee)",
        "K-LoRA schedule": "S",
        "K-LoRA alpha": "1.5",
        "K-LoRA beta": "auto (0.5)",
        "K-LoRA top k": "rank",
        "K-LoRA gamma": "paper",
        "K-LoRA clock": "step",
        "K-LoRA other layers": "both",
    }


def test_auto_tells_the_beta_of_the_schedule() -> None:
    assert infotext.written(Settings(schedule="S*"), PAIR)["K-LoRA beta"] == "auto (1.3)"
    assert infotext.written(Settings(beta="0.7"), PAIR)["K-LoRA beta"] == "0.7"


def test_a_lora_without_hash_has_no_empty_brackets() -> None:
    pair = FusedPair(FusedLora("fox", ""), FusedLora("ink", "aa"))
    assert infotext.written(Settings(), pair)["K-LoRA"] == "fox + ink (aa)"


def test_a_fallback_is_told_and_still_counts_as_k_lora() -> None:
    parameters = pasted(Settings(enabled=True), None, "added normally: found 1 LoRA (fox), two needed")
    assert parameters["K-LoRA fallback"] == "added normally: found 1 LoRA (fox), two needed"
    assert infotext.PAIR_KEY not in parameters
    assert restored(parameters)["enabled"] is True


def test_a_text_without_k_lora_unticks_the_box_and_leaves_the_rest() -> None:
    values = restored(host_reads("Steps: 20, Sampler: Euler, Seed: 1"))
    assert values.pop("enabled") is False
    assert set(values.values()) == {None}


def test_controls_that_the_text_does_not_name_go_to_their_defaults() -> None:
    values = restored({"K-LoRA": "fox + ink", "K-LoRA alpha": "2"})
    assert values == {**asdict(Settings(enabled=True)), "alpha": 2.0}


def test_a_value_of_another_version_gives_way_to_the_default() -> None:
    assert restored({"K-LoRA": "fox + ink", "K-LoRA schedule": "S**"})["schedule"] == "S"


def test_all_keys_covers_whatever_may_be_written() -> None:
    changed = Settings(
        content="fox",
        style="ink",
        content_weight=0.5,
        style_weight=2,
        incomplete="add normally",
        mode="added",
    ).replace(show_plan=True)
    assert set(infotext.written(changed, PAIR, "why")) == set(infotext.all_keys())


def number(lowest: float, highest: float) -> st.SearchStrategy[float]:
    return st.floats(lowest, highest, allow_nan=False).map(lambda value: value + 0.0)


lora_names = st.one_of(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12),
    st.text("ab,:\"\\'+ ()x<>狐\n0123", min_size=1, max_size=12),
).filter(lambda name: name.strip() == name and name != "" and not name.isspace())
picks = st.one_of(st.sampled_from([FIRST_IN_PROMPT, SECOND_IN_PROMPT]), lora_names)
any_settings = st.builds(
    lambda **values: Settings(**values),
    enabled=st.just(True),
    content=picks,
    style=picks,
    content_weight=number(-10, 10),
    style_weight=number(-10, 10),
    schedule=st.sampled_from(["S", "S*"]),
    alpha=number(1e-3, 1e9),
    beta=st.one_of(st.just("auto"), number(0, 1e9).map(str)),
    top_k=st.one_of(
        st.just("rank"), st.integers(1, 10**6).map(str), number(0.001, 100).map(lambda share: f"{share}%")
    ),
    gamma=st.sampled_from(["paper", "published", "off"]),
    clock=st.sampled_from(["step", "noise", "published"]),
    other_layers=st.sampled_from(["fuse", "both", "content", "style", "none"]),
    incomplete=st.sampled_from(["stop", "add normally"]),
    mode=st.sampled_from(["K-LoRA", "added", "content only", "style only", "off"]),
    show_plan=st.booleans(),
)


@given(any_settings)
@example(Settings(enabled=True, content='"fox"', style="12x34"))
@example(Settings(enabled=True, content='a "b', style='c" d'))
@example(Settings(enabled=True, content='a, "b": c\\', style="K-LoRA style"))
def test_every_control_comes_back(settings: Settings) -> None:
    assert restored(pasted(settings)) == asdict(settings)


@given(lora_names, lora_names)
def test_the_names_in_the_main_key_survive(content: str, style: str) -> None:
    pair = FusedPair(FusedLora(content, "aa"), FusedLora(style, "bb"))
    assert pasted(Settings(), pair)["K-LoRA"] == str(pair)


@pytest.mark.parametrize("reason", ['LoRA "fox" not found', "a: b, c", "K-LoRA fallback"])
def test_a_reason_survives(reason: str) -> None:
    assert pasted(Settings(), None, reason)["K-LoRA fallback"] == reason
