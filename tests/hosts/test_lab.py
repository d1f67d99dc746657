"""The lab's checkpoint and LoRAs in real WebUIs: the pictures are those of the lab."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="the lab needs diffusers: install the extra 'lab'")

import klora
from klora.lab import checkpoint, demo, samples, truth
from klora.lab.__main__ import WEIGHTS
from klora.lab.fronts import glance
from klora.lab.fronts.methods import Method, method
from klora.lab.fronts.sampling import Wanted, pictures
from klora.lab.fronts.store import Sampling
from klora.lab.fronts.study import Prepared
from klora.lab.judges import judges_of
from klora.lab.model import SIZE
from klora.lab.pairs import Pair, all_pairs
from klora.lab.scoring import score
from klora.presets import held_values
from klora.settings import Settings
from tests.hosts.family import FORGE, running
from tests.hosts.server import WebUI

SEEDS = tuple(range(16))
CONTENT, STYLE = "rabbit-face-sunglasses", "porcelain"

#: Which of the two LoRAs the prompt calls, where it calls one alone.
ALONE = {glance.CONTENT_ALONE: 0, glance.STYLE_ALONE: 1}

#: What else is made: the columns of the demo, and settings that put every part of the way to work.
METHODS: dict[str, tuple[Method, float]] = {
    **demo.compared(Settings()),
    **{
        name: (method(name), balance)
        for name, balance in (
            ("K-LoRA schedule=S*", 0.0),
            ("K-LoRA keep=0.5 guidance=content", 0.0),
            ("smooth tau=1 guidance=none", 0.0),
            ("weights guidance=2", 0.0),
            ("weights style_from=0.6 content_to=0.6", 0.1),
            ("weights transform=NP-LoRA", 0.0),
        )
    },
}

#: The tag's window of either LoRA -> what `klora.add_timed` is told.
WINDOWS = (("", "start=0.5"), ("stop=0.5", ""), ("", "w=0:0.2,1:1"))


@pytest.fixture(scope="module", params=["a1111", "forge"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI with the lab's checkpoint loaded. Nothing is written into the installation."""
    place = tmp_path_factory.mktemp("lab")
    (place / "models" / "Stable-diffusion").mkdir(parents=True)
    (place / "models" / "Lora").mkdir()
    installed = checkpoint.install(WEIGHTS, place)
    if request.param == "a1111":
        webui, models = request.getfixturevalue("webui"), request.getfixturevalue("models")
        with _linked(installed, models), _loaded(webui, installed.name):
            yield webui
        return
    with (
        _told_of_the_lab(place / "repository"),
        running(FORGE, place, kinds=()) as webui,
        _linked(installed, webui.models),
        _loaded(webui, installed.name),
    ):
        yield webui


@contextmanager
def _linked(installed: Path, models: Path) -> Iterator[None]:
    """The checkpoint, its settings and its LoRAs stand among the WebUI's models."""
    settings = installed.with_suffix(".yaml").read_text()
    folder = f"models/Stable-diffusion/{checkpoint.NAME}"
    assert folder in settings
    told = models / f"{checkpoint.NAME}.yaml"
    told.write_text(settings.replace(folder, str(installed.with_suffix(""))))
    links = {models / installed.name: installed}
    for file in (installed.parents[1] / "Lora").iterdir():
        links[models / "loras" / file.name] = file
    try:
        for link, file in links.items():
            link.unlink(missing_ok=True)
            link.symlink_to(file)
        yield
    finally:
        for path in (told, *links):
            path.unlink(missing_ok=True)


@contextmanager
def _loaded(webui: WebUI, name: str) -> Iterator[None]:
    for what in ("checkpoints", "loras"):
        webui.call(f"/sdapi/v1/refresh-{what}", {})
    webui.options(sd_model_checkpoint=name)
    try:
        yield
    finally:
        webui.options(sd_model_checkpoint="sd1-a.safetensors")


@contextmanager
def _told_of_the_lab(folder: Path) -> Iterator[None]:
    """A Forge started here knows the lab's widths, and where the settings of its parts are."""
    pipe = samples.pipeline(checkpoint.model_of(WEIGHTS))
    for name in ("unet", "vae", "scheduler"):
        getattr(pipe, name).save_config(folder / name)
    for name in ("text_encoder", "tokenizer"):
        checkpoint.write_text_folder(folder / name)
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.31.0", **parts})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLORA_LAB_REPOSITORY", str(folder))
        yield


@pytest.fixture(scope="module")
def pair() -> Pair:
    return all_pairs("individuals", "test", WEIGHTS / "loras", [CONTENT], [STYLE])[0]


def _in_the_lab(pair: Pair, side: str) -> Tensor:
    """Pictures [seeds, 3, 128, 128] in bytes, made as the benchmark makes them."""
    prepared = Prepared(checkpoint.model_of(WEIGHTS), pair, Sampling(WEIGHTS))
    branches = prepared.branches
    if side in ALONE:
        dealt = glance.alone(branches.names, ALONE[side], samples.STEPS)
    else:
        chosen, balance = METHODS[side]
        _, branches = prepared.transformed(chosen.settings)
        dealt = prepared.dealt(chosen, balance)
    wanted = [Wanted(seed, dealt, samples.GUIDANCE) for seed in SEEDS]
    return pictures(prepared.model, branches, pair.prompt, wanted, samples.STEPS)


def _in_the_webui(webui: WebUI, pair: Pair, side: str) -> Tensor:
    """Pictures [seeds, 3, 128, 128] in bytes, made as the lab makes them."""
    names = (pair.content.name, pair.style.name)
    called = names if side not in ALONE else (names[ALONE[side]],)
    settings = None
    if side not in ALONE:
        chosen, balance = METHODS[side]
        settings = held_values(chosen.at(balance))
    return _made(webui, pair.prompt + "".join(f"<lora:{name}:1>" for name in called), settings)


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
            width=SIZE,
            height=SIZE,
        )
        made.append(torch.frombuffer(bytearray(answer.raw), dtype=torch.uint8).reshape(SIZE, SIZE, 3))
    return torch.stack(made).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [*ALONE, *METHODS])
def test_a_picture_is_worth_what_it_is_in_the_lab(lab: WebUI, pair: Pair, side: str) -> None:
    ours, theirs = _in_the_lab(pair, side), _in_the_webui(lab, pair, side)
    true = truth.drawings(WEIGHTS / truth.NAME)[pair.content.name, STYLE]
    found = [score(judges_of(WEIGHTS), pair.content, STYLE, one, true) for one in (ours, theirs)]
    for measure in ("identity", "style"):
        here, there = (float(one[measure].mean()) for one in found)
        print(f"{side}: {measure} {here:.3f} in the lab, {there:.3f} in the WebUI")
        assert abs(here - there) <= 1 / len(SEEDS)  # one picture at the judge's limit
    apart = (ours.float() - theirs.float()).abs().mean()
    print(f"{side}: mean difference of the pictures {apart:.1f} of 255")
    assert apart <= 2


@pytest.mark.parametrize("windows", WINDOWS)
def test_a_window_is_what_it_is_in_the_lab(lab: WebUI, pair: Pair, windows: tuple[str, str]) -> None:
    pipe = samples.pipeline(checkpoint.model_of(WEIGHTS))
    timed = [klora.TimedLora(file, 1.0, window) for file, window in zip(pair.files, windows, strict=True)]
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
