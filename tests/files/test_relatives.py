"""Layouts akin to those of bug reports: each is read, or refused in a sentence that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from klora.errors import KloraError, LoraFileError
from klora.files import read_lora, split_layers
from klora.files.conversion import convert
from tests.files.test_declared import NAME, merged_difference, saved

FLUX, WAN, HUNYUAN_IMAGE = 3072, 5120, 3584
Sizes = dict[str, tuple[int, int]]


def written(path: Path, layers: Sizes, *, flat: bool = False, **others: torch.Tensor) -> Path:
    """LoRAs of rank 1 for ``layers``, as kohya (``flat``) or PEFT spell the parameters; ``others`` as they
    are, their dots written as two underscores."""
    down, up = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
    tensors = {key.replace("__", "."): one for key, one in others.items()}
    for name, (out, inside) in layers.items():
        tensors[f"{name}.{down}.weight"] = torch.ones(1, inside)
        tensors[f"{name}.{up}.weight"] = torch.ones(out, 1)
    save_file(tensors, path)
    return path


#: What it is -> (layers as the trainer names them, flat or not, base model).
LAYOUTS: dict[str, tuple[Sizes, bool, str]] = {
    "an underscore too many (ComfyUI#4347)": (
        {"lora_unet_single_transformer_blocks_1_attn_to_k_": (FLUX, FLUX)},
        True,
        "Flux",
    ),
    "torch.compile, kohya": (
        {"lora_unet__orig_mod_double_blocks_0_img_attn_proj": (FLUX, FLUX)},
        True,
        "Flux",
    ),
    "torch.compile, PEFT": (
        {"transformer._orig_mod.transformer_blocks.0.attn.to_q": (FLUX, FLUX)},
        False,
        "Flux",
    ),
    "distributed": ({"module.transformer_blocks.0.attn.to_q": (FLUX, FLUX)}, False, "Flux"),
    "DiffSynth": ({"pipe.dit.blocks.0.self_attn.q": (WAN, WAN)}, False, "Wan"),
    "Wan 2.2's second model": ({"transformer_2.blocks.0.attn1.to_q": (WAN, WAN)}, False, "Wan"),
    "VACE": (
        {
            "diffusion_model.vace_blocks.0.self_attn.q": (WAN, WAN),
            "diffusion_model.blocks.0.self_attn.q": (WAN, WAN),
        },
        False,
        "Wan",
    ),
    "OneTrainer's Cascade": (
        {
            "lora_prior_unet_down_blocks_0_2_attention_attn_to_q": (2048, 2048),
            "lora_prior_te_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280),
        },
        True,
        "Stable Cascade",
    ),
    "kohya's HunyuanImage": (
        {
            "lora_unet_double_blocks_0_img_attn_q": (HUNYUAN_IMAGE, HUNYUAN_IMAGE),
            "lora_unet_single_blocks_39_linear1_v": (HUNYUAN_IMAGE, HUNYUAN_IMAGE),
            "lora_unet_single_blocks_0_linear1_mlp": (4 * HUNYUAN_IMAGE, HUNYUAN_IMAGE),
            "lora_unet_single_blocks_0_linear2_fc": (HUNYUAN_IMAGE, 5 * HUNYUAN_IMAGE),
        },
        True,
        "HunyuanImage",
    ),
    "FramePack": (
        {
            "lora_unet_transformer_blocks_0_attn_to_q": (FLUX, FLUX),
            "lora_unet_single_transformer_blocks_39_attn_to_q": (FLUX, FLUX),
        },
        True,
        "HunyuanVideo",
    ),
    "Chroma Radiance": (
        {
            "diffusion_model.double_blocks.0.img_attn.qkv": (3 * FLUX, FLUX),
            "diffusion_model.nerf_blocks.0.param_generator": (100, FLUX),
        },
        False,
        "Chroma",
    ),
    "LyCORIS' text encoder": (
        {
            "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (640, 2048),
            "lycoris_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
        },
        True,
        "SDXL",
    ),
    "another model of Flux's names": (
        {
            "transformer.transformer_blocks.0.attn1.to_q": (2240, 2240),
            "transformer.transformer_blocks.19.attn2.to_k": (2240, 2240),
        },
        False,
        "unknown",
    ),
    "LTX": (
        {
            f"transformer.transformer_blocks.{block}.attn{which}.to_{leaf}": (2048, 2048)
            for block in (0, 27)
            for which in (1, 2)
            for leaf in "qkv"
        },
        False,
        "unknown",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_trainers(name: str, tmp_path: Path) -> None:
    layers, flat, model = LAYOUTS[name]
    file = read_lora(written(tmp_path / "x.safetensors", layers, flat=flat))
    assert file.base_model == model
    assert len(file.layers) + len(file.text_encoder) == len(layers)
    assert not file.left_to_host


def test_hunyuan_image_split_and_fused_are_the_same_layers(tmp_path: Path) -> None:
    size = HUNYUAN_IMAGE
    split = {f"lora_unet_double_blocks_0_img_attn_{one}": (size, size) for one in "qkv"}
    whole = {"lora_unet_double_blocks_0_img_attn_qkv": (3 * size, size)}
    found = [
        set(split_layers(read_lora(written(tmp_path / "x.safetensors", layers, flat=True))))
        for layers in (split, whole)
    ]
    assert found[0] == found[1]


#: Tensors beside a LoRA -> under what name and as what they are left to the host.
BESIDE: dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]] = {
    "Wan's modulations and vectors (LightX2V)": (
        {
            "diffusion_model__blocks__0__modulation__diff": torch.ones(1, 6, WAN),
            "diffusion_model__blocks__0__self_attn__norm_q__diff": torch.ones(WAN),
            "diffusion_model__head__modulation__diff": torch.ones(1, 2, WAN),
            "diffusion_model__time_embedding__0__diff_b": torch.ones(WAN),
        },
        {
            "blocks.0.modulation": "other",
            "blocks.0.attn1.norm_q": "norm",
            "head.modulation": "other",
            "condition_embedder.time_embedder.linear_1": "bias",
        },
    ),
    "a convolution in time": (
        {
            "diffusion_model__patch_embedding__lora_A__weight": torch.ones(4, 16, 1, 2, 2),
            "diffusion_model__patch_embedding__lora_B__weight": torch.ones(WAN, 4, 1, 1, 1),
        },
        {"patch_embedding": "embedder"},
    ),
    "modules_to_save": (
        {
            "diffusion_model__head__head__weight": torch.ones(4, 4),
            "diffusion_model__head__head__bias": torch.ones(4),
        },
        {"proj_out": "whole weight"},
    ),
    "modules_to_save with the adapter's name": (
        {"diffusion_model__patch_embedding__modules_to_save__default__weight": torch.ones(4, 4)},
        {"patch_embedding": "whole weight"},
    ),
    "a bias of PEFT's": (
        {"diffusion_model__blocks__0__self_attn__q__base_layer__bias": torch.ones(WAN)},
        {"blocks.0.attn1.to_q.bias": "bias"},
    ),
    "a norm as a whole": (
        {"diffusion_model__blocks__0__self_attn__norm_k__weight": torch.ones(WAN)},
        {"blocks.0.attn1.norm_k": "norm"},
    ),
    "a wider embedder (ComfyUI)": (
        {
            "diffusion_model__patch_embedding__lora_A__weight": torch.ones(2, 36, 1, 2, 2),
            "diffusion_model__patch_embedding__lora_B__weight": torch.ones(WAN, 2, 1, 1, 1),
            "diffusion_model__patch_embedding__reshape_weight": torch.tensor([WAN, 36, 1, 2, 2]),
        },
        {"patch_embedding": "embedder"},
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_no_contest_is_left_and_named(name: str, tmp_path: Path) -> None:
    others, left = BESIDE[name]
    lora = {"diffusion_model.blocks.0.self_attn.q": (WAN, WAN)}
    file = read_lora(written(tmp_path / "x.safetensors", lora, **others))
    assert (file.base_model, list(file.layers)) == ("Wan", ["blocks.0.attn1.to_q"])
    assert dict(file.left_to_host) == left


#: kohya's dialect holds all but a bias as a whole, the others nothing beside LoRAs but an embedder's.
REFUSED = {
    *(
        (name, dialect)
        for name in BESIDE
        for dialect in ("diffusers", "peft")
        if name != "a convolution in time"
    ),
    ("a bias of PEFT's", "kohya"),
}


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("name", BESIDE)
def test_a_conversion_keeps_it_or_says_so(name: str, dialect: str, tmp_path: Path) -> None:
    others, _ = BESIDE[name]
    lora = {"diffusion_model.blocks.0.self_attn.q": (WAN, WAN)}
    source = written(tmp_path / "x.safetensors", lora, **others)
    if (name, dialect) in REFUSED:
        with pytest.raises(LoraFileError) as caught:
            convert(source, tmp_path / "out.safetensors", dialect)
        assert caught.value.layer is not None
        assert not (tmp_path / "out.safetensors").exists()
        return
    before, made = read_lora(source), convert(source, tmp_path / "out.safetensors", dialect)
    assert dict(made.left_to_host) == dict(before.left_to_host)
    assert len(made.layers) == len(before.layers)


def test_a_checkpoint_is_no_lora(tmp_path: Path) -> None:
    stem = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{stem}.weight": torch.ones(4, 4), f"{stem}.bias": torch.ones(4)}, tmp_path / "x.safetensors")
    with pytest.raises(KloraError, match="whole weights and no LoRA"):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize("options", [{"bias": "all"}, {"bias": "lora_only"}, {"init_lora_weights": "mica"}])
def test_what_peft_saves_beside_or_begins_with(options: dict[str, str], tmp_path: Path) -> None:
    clean, wrapped = saved(tmp_path, **options)
    file = read_lora(tmp_path / "adapter_model.safetensors")
    expected = merged_difference(clean, wrapped)
    assert torch.allclose(file.layers[NAME].delta(), expected, atol=1e-5)


def test_a_configuration_that_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    _, wrapped = saved(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + json.dumps({"r": 4, "lora_alpha": 12}).encode())
    (layer,) = read_lora(tmp_path / "adapter_model.safetensors").layers.values()
    assert layer.scale == 3
    assert wrapped.scaling["default"] == 1.5
