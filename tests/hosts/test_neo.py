"""The table of what must hold, on the real Forge Neo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.hosts.family import FamilyWebUI
from tests.hosts.server import Answer, RefusedError, WebUI
from tests.hosts.test_a1111 import (  # noqa: F401 - collected here too, with this module's fixtures
    CONTENT,
    CONTENT_WINS,
    ENDS,
    PAIR,
    PASSES,
    REFUSED,
    STYLE,
    STYLE_WINS,
    before,
    test_a_third_lora_stays_added,
    test_add_normally_says_so,
    test_each_mode_is_what_it_says,
    test_every_clock_runs_with_every_kind_of_sampler,
    test_every_sampler,
    test_img2img_and_inpainting_are_fused_too,
    test_loras_picked_in_the_accordion_need_not_be_in_the_prompt,
    test_the_default_rule_makes_a_picture_of_its_own_and_repeats_it,
    test_the_hires_pass_may_have_its_own_prompt,
    test_the_infotext_names_pair_and_rule,
    test_the_inner_pass_of_another_extension_is_fused_if_it_lets_us,
    test_the_winner_everywhere_is_the_only_lora,
)
from tests.hosts.test_scripts import test_built_in_scripts  # noqa: F401
from tests.hosts.test_types import (  # noqa: F401
    loras,
    test_full_matrix_lokr,
    test_the_unconditional_rows,
    test_the_unconditional_rows_beside_a_third_dora,
)


@pytest.fixture(scope="session")
def webui(neo: FamilyWebUI) -> FamilyWebUI:
    """The WebUI of the shared cases."""
    return neo


@pytest.fixture(autouse=True)
def _plain_options(webui: WebUI) -> Iterator[None]:
    webui.options(sd_model_checkpoint="sd1-a.safetensors")
    yield
    webui.options(sd_model_checkpoint="sd1-a.safetensors")
    webui.call("/probe/arm", {})


def _switched(webui: WebUI) -> None:
    for checkpoint in ("sd1-a", "sd1-b", "sd1-a"):
        webui.options(sd_model_checkpoint=f"{checkpoint}.safetensors")
        assert webui.txt2img(PAIR, CONTENT_WINS).pixels == webui.txt2img(f"a cat {CONTENT}").pixels


def _switched_off(webui: WebUI) -> None:
    """The host caches by the tags alone: K-LoRA on, off and with another pair at the same prompt."""
    third = f"{PAIR}<lora:third-sd1-a:0.5>"
    others = {"content": "content-sd1-a", "style": "third-sd1-a"}
    for _ in range(2):
        assert webui.txt2img(PAIR, CONTENT_WINS).pixels == webui.txt2img(f"a cat {CONTENT}").pixels
        assert webui.txt2img(third, {**others, **CONTENT_WINS}).pixels == webui.txt2img(PAIR).pixels
        assert webui.txt2img(PAIR, STYLE_WINS).pixels == webui.txt2img(f"a cat {STYLE}").pixels


def _unloaded(webui: WebUI) -> None:
    webui.txt2img(PAIR, {})
    for path in ("/sdapi/v1/unload-checkpoint", "/sdapi/v1/reload-checkpoint"):
        if path in webui.call("/openapi.json")["paths"]:
            webui.call(path, {})


def _meddled(deed: str) -> Callable[[WebUI], None]:
    def meddle(webui: WebUI) -> None:
        for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
            scripts = {"K-LoRA": {"args": [settings]}, "Meddler": {"args": [deed]}}
            only = webui.txt2img(f"a cat {winner}")
            assert webui.txt2img(PAIR, alwayson_scripts=scripts).pixels == only.pixels

    return meddle


_ENDS = {
    **ENDS,
    "checkpoint switch and back": _switched,
    "on, off, another pair": _switched_off,
    "unload and reload": _unloaded,
    "another extension's clone before ours": _meddled("clone before"),
    "another extension's clone of ours": _meddled("clone after"),
    "unloaded while sampling": _meddled("unload"),
    "unloaded after the last forward": _meddled("unload last"),
}
_ENDS.pop("functional")


@pytest.mark.parametrize("end", _ENDS)
def test_everything_comes_back(webui: WebUI, before: tuple[Answer, Answer], end: str) -> None:  # noqa: F811
    _ENDS[end](webui)
    webui.call("/probe/arm", {})
    base, added = before
    assert webui.txt2img(PAIR).pixels == added.pixels
    assert webui.txt2img("a cat ").pixels == base.pixels


def test_a_refiner_is_followed(webui: WebUI) -> None:
    refined = {"refiner_checkpoint": "sd1-b.safetensors", "refiner_switch_at": 0.5}
    base, added = webui.txt2img("a cat "), webui.txt2img(PAIR)
    webui.options(refiner_use_steps=True)
    try:
        for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
            only = webui.txt2img(f"a cat {winner}", **refined)
            assert webui.txt2img(PAIR, settings, **refined).pixels == only.pixels
            assert only.pixels != webui.txt2img(f"a cat {winner}").pixels
        assert webui.txt2img(PAIR, {}, **refined).pixels != webui.txt2img(PAIR, **refined).pixels
    finally:
        webui.options(refiner_use_steps=False)
    assert webui.txt2img("a cat ").pixels == base.pixels
    assert webui.txt2img(PAIR).pixels == added.pixels


def test_a_refiner_in_the_same_model_is_refused_in_a_sentence(webui: WebUI) -> None:
    webui.options(refiner_fast_sd=True)
    try:
        with pytest.raises(RefusedError, match="cannot follow a refiner that is read into the model"):
            webui.txt2img(PAIR, {}, **PASSES["refiner"])
    finally:
        webui.options(refiner_fast_sd=False)


def test_a_compiled_model_is_refused_in_a_sentence(webui: WebUI) -> None:
    scripts = {"K-LoRA": {"args": [{}]}, "Meddler": {"args": ["compile"]}}
    with pytest.raises(RefusedError, match=r"weights of a model that torch\.compile has compiled"):
        webui.txt2img(PAIR, alwayson_scripts=scripts)
    for checkpoint in ("sd1-b", "sd1-a"):  # as the message says: a failed job leaves the compiled model
        webui.options(sd_model_checkpoint=f"{checkpoint}.safetensors")
    assert webui.txt2img(PAIR, CONTENT_WINS).pixels == webui.txt2img(f"a cat {CONTENT}").pixels


_OTHERS = ("NaN", "other base model")  # these need files that only AUTOMATIC1111's fixtures make


@pytest.mark.parametrize("case", [one for one in REFUSED if one not in _OTHERS])
def test_a_bad_job_is_refused_in_a_sentence(webui: WebUI, case: str) -> None:
    prompt, settings, sentence = REFUSED[case]
    with pytest.raises(RefusedError, match=sentence):
        webui.txt2img(prompt, settings)


@pytest.mark.parametrize("other_layers", ["both", "content", "style", "none", "fuse"])
def test_other_layers(webui: WebUI, other_layers: str) -> None:
    settings: dict[str, Any] = {**CONTENT_WINS, "other_layers": other_layers}
    is_only = webui.txt2img(PAIR, settings).pixels == webui.txt2img(f"a cat {CONTENT}").pixels
    assert is_only == (other_layers in ("content", "fuse"))


def test_sdxl(webui: FamilyWebUI) -> None:
    webui.options(sd_model_checkpoint=webui.checkpoint("SDXL"))
    content, style = "<lora:content-sdxl:1>", "<lora:style-sdxl:1>"
    pair = f"a cat {content}{style}"
    base, added = webui.txt2img("a cat "), webui.txt2img(pair)
    for request in ({}, PASSES["hires"]):
        for settings, winner in ((CONTENT_WINS, content), (STYLE_WINS, style)):
            only = webui.txt2img(f"a cat {winner}", **request)
            assert webui.txt2img(pair, settings, **request).pixels == only.pixels
    assert webui.txt2img(pair, {}).pixels not in (base.pixels, added.pixels)
    assert webui.txt2img(pair).pixels == added.pixels
    assert webui.txt2img("a cat ").pixels == base.pixels
    with pytest.raises(RefusedError, match=r"made for SD1, but the loaded .* SDXL"):
        webui.txt2img(PAIR, {})


def test_loras_that_the_host_replaces_for_a_refiner(webui: FamilyWebUI) -> None:
    """Its setting *Lora Replacements*; ground truth is the host's own picture of the winner."""
    folder = webui.models / "loras"
    tensors = load_file(folder / "style-sd1-a.safetensors")
    save_file(
        {name: one.flip(0).contiguous() for name, one in tensors.items()}, folder / "style-late.safetensors"
    )
    webui.call("/sdapi/v1/refresh-loras", {})
    refined = {"refiner_checkpoint": "sd1-b.safetensors", "refiner_switch_at": 0.5}
    replaced = webui.call("/sdapi/v1/options")["refiner_lora_replacement"]
    webui.options(refiner_use_steps=True)
    plain = webui.txt2img(f"a cat {STYLE}", **refined).pixels
    webui.options(refiner_lora_replacement="style-sd1-a=style-late")
    try:
        added = webui.txt2img(PAIR, **refined).pixels
        for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
            only = webui.txt2img(f"a cat {winner}", **refined).pixels
            assert webui.txt2img(PAIR, settings, **refined).pixels == only
            assert only not in (added, plain)
    finally:
        webui.options(refiner_lora_replacement=replaced, refiner_use_steps=False)
        (folder / "style-late.safetensors").unlink()
        webui.call("/sdapi/v1/refresh-loras", {})
