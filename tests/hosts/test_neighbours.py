"""Beside other people's extensions on the real AUTOMATIC1111, by hash of the pixels.

Ground truth is the host's own picture: without any neighbour where they only stand by, and with the same
neighbour and the same tags where it takes part. `tests.hosts.neighbours` says how they are had.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from klora.files.conversion import convert
from tests.hosts.neighbours import DETECTOR, neighbours_in, running_beside
from tests.hosts.server import Answer, RefusedError, WebUI
from tests.hosts.share_cases import check_guidance, check_tiles
from tests.hosts.test_types import KINDS, write
from tests.published import PUBLISHED

CONTENT, STYLE = "<lora:content-sd1-a:1>", "<lora:style-sd1-a:1>"
PAIR = f"a cat {CONTENT}{STYLE}"
CONTENT_WINS = {**PUBLISHED, "alpha": 0, "beta": 0, "other_layers": "fuse"}
STYLE_WINS = {**PUBLISHED, "alpha": 0, "beta": 1e8, "other_layers": "fuse"}
ADDED: dict[str, Any] = {**PUBLISHED, "rule": "weights"}
WEIGHTED = {**ADDED, "content_from": 0.6, "content_to": 0.6, "style_from": 0.9, "style_to": 0.9}
WEIGHTED_PAIR = "<lora:content-sd1-a:1:0.6><lora:style-sd1-a:1:0.9>"


@pytest.fixture(scope="module")
def folder() -> Path:
    """The neighbours' folders."""
    named = os.environ.get("KLORA_NEIGHBOURS")
    if not named:
        pytest.skip("set KLORA_NEIGHBOURS to a folder with other extensions to run the tests beside them")
    assert neighbours_in(Path(named)), f"no known extension in {named}"
    return Path(named)


@pytest.fixture(scope="module")
def beside(
    folder: Path, a1111_root: Path, a1111_python: str, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebUI]:
    """AUTOMATIC1111 with all neighbours that are there, running."""
    data = tmp_path_factory.mktemp("beside")
    with running_beside(a1111_root, a1111_python, models, folder, data) as webui:
        yield webui


@pytest.fixture(scope="module")
def plain(folder: Path, webui: WebUI) -> tuple[Answer, Answer]:
    """The base and the added picture of the WebUI without neighbours."""
    return webui.txt2img("a cat "), webui.txt2img(PAIR)


@pytest.fixture(autouse=True)
def _traceless(beside: WebUI, plain: tuple[Answer, Answer]) -> Iterator[None]:
    """After the test, base and added picture are those of the WebUI without neighbours."""
    yield
    assert [beside.txt2img(prompt).pixels for prompt in ("a cat ", PAIR)] == [one.pixels for one in plain]


def needs(folder: Path, name: str) -> None:
    """Skip where this neighbour is not there."""
    if not (folder / name).is_dir():
        pytest.skip(f"{name} is not in {folder}")


def through(webui: WebUI, prompt: str, settings: dict[str, Any] | None, **scripts: list[Any]) -> Answer:
    """A picture with the arguments of other scripts, by their names with ``_`` for a space."""
    told: dict[str, Any] = {name.replace("_", " "): {"args": args} for name, args in scripts.items()}
    if settings is not None:
        told["K-LoRA"] = {"args": [settings]}
    webui.txt2img("a cat ", steps=1)  # an inner img2img depends on the host's random state
    return webui.txt2img(prompt, alwayson_scripts=told)


# --- All loaded, none in use -------------------------------------------------------------------------------


def test_beside_neighbours_that_stand_by_every_picture_is_the_same(
    beside: WebUI, webui: WebUI, plain: tuple[Answer, Answer]
) -> None:
    assert [beside.txt2img(prompt).pixels for prompt in ("a cat ", PAIR)] == [one.pixels for one in plain]
    for settings in (CONTENT_WINS, STYLE_WINS, WEIGHTED, {}, {**PUBLISHED, "schedule": "S*", "keep": 0.5}):
        assert beside.txt2img(PAIR, settings).pixels == webui.txt2img(PAIR, settings).pixels
    for alone, settings in ((CONTENT, CONTENT_WINS), (STYLE, STYLE_WINS), (WEIGHTED_PAIR, WEIGHTED)):
        assert beside.txt2img(PAIR, settings).pixels == webui.txt2img(f"a cat {alone}").pixels


