"""Pairs in prompts, LoRAs that cannot be loaded, and the routes, on the real AUTOMATIC1111."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.server import RefusedError, WebUI
from tests.published import PUBLISHED

PAIR = "content-sd1-a:style-sd1-a"
CONTENT, STYLE = "<lora:content-sd1-a:1>", "<lora:style-sd1-a:1>"
CONTENT_ALONE: dict[str, Any] = {**PUBLISHED, "alpha": 0, "beta": 0, "other_layers": "fuse"}
CONTENT_WINS, STYLE_WINS = (
    ",".join(f"{name}={value}" for name, value in {**CONTENT_ALONE, "beta": beta}.items())
    for beta in (0, "1e8")
)
HIRES: dict[str, Any] = {
    "enable_hr": True,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "denoising_strength": 0.7,
}


@pytest.mark.parametrize(("rule", "alone"), [(CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)])
@pytest.mark.parametrize("request_", [{}, HIRES], ids=["plain", "hires"])
def test_a_tag_fuses_without_a_tick(webui: WebUI, rule: str, alone: str, request_: dict[str, Any]) -> None:
    prompt = f"a cat <klora:{PAIR}:{rule}>"
    fused = webui.txt2img(prompt, **request_)
    assert fused.pixels == webui.txt2img(f"a cat {alone}", **request_).pixels
    assert fused.infotexts[0].splitlines()[0] == prompt
    assert "K-LoRA: content-sd1-a" in fused.infotexts[0]
    assert webui.txt2img("a cat").pixels != fused.pixels


def test_a_hires_prompt_may_have_a_tag_of_its_own(webui: WebUI) -> None:
    fused = webui.txt2img(
        f"a cat <klora:{PAIR}:{CONTENT_WINS}>", hr_prompt=f"a dog <klora:{PAIR}:{STYLE_WINS}>", **HIRES
    )
    alone = webui.txt2img(f"a cat {CONTENT}", hr_prompt=f"a dog {STYLE}", **HIRES)
    assert fused.pixels == alone.pixels


def test_a_tag_wins_over_the_accordion(webui: WebUI) -> None:
    fused = webui.txt2img(f"a cat <klora:{PAIR}:beta=1e8>", CONTENT_ALONE)
    assert fused.pixels == webui.txt2img(f"a cat {STYLE}").pixels


def test_prompts_from_a_file_each_have_a_pair(webui: WebUI) -> None:
    lines = [f"a cat <klora:{PAIR}:{CONTENT_WINS}>", f"a cat <klora:{PAIR}:{STYLE_WINS}>", "a cat"]
    made = webui.txt2img(
        "", script_name="prompts from file or textbox", script_args=[False, False, "start", "\n".join(lines)]
    )
    alone = [webui.txt2img(prompt).pixels[0] for prompt in (f"a cat {CONTENT}", f"a cat {STYLE}", "a cat")]
    assert list(made.pixels[-3:]) == alone
    assert ["K-LoRA rule" in text for text in made.infotexts[-3:]] == [True, True, False]


@pytest.mark.parametrize(
    ("prompt", "klora", "sentence"),
    [
        ("<klora:content-sd1-a>", None, "does not name two LoRAs"),
        (f"<klora:{PAIR}:balance=3>", None, "balance is '3'"),
        ("<klora:content-sd1-a:nobody>", None, "LoRA nobody was not found"),
        (f"{CONTENT}{STYLE}<lora:nobody:1>", {}, "LoRA nobody stands in the prompt beside the pair"),
    ],
)
def test_what_is_wrong_is_422_and_a_sentence(
    webui: WebUI, prompt: str, klora: dict[str, Any] | None, sentence: str
) -> None:
    with pytest.raises(RefusedError, match=sentence) as refused:
        webui.txt2img(prompt, klora)
    assert refused.value.status == 422
    assert json.loads(refused.value.text)["detail"].startswith("K-LoRA")


def test_a_bad_value_of_an_axis_is_422_and_a_sentence(webui: WebUI) -> None:
    for label, value, sentence in (
        ("[K-LoRA] Beta", "much", "beta is 'much'"),
        ("[K-LoRA] Alpha", "much", "alpha is 'much'"),
    ):
        place = _axis(webui, label)
        empty: list[Any] = [0, "", []]
        arguments = [
            place,
            value,
            [],
            *empty,
            *empty,
            True,
            False,
            False,
            False,
            False,
            False,
            False,
            0,
            True,
        ]
        with pytest.raises(RefusedError, match=sentence) as refused:
            webui.txt2img(f"a cat {CONTENT}{STYLE}", script_name="x/y/z plot", script_args=arguments)
        assert refused.value.status == 422


def _axis(webui: WebUI, label: str) -> int:
    scripts = webui.call("/sdapi/v1/script-info")
    plot = next(one for one in scripts if one["name"] == "x/y/z plot" and not one["is_img2img"])
    choices: list[Any] = plot["args"][0]["choices"]
    return [one[0] if isinstance(one, list) else one for one in choices].index(label)


def test_the_routes(webui: WebUI, models: Path) -> None:
    pair = {"content": "content-sd1-a", "style": "style-sd1-a"}
    report = webui.call("/klora/v1/report", pair)
    assert report["base_model"] == "SD1"
    assert report["verdict"]["sentence"]
    assert str(models) not in json.dumps(report)
    xl = {"content": "content-sdxl", "style": "style-sdxl", "steps": 4}
    with pytest.raises(RefusedError, match="the loaded checkpoint is SD1") as refused:
        webui.call("/klora/v1/plan", xl)
    assert refused.value.status == 422
    assert webui.call("/klora/v1/plan", {**xl, "any_model": True})["steps"] == 4
    whole = (models / "loras" / "style-sd1-a.safetensors").read_bytes()
    (models / "loras" / "torn.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RefusedError, match=r"torn\.safetensors: it is damaged") as refused:
        webui.call("/klora/v1/plan", {"content": "content-sd1-a", "style": "torn", "steps": 4})
    assert refused.value.status == 422
    assert str(models) not in refused.value.text
