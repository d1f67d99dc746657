"""What a fusion is told when several samplings run inside one block, and by which rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import klora
from klora.hosts.diffusers.clock import clock
from klora.planning import plan_files
from klora.schedule import Moment
from klora.weights.branch import BatchRows
from tests.pipelines.tiny import (
    Hand,
    diffusers,
    picture,
    sd1,
    sd3,
    several_prompts,
    write_every_type,
    write_lora,
)
from tests.published import PUBLISHED, published

#: As the configuration of SD1's and SDXL's own schedulers says it: the first timestep depends on the steps.
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}

Told = list[Moment]


class Scene:
    """A tiny pipeline of SD1, its inputs, and two LoRAs."""

    def __init__(self, folder: Path) -> None:
        self.pipe, self.inputs = sd1()
        self.files = [
            write_lora(self.pipe.unet, folder / f"{name}.safetensors", seed, rank=2)
            for name, seed in (("content", 10), ("style", 20))
        ]
        self.takes("DDIMScheduler")

    def takes(self, scheduler: str, **more: Any) -> None:
        """Exchange the scheduler."""
        self.pipe.scheduler = getattr(diffusers, scheduler)(**{**LEADING, **more})

    @contextmanager
    def fused(self) -> Iterator[tuple[Any, Told]]:
        """Inside K-LoRA as published: the fusion, and a list that gets what it is told before each call."""
        told: Told = []
        with klora.fuse(self.pipe, *self.files, PUBLISHED) as fusion:
            at = fusion.at
            fusion.at = lambda moment: (told.append(moment), at(moment))[1]
            yield fusion, told

    def painted_over(self, steps: int, strength: float) -> np.ndarray:
        """img2img by the same parts, the scheduler among them."""
        pipe = diffusers.StableDiffusionImg2ImgPipeline(**self.pipe.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
        made = pipe(
            **self.inputs,
            image=image,
            strength=strength,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        )
        found: np.ndarray = made.images.detach().numpy().copy()
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def places(told: Told) -> list[tuple[int, int]]:
    return [(moment.step, moment.steps) for moment in told]


def whole(steps: int) -> list[tuple[int, int]]:
    """The places of a sampling from its first step to its last."""
    return [(step, steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [
        ("DDIMScheduler", (50, 20)),
        ("DDIMScheduler", (6, 6)),
        ("EulerDiscreteScheduler", (4, 10, 1, 3)),
        ("DPMSolverMultistepScheduler", (10, 4)),
    ],
)
def test_each_sampling_is_told_from_its_first_step_to_its_last(
    scene: Scene, scheduler: str, steps: tuple[int, ...]
) -> None:
    scene.takes(scheduler)
    with scene.fused() as (fusion, told):
        for one in steps:
            picture(scene.pipe, scene.inputs, one)
            assert fusion.plan().choices() == plan_files(*scene.files, published(), one).choices()
    assert places(told) == [place for one in steps for place in whole(one)]


def test_a_later_sampling_is_what_it_is_alone(scene: Scene) -> None:
    with scene.fused():
        alone = picture(scene.pipe, scene.inputs, 5)
    with scene.fused():
        picture(scene.pipe, scene.inputs, 12)
        np.testing.assert_array_equal(picture(scene.pipe, scene.inputs, 5), alone)


@pytest.mark.parametrize("steps", [(8, 8, 8), (12, 8, 3)])
def test_img2img_between_two_of_txt2img(scene: Scene, steps: tuple[int, int, int]) -> None:
    first, between, last = steps
    with scene.fused() as (_, told):
        picture(scene.pipe, scene.inputs, first)
        painted = scene.painted_over(between, 0.5)
        picture(scene.pipe, scene.inputs, last)
    assert places(told) == whole(first) + whole(between // 2) + whole(last)
    with scene.fused():
        np.testing.assert_array_equal(scene.painted_over(between, 0.5), painted)


def test_img2img_again_with_less_and_with_more_strength(scene: Scene) -> None:
    with scene.fused() as (_, told):
        for strength in (0.5, 0.2, 0.8):
            scene.painted_over(10, strength)
    assert places(told) == whole(5) + whole(2) + whole(8)


@pytest.mark.parametrize(
    ("scheduler", "more", "steps"),
    [
        ("HeunDiscreteScheduler", {}, 4),
        ("KDPM2DiscreteScheduler", {}, 4),
        ("KDPM2AncestralDiscreteScheduler", {}, 4),
        ("PNDMScheduler", {"skip_prk_steps": True}, 4),  # as SD1 has it
        ("PNDMScheduler", {}, 7),  # with its start, whose calls lie at levels of their own
    ],
)
def test_a_solver_that_calls_several_times_a_step_stays_in_one_sampling(
    scene: Scene, scheduler: str, more: dict[str, Any], steps: int
) -> None:
    scene.takes(scheduler, **more)
    begun = []
    with scene.fused() as (fusion, told):
        begin = fusion.begin
        fusion.begin = lambda moments: (begun.append(len(told)), begin(moments))[1]
        for _ in range(2):
            picture(scene.pipe, scene.inputs, 4)
    calls = len(told) // 2
    assert begun == [0, calls]
    for one in (told[:calls], told[calls:]):
        found = places(one)
        assert found == sorted(found)
        assert (found[0][0], found[-1][0] + 1) == (0, found[-1][1])
        assert {count for _, count in found} == {steps}  # 4 were asked for


def test_another_scheduler_between_two_samplings(scene: Scene) -> None:
    with scene.fused() as (_, told):
        picture(scene.pipe, scene.inputs, 8)
        scene.takes("EulerDiscreteScheduler", timestep_spacing="trailing")
        picture(scene.pipe, scene.inputs, 6)
    assert places(told) == whole(8) + whole(6)


def test_a_sampling_in_two_parts_is_one(scene: Scene) -> None:
    """As SDXL's ``denoising_end`` and ``denoising_start`` divide it: the same timesteps, set anew, go on."""
    scheduler = scene.pipe.scheduler
    with scene.fused() as (_, told):
        for part in (slice(0, 6), slice(6, 10)):
            scheduler.set_timesteps(10)
            _by_hand(scene, scheduler.timesteps[part])
    assert places(told) == whole(10)


