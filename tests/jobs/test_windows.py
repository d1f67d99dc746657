"""Windows in LoRA tags, from the prompt to the outputs of the layers, with and without a pair."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from klora.errors import KloraError
from klora.hosts.webui import windows
from klora.schedule import Span, Window
from tests.jobs.fake_webui import CONTENT_WINS, Webui
from tests.jobs.fakes import CANONICAL, FakeSampler, parsed_tag

LAYER = next(iter(CANONICAL))
KEYS = windows.KEYS


def applied(webui: Webui, seen: list[Any], *names: str) -> list[bool]:
    """Step by step: whether exactly these LoRAs are applied in all layers of the denoiser."""
    return [all(webui.is_applied(one, layer, *names) for layer in CANONICAL) for one in seen]


# -- reading ------------------------------------------------------------------------------------------


def test_a_window_is_cut_from_its_tag_and_nothing_else_is() -> None:
    prompt = "a <lora:fox:0.8:start=0.2:stop=0.8> b <lora:ink:1:te=0.5> <hypernet:x:start=1>"
    cleaned, found = windows.taken_out(prompt, KEYS, {})
    assert cleaned == "a <lora:fox:0.8> b <lora:ink:1:te=0.5> <hypernet:x:start=1>"
    assert found == {"fox": Window(Span(0.2, 0.8))}


def test_names_are_resolved_and_colons_of_a_curve_belong_to_it() -> None:
    cleaned, found = windows.taken_out("<lora:Ink Wash:1:w=0:0.2,0.5:1>", KEYS, {"Ink Wash": "ink"})
    assert cleaned == "<lora:Ink Wash:1>"
    assert found["ink"].curve == ((0, 0.2), (0.5, 1))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:fox:1:start=much>", "start=much"),
        ("<lora:fox:1:step=1-2:start=0.5>", "step beside start"),
        ("<lora:fox:1:start=0.2><lora:fox:0.5>", "fox stands in the prompt more than once"),
        ("<lora:fox:1:start=0.2><lora:fox:1:stop=0.5>", "fox stands in the prompt more than once"),
        ("<lora:start=0.2>", "names no LoRA"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(webui: Webui, prompt: str, message: str) -> None:
    with pytest.raises(KloraError, match=message):
        webui.generate(prompt, False)


def test_lora_block_weight_keeps_its_own_keys(webui: Webui, a1111: Any) -> None:
    assert windows.our_keys() == KEYS
    a1111.scripts.scripts_data.append(SimpleNamespace(path="/host/extensions/lbw/lora_block_weight.py"))
    assert set(windows.our_keys()) == {"hr_start", "hr_stop", "w"}
    p = webui.generate("<lora:fox:1:step=2-4:w=0:1,1:1>", False)
    assert p.prompts == ["<lora:fox:1:step=2-4>"] * 2  # what is left is the other script's
    for blocks in ("w=MIDD", "w=1,0,0.5,1", "W=MIDD:x=0.5"):
        p = webui.generate(f"<lora:fox:1:{blocks}>", False)
        assert p.prompts == [f"<lora:fox:1:{blocks}>"] * 2


# -- jobs ---------------------------------------------------------------------------------------------


def test_without_tags_there_is_no_job(webui: Webui) -> None:
    p = webui.generate("a <lora:fox:1><lora:ink:1> with start=0.5", False)
    assert p.klora_job is None


@pytest.mark.parametrize("arguments", [(), (False,)])
def test_a_window_works_without_a_tick(webui: Webui, arguments: Any) -> None:
    p = webui.generate("a <lora:fox:1:start=0.4> <lora:ink:1>", *arguments)
    assert p.prompts == ["a <lora:fox:1> <lora:ink:1>"] * 2
    assert applied(webui, p.seen, "ink") == [True, True, False, False, False]
    assert applied(webui, p.seen, "fox", "ink") == [False, False, True, True, True]
    assert not any(key.startswith("K-LoRA") for key in p.extra_generation_params)


def test_windows_that_are_not_to_be_read_are_left_to_the_host(webui: Webui) -> None:
    p = webui.generate("<lora:fox:1:start=0.4>", {"enabled": False, "windows": False})
    assert p.klora_job is None
    assert p.prompts == ["<lora:fox:1:start=0.4>"] * 2


def test_a_window_of_the_style_of_a_fused_pair(webui: Webui) -> None:
    p = webui.generate("<lora:fox:1><lora:ink:1:stop=0.4>", {**CONTENT_WINS, "beta": "1e9"})
    assert applied(webui, p.seen, "ink") == [True, True, False, False, False]
    assert applied(webui, p.seen) == [False, False, True, True, True]  # the loser does not step in


def test_a_guest_beside_the_pair(webui: Webui) -> None:
    p = webui.generate("<lora:fox:1><lora:ink:1><lora:Oak:1:step=2-3>", CONTENT_WINS)
    assert applied(webui, p.seen, "fox", "Oak") == [False, True, True, False, False]
    assert applied(webui, p.seen, "fox") == [True, False, False, True, True]


def test_mode_added_goes_by_the_windows(webui: Webui) -> None:
    p = webui.generate("<lora:fox:1:stop=0.6><lora:ink:1:start=0.4>", {"mode": "added"})
    assert applied(webui, p.seen, "fox") == [True, True, False, False, False]
    assert applied(webui, p.seen, "fox", "ink") == [False, False, True, False, False]
    assert applied(webui, p.seen, "ink") == [False, False, False, True, True]


def test_mode_that_leaves_one_out_forgets_its_window(webui: Webui) -> None:
    p = webui.generate("<lora:fox:1:stop=0.4><lora:ink:1:start=0.4>", {"mode": "content only"})
    assert p.prompts == ["<lora:fox:1>"] * 2
    assert applied(webui, p.seen, "fox") == [True, True, False, False, False]


def test_an_incomplete_pair_that_is_added_normally_keeps_its_windows(webui: Webui) -> None:
    p = webui.generate("<lora:fox:1:start=0.4>", {"incomplete": "add normally"})
    assert "added normally" in p.extra_generation_params["K-LoRA fallback"]
    assert applied(webui, p.seen, "fox") == [False, False, True, True, True]


def test_after_a_window_the_weights_are_the_hosts(webui: Webui) -> None:
    webui.generate("<lora:fox:1:start=0.4>", False)
    after = webui.generate("<lora:fox:1>", False)
    assert applied(webui, after.seen, "fox") == [True] * 5


def test_a_window_of_a_lora_that_is_not_there_is_said(webui: Webui) -> None:
    with pytest.raises(KloraError, match="LoRA birch was not found"):
        webui.generate("<lora:birch:1:start=0.4>", False)


# -- the hires pass -----------------------------------------------------------------------------------


def hires(webui: Webui, p: Any, *names: str) -> Any:
    p.is_hr_pass, p.sampler = True, FakeSampler(webui.model)
    webui.activate(list(names))
    webui.script.after_extra_networks_activate(p)
    return webui.sample(p)


def test_hires_keys_count_in_the_hires_pass(webui: Webui) -> None:
    p = webui.generate("<lora:fox:1:start=0.4:hr_stop=0.2>", False)
    assert applied(webui, p.seen, "fox") == [False, False, True, True, True]
    assert applied(webui, hires(webui, p, "fox"), "fox") == [True, False, False, False, False]


def test_a_hires_prompt_has_windows_of_its_own(webui: Webui) -> None:
    tags = {"lora": [parsed_tag(["fox", "1", "start=0.8"]), parsed_tag(["ink", "1"])]}
    p = webui.generate("<lora:fox:1:stop=0.4>", False, enable_hr=True, hr_extra_network_data=tags)
    assert [tag.items for tag in tags["lora"]] == [["fox", "1"], ["ink", "1"]]
    seen = hires(webui, p, "fox", "ink")
    assert applied(webui, seen, "ink") == [True, True, True, True, False]
    assert applied(webui, seen, "fox", "ink") == [False, False, False, False, True]


def test_a_window_twice_in_the_hires_prompt_is_refused(webui: Webui) -> None:
    tags = {"lora": [parsed_tag(["fox", "1", "start=0.8"]), parsed_tag(["fox", "1", "stop=0.2"])]}
    with pytest.raises(KloraError, match="fox stands in the prompt more than once"):
        webui.generate("<lora:fox:1:stop=0.4>", False, enable_hr=True, hr_extra_network_data=tags)
