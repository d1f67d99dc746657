"""Shares, guidance and windows on a real WebUI: cases that every host's module collects.

Ground truth is the host's own picture where the host can make it. What it cannot make, other LoRAs in the
rows of the unconditional pass, is computed from what its denoiser gives for each pass alone, at the first
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from klora.files import read_lora
from klora.files.conversion import state_dict_in
from klora.planning import rewritten
from klora.settings import Settings
from tests.hosts.server import Answer, RefusedError, WebUI
from tests.published import PUBLISHED

NAMES = ("content-sd1-a", "style-sd1-a")
CONTENT, STYLE = (f"<lora:{name}:1>" for name in NAMES)
PAIR = f"a cat {CONTENT}{STYLE}"
HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
#: Mean difference of pictures that differ by the order of additions alone, of 255.
SAME = 0.2
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hires": HIRES,
    "second order": {"sampler_name": "Heun"},
    "batch": {"batch_size": 2},
}


def constant(content: float, style: float, **more: Any) -> dict[str, Any]:
    """Settings of two constant weights."""
    ends = {"content_from": content, "content_to": content, "style_from": style, "style_to": style}
    return {**PUBLISHED, "rule": "weights", **ends, **more}


@pytest.mark.parametrize("kind", KINDS)
def test_shares_everywhere_are_the_host_s_own_weights(webui: WebUI, kind: str) -> None:
    expected = webui.txt2img("a cat <lora:content-sd1-a:0.6><lora:style-sd1-a:0.9>", **KINDS[kind])
    fused = webui.txt2img(PAIR, constant(0.6, 0.9), **KINDS[kind])
    assert fused.pixels == expected.pixels
    assert fused.pixels != webui.txt2img(PAIR, **KINDS[kind]).pixels


@pytest.mark.parametrize("settings", [constant(1, 1), {"keep": 1}, {"rule": "EST", "keep": 1}])
def test_a_loser_that_keeps_all_is_added(webui: WebUI, settings: dict[str, Any]) -> None:
    assert webui.txt2img(PAIR, {**PUBLISHED, **settings}).pixels == webui.txt2img(PAIR).pixels


def test_a_loser_that_keeps_a_part_is_between_and_leaves_no_trace(webui: WebUI) -> None:
    before = webui.txt2img(PAIR), webui.txt2img("a cat ")
    kept = [webui.txt2img(PAIR, {**PUBLISHED, "keep": keep}).pixels for keep in (0, 0.5, 1, 0.5)]
    assert len(set(kept)) == 3
    assert kept[1] == kept[3]
    after = webui.txt2img(PAIR), webui.txt2img("a cat ")
    assert [one.pixels for one in before] == [one.pixels for one in after]


@pytest.mark.parametrize("rule", ["smooth", "EST", "turns"])
def test_every_rule_runs_and_repeats_itself(webui: WebUI, rule: str) -> None:
    named = {**PUBLISHED, "rule": rule}
    made = [webui.txt2img(PAIR, {**named, **more}) for more in ({}, {"balance": 0.5}, {})]
    assert made[0].pixels == made[2].pixels != made[1].pixels
    assert f"K-LoRA rule: {rule}" in made[0].infotexts[0]


def test_balance_ends_at_either_lora_alone(webui: WebUI) -> None:
    for balance, alone in ((-1, CONTENT), (1, STYLE)):
        settings = {**PUBLISHED, "balance": balance, "other_layers": "fuse", "keep": 0.5}
        assert webui.txt2img(PAIR, settings).pixels == webui.txt2img(f"a cat {alone}").pixels


@pytest.fixture
def rewritten_content(webui: WebUI, lora_folder: Path) -> Iterator[str]:
    """The tag of what NP-LoRA makes of the content, in a file of its own."""
    files = [read_lora(lora_folder / f"{name}.safetensors") for name in NAMES]
    content, _ = rewritten(files[0], files[1], Settings(**REWRITING))
    path = lora_folder / "content-rewritten.safetensors"
    save_file({name: one.contiguous() for name, one in state_dict_in(content, "kohya").items()}, path)
    webui.call("/sdapi/v1/refresh-loras", {})
    yield "<lora:content-rewritten:1>"
    path.unlink()
    webui.call("/sdapi/v1/refresh-loras", {})


REWRITING: dict[str, Any] = {"transform": "NP-LoRA", "mu": 5.0}
HALF_KEPT: dict[str, Any] = {**PUBLISHED, "keep": 0.5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_rewritten_pair_is_that_of_the_rewritten_files(
    webui: WebUI, rewritten_content: str, kind: str
) -> None:
    before = webui.txt2img(PAIR, **KINDS[kind])
    for settings in (constant(1, 1), HALF_KEPT):
        made = webui.txt2img(PAIR, {**settings, **REWRITING}, **KINDS[kind])
        expected = webui.txt2img(f"a cat {rewritten_content}{STYLE}", settings, **KINDS[kind])
        assert made.pixels == expected.pixels
        assert "K-LoRA transform: NP-LoRA" in made.infotexts[0]
    assert made.pixels != webui.txt2img(PAIR, HALF_KEPT, **KINDS[kind]).pixels
    assert webui.txt2img(PAIR, **KINDS[kind]).pixels == before.pixels


# --- The guidance ------------------------------------------------------------------------------------------


def denoised(webui: WebUI, prompt: str, klora: dict[str, Any] | None = None, **request: Any) -> np.ndarray:
    """What the host's denoiser gives at the first step, guidance included."""
    webui.call("/probe/arm", {"denoised": True})
    webui.txt2img(prompt, klora, **{"steps": 2, "sampler_name": "Euler", **request})
    return np.array(webui.call("/probe/look")["denoised"])