def test_a_copy_of_the_scheduler_for_each_view_is_no_other_sampling(scene: Scene) -> None:
    """As pipelines for panoramas keep one for each view."""
    scheduler = scene.pipe.scheduler
    scheduler.set_timesteps(5)
    with scene.fused() as (_, told):
        for timestep in scheduler.timesteps:
            for _ in range(3):
                scheduler.__dict__.update(deepcopy(scheduler.__dict__))
                _by_hand(scene, [timestep])
    assert places(told) == [place for place in whole(5) for _ in range(3)]


def test_loops_by_hand_that_set_no_timesteps_anew(scene: Scene) -> None:
    """From the top, from the middle, and again; twice a step, and once in between a bit higher."""
    scheduler = scene.pipe.scheduler
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps
    with scene.fused() as (_, told):
        for part in (timesteps, timesteps[5:], timesteps[5:], timesteps):
            _by_hand(scene, part)
    assert places(told) == whole(10) + whole(5) * 2 + whole(10)
    solver = [one + more for one in timesteps[:-1] for more in (0, 0, -60, -30)]
    with scene.fused() as (_, told):
        _by_hand(scene, solver)
    assert [moment.step for moment in told] == sorted(moment.step for moment in told)


def _by_hand(scene: Scene, timesteps: Any) -> None:
    sample = torch.zeros(1, 4, 8, 8)
    for timestep in timesteps:
        with torch.no_grad():
            scene.pipe.unet(sample, timestep, encoder_hidden_states=scene.inputs["prompt_embeds"])