# --- Tiled Diffusion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_the_unconditional_rows_of_tiles(folder: Path, beside: WebUI, method: str, sampler: str) -> None:
    """Tiles of half the picture that lie half over each other."""
    needs(folder, "multidiffusion-upscaler-for-automatic1111")
    request: dict[str, Any] = {"width": 256, "height": 256, "sampler_name": sampler, "steps": 3}

    def tiled(settings: dict[str, Any] | None, together: int, prompt: str = PAIR) -> Answer:
        arguments = [True, method, False, True, 1024, 1024, 16, 16, 8, together]
        tiles = {"Tiled Diffusion": {"args": arguments}}
        return beside.txt2img(prompt, settings, alwayson_scripts=tiles, **request)

    check_tiles(tiled)
    tiles = {"Tiled Diffusion": {"args": [True, method, False, True, 1024, 1024, 16, 16, 8, 4]}}
    check_guidance(beside, "none", alwayson_scripts=tiles, **request)
    assert tiled(None, 4, "a cat ").pixels != beside.txt2img("a cat ", **request).pixels
    only = tiled(None, 4, f"a cat {CONTENT}")
    assert tiled(CONTENT_WINS, 4).pixels == only.pixels


# --- lora-block-weight -------------------------------------------------------------------------------------

BLOCKS = "1,0,0.5,1,0,0,1,1,1,0.5,1,0,1,0.2,1,0,1"
HALF = ",".join(["1"] + ["0.5"] * 25)


def tag(name: str, more: str) -> str:
    """A LoRA tag with more than a weight."""
    return f"<lora:{name}-sd1-a:1:{more}>"


@pytest.mark.parametrize("key", ["lbw", "w"])
def test_weights_of_blocks_count(folder: Path, beside: WebUI, key: str) -> None:
    needs(folder, "sd-webui-lora-block-weight")
    content, style = (tag(name, f"{key}={BLOCKS}") for name in ("content", "style"))
    own = beside.txt2img(f"a cat {content}{style}")
    assert own.pixels != beside.txt2img(PAIR).pixels
    assert beside.txt2img(f"a cat {content}{style}", ADDED).pixels == own.pixels
    fused = beside.txt2img(f"a cat {content}{style}", CONTENT_WINS)
    assert fused.pixels == beside.txt2img(f"a cat {content}").pixels


def test_the_pair_is_scored_with_its_weights_of_blocks(folder: Path, beside: WebUI) -> None:
    needs(folder, "sd-webui-lora-block-weight")
    fused = beside.txt2img(f"a cat {CONTENT}{tag('style', f'lbw={HALF}')}", PUBLISHED)
    assert fused.pixels == beside.txt2img(f"a cat {CONTENT}<lora:style-sd1-a:1:0.5>", PUBLISHED).pixels
    assert fused.pixels != beside.txt2img(PAIR, PUBLISHED).pixels


@pytest.mark.parametrize("steps", ["start=3", "stop=3", "step=2-4"])
def test_its_steps_stay_its_own(folder: Path, beside: WebUI, steps: str) -> None:
    needs(folder, "sd-webui-lora-block-weight")
    prompt = f"a cat {CONTENT}{tag('style', steps)}"
    own = beside.txt2img(prompt)
    assert own.pixels != beside.txt2img(PAIR).pixels
    assert beside.txt2img(prompt, ADDED).pixels == own.pixels
    fused = beside.txt2img(prompt, STYLE_WINS)
    assert fused.pixels == beside.txt2img(f"a cat {tag('style', steps)}").pixels


