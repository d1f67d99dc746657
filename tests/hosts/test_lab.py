"""The lab's checkpoint and LoRAs in the real AUTOMATIC1111: its pictures are those of the lab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="the lab needs diffusers: install the extra 'lab'")

from klora.lab.benchmark.making import Maker, Sampling
from klora.lab.benchmark.methods import method
from klora.lab.benchmark.scoring import score
from klora.lab.distance import feature_distance

import klora
from klora.lab import checkpoint, pairs, samples
from klora.lab.__main__ import WEIGHTS
from klora.lab.judges import Judges
from tests.hosts.server import WebUI

SEEDS = tuple(range(16))
CONTENT, STYLE = "penguin", "porcelain"

#: Method of the benchmark -> which of the two LoRAs the prompt calls.
SIDES: dict[str, tuple[bool, bool]] = {
    "content only": (True, False),
    "style only": (False, True),
    "added 1+1": (True, True),
    "K-LoRA S": (True, True),
    "K-LoRA S*": (True, True),
    "K-LoRA default": (True, True),
    "K-LoRA keep=0.5 guidance=content": (True, True),
    "smooth tau=1 guidance=none": (True, True),
    "weights guidance=2": (True, True),
    "weights style_from=0.6 content_to=0.6 balance=0.1": (True, True),
}

#: The tag's window of either LoRA -> what `klora.add_timed` is told.
WINDOWS = (("", "start=0.5"), ("stop=0.5", ""), ("", "w=0:0.2,1:1"))


@pytest.fixture(scope="module")
def lab(webui: WebUI, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """The WebUI with the lab's checkpoint loaded. Nothing is written into the installation."""
    place = tmp_path_factory.mktemp("lab")
    (place / "models" / "Stable-diffusion").mkdir(parents=True)
    installed = checkpoint.install(WEIGHTS, place)
    settings = installed.with_suffix(".yaml").read_text()
    folder = f"models/Stable-diffusion/{checkpoint.NAME}"
    assert folder in settings
    (models / f"{checkpoint.NAME}.yaml").write_text(settings.replace(folder, str(installed.with_suffix(""))))
    (models / installed.name).symlink_to(installed)
    for file in (place / "models" / "Lora").iterdir():
        (models / "loras" / file.name).symlink_to(file)
    for what in ("checkpoints", "loras"):
        webui.call(f"/sdapi/v1/refresh-{what}", {})
    webui.options(sd_model_checkpoint=installed.name)
    yield webui
    webui.options(sd_model_checkpoint="sd1-a.safetensors")


def _pictures(webui: WebUI, pair: pairs.Pair, side: str) -> Tensor:
    """Pictures [seeds, 3, 64, 64] in bytes, made as the lab makes them."""
    settings, names = method(side).settings, (pair.content.name, pair.style.name)
    tags = "".join(f"<lora:{name}:1>" for name, wanted in zip(names, SIDES[side], strict=True) if wanted)
    return _made(webui, f"{pair.prompt}{tags}", settings)


def _made(webui: WebUI, prompt: str, settings: Mapping[str, object] | None) -> Tensor:
    made = []
    for seed in SEEDS:
        answer = webui.txt2img(
            prompt,
            None if settings is None else dict(settings),
            seed=seed,
            steps=samples.STEPS,
            cfg_scale=samples.GUIDANCE,
            sampler_name="DPM++ 2M",
            scheduler="SGM Uniform",  # the timesteps of the lab's scheduler
        )
        made.append(torch.frombuffer(bytearray(answer.raw), dtype=torch.uint8).reshape(64, 64, 3))
    return torch.stack(made).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", SIDES)
def test_a_picture_is_worth_what_it_is_in_the_lab(lab: WebUI, side: str) -> None:
    pair = pairs.make_pair(CONTENT, STYLE, WEIGHTS / "loras")
    judges = Judges.load(WEIGHTS / "judges.safetensors")
    ours = Maker(Sampling(WEIGHTS)).make(pair, method(side), SEEDS).pictures
    theirs = _pictures(lab, pair, side)
    found = [score(judges, feature_distance(judges), pair, one) for one in (ours, theirs)]
    for measure in ("subject", "style"):
        here, there = (float(one[measure].mean()) for one in found)
        print(f"{side}: {measure} {here:.3f} in the lab, {there:.3f} in the WebUI")
        assert abs(here - there) <= 1 / len(SEEDS)  # one picture at the judge's limit
    apart = (ours.float() - theirs.float()).abs().mean()
    print(f"{side}: mean difference of the pictures {apart:.1f} of 255")
    assert apart <= 2


@pytest.mark.parametrize("windows", WINDOWS)
def test_a_window_is_what_it_is_in_the_lab(lab: WebUI, windows: tuple[str, str]) -> None:
    pair = pairs.make_pair(CONTENT, STYLE, WEIGHTS / "loras")
    files = (pair.content_file, pair.style_file)
    pipe = Maker(Sampling(WEIGHTS)).pipe
    timed = [klora.TimedLora(file, 1.0, window) for file, window in zip(files, windows, strict=True)]
    with klora.add_timed(pipe, timed):
        ours = samples.generate(pipe, [pair.prompt] * len(SEEDS), SEEDS, samples.STEPS, samples.GUIDANCE)
    names = (pair.content.name, pair.style.name)
    tags = "".join(
        f"<lora:{name}:1:{window}>" if window else f"<lora:{name}:1>"
        for name, window in zip(names, windows, strict=True)
    )
    theirs = _made(lab, f"{pair.prompt}{tags}", None)
    apart = (ours.float() - theirs.float()).abs().mean()
    print(f"{windows}: mean difference of the pictures {apart:.2f} of 255")
    assert apart <= 2
