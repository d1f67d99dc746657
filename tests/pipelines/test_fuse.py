"""``klora.fuse`` on tiny random pipelines of diffusers: SD1, SDXL and Flux."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import klora
from klora.errors import HostError, KloraError, LoraFileError, PairError

diffusers = pytest.importorskip("diffusers", reason="install the extra 'lab' to test the diffusers adapter")

STEPS = 5
ATTENTION = re.compile(r".*\.attn[12]?\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)")
OTHER = re.compile(r".*\.(ff\.net\.0\.proj|ff\.net\.2|proj_mlp|ff_context\.net\.2)")


def _unet(**more: Any) -> Any:
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


def _vae(channels: int = 4) -> Any:
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=channels)


def _sd1() -> tuple[Any, dict[str, Any]]:
    unet = _unet(cross_attention_dim=768)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(
        vae=_vae(), unet=unet, scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False, **parts
    )
    embeds = torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(1))
    return pipe, {"prompt_embeds": embeds, "negative_prompt_embeds": 0 * embeds}


def _sdxl() -> tuple[Any, dict[str, Any]]:
    unet = _unet(
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=_vae(), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), **parts
    )
    pipe.text_encoder_2 = None
    pooled = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    return pipe, {
        "prompt_embeds": torch.randn(1, 7, 2048, generator=torch.Generator().manual_seed(1)),
        "pooled_prompt_embeds": pooled,
        "guidance_scale": 1.0,
    }


def _flux() -> tuple[Any, dict[str, Any]]:
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
        vae=_vae(1),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **parts,
    )
    return pipe, {
        "prompt_embeds": torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1)),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=torch.Generator().manual_seed(2)),
    }


PIPELINES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {"sd1": _sd1, "sdxl": _sdxl, "flux": _flux}


def _denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def _picture(pipe: Any, inputs: dict[str, Any], steps: int = STEPS) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        **inputs, height=16, width=16, num_inference_steps=steps, generator=generator, output_type="latent"
    )
    return made.images.detach().numpy().copy()


def _lora(model: Any, path: Path, seed: int, rank: int, pattern: re.Pattern[str] = ATTENTION) -> Path:
    """A LoRA in PEFT's dialect for the layers of ``model`` that match."""
    prefix = "transformer" if hasattr(model, "single_transformer_blocks") else "unet"
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


@pytest.fixture(params=PIPELINES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, dict[str, Any], Path, Path]:
    """A pipeline, its inputs, a content LoRA and a style LoRA."""
    pipe, inputs = PIPELINES[request.param]()
    content = _lora(_denoiser(pipe), tmp_path / "content.safetensors", 10, rank=4)
    style = _lora(_denoiser(pipe), tmp_path / "style.safetensors", 20, rank=2)
    return pipe, inputs, content, style


def _merged_by_hand(pipe: Any, inputs: dict[str, Any], lora: Path) -> np.ndarray:
    """The picture with one LoRA merged by the plain formula, independent of the engine."""
    model = _denoiser(pipe)
    tensors = load_file(lora)
    before = {}
    for key in tensors:
        if key.endswith("lora_A.weight"):
            name = key.split(".", 1)[1].removesuffix(".lora_A.weight")
            module = model.get_submodule(name)
            before[name] = module.weight.data.clone()
            module.weight.data += tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    picture = _picture(pipe, inputs)
    for name, weight in before.items():
        model.get_submodule(name).weight.data.copy_(weight)
    return picture


@pytest.mark.parametrize(("winner", "beta"), [("content", 0), ("style", 1e8)])
def test_the_winner_everywhere_is_the_only_lora(case: Any, winner: str, beta: float) -> None:
    pipe, inputs, content, style = case
    alone = _merged_by_hand(pipe, inputs, content if winner == "content" else style)
    with klora.fuse(pipe, content, style, {"alpha": 0, "beta": beta, "other_layers": "fuse"}):
        fused = _picture(pipe, inputs)
    np.testing.assert_array_equal(fused, alone)


def test_weights_are_the_same_objects_with_the_same_bits_afterwards(case: Any) -> None:
    pipe, inputs, content, style = case
    base = _picture(pipe, inputs)
    parameters = dict(_denoiser(pipe).named_parameters())
    bits = {name: one.detach().clone() for name, one in parameters.items()}
    with pytest.raises(RuntimeError, match="stop"), klora.fuse(pipe, content, style):  # noqa: PT012
        assert not np.array_equal(_picture(pipe, inputs), base)
        raise RuntimeError("stop")
    after = dict(_denoiser(pipe).named_parameters())
    assert all(after[name] is one for name, one in parameters.items())
    assert all(torch.equal(after[name], one) for name, one in bits.items())
    np.testing.assert_array_equal(_picture(pipe, inputs), base)


