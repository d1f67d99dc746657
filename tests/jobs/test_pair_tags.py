"""Pairs in prompts: ``<klora:fox:ink:balance=0.3>`` drives a job without any tick."""

from __future__ import annotations

from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest

from klora.errors import KloraError, SettingsError
from klora.hosts.webui import axes, job, pair_tags, preset_shelf
from klora.hosts.webui.infotext import restored
from klora.presets import BUILT_IN, NO_PRESET, Preset
from klora.settings import Settings
from tests.jobs.fake_webui import CONTENT_WINS, STYLE_WINS, Webui
from tests.jobs.fakes import CANONICAL, IN_FORWARD_ORDER, FakeSampler, parsed_tag
from tests.published import published

TO_CONTENT, TO_STYLE = (
    ",".join(f"{name}={value}" for name, value in rule.items()) for rule in (CONTENT_WINS, STYLE_WINS)
)


# -- reading ------------------------------------------------------------------------------------------


def test_a_tag_is_taken_out_and_read() -> None:
    prompt, tag = pair_tags.taken_out("a fox <klora:fox:ink:Balance = 0.3, rule=smooth>, snow")
    assert prompt == "a fox , snow"
    assert tag is not None
    assert (tag.content, tag.style) == ("fox", "ink")
    assert tag.over(published()) == published(
        enabled=True, content="fox", style="ink", balance=0.3, rule="smooth"
    )


def test_what_a_tag_does_not_name_stays_as_in_the_accordion() -> None:
    _, tag = pair_tags.taken_out("<klora:fox:ink:balance=0.3>")
    assert tag is not None
    accordion = Settings(enabled=True, rule="EST", keep=0.4, content="oak", content_weight=0.7)
    expected = accordion.replace(balance=0.3, content="fox", style="ink")
    assert tag.over(accordion) == expected


def test_weights_and_mode_are_settings_of_a_tag() -> None:
    _, tag = pair_tags.taken_out("<klora:fox:ink:content_weight=0.8,style_weight=1.1,mode=added>")
    assert tag is not None
    made = tag.over(Settings())
    assert (made.content_weight, made.style_weight, made.mode) == (0.8, 1.1, "added")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "<klora:fox:ink:balance=3>",
            r"in <klora:fox:ink:balance=3>, balance is '3'; write a number from -1",
        ),
        ("<klora:fox:ink:blance=0>", r"there is no setting 'blance'; a prompt may set .*balance"),
        ("<klora:fox:ink:show_plan=true>", r"no setting 'show_plan'"),
        ("<klora:fox:ink:enabled=false>", r"no setting 'enabled'"),
        (
            "<klora:fox:ink:rule=K-LoRA,schedule=S*,alpha=0>",
            r"in <klora:fox:ink:rule=K-LoRA,schedule=S\*,alpha=0>, alpha is 0",
        ),
    ],
)
def test_errors_name_the_tag_and_the_part(written: str, message: str) -> None:
    _, tag = pair_tags.taken_out(written)
    assert tag is not None
    with pytest.raises(SettingsError, match=message):
        tag.over(Settings())


def test_a_quick_look_finds_every_tag_and_nothing_else() -> None:
    assert pair_tags.mentions_pair(["a", "b <klora:fox:ink>"])
    assert not pair_tags.mentions_pair(["a <lora:klora:1>", None, "klora:fox"])


# -- jobs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), (False,), ({"enabled": False},)])
@pytest.mark.parametrize(("rule", "winner"), [(TO_CONTENT, "fox"), (TO_STYLE, "ink")])
def test_a_tag_fuses_without_a_tick(webui: Webui, arguments: Any, rule: str, winner: str) -> None:
    p = webui.generate(f"a fox <klora:fox:ink:{rule}>", *arguments)
    assert p.prompts == ["a fox <lora:fox:1><lora:ink:1>"] * 2
    assert all(webui.is_applied(output, layer, winner) for output in p.seen for layer in CANONICAL)
    assert p.extra_generation_params["K-LoRA"] == "fox (1a2b3c4d5e6f) + ink (0123456789ab)"


def test_a_tag_wins_over_the_accordion_where_it_names_something(webui: Webui) -> None:
    p = webui.generate("<klora:fox:ink:beta=1e9,style_weight=0.5>", {**CONTENT_WINS, "content_weight": 0.25})
    assert p.prompts == ["<lora:fox:0.25><lora:ink:0.5>"] * 2
    assert all(webui.is_applied(p.seen[0], layer, "ink") for layer in CANONICAL)


