"""The linears inside the attention modules of a Forge's transformers, as JSON. Run by its own Python:

    python list_attention.py FORGE_ROOT

Prints ``{kind: [names]}`` for the models that this Forge has, as they are called in its state dict.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

FORGE = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--always-cpu", "--cpu"]  # the host's modules read the command line when imported
os.environ["IGNORE_CMD_ARGS_ERRORS"] = "1"  # each Forge knows only one of the two
sys.path[:0] = [str(FORGE), str(FORGE / "packages_3rdparty"), str(FORGE / "modules_forge" / "packages")]

import torch  # noqa: E402

#: Kind -> (module, class, sizes): the sizes matter not, but for what a class has no standard for.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lumina": ("lumina", "NextDiT", {"dim": 96, "n_heads": 1, "n_layers": 1, "axes_dims": [32, 32, 32]}),
    "qwen-image": ("qwen", "QwenImageTransformer2DModel", {"num_layers": 1}),
    "wan": ("wan", "WanModel", {"num_layers": 1}),
    "wan i2v": ("wan", "WanModel", {"num_layers": 1, "model_type": "i2v"}),
    "anima": (
        "anima",
        "Anima",
        {"in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "num_blocks": 1},
    ),
    "ernie": ("ernie", "ErnieImageModel", {"num_layers": 1}),
    "krea 2": ("krea", "SingleStreamDiT", {"layers": 1}),
}


def names(module: str, kind: str, sizes: dict[str, Any]) -> list[str]:
    """The matrices directly inside modules that are called attention by their class."""
    model_class = getattr(importlib.import_module(f"backend.nn.{module}"), kind)
    with torch.device("meta"):
        model = model_class(**sizes)
    found = []
    for path, part in model.named_modules():
        if "Attention" in type(part).__name__ and "Block" not in type(part).__name__:
            for name, weight in part.named_parameters():
                if weight.ndim == 2 and name.endswith(".weight"):
                    found.append(f"{path}.{name.removesuffix('.weight')}")
    return found


if __name__ == "__main__":
    here = {kind: one for kind, one in MODELS.items() if (FORGE / "backend" / "nn" / f"{one[0]}.py").exists()}
    print(json.dumps({kind: names(*one) for kind, one in here.items()}))