@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "S*"}, {"clock": "published"}, {"other_layers": "both"}]
)
def test_what_ran_is_what_was_planned(case: Any, settings: dict[str, Any]) -> None:
    from klora.planning import plan_files
    from klora.settings import Settings

    pipe, inputs, content, style = case
    with klora.fuse(pipe, content, style, settings) as fusion:
        fused = _picture(pipe, inputs)
    planned = plan_files(content, style, Settings.from_mapping(settings), STEPS)
    assert fusion.plan().layers == planned.layers
    assert fusion.plan().choices() == planned.choices()
    with klora.fuse(pipe, content, style, settings):
        np.testing.assert_array_equal(_picture(pipe, inputs), fused)


def test_only_flips_touch_layers(case: Any) -> None:
    pipe, inputs, content, style = case
    with klora.fuse(pipe, content, style) as fusion:
        _picture(pipe, inputs, steps=12)
    plan = fusion.plan()
    assert plan.steps == 12
    assert plan.flips > 0
    assert fusion.changed == len(plan.layers) + plan.flips


def test_the_noise_clock_starts_at_pure_noise_and_ends_clean(case: Any) -> None:
    pipe, inputs, content, style = case
    seen = []
    with klora.fuse(pipe, content, style, {"clock": "noise"}) as fusion:
        at = fusion.at
        fusion.at = lambda moment: (seen.append(moment.noise_progress), at(moment))[1]
        _picture(pipe, inputs)
    assert len(seen) == STEPS
    assert seen == sorted(seen)
    assert 0 <= seen[0] < 0.25
    assert 0.5 < seen[-1] <= 1


def test_a_second_sampling_starts_from_the_beginning(case: Any) -> None:
    pipe, inputs, content, style = case
    with klora.fuse(pipe, content, style):
        first, second = _picture(pipe, inputs), _picture(pipe, inputs)
    np.testing.assert_array_equal(first, second)


def test_a_lora_for_another_model_is_refused(case: Any, tmp_path: Path) -> None:
    pipe, inputs, content, _ = case
    other = _flux()[0] if hasattr(pipe, "unet") else _sd1()[0]
    foreign = _lora(_denoiser(other), tmp_path / "foreign.safetensors", 5, rank=2)
    base = _picture(pipe, inputs)
    with pytest.raises((LoraFileError, PairError), match="foreign"), klora.fuse(pipe, content, foreign):
        pass
    np.testing.assert_array_equal(_picture(pipe, inputs), base)


def test_text_encoders_get_both(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pipe, _ = _sd1()
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=32, num_hidden_layers=1, num_attention_heads=8, vocab_size=100
    )
    pipe.text_encoder = transformers.CLIPTextModel(config)
    name = next(one for one, _ in pipe.text_encoder.named_modules() if one.endswith("self_attn.q_proj"))
    files = []
    for seed in (1, 2):
        path = _lora(pipe.unet, tmp_path / f"{seed}.safetensors", seed, rank=2)
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(2, 768, generator=generator)
        key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
        save_file(
            {**load_file(path), f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": down.T.contiguous()},
            path,
        )
        files.append((path, down.T @ down))
    before = pipe.text_encoder.get_submodule(name).weight
    expected = before.detach() + files[0][1] + files[1][1]
    with klora.fuse(pipe, files[0][0], files[1][0]):
        torch.testing.assert_close(pipe.text_encoder.get_submodule(name).weight.detach(), expected)
    assert pipe.text_encoder.get_submodule(name).weight is before


def test_compiled_and_quantised_pipelines_are_refused(tmp_path: Path) -> None:
    pipe, _ = _sd1()
    content = _lora(pipe.unet, tmp_path / "content.safetensors", 1, rank=2)
    style = _lora(pipe.unet, tmp_path / "style.safetensors", 2, rank=2)
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(HostError, match="quantised"), klora.fuse(pipe, content, style):
        pass
    pipe, _ = _sd1()
    pipe.unet._orig_mod = pipe.unet.conv_in
    with pytest.raises(KloraError, match="compiled"), klora.fuse(pipe, content, style):
        pass