# --- Rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("guidance", ["content", "none", "2"])
def test_guidance_by_skipped_layers_is_a_third_forward_without_a_negative_side(
    tmp_path: Path, count: int, guidance: str
) -> None:
    pipe, inputs = sd3()
    loras = [
        write_every_type(pipe, tmp_path / f"{name}.safetensors", seed)
        for name, seed in (("content", 10), ("style", 20))
    ]
    told = {**several_prompts(inputs, count), "guidance_scale": 3.0, "skip_guidance_layers": [1]}
    told |= {"skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.7}
    negative = {"content": (1, 0), "none": (0, 0), "2": (1, 0.5)}[guidance]
    with _each_side_by_hand(pipe, Hand(pipe, loras), negative) as calls:
        expected = picture(pipe, told)
    assert calls == [False, False, True, False, True, False, True, False]
    with klora.fuse(
        pipe, *(one.path for one in loras), {**PUBLISHED, "rule": "weights", "guidance": guidance}
    ):
        found = picture(pipe, told)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


@contextmanager
def _each_side_by_hand(pipe: Any, hand: Hand, negative: tuple[float, float]) -> Iterator[list[bool]]:
    """While inside, each side runs alone, with what is merged for it; a list gets which calls skip layers."""
    model, calls = pipe.transformer, []
    whole_batch = model.forward

    def side(merged: tuple[float, float], place: int, sides: int, keywords: dict[str, Any]) -> torch.Tensor:
        hand.merge(merged)
        rows = {
            key: one.chunk(sides)[place] if torch.is_tensor(one) else one for key, one in keywords.items()
        }
        made: torch.Tensor = whole_batch(**rows)[0]
        return made

    def forward(**keywords: Any) -> tuple[torch.Tensor]:
        calls.append("skip_layers" in keywords)
        factors = ((1.0, 1.0),) if calls[-1] else (negative, (1.0, 1.0))
        parts = [side(one, place, len(factors), keywords) for place, one in enumerate(factors)]
        return (torch.cat(parts),)

    model.forward = forward
    try:
        yield calls
    finally:
        del model.forward
        hand.restore()


# --- What denoisers are told --------------------------------------------------------------------------------


class Heard(torch.nn.Module):
    """Stands for a denoiser that is told noise."""

    def forward(self, hidden_states: Any, timestep: Any) -> None:
        """Nothing: what it is told is looked at before."""


class Lumina2Transformer2DModel(Heard):
    """For those of diffusers that have this name, and are told time as it passes."""


class ZImageTransformer2DModel(Heard):
    """The same."""


class MochiTransformer3DModel(Heard):
    """The same, in training steps."""


@pytest.mark.parametrize(
    ("denoiser", "tell"),
    [
        (Heard, lambda timestep: timestep),
        (Heard, lambda timestep: timestep / 1000),
        (Heard, lambda timestep: (timestep / 1000).bfloat16()),
        (Lumina2Transformer2DModel, lambda timestep: 1 - timestep / 1000),
        (ZImageTransformer2DModel, lambda timestep: (1000 - timestep) / 1000),
        (MochiTransformer3DModel, lambda timestep: 1000 - timestep),
    ],
)
@pytest.mark.parametrize("first", [0, 2, 3, 6])
def test_time_is_read_however_a_denoiser_is_told_it(denoiser: Any, tell: Any, first: int) -> None:
    """Also from the middle of the schedule on, as img2img begins."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe = SimpleNamespace(scheduler=scheduler, transformer=denoiser())
    told: Told = []
    planner = SimpleNamespace(cast=SimpleNamespace(has_pair=False), settings=None)
    fusion: Any = SimpleNamespace(planner=planner, begin=lambda _moments: None, at=told.append)
    with clock(pipe, fusion, BatchRows()):
        scheduler.set_timesteps(9)
        for timestep in scheduler.timesteps[first:]:
            pipe.transformer(torch.zeros(1), timestep=tell(timestep))
    assert places(told) == whole(9 - first)
    noises = [1 - float(timestep) / 1000 for timestep in scheduler.timesteps[first:]]
    assert [moment.noise for moment in told] == pytest.approx(noises)
