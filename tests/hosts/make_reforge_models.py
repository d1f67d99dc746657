"""Small random checkpoints for a reForge under test. Run by its own Python:

    python make_reforge_models.py REFORGE_ROOT OUT_FOLDER

As for Forge: the sizes that the host does not read off the file are kept, and the channels are never
multiplied. ``sd1-a`` and ``sd1-b`` have SD1's layout, 128 attention linears included.
"""

from __future__ import annotations

import sys
from pathlib import Path

REFORGE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = [sys.argv[0], "--always-cpu"]  # the host's modules read the command line when imported
sys.path.insert(0, str(REFORGE))

from ldm_patched.modules import options  # noqa: E402

options.enable_args_parsing()

import torch  # noqa: E402
from drawn import drawn  # noqa: E402 - beside this script
from ldm_patched.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 1, 1, 1],
    "num_res_blocks": [2, 2, 2, 2],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "legacy": False,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
#: OpenAI's CLIP ViT-L/14, text part.
CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
}


def shapes() -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, without numbers."""
    with torch.device("meta"):
        parts = {
            "model.diffusion_model.": UNetModel(**UNET),
            "first_stage_model.": AutoencoderKL(embed_dim=4, ddconfig=VAE),
            "cond_stage_model.transformer.": CLIPTextModel(CLIPTextConfig(**CLIP)),
        }
    return {
        prefix + key: value
        for prefix, part in parts.items()
        for key, value in part.state_dict().items()
        if not key.endswith("position_ids")
    }


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    wanted = shapes()
    for name, seed in (("sd1-a", 1), ("sd1-b", 2)):
        tensors = {key: drawn(key, value, seed) for key, value in wanted.items()}
        save_file(tensors, str(OUT / f"{name}.safetensors"))
