"""Pictures from the lab's model, through the same pipeline that people use with Stable Diffusion 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klora.lab.icons import Picture
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
    """One picture for each prompt and seed, [n, 3, 64, 64] in bytes; each depends on its own seed alone."""
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


def contact_sheet(drawn: Tensor, columns: int) -> Picture:
    """Pictures [n, 3, h, w] in bytes side by side, row by row, on white."""
    count, _, height, width = drawn.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, picture in enumerate(drawn.permute(0, 2, 3, 1).numpy()):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = picture
    return sheet


def save_sheet(drawn: Tensor, columns: int, path: Path, enlarge: int = 1) -> None:
    """Write a contact sheet as PNG."""
    from PIL import Image

    sheet = Image.fromarray(contact_sheet(drawn, columns))
    sheet.resize((sheet.width * enlarge, sheet.height * enlarge), Image.Resampling.LANCZOS).save(path)
