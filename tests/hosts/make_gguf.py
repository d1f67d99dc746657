"""A small Flux checkpoint in GGUF's formats, as Forge takes it: the denoiser alone, and its other parts.

    python make_gguf.py FORGE_ROOT CHECKPOINT OUT_FOLDER

Run by Forge's own Python, for its ``gguf``. Writes ``flux-Q8_0.gguf``, ``flux-Q4_0.gguf`` and in ``modules``
``vae``, ``clip`` and ``t5``.
"""

from __future__ import annotations

import sys
from pathlib import Path

FORGE, CHECKPOINT, OUT = map(Path, sys.argv[1:4])
sys.path[:0] = [str(FORGE / "packages_3rdparty"), str(FORGE / "modules_forge" / "packages")]

import gguf  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

DENOISER = "model.diffusion_model."
MODULES = {
    "vae": "vae.",
    "clip": "text_encoders.clip_l.transformer.",
    "t5": "text_encoders.t5xxl.transformer.",
}
KINDS = ("Q8_0", "Q4_0")


def write_gguf(kind: str, tensors: dict[str, torch.Tensor]) -> None:
    """The denoiser with its matrices in blocks of ``kind``, all else in fp32."""
    wanted = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(OUT / f"flux-{kind}.gguf"), "flux")
    for name, tensor in tensors.items():
        numbers = tensor.float().numpy()
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(numbers, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, without it."""
    return {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}


if __name__ == "__main__":
    everything = load_file(CHECKPOINT)
    (OUT / "modules").mkdir()
    for kind in KINDS:
        write_gguf(kind, part(everything, DENOISER))
    for name, prefix in MODULES.items():
        save_file(part(everything, prefix), str(OUT / "modules" / f"{name}.safetensors"))