def test_blocks_that_would_be_lost_are_refused(folder: Path, beside: WebUI, models: Path) -> None:
    needs(folder, "sd-webui-lora-block-weight")
    loras = models / "loras"
    convert(loras / "style-sd1-a.safetensors", loras / "beside-sd1-a.safetensors", "peft", overwrite=True)
    beside.call("/sdapi/v1/refresh-loras", {})
    rewritten = f"a cat {tag('content', f'lbw={BLOCKS}')}{STYLE}"
    with pytest.raises(RefusedError, match=r"content-sd1-a has lbw of lora-block-weight.*Rewrite the pair"):
        beside.txt2img(rewritten, {"transform": "NP-LoRA"})
    with pytest.raises(RefusedError, match=r"beside-sd1-a has lbw of lora-block-weight.*convert"):
        beside.txt2img(f"a cat {CONTENT}{tag('beside', f'lbw={BLOCKS}')}", {})


# --- loractl -----------------------------------------------------------------------------------------------

FADED = "<lora:style-sd1-a:0@0,1@1>"


def test_a_lora_that_fades_in_is_applied_at_its_own_weight(folder: Path, beside: WebUI) -> None:
    needs(folder, "sd-webui-loractl")
    prompt = f"a cat {CONTENT}{FADED}"
    own = beside.txt2img(prompt)
    alone = beside.txt2img(f"a cat {CONTENT}")
    assert own.pixels not in (beside.txt2img(PAIR).pixels, alone.pixels)
    assert beside.txt2img(prompt, ADDED).pixels == own.pixels
    assert beside.txt2img(prompt, CONTENT_WINS).pixels == alone.pixels
    assert beside.txt2img(prompt, STYLE_WINS).pixels == beside.txt2img(f"a cat {FADED}").pixels
    fused = beside.txt2img(prompt, {})
    assert fused.pixels not in (own.pixels, alone.pixels, beside.txt2img(PAIR, {}).pixels)


def test_it_fades_in_too_if_it_is_rewritten(folder: Path, beside: WebUI) -> None:
    needs(folder, "sd-webui-loractl")
    settings = {**ADDED, "transform": "NP-LoRA", "mu": 1000000}
    steady, never = (
        beside.txt2img(f"a cat <lora:content-sd1-a:{weight}>{STYLE}", settings) for weight in ("1", "0@0,0@1")
    )
    faded = beside.txt2img(f"a cat <lora:content-sd1-a:0@0,1@1>{STYLE}", settings)
    assert len({faded.pixels, steady.pixels, never.pixels}) == 3
    assert never.pixels == beside.txt2img(f"a cat <lora:content-sd1-a:0@0,0@1>{STYLE}").pixels


@pytest.mark.parametrize("kind", ["sd1-a", *KINDS])
def test_the_negative_side_follows_a_lora_that_fades_in(
    folder: Path, beside: WebUI, models: Path, kind: str
) -> None:
    """The style begins with the fourth of eight steps, once by loractl and once by our own curve."""
    needs(folder, "sd-webui-loractl")
    loras = models / "loras"
    if kind in KINDS:
        for seed, name in enumerate(("content", "style")):
            like, target = (loras / f"{name}-{ending}.safetensors" for ending in ("sd1-a", kind))
            write(like, target, KINDS[kind], seed)
    beside.call("/sdapi/v1/refresh-loras", {})
    settings = {**ADDED, "guidance": "none"}

    def made(weight: str, **changes: Any) -> Answer:
        tags = f"<lora:content-{kind}:1><lora:style-{kind}:{weight}>"
        return beside.txt2img(f"a cat {tags}", {**settings, **changes}, steps=8)

    by_loractl = made("0@0,0@0.3,1@0.31")
    curve = "1:w=0:0,0.29:0,0.3:1"
    assert by_loractl.distance(made(curve)) <= 1
    for other in (made("1"), made("0"), made(curve, guidance="both")):
        assert by_loractl.mean_distance(other) > 0.5


# --- dynamic prompts ---------------------------------------------------------------------------------------

#: Enabled, every combination once, all with the same seed.
EVERY = [True, True, 1, False, False, False, 1.1, 1.5, 100, 0.7, True]


