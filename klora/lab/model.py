"""The lab's diffusion model: the modules of Stable Diffusion 1, at small width.

Widths are bound by what hosts of the original code ("LDM") can load: its normalisation always has 32
groups, so all channels are multiples of 32, and the LoRA names of AUTOMATIC1111 count three blocks a
level, so every level of the denoiser has two residual blocks as in Stable Diffusion 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SIZE = 128
"""Edge of a picture in pixels."""
LATENT_FACTOR = 8
"""Pixels of a picture for each pixel of its latent, along either edge."""
LATENT: tuple[int, int, int] = (4, SIZE // LATENT_FACTOR, SIZE // LATENT_FACTOR)
"""Shape of one picture's latent."""

HEADS = 4
"""Attention heads, of the denoiser and of the text encoder."""
CONTEXT = 48
"""Width of the text encoder and of what cross-attention reads."""

AUTOENCODER: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 32, 64, 96),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": SIZE,
}
"""What diffusers' ``AutoencoderKL`` is built with."""

DENOISER: dict[str, Any] = {
    "sample_size": LATENT[1],
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 64, 128),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": CONTEXT,
    # The option is called a dimension and read as the number of heads, for the sake of published SD1 files.
    "attention_head_dim": HEADS,
}
"""What diffusers' ``UNet2DConditionModel`` is built with."""

TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": CONTEXT,
    "intermediate_size": 4 * CONTEXT,
    "projection_dim": CONTEXT,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
"""What transformers' ``CLIPTextConfig`` is built with."""

LATENT_SCALE = 0.18215
"""Stable Diffusion 1's factor between the autoencoder's latents and those that the denoiser sees."""

NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
"""Stable Diffusion 1's noise schedule."""


def in_parts(whole: Tensor, size: int = 64) -> list[Tensor]:
    """A tensor cut along its first dimension into parts of at most `size`."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def to_signed(drawn: Tensor) -> Tensor:
    """Bytes to floats from -1 to 1."""
    return drawn.float() / 127.5 - 1


def in_bytes(seen: Tensor) -> Tensor:
    """Pictures in -1 to 1 as bytes."""
    return ((seen + 1) * 127.5).round().clamp(0, 255).byte()


@dataclass
class Model:
    """The three networks."""

    autoencoder: nn.Module
    denoiser: nn.Module
    text_encoder: nn.Module

    def eval(self) -> Model:
        """The same model, set to inference and without gradients."""
        for module in (self.autoencoder, self.denoiser, self.text_encoder):
            module.eval().requires_grad_(False)
        return self


def build_autoencoder() -> nn.Module:
    """A fresh KL autoencoder: factor 8, 4 channels."""
    from diffusers import AutoencoderKL

    network: Any = AutoencoderKL(**AUTOENCODER, scaling_factor=LATENT_SCALE)  # type: ignore[no-untyped-call]
    module: nn.Module = network
    return module


def build_denoiser() -> nn.Module:
    """A fresh denoising UNet for latents [b, *LATENT] and text [b, 77, CONTEXT]."""
    from diffusers import UNet2DConditionModel

    network: Any = UNet2DConditionModel(**DENOISER)  # type: ignore[no-untyped-call]
    module: nn.Module = network
    return module


def build_text_encoder(vocabulary: int = TEXT_ENCODER["vocab_size"]) -> nn.Module:
    """A fresh text encoder of CLIP's shape; training needs only the rows of the words that it meets."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**{**TEXT_ENCODER, "vocab_size": vocabulary}))


def build_model() -> Model:
    """Fresh networks of the full vocabulary."""
    return Model(build_autoencoder(), build_denoiser(), build_text_encoder())


def noise_levels() -> Tensor:
    """Cumulative product of the signal's share, [1000], for Stable Diffusion 1's schedule."""
    betas = torch.linspace(
        NOISE["beta_start"] ** 0.5, NOISE["beta_end"] ** 0.5, 1000, dtype=torch.float64
    ).square()
    return torch.cumprod(1 - betas, 0).float()


@torch.no_grad()
def fold_statistics(autoencoder: Any, mean: Tensor, deviation: Tensor) -> None:
    """Change the two 1 x 1 convolutions so that latents times `LATENT_SCALE` have mean 0 and deviation 1.

    `mean` and `deviation` [4] are those of the latents as they are. Hosts know one scale and no mean, so both
    are moved into the weights; pictures stay the same.
    """
    scale = 1 / (deviation * LATENT_SCALE)
    quantise, restore = autoencoder.quant_conv, autoencoder.post_quant_conv
    quantise.bias[:4] -= mean
    quantise.weight[:4] *= scale[:, None, None, None]
    quantise.bias[:4] *= scale
    quantise.bias[4:] += 2 * scale.log()
    restore.bias += restore.weight[:, :, 0, 0] @ mean
    restore.weight /= scale[None, :, None, None]