#: Passes whose rows lie differently in the batch of the denoiser.
ROWS: dict[str, dict[str, Any]] = {
    "one call": {},
    "a batch": {"batch_size": 3},
    "prompts of two lengths": {"negative_prompt": "bad, " * 80},
}


@pytest.mark.parametrize("guidance", ["content", "none", "2.5", "4x"])
@pytest.mark.parametrize("rows", ROWS)
def test_the_unconditional_rows_get_what_the_guidance_says(webui: WebUI, rows: str, guidance: str) -> None:
    check_guidance(webui, guidance, **ROWS[rows])


def check_tiles(tiled: Callable[[dict[str, Any], int], Answer]) -> None:
    """Whether the unconditional rows are the same however many tiles go through the denoiser at once.

    ``tiled`` makes a pair with the settings, by so many tiles together.
    """
    for settings in ({**PUBLISHED, "guidance": "none"}, {}):
        one, four = (tiled(settings, together) for together in (1, 4))
        assert four.mean_distance(one) < SAME
        both = tiled({**settings, "guidance": "both"}, 4)
        assert both.mean_distance(four) > 10 * SAME  # so it would be seen


def check_guidance(
    webui: WebUI,
    guidance: str,
    tolerance: float = 2e-4,
    names: tuple[str, str] = NAMES,
    third: str = "",
    **request: Any,
) -> None:
    """D = D_u + g (D_c - D_u), each of the two made alone by a job at a CFG scale of 1; the LoRA ``third``
    stands beside the pair in both.
    """
    scale = 7.0
    negative = request.pop("negative_prompt", "ugly")
    content_share, style_share = {
        "content": (1.0, 0.0),
        "none": (0.0, 0.0),
        "2.5": (1.0, (scale - 2.5) / (scale - 1)),
        "4x": ((scale - 4) / (scale - 1),) * 2,
    }[guidance]
    beside = f"<lora:{third}:1>" if third else ""
    pair = f"a cat <lora:{names[0]}:1><lora:{names[1]}:1>{beside}"
    alone = f"<lora:{names[0]}:{content_share!r}><lora:{names[1]}:{style_share!r}>{beside}"
    unconditional = f"{negative} {alone}"
    conditional = denoised(webui, pair, cfg_scale=1, negative_prompt=negative, **request)
    other = denoised(webui, unconditional, cfg_scale=1, **request)
    settings = constant(1, 1, guidance=guidance)
    fused = denoised(webui, pair, settings, cfg_scale=scale, negative_prompt=negative, **request)
    plain = denoised(webui, pair, cfg_scale=scale, negative_prompt=negative, **request)
    expected = other + scale * (conditional - other)
    deviation = np.abs(fused - expected).max()
    assert deviation <= tolerance * max(1.0, np.abs(expected).max())
    assert np.abs(fused - plain).max() > 20 * deviation  # the guidance does something, or nothing is shown


def test_the_guidance_leaves_no_trace(webui: WebUI) -> None:
    before = [webui.txt2img(prompt).pixels for prompt in (PAIR, "a cat ")]
    told = {
        guidance: webui.txt2img(PAIR, {**PUBLISHED, "guidance": guidance})
        for guidance in ("both", "content", "none")
    }
    assert len({one.pixels for one in told.values()}) == 3
    assert "K-LoRA guidance: content" in told["content"].infotexts[0]
    again = webui.txt2img(PAIR, {**PUBLISHED, "guidance": "content"}, **KINDS["second order"])
    assert again.pixels != told["content"].pixels
    assert [webui.txt2img(prompt).pixels for prompt in (PAIR, "a cat ")] == before
    with pytest.raises(RefusedError, match="guidance is 'some'"):
        webui.txt2img(PAIR, {"guidance": "some"})


