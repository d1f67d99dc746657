"""Small random checkpoints for a Forge under test. Run by its own Python:

    python make_forge_models.py FORGE_ROOT OUT_FOLDER [--full]

Forge knows a checkpoint by sizes that cannot be chosen: 320 model channels, SD1's text encoder and VAE.
What it reads off the file is how the channels are multiplied, so here they never are. ``sd1-a`` and
``sd1-b`` have SD1's layout, 128 attention linears included.
``--full`` makes only ``sd1-full``, with SD1.5's own channels.
"""

from __future__ import annotations

import sys
from pathlib import Path

FORGE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
FULL = "--full" in sys.argv
sys.argv = [sys.argv[0], "--always-cpu", "--cpu"]  # the host's modules read the command line when imported
sys.path[:0] = [str(FORGE), str(FORGE / "packages_3rdparty"), str(FORGE / "modules_forge" / "packages")]

import torch  # noqa: E402
from backend.nn.unet import IntegratedUNet2DConditionModel  # noqa: E402
from backend.nn.vae import IntegratedAutoencoderKL  # noqa: E402
from drawn import drawn  # noqa: E402 - beside this script
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

PARTS = FORGE / "backend" / "huggingface" / "runwayml" / "stable-diffusion-v1-5"
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}


def shapes(channel_mult: list[int]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, without numbers."""
    with torch.device("meta"):
        parts = {
            "model.diffusion_model.": IntegratedUNet2DConditionModel.from_config(
                {**UNET, "channel_mult": channel_mult}
            ),
            "first_stage_model.": IntegratedAutoencoderKL.from_config(
                IntegratedAutoencoderKL.load_config(str(PARTS / "vae"))
            ),
            "cond_stage_model.transformer.": CLIPTextModel(
                CLIPTextConfig.from_pretrained(str(PARTS / "text_encoder"))
            ),
        }
    return {
        prefix + key: value
        for prefix, part in parts.items()
        for key, value in part.state_dict().items()
        if not key.endswith("position_ids")
    }


def write(name: str, seed: int, channel_mult: list[int]) -> None:
    """Write a checkpoint."""
    tensors = {key: drawn(key, value, seed) for key, value in shapes(channel_mult).items()}
    save_file(tensors, str(OUT / f"{name}.safetensors"))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    if FULL:
        write("sd1-full", 4, [1, 2, 4, 4])
    else:
        write("sd1-a", 1, [1, 1, 1, 1])
        write("sd1-b", 2, [1, 1, 1, 1])