def test_a_tag_with_settings_alone_takes_the_pair_of_the_prompt(webui: Webui) -> None:
    p = webui.generate(f"<lora:fox:1> <lora:ink:1> <klora:{TO_STYLE}>")
    assert p.prompts == ["<lora:fox:1> <lora:ink:1> "] * 2
    assert all(webui.is_applied(p.seen[0], layer, "ink") for layer in CANONICAL)


def test_names_may_be_aliases(webui: Webui) -> None:
    p = webui.generate(f"<klora:fox:Ink Wash:{TO_STYLE}>")
    assert all(webui.is_applied(p.seen[0], layer, "ink") for layer in CANONICAL)


def test_an_axis_of_a_plot_wins_over_the_tag(webui: Webui) -> None:
    p = webui.job(f"<klora:fox:ink:{TO_CONTENT}>")
    setting = Settings.declaration("beta")
    axes._applying(setting)(p, "1e9", [])
    webui.script.process(p, False)
    webui.batch(p)
    assert all(webui.is_applied(webui.sample(p)[0], layer, "ink") for layer in CANONICAL)


def test_prompt_search_and_replace_changes_the_pair_from_cell_to_cell(webui: Webui) -> None:
    """The plot copies p for each cell and replaces words of its prompt before the job begins."""
    first = webui.job(f"<klora:fox:ink:{TO_CONTENT}>")
    for names, winner in (("fox:ink", "fox"), ("Oak:ink", "Oak"), ("ink:fox", "ink")):
        cell = copy(first)
        cell.prompts = [prompt.replace("fox:ink", names) for prompt in first.prompts]
        cell.sampler = FakeSampler(webui.model)
        webui.script.process(cell, False)
        webui.batch(cell)
        assert all(webui.is_applied(webui.sample(cell)[0], layer, winner) for layer in CANONICAL)


def test_each_batch_goes_by_its_own_prompt(webui: Webui) -> None:
    """Wildcards write the prompts after the job has begun: with a pair, with another, with none."""
    p = webui.job("a __pair__")
    webui.script.process(p, False)
    for prompt, applied, keys in (
        ("a fox", [], False),
        (f"<klora:fox:ink:{TO_CONTENT}>", ["fox"], True),
        (f"<klora:Oak:ink:{TO_CONTENT}>", ["Oak"], True),
        ("<lora:fox:1><lora:ink:1>", ["fox", "ink"], False),
    ):
        p.prompts, p.sampler = [prompt], FakeSampler(webui.model)
        webui.batch(p)
        assert all(webui.is_applied(webui.sample(p)[0], layer, *applied) for layer in CANONICAL), prompt
        assert any(key.startswith("K-LoRA") for key in p.extra_generation_params) is keys, prompt


def test_prompts_of_one_batch_that_differ_are_refused(webui: Webui) -> None:
    p = webui.job("")
    p.prompts = ["<klora:fox:ink>", "<klora:Oak:ink>"]
    webui.script.process(p, False)
    webui.batch(p)
    message = r"differ in their pair \(<klora:fox:ink> and <klora:Oak:ink>\).*set the batch size to 1"
    with pytest.raises(KloraError, match=message) as caught:
        webui.sample(p)
    assert vars(caught.value)["status_code"] == 422
    p = webui.job("")
    p.prompts = ["<klora:fox:ink> a", "b"]
    webui.script.process(p, {"incomplete": "add normally"})
    webui.batch(p)
    with pytest.raises(KloraError, match=r"<klora:fox:ink> and no pair"):
        webui.sample(p)


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("<klora:fox:birch>", "LoRA birch was not found"),
        ("<klora:fox>", "does not name two LoRAs"),
        ("<klora:fox:ink:balance=3>", "balance is '3'; write a number"),
        ("<klora:fox:fox>", "content and style are both fox"),
        ("<klora:fox:ink><klora:fox:ink>", "2 tags"),
    ],
)
def test_what_is_wrong_stops_the_picture_with_a_sentence(webui: Webui, tag: str, message: str) -> None:
    with pytest.raises(KloraError, match=message) as caught:
        webui.generate(tag)
    assert str(caught.value).startswith("K-LoRA")
    assert vars(caught.value)["status_code"] == 422


@pytest.mark.parametrize(("mode", "left"), [("added", ["fox", "ink"]), ("style only", ["ink"]), ("off", [])])
def test_modes_in_a_tag(webui: Webui, mode: str, left: list[str]) -> None:
    p = webui.generate(f"<klora:fox:ink:mode={mode}>")
    assert all(webui.is_applied(p.seen[0], layer, *left) for layer in IN_FORWARD_ORDER)


def test_pasting_the_infotext_restores_the_settings_of_the_tag(webui: Webui) -> None:
    p = webui.generate("<klora:fox:ink:balance=0.3,rule=EST>")
    values = {one.name: restored(one, p.extra_generation_params) for one in Settings.declarations()}
    expected = {"enabled": True, "content": "fox", "style": "ink", "balance": 0.3, "rule": "EST"}
    assert Settings(**values) == Settings(**expected, preset=NO_PRESET)


