"""Pictures from the lab's model, through the same pipeline that people use with Stable Diffusion 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from klora.lab.model import NOISE, Model
from klora.lab.tokens import tokenizer

STEPS = 20
GUIDANCE = 4.0


def pipeline(model: Model) -> Any:
    """The model as a diffusers pipeline with DPM++ 2M."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    build: Any = StableDiffusionPipeline
    sampler: Any = DPMSolverMultistepScheduler
    pipe = build(
        vae=model.autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer(),
        unet=model.denoiser,
        scheduler=sampler(**NOISE, algorithm_type="dpmsolver++", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], steps: int = STEPS, guidance: float = GUIDANCE
) -> Tensor:
    """One picture for each prompt and seed, [n, 3, 128, 128] in bytes; each depends on its own seed alone."""
    parts = []
    for start in range(0, len(prompts), 32):
        chosen = slice(start, start + 32)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        made = pipe(
            list(prompts[chosen]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
        ).images
        parts.append((made * 255).round().clamp(0, 255).byte())
    return torch.cat(parts)
