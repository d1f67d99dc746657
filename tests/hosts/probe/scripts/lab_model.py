"""Lets a Forge load the lab's checkpoint: Stable Diffusion 1 in widths that the host's list of models lacks.

``KLORA_LAB_REPOSITORY`` names the folder in which the host finds the settings of the checkpoint's parts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "KLORA_LAB_REPOSITORY"


def told(known: Any, repository: Path) -> type:
    """The host's class of Stable Diffusion 1, ``known``, with the widths that ``repository`` tells of."""
    sizes = json.loads((repository / "unet" / "config.json").read_text())
    widths = {"model_channels": sizes["block_out_channels"][0], "context_dim": sizes["cross_attention_dim"]}
    # diffusers says "attention_head_dim" for the number of heads.
    heads = {"num_heads": sizes["attention_head_dim"], "num_head_channels": -1}
    return type(
        "KLoraLab",
        (known,),
        {
            "huggingface_repo": str(repository),
            "unet_config": {**known.unet_config, **widths},
            "unet_extra_config": {**known.unet_extra_config, **heads},
        },
    )


def install(folder: Path) -> None:
    """The host knows the checkpoint, and runs it by its engine of Stable Diffusion 1."""
    try:
        from backend.diffusion_engine.sd15 import StableDiffusion
        from huggingface_guess import model_list
    except ImportError:  # AUTOMATIC1111 and reForge
        return
    lab = told(model_list.SD15, folder)
    model_list.models.append(lab)
    StableDiffusion.matched_guesses.append(lab)  # Neo asks for the very class


if named := os.environ.get(VARIABLE):
    install(Path(named))
