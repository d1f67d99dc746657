"""Settings go into the infotext and come back through the host's own rules."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klora.hosts.webui import infotext
from klora.hosts.webui.infotext import FusedLora, FusedPair
from klora.rules import RULES, TRANSFORMS
from klora.settings import DEFAULT_PRESET, FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings
from tests.engine.test_settings import values_of
from tests.published import published

from .conftest import host_reads, host_writes

PAIR = FusedPair(FusedLora("fox", "1a2b3c4d5e"), FusedLora("ink", "aabbccddee"))


def pasted(settings: Settings, pair: FusedPair | None = PAIR, fallback: str | None = None) -> dict[str, str]:
    ours = infotext.written(settings, pair, fallback)
    return host_reads(host_writes({"Steps": 20, **ours, "Seed": 1, "Version": "v1.10.1"}))


def restored(parameters: dict[str, str]) -> dict[str, object]:
    return {one.name: infotext.restored(one, parameters) for one in Settings.declarations()}


def test_what_a_reader_sees() -> None:
    assert infotext.written(published(enabled=True), PAIR, None) == {
        "K-LoRA": "fox (1a2b3c4d5e) + ink (aabbccddee)",
        "K-LoRA schedule": "S",
        "K-LoRA alpha": "1.5",
        "K-LoRA beta": "auto (0.5)",
        "K-LoRA top k": "rank",
        "K-LoRA gamma": "paper",
        "K-LoRA clock": "step",
        "K-LoRA other layers": "both",
        "K-LoRA rule": "K-LoRA",
        "K-LoRA balance": "0",
        "K-LoRA guidance": "both",
        "K-LoRA transform": "none",
        "K-LoRA locks": "auto",
        "K-LoRA keep": "0",
        "K-LoRA preset": DEFAULT_PRESET,
    }


def test_the_rule_is_written_where_it_is_the_default_too() -> None:
    settings = Settings(enabled=True)
    parameters = pasted(settings)
    shaping = [one for one in Settings.declarations() if settings.shapes(one)]
    assert {"rule", "balance", "guidance"} <= {one.name for one in shaping}
    assert {one.name: one.parse(parameters[one.infotext_key]) for one in shaping} == {
        one.name: one.default for one in shaping
    }
    assert restored(parameters) == settings.values


def test_auto_tells_the_beta_of_the_schedule() -> None:
    assert infotext.written(published(schedule="S*"), PAIR)["K-LoRA beta"] == "auto (1.3)"
    assert infotext.written(published(beta="0.7"), PAIR)["K-LoRA beta"] == "0.7"


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


def test_controls_that_the_text_does_not_name_go_to_what_they_then_were() -> None:
    values = restored({"K-LoRA": "fox + ink", "K-LoRA alpha": "2"})
    assert values == published(enabled=True, alpha=2, preset="none").values


def test_a_picture_of_0_1_0_comes_back_as_k_lora_as_published() -> None:
    text = (
        "Steps: 20, K-LoRA: fox (1a) + ink (2b), K-LoRA schedule: S*, K-LoRA alpha: 1.5, "
        "K-LoRA beta: auto (1.3), K-LoRA top k: rank, K-LoRA gamma: paper, K-LoRA clock: step, "
        "K-LoRA other layers: fuse, Version: v1.10.1"
    )
    values = restored(host_reads(text))
    told = {"rule": "K-LoRA", "balance": 0.0, "guidance": "both", "keep": 0.0}
    assert {name: values[name] for name in told} == told
    assert (values["schedule"], values["beta"], values["other_layers"]) == ("S*", "auto", "fuse")


def test_a_setting_of_another_rule_is_not_written() -> None:
    written = infotext.written(Settings(rule="weights", style_from=0.5, tau=2), PAIR)
    assert written["K-LoRA style from"] == "0.5"
    assert not {"K-LoRA tau", "K-LoRA schedule", "K-LoRA keep"} & set(written)


def test_a_value_of_another_version_gives_way_to_the_default() -> None:
    assert restored({"K-LoRA": "fox + ink", "K-LoRA schedule": "S**"})["schedule"] == "S"


def test_all_keys_covers_whatever_may_be_written() -> None:
    changed = {
        "content": "fox",
        "style": "ink",
        "content_weight": 0.5,
        "style_weight": 2,
        "incomplete": "add normally",
        "mode": "added",
        "show_plan": True,
        "windows": False,
    }
    by_rule = [Settings(rule=rule.name, **changed) for rule in RULES]
    by_transform = [Settings(transform=transform.name, **changed) for transform in TRANSFORMS]
    written = [set(infotext.written(one, PAIR, "why", "note")) for one in (*by_rule, *by_transform)]
    assert set().union(*written) == set(infotext.all_keys())


lora_names = st.one_of(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12),
    st.text("ab,:\"\\'+ ()x<>狐\n0123", min_size=1, max_size=12),
).filter(lambda name: name.strip() == name and name != "" and not name.isspace())
picks = st.one_of(st.sampled_from([FIRST_IN_PROMPT, SECOND_IN_PROMPT]), lora_names)


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    """Settings of which those of the other rules are at their defaults: the infotext does not tell them."""
    rule = draw(st.sampled_from(RULES))
    values: dict[str, object] = {"enabled": True, "rule": rule.name}
    for setting in Settings.declarations():
        if setting.type == "lora":
            values[setting.name] = draw(picks)
        elif (setting.name not in values and Settings(rule=rule.name).shapes(setting)) or (
            setting.name not in values and setting.scope != "rule"
        ):
            values[setting.name] = draw(values_of(setting))
    if values.get("schedule") == "S*":
        values["alpha"] = max(float(str(values["alpha"])), 1e-3)
    return Settings(**values)


@given(any_settings())
@example(Settings(enabled=True, content='"fox"', style="12x34"))
@example(Settings(enabled=True, content='a "b', style='c" d'))
@example(Settings(enabled=True, content='a, "b": c\\', style="K-LoRA style"))
def test_every_control_comes_back(settings: Settings) -> None:
    assert restored(pasted(settings)) == settings.values


@given(lora_names, lora_names)
def test_the_names_in_the_main_key_survive(content: str, style: str) -> None:
    pair = FusedPair(FusedLora(content, "aa"), FusedLora(style, "bb"))
    assert pasted(Settings(), pair)["K-LoRA"] == str(pair)


@pytest.mark.parametrize("reason", ['LoRA "fox" not found', "a: b, c", "K-LoRA fallback"])
def test_a_reason_survives(reason: str) -> None:
    assert pasted(Settings(), None, reason)["K-LoRA fallback"] == reason
