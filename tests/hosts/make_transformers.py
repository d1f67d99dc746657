"""Small random checkpoints of transformers for a Forge under test. Run by its own Python:

    python make_transformers.py FORGE_ROOT OUT_FOLDER KIND...

A KIND is one of `KINDS`. The denoiser has the width by which the host knows the kind and as few blocks as it
takes; its text encoders have two layers (`small_encoders` makes the host take them); the VAE is whole.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORGE, OUT, WANTED = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
sys.argv = [sys.argv[0], "--always-cpu", "--cpu"]  # the host's modules read the command line when imported
os.environ["IGNORE_CMD_ARGS_ERRORS"] = "1"  # each Forge knows only one of the two
PROBE = Path(__file__).parent / "probe" / "scripts"
PACKAGES = ("packages_3rdparty", "modules_forge/packages", "repositories/huggingface_guess")
sys.path[:0] = [str(FORGE), *(str(FORGE / one) for one in PACKAGES), str(PROBE)]

import torch  # noqa: E402
from backend import loader  # noqa: E402
from backend.nn.clip import IntegratedCLIP  # noqa: E402
from backend.nn.t5 import IntegratedT5  # noqa: E402
from backend.nn.vae import IntegratedAutoencoderKL  # noqa: E402
from backend.operations import using_forge_operations  # noqa: E402
from drawn import drawn  # noqa: E402 - beside this script
from safetensors.torch import save_file  # noqa: E402
from small_encoders import built_small  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

PARTS = FORGE / "backend" / "huggingface"
HEADS = 2


def t5(folder: Path, **sizes: int) -> Any:
    """T5 of its own width, which the denoiser takes, with two layers and two heads."""
    small = {"d_ff": 64, "d_kv": 32, "num_heads": HEADS, "num_layers": 2, **sizes}
    return IntegratedT5({**loader.read_arbitrary_config(str(folder)), **small})


def clip(folder: Path) -> Any:
    """CLIP of its own width with two layers."""
    small = {"num_hidden_layers": 2, "intermediate_size": 64}
    config = CLIPTextConfig.from_pretrained(str(folder), **small)
    return IntegratedCLIP(CLIPTextModel, config, add_text_projection=True)


def language_model(name: str, width: int, layers: int = 2) -> Any:
    """One of the host's language models with few layers; the vocabulary is the tokenizer's."""
    from backend.nn.llm import llama

    small = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": layers}
    small |= {"num_attention_heads": HEADS, "num_key_value_heads": 1}
    meta = using_forge_operations(device=torch.device("meta"), dtype=torch.float16)  # with norms of its own
    with meta, built_small(llama, lambda _head: small):
        return getattr(llama, name)({})


def kl_vae(folder: Path) -> Any:
    """The autoencoder of a folder's configuration."""
    return IntegratedAutoencoderKL.from_config(IntegratedAutoencoderKL.load_config(str(folder / "vae")))


def lumina() -> dict[str, Any]:
    """Lumina 2: one layer after the four refiners that every such model has."""
    from backend.nn.lumina import NextDiT

    sizes = {"dim": 2304, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "cap_feat_dim": 64}
    return {
        "model.diffusion_model.": NextDiT(in_channels=16, n_layers=1, qk_norm=True, **sizes),
        "text_encoders.gemma2_2b.transformer.": language_model("Gemma2_2B", 64),
        "vae.": kl_vae(PARTS / "neta-art" / "Neta-Lumina"),
    }


