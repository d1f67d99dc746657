"""Tiny random pipelines of diffusers: SD1, SDXL, SD3 and Flux; LoRAs of every type for them, and their dW."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers", reason="install the extra 'lab' to test the diffusers adapter")

STEPS = 5
ATTENTION = re.compile(r".*\.attn[12]?\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)")
OTHER = re.compile(r".*\.(ff\.net\.0\.proj|ff\.net\.2|proj_mlp|ff_context\.net\.2)")
CONVOLUTION = re.compile(r".*\.(conv[12]|proj_in)")


def tiny_unet(**more: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        **more,
    )


def tiny_vae(channels: int = 4) -> Any:
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=channels)


def sd1() -> tuple[Any, dict[str, Any]]:
    unet = tiny_unet(cross_attention_dim=768)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(
        vae=tiny_vae(), unet=unet, scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False, **parts
    )
    embeds = torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(1))
    return pipe, {"prompt_embeds": embeds, "negative_prompt_embeds": 0 * embeds}


def sdxl() -> tuple[Any, dict[str, Any]]:
    unet = tiny_unet(
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), **parts
    )
    pipe.text_encoder_2 = None
    pooled = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    return pipe, {
        "prompt_embeds": torch.randn(1, 7, 2048, generator=torch.Generator().manual_seed(1)),
        "pooled_prompt_embeds": pooled,
        "guidance_scale": 1.0,
    }


def flux() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(
        vae=tiny_vae(1),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **parts,
    )
    return pipe, {
        "prompt_embeds": torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1)),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=torch.Generator().manual_seed(2)),
    }


def sd3() -> tuple[Any, dict[str, Any]]:
    """Not among `PIPELINES`, which have a model of each design; it alone has guidance by skipped layers."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
    )
    parts = dict.fromkeys(
        f"{part}{place}" for part in ("text_encoder", "tokenizer") for place in ("", "_2", "_3")
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.StableDiffusion3Pipeline(
        vae=tiny_vae(), transformer=transformer, scheduler=scheduler, **parts
    )
    return pipe, {
        "prompt_embeds": torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1)),
        "pooled_prompt_embeds": torch.randn(1, 16, generator=torch.Generator().manual_seed(2)),
    }


PIPELINES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {"sd1": sd1, "sdxl": sdxl, "flux": flux}


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def picture(pipe: Any, inputs: dict[str, Any], steps: int = STEPS) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        **inputs, height=16, width=16, num_inference_steps=steps, generator=generator, output_type="latent"
    )
    return made.images.detach().numpy().copy()


def write_lora(model: Any, path: Path, seed: int, rank: int, pattern: re.Pattern[str] = ATTENTION) -> Path:
    """A LoRA in PEFT's dialect for the layers of ``model`` that match."""
    prefix = "transformer" if hasattr(model, "transformer_blocks") else "unet"
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (pattern.fullmatch(name) or OTHER.fullmatch(name)):
            generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            gain = 4 ** float(torch.rand(1, generator=generator)) / 4
            down = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            tensors[f"{prefix}.{name}.lora_A.weight"] = down
            tensors[f"{prefix}.{name}.lora_B.weight"] = gain * torch.randn(
                module.out_features, rank, generator=generator
            )
    save_file(tensors, path)
    return path


# --- By hand --------------------------------------------------------------------------------------


@dataclass
class HandLora:
    """A LoRA file and, computed beside it, what each layer gets: by module, dW and the change of the bias."""

    path: Path
    deltas: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)


def write_every_type(pipe: Any, path: Path, seed: int) -> HandLora:
    """Layers of every sort in the dialect of diffusers: LoRA, LoHa, LoKr, full; convolutions; biases."""
    model = denoiser_of(pipe)
    prefix = "transformer" if hasattr(model, "transformer_blocks") else "unet"
    made, tensors = HandLora(path), {}
    for name, module in model.named_modules():
        is_wanted = any(one.fullmatch(name) for one in (ATTENTION, OTHER, CONVOLUTION))
        if not (isinstance(module, nn.Linear | nn.Conv2d) and is_wanted):
            continue
        chance = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        parameters, delta = _layer(tuple(module.weight.shape), chance)
        made.deltas[name] = delta.reshape(module.weight.shape)
        if zlib.crc32(name.encode()) % 3 == 0:
            parameters["diff_b"] = made.biases[name] = torch.randn(module.weight.shape[0], generator=chance)
        tensors.update({f"{prefix}.{name}.{key}": one.contiguous() for key, one in parameters.items()})
    save_file(tensors, path)
    return made


