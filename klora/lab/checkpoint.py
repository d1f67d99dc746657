"""The model as one file of the original code's key names, with the settings file beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from klora.errors import KloraError
from klora.files.conversion import save_tensors
from klora.files.writing import written_whole
from klora.lab import tokens
from klora.lab.model import (
    AUTOENCODER,
    CONTEXT,
    DENOISER,
    HEADS,
    LATENT,
    LATENT_SCALE,
    NOISE,
    SIZE,
    TEXT_ENCODER,
    Model,
    build_model,
)

NAME = "klora-lab"
"""Stem of the checkpoint, of its settings file and of the text encoder's folder."""

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_DENOISER_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_LEVELS = len(AUTOENCODER["block_out_channels"])


def _replace_start(name: str, table: dict[str, str]) -> str:
    """The name with its first part looked up in a table."""
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def denoiser_name(name: str) -> str:
    """Original name of a denoiser weight, without the prefix: diffusers counts by block, LDM counts on."""
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if found:
        way, kind, rest = found[1], found[3], found[5]
        block, layer = int(found[2]), int(found[4])
        count = 3 * block + layer
        place = f"input_blocks.{1 + count}" if way == "down" else f"output_blocks.{count}"
        return f"{place}.0.{_replace_start(rest, _RESIDUAL)}" if kind == "resnets" else f"{place}.1.{rest}"
    found = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if found:
        if found[1] == "attentions":
            return f"middle_block.1.{found[3]}"
        return f"middle_block.{2 * int(found[2])}.{_replace_start(found[3], _RESIDUAL)}"
    found = re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name)
    if found:
        return f"input_blocks.{3 + 3 * int(found[1])}.0.op.{found[2]}"
    found = re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", name)
    if found:
        block = int(found[1])
        after_attention = DENOISER["up_block_types"][block].startswith("CrossAttn")
        return f"output_blocks.{3 * block + 2}.{2 if after_attention else 1}.conv.{found[2]}"
    return _replace_start(name, _DENOISER_ENDS)


def autoencoder_name(name: str) -> str:
    """Original name of an autoencoder weight, without the prefix; LDM counts the decoder's levels inwards."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    found = re.match(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if found:
        if found[2] == "attentions":
            return f"{found[1]}.mid.attn_1.{_replace_start(found[4], _ATTENTION)}"
        return f"{found[1]}.mid.block_{int(found[3]) + 1}.{found[4]}"
    found = re.match(
        r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(resnets|(?:down|up)samplers)\.(\d+)\.(.+)", name
    )
    if found:
        level = int(found[2]) if found[1].startswith("encoder") else _LEVELS - 1 - int(found[2])
        if found[3] == "resnets":
            return f"{found[1]}.{level}.block.{found[4]}.{found[5]}"
        return f"{found[1]}.{level}.{found[3].removesuffix('rs')}.{found[5]}"
    return name


def text_encoder_name(name: str) -> str:
    """Original name of a text encoder weight; newer transformers drop the published ``text_model``."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _names(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the model under its original name."""
    rooms = (
        (model.denoiser, "model.diffusion_model.", denoiser_name),
        (model.autoencoder, "first_stage_model.", autoencoder_name),
        (model.text_encoder, "cond_stage_model.transformer.", text_encoder_name),
    )
    for network, prefix, rename in rooms:
        for name, weight in network.state_dict().items():
            yield prefix + rename(name), weight


def _shape_in_file(name: str, weight: Tensor) -> Tensor:
    """The autoencoder's attention is 1 x 1 convolutions in LDM and linear layers in diffusers."""
    if ".attn_1." in name and weight.ndim == 2:
        return weight[:, :, None, None]
    return weight


def export(model: Model, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write ``klora-lab.safetensors`` and ``klora-lab.yaml`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: _shape_in_file(name, weight).to(dtype).contiguous()
        for name, weight in _names(model)
        if weight.is_floating_point()
    }
    path = folder / f"{NAME}.safetensors"
    with written_whole(path) as draft:
        save_tensors(weights, draft, {"format": "pt", "modelspec.title": "K-LoRA lab model"})
    (folder / f"{NAME}.yaml").write_text(settings_file(), encoding="utf-8")
    return path


def load(path: Path) -> Model:
    """Read a checkpoint that `export` wrote into diffusers modules, in 32-bit floats and set to inference."""
    from safetensors.torch import load_file

    stored = load_file(path)
    model = build_model()
    for name, weight in _names(model):
        if weight.is_floating_point():
            weight.copy_(stored[name].reshape(weight.shape))
    return model.eval()


@lru_cache(maxsize=1)
def model_of(weights: Path) -> Model:
    """The model of a folder of weights, loaded once in each process."""
    return load(weights / f"{NAME}.safetensors")


def write_text_folder(folder: Path) -> None:
    """Write what ``from_pretrained`` needs to build text encoder and tokenizer without a network."""
    tokens.write_tokenizer(folder)
    settings = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **TEXT_ENCODER}
    (folder / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def check_weights(weights: Path, files: Sequence[str]) -> None:
    """Raise `KloraError` if one of the lab's ``files`` is not in the folder ``weights``."""
    for name in files:
        if not (weights / name).is_file():
            raise KloraError(
                f"{name} is not in {weights}; name another folder, or train the lab: "
                "python -m klora.lab train"
            )


def install(weights: Path, webui: Path) -> Path:
    """Put the checkpoint, its settings, its text encoder's folder and the LoRAs where a WebUI looks for them.

    Raises `KloraError` if ``webui`` is no WebUI's folder, or ``weights`` has no checkpoint.
    """
    import shutil

    files = [f"{NAME}{suffix}" for suffix in (".safetensors", ".yaml")]
    check_weights(weights, files)
    target = webui / "models" / "Stable-diffusion"
    if not target.is_dir():
        raise KloraError(f"{webui} is no WebUI's folder: it has no models/Stable-diffusion; name another.")
    for file in files:
        shutil.copy2(weights / file, target / file)
    write_text_folder(target / NAME)
    loras = webui / "models" / "Lora"
    loras.mkdir(exist_ok=True)
    for lora in sorted((weights / "loras").glob("*.safetensors")):
        shutil.copy2(lora, loras / lora.name)
    return target / f"{NAME}.safetensors"


def settings_file() -> str:
    """The settings file in the original code's form: which modules to build, and how wide.

    The text encoder is named by its folder, relative to the WebUI's own folder, because the name that Stable
    Diffusion 1 gives stands for a text encoder of another width.
    """
    inside, outside = DENOISER["block_out_channels"], AUTOENCODER["block_out_channels"]
    return f"""model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: {NOISE["beta_start"]}
    linear_end: {NOISE["beta_end"]}
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: {NOISE["num_train_timesteps"]}
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {LATENT[1]}
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: {LATENT_SCALE}
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: {LATENT[1]}
        in_channels: 4
        out_channels: 4
        model_channels: {inside[0]}
        attention_resolutions: [1, 2]
        num_res_blocks: {DENOISER["layers_per_block"]}
        channel_mult: {[width // inside[0] for width in inside]}
        num_heads: {HEADS}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {CONTEXT}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: {SIZE}
          in_channels: 3
          out_ch: 3
          ch: {outside[0]}
          ch_mult: {[width // outside[0] for width in outside]}
          num_res_blocks: {AUTOENCODER["layers_per_block"]}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: models/Stable-diffusion/{NAME}
        device: cpu
"""
