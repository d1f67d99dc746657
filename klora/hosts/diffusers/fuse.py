"""Fuse two LoRA files into a pipeline for as long as a ``with`` block lasts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from klora.files import LoraFile, read_lora
from klora.hosts.diffusers.seam import PipelineSeam, WeightedFile, denoiser_of
from klora.planning import check_base_models
from klora.schedule import Position, noise_progress
from klora.settings import Settings
from klora.weights import Fusion, prepare


@contextmanager
def fuse(
    pipe: Any,
    content: str | Path | LoraFile,
    style: str | Path | LoraFile,
    settings: Settings | Mapping[str, object] | None = None,
) -> Iterator[Fusion]:
    """Fuse a content LoRA and a style LoRA into a diffusers pipeline by K-LoRA's rule.

    ``content`` and ``style`` are files in any dialect that ``python -m klora inspect`` understands;
    ``settings`` as in the WebUI, among them ``content_weight`` and ``style_weight``. In the denoiser the
    winner of each layer is applied, at each step of whatever sampling is run inside the block; in the text
    encoders both are added. On the way out all weights are the original Parameter objects again.

    The `Fusion` that is yielded tells afterwards what won where: ``fusion.plan()``. Raises `KloraError`
    before anything is changed if the files, the pair or the pipeline will not do.
    """
    if not isinstance(settings, Settings):
        settings = Settings.from_mapping(settings or {})
    files = [one if isinstance(one, LoraFile) else read_lora(one) for one in (content, style)]
    check_base_models(*files)
    for file in files:
        _say_what_is_left_out(file)
    seam = PipelineSeam(
        pipe, WeightedFile(files[0], settings.content_weight), WeightedFile(files[1], settings.style_weight)
    )
    fusion = prepare(
        seam, settings, lambda layers: tqdm(layers, desc="K-LoRA: scoring", leave=False, delay=1)
    )
    with fusion.sampling(), _clock(pipe, fusion):
        yield fusion


def _say_what_is_left_out(file: LoraFile) -> None:
    if file.left_to_host:
        kinds = ", ".join(sorted(set(file.left_to_host.values())))
        warnings.warn(
            f"{file.name}: {len(file.left_to_host)} layers of type {kinds} are no part of the contest and "
            "are not applied to a diffusers pipeline.",
            stacklevel=4,
        )


@contextmanager
def _clock(pipe: Any, fusion: Fusion) -> Iterator[None]:
    """Tell ``fusion`` the time before each call of the denoiser, by the scheduler's timesteps."""
    passes: list[_Pass] = []

    def before_call(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        told = keywords["timestep"] if "timestep" in keywords else arguments[1]
        timestep = float(told.flatten()[0]) if hasattr(told, "flatten") else float(told)
        if not passes or passes[-1].is_over(timestep):
            passes.append(_Pass(pipe.scheduler, timestep))
        passes[-1].advance(fusion, timestep)

    handle = denoiser_of(pipe).register_forward_pre_hook(before_call, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Pass:
    """One sampling: a second one begins when the noise goes up again by more than a step."""

    def __init__(self, scheduler: Any, first: float) -> None:
        timesteps = [float(one) for one in scheduler.timesteps]
        # Flux is given the timestep divided by the number of training steps, in the pipeline's dtype.
        scales = (1.0, 1.0 / scheduler.config.num_train_timesteps)
        self._scale = min(scales, key=lambda scale: min(abs(one * scale - first) for one in timesteps))
        self._timesteps = timesteps
        self._train_timesteps = int(scheduler.config.num_train_timesteps)
        self._is_flow = hasattr(scheduler.config, "shift")
        self._position = Position([one + 1 for one in timesteps], len(timesteps))
        self._last = first

    def is_over(self, timestep: float) -> bool:
        return timestep > self._last and timestep >= max(self._timesteps) * self._scale * 0.999

    def advance(self, fusion: Fusion, timestep: float) -> None:
        self._last = timestep
        nearest = min(self._timesteps, key=lambda one: abs(one * self._scale - timestep))
        step = self._position.advance(nearest + 1)  # a timestep may be 0, a level of a position may not
        if fusion.rule.clock != "noise":
            fusion.at_step(step, self._position.steps)
        elif self._is_flow:
            fusion.at_progress(step, 1 - nearest / self._train_timesteps)
        else:
            fusion.at_progress(step, noise_progress(nearest, self._train_timesteps))
