"""Tiny random checkpoints for a host under test. Run by the host's own Python:

    python make_models.py WEBUI_ROOT OUT_FOLDER

The host's model classes are built on the meta device for their shapes; each tensor is then drawn from a
generator seeded with its name, so the files are the same on every run. ``sd1-a`` and ``sd1-b`` have
SD1's layout (128 attention linears, context 768), ``sdxl`` has SDXL's (560, context 2048).
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

WEBUI, OUT = Path(sys.argv[1]), Path(sys.argv[2])
REPOSITORIES = WEBUI / "repositories"
sys.modules["xformers"] = None  # type: ignore[assignment]
for name, attribute in (("taming.modules.losses.lpips", "LPIPS"), ("sgm.data", "StableDataModuleFromConfig")):
    stub = types.ModuleType(name)
    setattr(stub, attribute, None)
    sys.modules[name] = stub
sys.path[:0] = [str(REPOSITORIES / "stable-diffusion-stability-ai"), str(REPOSITORIES / "generative-models")]

import torch  # noqa: E402
from drawn import drawn  # noqa: E402 - beside this script
from ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from ldm.util import instantiate_from_config  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

SD1_CONFIG = WEBUI / "configs" / "v1-inference.yaml"
SDXL_CONFIG = REPOSITORIES / "generative-models" / "configs" / "inference" / "sd_xl_base.yaml"


def text_encoder(width: int) -> tuple[str, dict[str, Any]]:
    """A folder with CLIP's tokenizer and a two-layer configuration, and the shapes of its weights."""
    folder = OUT / f"clip-{width}"
    CLIPTokenizer.from_pretrained("openai/clip-vit-large-patch14").save_pretrained(folder)
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        return str(folder), CLIPTextModel(config).state_dict()


def write(name: str, seed: int, config: Any, encoder_prefix: str, encoder: dict[str, Any]) -> None:
    """Write the checkpoint and its yaml."""
    params = config.model.params
    params.first_stage_config.params.ddconfig.ch = 32
    decoder = dict(params.first_stage_config.params.ddconfig)
    decoder.pop("attn_type", None)
    with torch.device("meta"):
        unet = instantiate_from_config(params.get("unet_config") or params.network_config)
        vae = AutoencoderKL(decoder, {"target": "torch.nn.Identity"}, embed_dim=4)
    shapes = {
        **{f"model.diffusion_model.{key}": value for key, value in unet.state_dict().items()},
        **{f"first_stage_model.{key}": value for key, value in vae.state_dict().items()},
        **{encoder_prefix + key: value for key, value in encoder.items()},
    }
    tensors = {key: drawn(key, value, seed) for key, value in shapes.items()}
    save_file(tensors, str(OUT / f"{name}.safetensors"))
    OmegaConf.save(config, OUT / f"{name}.yaml")


def write_sd1(name: str, seed: int, width: int, clip: str, encoder: dict[str, Any]) -> None:
    """SD1's layout with ``width`` model channels."""
    config = OmegaConf.load(SD1_CONFIG)
    config.model.params.unet_config.params.model_channels = width
    config.model.params.cond_stage_config.params = {"version": clip}
    write(name, seed, config, "cond_stage_model.transformer.", encoder)


def write_sdxl(name: str, seed: int, clip: str, encoder: dict[str, Any]) -> None:
    """SDXL's layout with 32 channels and one text encoder of width 2048 instead of two."""
    config = OmegaConf.load(SDXL_CONFIG)
    unet = config.model.params.network_config.params
    unet.update({"model_channels": 32, "num_head_channels": 32, "adm_in_channels": 3 * 512})
    embedders = config.model.params.conditioner_config.params.emb_models
    embedders[0].params.update({"version": clip, "layer_idx": 1})
    del embedders[1]
    write(name, seed, config, "conditioner.embedders.0.transformer.", encoder)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    small = text_encoder(768)
    write_sd1("sd1-a", 1, 32, *small)
    write_sd1("sd1-b", 2, 32, *small)
    write_sdxl("sdxl", 3, *text_encoder(2048))
    if "--full" in sys.argv:
        write_sd1("sd1-full", 4, 320, *small)