def _layer(shape: tuple[int, ...], chance: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """(parameters, dW) of a type that is drawn by lot."""
    out, inside = shape[0], int(np.prod(shape[1:]))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=chance) / size[-1] ** 0.5

    kind = int(torch.randint(4, (1,), generator=chance))
    if kind == 0:
        a, b, c, d = normal(out, 2), normal(2, inside), normal(out, 2), normal(2, inside)
        return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, (a @ b) * (c @ d)
    if kind == 1 and len(shape) == 2:
        first, second = normal(4, 2), normal(out // 4, inside // 2)
        return {"lokr_w1": first, "lokr_w2": second}, torch.kron(first, second)
    if kind == 2:
        delta = normal(out, inside).reshape(shape)
        return {"diff": delta}, delta
    up, down = normal(out, 3), normal(3, inside)
    spatial = len(shape) == 4
    parameters = {
        "lora_B.weight": up.reshape(out, 3, 1, 1) if spatial else up,
        "lora_A.weight": down.reshape(3, *shape[1:]) if spatial else down,
    }
    return parameters, up @ down


class Hand:
    """Merges LoRAs into a pipeline's denoiser by the plain formula: W + sum of factor * dW."""

    def __init__(self, pipe: Any, loras: Sequence[HandLora]) -> None:
        self._model, self._loras = denoiser_of(pipe), tuple(loras)
        names = {name for lora in loras for name in lora.deltas}
        self._before = {name: self._copies(name) for name in names}

    def _copies(self, name: str) -> tuple[Tensor, Tensor | None]:
        module = self._model.get_submodule(name)
        return module.weight.data.clone(), None if module.bias is None else module.bias.data.clone()

    def merge(self, factors: Mapping[str, Sequence[float]] | Sequence[float]) -> None:
        """``factors``: one for each LoRA, or by module where they differ."""
        for name, (weight, bias) in self._before.items():
            wanted = factors[name] if isinstance(factors, Mapping) else factors
            module = self._model.get_submodule(name)
            module.weight.data = _summed(weight, [one.deltas.get(name) for one in self._loras], wanted)
            changes = [one.biases.get(name) for one in self._loras]
            if any(one is not None for one in changes):
                empty = torch.zeros(weight.shape[0])
                total = _summed(empty if bias is None else bias, changes, wanted)
                module.bias = nn.Parameter(total, requires_grad=False)

    def restore(self) -> None:
        """All weights as they were."""
        for name, (weight, bias) in self._before.items():
            module = self._model.get_submodule(name)
            module.weight.data = weight
            module.bias = None if bias is None else nn.Parameter(bias)


def _summed(base: Tensor, changes: Sequence[Tensor | None], factors: Sequence[float]) -> Tensor:
    total = base.clone()
    for change, factor in zip(changes, factors, strict=True):
        if change is not None and factor:
            total += factor * change
    return total


@contextmanager
def merged_by_hand(
    pipe: Any, loras: Sequence[HandLora], at: Callable[[int], Any], start: int = 0
) -> Iterator[None]:
    """While inside, the denoiser's n-th call (from ``start``) runs with what ``at(n)`` says is merged."""
    hand, calls = Hand(pipe, loras), [start]

    def before_call(*_: Any) -> None:
        hand.merge(at(calls[0]))
        calls[0] += 1

    handle = denoiser_of(pipe).register_forward_pre_hook(before_call)
    try:
        yield
    finally:
        handle.remove()
        hand.restore()


def several_prompts(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Inputs for ``count`` different prompts, negative ones too, and no guidance scale."""
    chance = torch.Generator().manual_seed(9)
    told = {}
    for key in ("prompt_embeds", "pooled_prompt_embeds"):
        if key in inputs:
            for name in (key, f"negative_{key}"):
                told[name] = torch.randn(count, *inputs[key].shape[1:], generator=chance)
    return told


def sampled_slowly(
    pipe: Any, told: Mapping[str, Any], g: float, hand: Hand, shares: Callable[[int], tuple[Any, Any]]
) -> np.ndarray:
    """Classifier-free guidance by two forwards of each prompt, each with its own merged weights.

    ``shares(step)`` are what is merged for the unconditional and for the conditional forward.
    """
    unet, scheduler = pipe.unet, pipe.scheduler
    scheduler.set_timesteps(STEPS)
    count = len(told["prompt_embeds"])
    chance = torch.Generator().manual_seed(3)
    latents = torch.randn(count, 4, 16, 16, generator=chance) * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        sides = []
        for prefix, wanted in zip(("negative_", ""), shares(step), strict=True):
            hand.merge(wanted)
            with torch.no_grad():
                rows = [
                    unet(
                        scaled[row : row + 1],
                        timestep,
                        encoder_hidden_states=told[f"{prefix}prompt_embeds"][row : row + 1],
                        added_cond_kwargs=_added(told, prefix, row),
                    ).sample
                    for row in range(count)
                ]
            sides.append(torch.cat(rows))
        noise = sides[0] + g * (sides[1] - sides[0])
        latents = scheduler.step(noise, timestep, latents).prev_sample
    hand.restore()
    return latents.numpy()


def _added(told: Mapping[str, Any], prefix: str, row: int) -> dict[str, Tensor] | None:
    pooled = told.get(f"{prefix}pooled_prompt_embeds")
    if pooled is None:
        return None
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]])  # as the pipeline says them: original, crop, target
    return {"text_embeds": pooled[row : row + 1], "time_ids": sizes}
