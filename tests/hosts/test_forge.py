"""The table of what must hold, on the real Forge: the cases of AUTOMATIC1111 that do not name its options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.hosts import test_a1111 as table
from tests.hosts.server import Answer, RefusedError, WebUI
from tests.hosts.test_a1111 import (  # noqa: F401 - collected here too, with this module's fixtures
    CONTENT,
    CONTENT_WINS,
    ENDS,
    PAIR,
    PASSES,
    REFUSED,
    before,
    test_a_third_lora_stays_added,
    test_add_normally_says_so,
    test_each_mode_is_what_it_says,
    test_every_sampler,
    test_img2img_and_inpainting_are_fused_too,
    test_loras_picked_in_the_accordion_need_not_be_in_the_prompt,
    test_the_default_rule_makes_a_picture_of_its_own_and_repeats_it,
    test_the_infotext_names_pair_and_rule,
    test_the_plan_picture_is_added_when_wanted,
)


@pytest.fixture(scope="session")
def webui(forge: WebUI) -> WebUI:
    """The WebUI of the shared cases."""
    return forge


@pytest.fixture(autouse=True)
def _plain_options(webui: WebUI) -> Iterator[None]:
    webui.options(sd_model_checkpoint="sd1-a.safetensors")
    yield
    webui.options(sd_model_checkpoint="sd1-a.safetensors")
    webui.call("/probe/arm", {})


@pytest.mark.parametrize("kind", PASSES)
def test_the_winner_everywhere_is_the_only_lora(webui: WebUI, kind: str) -> None:
    table.test_the_winner_everywhere_is_the_only_lora(webui, kind)


def _switched(webui: WebUI) -> None:
    for checkpoint in ("sd1-a", "sd1-b", "sd1-a"):
        webui.options(sd_model_checkpoint=f"{checkpoint}.safetensors")
        assert webui.txt2img(PAIR, CONTENT_WINS).pixels == webui.txt2img(f"a cat {CONTENT}").pixels


_ENDS = {**ENDS, "checkpoint switch and back": _switched}
_ENDS.pop("functional")


@pytest.mark.parametrize("end", _ENDS)
def test_everything_comes_back(webui: WebUI, before: tuple[Answer, Answer], end: str) -> None:  # noqa: F811
    _ENDS[end](webui)
    base, added = before
    assert webui.txt2img(PAIR).pixels == added.pixels
    assert webui.txt2img("a cat ").pixels == base.pixels


_OTHERS = ("NaN", "other base model")  # these need files that only AUTOMATIC1111's fixtures make


@pytest.mark.parametrize("case", [one for one in REFUSED if one not in _OTHERS])
def test_a_bad_job_is_refused_in_a_sentence(webui: WebUI, case: str) -> None:
    prompt, settings, sentence = REFUSED[case]
    with pytest.raises(RefusedError, match=sentence):
        webui.txt2img(prompt, settings)


@pytest.mark.parametrize("other_layers", ["both", "content", "style", "none", "fuse"])
def test_other_layers(webui: WebUI, other_layers: str) -> None:
    settings: dict[str, Any] = {"other_layers": other_layers, **CONTENT_WINS}
    is_only = webui.txt2img(PAIR, settings).pixels == webui.txt2img(f"a cat {CONTENT}").pixels
    assert is_only == (other_layers in ("content", "fuse"))