def test_a_preset_is_laid_under_what_a_tag_names(webui: Webui) -> None:
    preset_shelf.shelf().save("mine", Settings(rule="smooth", tau=0.5, balance=0.25))
    p = webui.generate("<klora:fox:ink:preset=mine,balance=-0.5>")
    written = p.extra_generation_params
    assert (written["K-LoRA rule"], written["K-LoRA tau"]) == ("smooth", "0.5")
    assert written["K-LoRA balance"] == "-0.5"
    with pytest.raises(KloraError, match=r"in <klora:fox:ink:preset=nothing like it>, there is no preset"):
        webui.generate("<klora:fox:ink:preset=nothing like it>")


@pytest.mark.parametrize("preset", BUILT_IN, ids=lambda one: one.name)
def test_every_preset_can_be_named_whatever_its_name_holds(webui: Webui, preset: Preset) -> None:
    _, tag = pair_tags.taken_out(f"<klora:fox:ink:balance=0.1,preset={preset.name},incomplete=add normally>")
    assert tag is not None
    settings = tag.over(Settings())
    assert (settings.preset, settings.balance, settings.incomplete) == (preset.name, 0.1, "add normally")
    held = preset.complete()
    assert {name: settings.values[name] for name in held} == {**held, "balance": 0.1}


# -- the hires pass -----------------------------------------------------------------------------------


def hires(webui: Webui, p: Any, names: list[str]) -> Any:
    p.is_hr_pass, p.sampler = True, FakeSampler(webui.model)
    webui.activate(names)
    webui.script.after_extra_networks_activate(p)
    return webui.sample(p)


def test_the_tag_of_the_hires_prompt_is_taken_from_what_the_host_has_parsed(webui: Webui) -> None:
    tags = {"klora": [parsed_tag(["fox", "ink", *TO_STYLE.split(":")])]}
    p = webui.generate(f"<klora:fox:ink:{TO_CONTENT}>", enable_hr=True, hr_extra_network_data=tags)
    assert webui.is_applied(p.seen[-1], next(iter(CANONICAL)), "fox")
    assert "klora" not in tags  # the host knows no such kind
    assert [tag.positional for tag in tags["lora"]] == [["fox", "1"], ["ink", "1"]]
    assert all(
        webui.is_applied(one, layer, "ink") for one in hires(webui, p, ["fox", "ink"]) for layer in CANONICAL
    )
    assert len(p.klora_job.plans) == 2


def test_the_loras_of_the_hires_prompt_are_looked_after_when_it_is_encoded(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which most hosts do before the first pass, and then load those of the first pass again."""
    tags = {"lora": [parsed_tag(["ink", "1", "stop=0.5"])]}
    p = webui.generate("<klora:fox:ink>", enable_hr=True, hr_extra_network_data=tags)
    told: list[tuple[set[str], bool]] = []

    def after_activation(_p: Any, names: set[str], _rewritten: object, *, is_hires: bool) -> None:
        told.append((set(names), is_hires))

    monkeypatch.setattr(job, "this_host", lambda: SimpleNamespace(after_activation=after_activation))
    for activated in (tags, {"lora": []}):
        webui.script.after_extra_networks_activate(p, extra_network_data=activated)
    p.is_hr_pass = True  # also where the host activates the first prompt's for a refiner
    webui.script.after_extra_networks_activate(p, extra_network_data={"lora": []})
    assert told == [({"ink"}, True), ({"fox", "ink"}, False), ({"ink"}, True)]


def test_a_hires_prompt_without_a_tag_is_not_fused_where_the_box_is_not_ticked(webui: Webui) -> None:
    tags = {"lora": [parsed_tag(["fox", "1"]), parsed_tag(["ink", "1"])]}
    p = webui.generate(f"<klora:fox:ink:{TO_CONTENT}>", enable_hr=True, hr_extra_network_data=tags)
    assert all(
        webui.is_applied(one, layer, "fox", "ink")
        for one in hires(webui, p, ["fox", "ink"])
        for layer in CANONICAL
    )


def test_hires_prompts_of_one_batch_that_differ_are_refused(webui: Webui) -> None:
    tags = {"klora": [parsed_tag(["fox", "ink"])]}
    with pytest.raises(KloraError, match="differ in their pair"):
        webui.generate(
            "<klora:fox:ink>",
            enable_hr=True,
            hr_extra_network_data=tags,
            all_hr_prompts=["<klora:fox:ink>", "<klora:Oak:ink>"],
        )