def test_every_picture_has_the_pair_of_its_own_prompt(folder: Path, beside: WebUI) -> None:
    needs(folder, "sd-dynamic-prompts")
    name = next(
        one for one in beside.call("/sdapi/v1/scripts")["txt2img"] if one.startswith("dynamic prompts")
    )
    tags = [
        f"<klora:content-sd1-a:style-sd1-a:{told}>"
        for told in ("rule=weights", "rule=K-LoRA,keep=0.5", "balance=1")
    ]
    made = through(beside, f"a {{{'|'.join(tags)}}} cat", None, **{name: EVERY})
    expected = [beside.txt2img(f"a {one} cat").pixels[0] for one in tags]
    assert list(made.pixels[-3:]) == expected
    assert len(set(expected)) == 3
    assert [re.findall(r"K-LoRA rule: ([\w-]+)", text) for text in made.infotexts[-3:]] == [
        ["weights"],
        ["K-LoRA"],
        ["steady"],
    ]


# --- Regions and parts of a prompt -------------------------------------------------------------------------


def regions(mode: str) -> dict[str, list[Any]]:
    """Two regions side by side, by what regional prompter calls its generation mode."""
    divided = (True, False, "Matrix", "Vertical", "Mask", "Prompt", "1,1", "0.2", False, False, False)
    return {"Regional_Prompter": [*divided, mode, False, "0", "0", "0.4", None, "0", "0", False]}


@pytest.mark.parametrize("mode", ["Attention", "Latent"])
def test_regions_of_a_prompt(folder: Path, beside: WebUI, mode: str) -> None:
    needs(folder, "sd-webui-regional-prompter")
    if mode == "Latent" and (folder / "sd-webui-neutral-prompt").is_dir():
        pytest.skip("regional prompter's latent mode and neutral prompt fail together, without K-LoRA")

    def made(loras: str, settings: dict[str, Any] | None = None) -> tuple[str, ...]:
        prompt = f"a cat {loras} BREAK a dog {loras}"
        return through(beside, prompt, settings, **regions(mode)).pixels

    content, style, added = made(CONTENT), made(STYLE), made(CONTENT + STYLE)
    assert len({content, style, added, beside.txt2img(f"a cat {CONTENT} BREAK a dog").pixels}) == 4
    assert made(CONTENT + STYLE, CONTENT_WINS) == content
    assert made(CONTENT + STYLE, STYLE_WINS) == style
    assert made(CONTENT + STYLE, ADDED) == added
    assert made(CONTENT + STYLE, {}) not in (content, style, added)
    if mode == "Attention":  # in the other one it reads the first weight of a tag alone
        assert made(CONTENT + STYLE, WEIGHTED) == made(WEIGHTED_PAIR)


@pytest.mark.parametrize("word", ["AND_PERP", "AND_SALT", "AND_TOPK"])
def test_neutral_parts_of_a_prompt(folder: Path, beside: WebUI, word: str) -> None:
    needs(folder, "sd-webui-neutral-prompt")
    part = f" {word} a dog :0.8"
    own = {
        loras: beside.txt2img(f"a cat {loras}{part}").pixels for loras in (CONTENT, STYLE, WEIGHTED_PAIR, "")
    }
    assert len(set(own.values())) == 4
    assert own[""] != beside.txt2img("a cat ").pixels
    for settings, loras in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE), (WEIGHTED, WEIGHTED_PAIR)):
        assert beside.txt2img(f"{PAIR}{part}", settings).pixels == own[loras]
    fused = beside.txt2img(f"{PAIR}{part}", PUBLISHED)
    assert fused.pixels not in own.values()
    assert beside.txt2img(f"{PAIR}{part}", {**PUBLISHED, "guidance": "content"}).pixels != fused.pixels


# --- ADetailer ---------------------------------------------------------------------------------------------

REPAINTING: dict[str, list[Any]] = {
    "ADetailer": [
        True,
        False,
        {"ad_model": DETECTOR, "ad_confidence": 0.0, "ad_mask_k": 1, "ad_denoising_strength": 0.9},
    ]
}


def test_what_adetailer_repaints_is_fused_too(folder: Path, beside: WebUI) -> None:
    needs(folder, "adetailer")
    own = {loras: through(beside, f"a cat {loras}", None, **REPAINTING).pixels for loras in (CONTENT, STYLE)}
    assert own[CONTENT] != beside.txt2img(f"a cat {CONTENT}").pixels
    for settings, loras in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        made = through(beside, PAIR, settings, **REPAINTING)
        assert made.pixels == own[loras]
        assert "K-LoRA rule: K-LoRA" in made.infotexts[0]