def z_image() -> dict[str, Any]:
    """Z-Image: one layer after the four refiners."""
    from backend.nn.lumina import NextDiT

    sizes = {"dim": 3840, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "cap_feat_dim": 64}
    more = {"ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "pad_tokens_multiple": 32}
    return {
        "model.diffusion_model.": NextDiT(in_channels=16, n_layers=1, qk_norm=True, **sizes, **more),
        "text_encoders.qwen3_4b.transformer.": language_model("Qwen3_4B", 64),
        "vae.": kl_vae(PARTS / "Tongyi-MAI" / "Z-Image-Turbo"),
    }


def wan_vae(folder: Path) -> Any:
    """The autoencoder of Wan and Qwen-Image."""
    from backend.nn.wan_vae import WanVAE

    return WanVAE.from_config(WanVAE.load_config(str(folder / "vae")))


def qwen_image() -> dict[str, Any]:
    """Qwen-Image: one block, with the width of text that the host has built in."""
    from backend.nn.qwen import QwenImageTransformer2DModel

    return {
        "model.diffusion_model.": QwenImageTransformer2DModel(num_layers=1),
        "text_encoders.qwen25_7b.": language_model("Qwen25_7BVLI", 3584),
        "vae.": wan_vae(PARTS / "Qwen" / "Qwen-Image"),
    }


def wan() -> dict[str, Any]:
    """Wan: two blocks of one head; the vocabulary ends behind the words of the tests."""
    from backend.nn.wan import WanModel

    folder = PARTS / "Wan-AI" / "Wan2.1-T2V-14B"
    return {
        "model.diffusion_model.": WanModel(dim=128, ffn_dim=256, num_heads=1, num_layers=2),
        "text_encoders.umt5xxl.": t5(folder / "text_encoder", vocab_size=8192),
        "vae.": wan_vae(folder),
    }


def chroma() -> dict[str, Any]:
    """Chroma: one double and one single block."""
    from backend.nn.chroma import IntegratedChromaTransformer2DModel

    sizes = {
        "context_in_dim": 4096,
        "hidden_size": 3072,
        "num_heads": 24,
        "depth": 1,
        "depth_single_blocks": 1,
    }
    more = {"mlp_ratio": 4.0, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True}
    guidance = {"in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5}
    denoiser = IntegratedChromaTransformer2DModel(
        in_channels=64, out_channels=64, txt_ids_dims=[], vec_in_dim=None, **sizes, **more, **guidance
    )
    return {
        "model.diffusion_model.": denoiser,
        "text_encoders.t5xxl.": t5(PARTS / "Chroma" / "text_encoder"),
        "vae.": kl_vae(PARTS / "Chroma"),
    }


def flux() -> dict[str, Any]:
    """Flux: one double and one single block."""
    from backend.nn.flux import IntegratedFluxTransformer2DModel

    folder = PARTS / "black-forest-labs" / "FLUX.1-dev"
    sizes = {"vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "num_heads": 24, "theta": 10000}
    more = {"mlp_ratio": 4.0, "axes_dim": [16, 56, 56], "qkv_bias": True, "guidance_embed": True}
    names = IntegratedFluxTransformer2DModel.__init__.__code__.co_varnames
    newer = {"out_channels": 16, "patch_size": 2}  # Forge Neo asks for these too
    more |= {name: value for name, value in newer.items() if name in names}
    denoiser = IntegratedFluxTransformer2DModel(
        in_channels=16, depth=1, depth_single_blocks=1, **sizes, **more
    )
    return {
        "model.diffusion_model.": denoiser,
        "text_encoders.clip_l.": clip(folder / "text_encoder"),
        "text_encoders.t5xxl.": t5(folder / "text_encoder_2"),
        "vae.": kl_vae(folder),
    }


def klein(size: str, width: int) -> dict[str, Any]:
    """Flux.2 Klein: one double and one single block; its text is that of three layers, the last the 28th."""
    from backend.nn.flux import IntegratedFluxTransformer2DModel
    from backend.nn.vae import AutoencoderKLFlux2

    folder = PARTS / "black-forest-labs" / f"FLUX.2-klein-{size}"
    axes, text = [32, 32, 32, 32], 64
    denoiser = IntegratedFluxTransformer2DModel(
        in_channels=128,
        out_channels=128,
        vec_in_dim=None,
        context_in_dim=3 * text,
        hidden_size=width,
        mlp_ratio=3.0,
        num_heads=width // sum(axes),
        depth=1,
        depth_single_blocks=1,
        axes_dim=axes,
        theta=2000,
        patch_size=1,
        qkv_bias=False,
        guidance_embed=False,
        txt_ids_dims=[3],
        global_modulation=True,
        mlp_silu_act=True,
        ops_bias=False,
    )
    name = {"4B": "Qwen3_4B", "9B": "Qwen3_8B"}[size]
    return {
        "model.diffusion_model.": denoiser,
        f"text_encoders.{name.lower()}.transformer.": language_model(name, text, layers=28),
        "vae.": AutoencoderKLFlux2.from_config(AutoencoderKLFlux2.load_config(str(folder / "vae"))),
    }


def mugen() -> dict[str, Any]:
    """Mugen: SDXL's UNet for the latents of Flux.2, with 32 channels instead of 320."""
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.nn.vae import AutoencoderKLFlux2

    folder = PARTS / "CabalResearch" / "Mugen"
    denoiser = IntegratedUNet2DConditionModel(
        in_channels=32,
        out_channels=32,
        model_channels=32,
        num_res_blocks=[2, 2, 2],
        channel_mult=[1, 2, 4],
        num_classes="sequential",
        adm_in_channels=2816,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        context_dim=2048,
        transformer_depth=[0, 0, 2, 2, 10, 10],
        transformer_depth_middle=10,
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        num_head_channels=64,
    )
    return {
        "model.diffusion_model.": denoiser,
        "conditioner.embedders.0.": clip(folder / "text_encoder"),
        "conditioner.embedders.1.model.": clip(folder / "text_encoder_2"),
        "first_stage_model.": AutoencoderKLFlux2.from_config(
            AutoencoderKLFlux2.load_config(str(folder / "vae"))
        ),
    }


def sd3() -> dict[str, Any]:
    """SD3, whose width is 64 times the number of its blocks."""
    from backend.nn.mmditx import MMDiTX

    depth = 4
    context = {"in_features": 4096, "out_features": 64 * depth}
    folder = PARTS / "stabilityai" / "stable-diffusion-3-medium-diffusers"
    denoiser = MMDiTX(
        input_size=None,
        in_channels=16,
        depth=depth,
        adm_in_channels=2048,
        context_embedder_config={"target": "torch.nn.Linear", "params": context},
        num_patches=64 * 64,
        pos_embed_max_size=64,
        qk_norm="rms",
    )
    return {
        "model.diffusion_model.": denoiser,
        "text_encoders.clip_l.": clip(folder / "text_encoder"),
        "text_encoders.clip_g.": clip(folder / "text_encoder_2"),
        "text_encoders.t5xxl.": t5(folder / "text_encoder_3"),
        "first_stage_model.": kl_vae(folder),
    }


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "lumina": lumina,
    "z-image": z_image,
    "qwen-image": qwen_image,
    "wan": wan,
    "chroma": chroma,
    "flux": flux,
    "klein-4b": lambda: klein("4B", 3072),
    "klein-9b": lambda: klein("9B", 4096),
    "mugen": mugen,
    "sd3": sd3,
}


def write(kind: str, seed: int) -> None:
    """Write a checkpoint of ``kind``, named by it."""
    with torch.device("meta"):
        parts = KINDS[kind]()
    tensors = {
        _spelled(kind, prefix + key): drawn(key, value, seed)
        for prefix, part in parts.items()
        for key, value in part.state_dict().items()
        if not key.endswith(("position_ids", "logit_scale"))
    }
    half = OUT / f"{kind}.part"
    save_file(tensors, str(half))
    half.rename(OUT / f"{kind}.safetensors")  # what was interrupted is not taken for a checkpoint


def _spelled(kind: str, key: str) -> str:
    """As the model's makers call a tensor, by which the host knows the model."""
    if kind != "chroma" or not key.startswith("model.diffusion_model."):
        return key
    return re.sub(r"(\.norms\.\d+|_norm)\.weight", r"\1.scale", key)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for number, wanted in enumerate(WANTED, start=5):
        write(wanted, number)