def test_without_an_unconditional_pass_the_guidance_is_noted_and_ignored(webui: WebUI) -> None:
    with_it, without = (
        webui.txt2img(PAIR, {**PUBLISHED, "guidance": guidance}, cfg_scale=1) for guidance in ("none", "both")
    )
    assert with_it.pixels == without.pixels
    assert "no effect at a CFG scale of 1" in with_it.infotexts[0]
    assert "K-LoRA note" not in without.infotexts[0]


# --- Windows -----------------------------------------------------------------------------------------------


def windowed(name: str, window: str, weight: float = 1) -> str:
    """A tag with a window."""
    return f"<lora:{name}:{weight:g}:{window}>"


@pytest.mark.parametrize("settings", [None, {}], ids=["unticked", "ticked"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_over_all_steps_is_the_plain_tag_and_one_over_none_is_no_tag(
    webui: WebUI, kind: str, settings: dict[str, Any] | None
) -> None:
    pair = "" if settings is None else f"{CONTENT}{STYLE}"
    third = "third-sd1-a"
    for window, tag in (
        ("start=0", f"<lora:{third}:0.5>"),
        ("step=1-99", f"<lora:{third}:0.5>"),
        ("w=0:1,1:1", f"<lora:{third}:0.5>"),
        ("w=0:0.5,1:0.5", f"<lora:{third}:0.25>"),
        ("stop=0", ""),
        ("start=1", ""),
    ):
        timed = webui.txt2img(f"a cat {pair}{windowed(third, window, 0.5)}", settings, **KINDS[kind])
        plain = webui.txt2img(f"a cat {pair}{tag}", settings, **KINDS[kind])
        assert timed.pixels == plain.pixels, window


def test_a_lora_acts_in_the_steps_of_its_window_alone(webui: WebUI) -> None:
    """Read off the denoiser: as long as the LoRA is out, each step is as it would be without it."""
    name = "third-sd1-a"
    webui.call("/probe/arm", {"denoised": True})
    runs = {}
    for tag in ("", f"<lora:{name}:1>", windowed(name, "start=0.5"), windowed(name, "stop=0.5")):
        webui.call("/probe/arm", {"denoised": True, "every": True})
        webui.txt2img(f"a cat {tag}", steps=6, sampler_name="Euler")
        runs[tag] = [np.array(one) for one in webui.call("/probe/look")["every"]]
    bare, always, late, early = runs.values()
    assert all(np.array_equal(late[at], bare[at]) for at in range(3))
    assert all(np.array_equal(early[at], always[at]) for at in range(3))
    assert not any(np.array_equal(late[at], bare[at]) for at in range(3, 6))
    assert not any(np.array_equal(early[at], always[at]) for at in range(3, 6))


def test_windows_of_the_pair(webui: WebUI) -> None:
    never = webui.txt2img(f"a cat {CONTENT}{windowed(NAMES[1], 'stop=0')}", constant(1, 1))
    alone, added = webui.txt2img(f"a cat {CONTENT}"), webui.txt2img(PAIR)
    assert never.pixels == alone.pixels
    late = webui.txt2img(f"a cat {CONTENT}{windowed(NAMES[1], 'start=0.5')}", constant(1, 1))
    assert late.pixels not in (added.pixels, alone.pixels)
    fused = webui.txt2img(f"a cat {CONTENT}{windowed(NAMES[1], 'start=0.5')}", {})
    assert fused.pixels not in (late.pixels, webui.txt2img(PAIR, {}).pixels)
    assert [webui.txt2img(PAIR).pixels, webui.txt2img(f"a cat {CONTENT}").pixels] == [
        added.pixels,
        alone.pixels,
    ]


def test_the_hires_pass_has_a_window_of_its_own(webui: WebUI) -> None:
    name = "third-sd1-a"
    without, always = (webui.txt2img(f"a cat {tag}", **HIRES) for tag in ("", f"<lora:{name}:1>"))
    first_alone = webui.txt2img(f"a cat {windowed(name, 'hr_stop=0')}", **HIRES)
    second_alone = webui.txt2img(f"a cat {windowed(name, 'stop=0:hr_stop=1')}", **HIRES)
    assert len({one.pixels for one in (without, always, first_alone, second_alone)}) == 4
    bare = webui.txt2img(f"a cat <lora:{name}:1>", hr_prompt="a cat ", **HIRES)
    assert first_alone.pixels == bare.pixels


@pytest.mark.parametrize(
    ("window", "named"),
    [("start=2.5", "start=2.5"), ("step=9-3", "step=9-3"), ("w=0.5", "w=0.5"), ("stop=soon", "stop=soon")],
)
def test_an_unreadable_window_is_refused_naming_the_tag(webui: WebUI, window: str, named: str) -> None:
    before = webui.txt2img("a cat ")
    for settings in (None, {}):
        with pytest.raises(RefusedError, match=f"third-sd1-a.*{named}"):
            webui.txt2img(f"{PAIR}{windowed('third-sd1-a', window)}", settings)
    assert webui.txt2img("a cat ").pixels == before.pixels
