"""Module paths of the models' own code, and of the WebUIs, against canonical names, in both directions.

"Native" are the names of the original repositories, which the WebUIs keep: LDM's ``input_blocks`` for SD1,
SD2 and SDXL, Flux's ``double_blocks``, SD3's ``joint_blocks``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from klora.files.canonical import forward_position, part_names
from klora.files.flat import dotted

# --- LDM's UNet -----------------------------------------------------------------------------------

_LDM_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_LDM_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_LDM_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d{1,2})\.(\d)\.(.+)|middle_block\.(\d)\.(.+)")


def _from_ldm(path: str) -> str | None:
    if path in _LDM_TOP:
        return _LDM_TOP[path]
    if not (match := _LDM_BLOCK.fullmatch(path)):
        return None
    side, number, place, inside, middle, middle_inside = match.groups()
    if middle is not None:
        return _within("mid_block", int(middle) // 2, int(middle) % 2, middle_inside)
    if side == "output_blocks":
        # Each level has three blocks; an upsampler hangs on the last, after the attention if there is one.
        level = f"up_blocks.{int(number) // 3}"
        if inside == "conv":
            return f"{level}.upsamplers.0.conv" if int(number) % 3 == 2 and place in "12" else None
        return _within(level, int(number) % 3, int(place), inside)
    level, index = f"down_blocks.{(int(number) - 1) // 3}", (int(number) - 1) % 3
    if index == 2:
        return f"{level}.downsamplers.0.conv" if (place, inside) == ("0", "op") else None
    return _within(level, index, int(place), inside) if number != "0" else None


def _within(block: str, index: int, place: int, inside: str) -> str | None:
    if place == 0:
        return f"{block}.resnets.{index}.{_LDM_RESNET[inside]}" if inside in _LDM_RESNET else None
    return f"{block}.attentions.{index}.{inside}" if place == 1 else None


_TOP_LDM = {canonical: ldm for ldm, canonical in _LDM_TOP.items()}
_RESNET_LDM = {canonical: ldm for ldm, canonical in _LDM_RESNET.items()}
_PAIR = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions)\.(\d+)\.(.+)")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv")


def _to_ldm(name: str, base_model: str) -> str | None:
    if name in _TOP_LDM:
        return _TOP_LDM[name]
    if match := _SAMPLER.fullmatch(name):
        level = int(match[2])
        if match[1] == "down":
            return f"input_blocks.{3 * level + 3}.0.op"
        # The lowest level of SD1 and SD2 has no attention before its upsampler.
        place = 1 if level == 0 and base_model != "SDXL" else 2
        return f"output_blocks.{3 * level + 2}.{place}.conv"
    if not (match := _PAIR.fullmatch(name)):
        return None
    side, level_text, row, index, inside = match.groups()
    inside = _RESNET_LDM.get(inside, inside) if row == "resnets" else inside
    place = int(row == "attentions")
    if side is None:
        return f"middle_block.{2 * int(index) + place}.{inside}"
    number = 3 * int(level_text) + int(index) + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}.{inside}"


# --- Flux and SD3: tables of leaves per block -----------------------------------------------------

_FLUX_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.shift_and_scale",
}
_FLUX_DOUBLE = {
    "img_attn.qkv": "attn.to_qkv",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.qkv": "attn.to_added_qkv",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_FLUX_SINGLE = {
    "linear1": "to_qkv_mlp",
    "linear2": "proj_out",
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
#: xlabs trains attention processors; its single-block ``qkv`` lacks the MLP rows of ``linear1``.
_XLABS_DOUBLE = {
    "processor.qkv_lora1": "attn.to_qkv",
    "processor.proj_lora1": "attn.to_out.0",
    "processor.qkv_lora2": "attn.to_added_qkv",
    "processor.proj_lora2": "attn.to_add_out",
}
_XLABS_SINGLE = {"processor.qkv_lora": "attn.to_qkv", "processor.proj_lora": "proj_out"}
_SD3_TOP = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.shift_and_scale",
}
_SD3_JOINT = {
    "x_block.attn.qkv": "attn.to_qkv",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.qkv": "attn2.to_qkv",
    "x_block.attn2.proj": "attn2.to_out.0",
    "context_block.attn.qkv": "attn.to_added_qkv",
    "context_block.attn.proj": "attn.to_add_out",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
}
_BLOCKS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "double_blocks": ("transformer_blocks", {**_FLUX_DOUBLE, **_XLABS_DOUBLE}),
    "single_blocks": ("single_transformer_blocks", {**_FLUX_SINGLE, **_XLABS_SINGLE}),
    "joint_blocks": ("transformer_blocks", _SD3_JOINT),
}
_NUMBERED = re.compile(r"([a-z_]+)\.(\d{1,3})\.(.+)")


def _from_transformer(path: str) -> str | None:
    if path in _FLUX_TOP:
        return _FLUX_TOP[path]
    if path in _SD3_TOP:
        return _SD3_TOP[path]
    match = _NUMBERED.fullmatch(path)
    if match is None or match[1] not in _BLOCKS:
        return None
    blocks, leaves = _BLOCKS[match[1]]
    return f"{blocks}.{match[2]}.{leaves[match[3]]}" if match[3] in leaves else None


def _reversed(table: Mapping[str, str]) -> dict[str, str]:
    """Canonical -> native, with the parts of a fused layer leading to the fused one."""
    found = {canonical: native for native, canonical in table.items()}
    for canonical, native in list(found.items()):
        for part in part_names(f"x.{canonical}"):
            found.setdefault(part.removeprefix("x."), native)
    return found


_TO_FLUX = {
    "": _reversed(_FLUX_TOP),
    "transformer_blocks": _reversed(_FLUX_DOUBLE),
    "single_transformer_blocks": _reversed(_FLUX_SINGLE),
}
_TO_SD3 = {"": _reversed(_SD3_TOP), "transformer_blocks": _reversed(_SD3_JOINT)}
_FLUX_NATIVE = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}


def _to_flux(name: str, _: str) -> str | None:
    return _to_blocks(name, _TO_FLUX, _FLUX_NATIVE)


def _to_sd3(name: str, _: str) -> str | None:
    return _to_blocks(name, _TO_SD3, {"transformer_blocks": "joint_blocks"})


def _to_blocks(name: str, tables: Mapping[str, Mapping[str, str]], natives: Mapping[str, str]) -> str | None:
    match = _NUMBERED.fullmatch(name)
    if match is None or match[1] not in natives:
        return tables[""].get(name)
    leaf = tables[match[1]].get(match[3])
    return None if leaf is None else f"{natives[match[1]]}.{match[2]}.{leaf}"


_REVERSE: Mapping[str, Callable[[str, str], str | None]] = {"Flux": _to_flux, "SD3": _to_sd3}


# --- Both directions ------------------------------------------------------------------------------


def canonical_name(path: str) -> str | None:
    """The canonical name of a denoiser's layer, from its native or diffusers path; ``None`` if unknown."""
    for rename in (str, _from_ldm, _from_transformer):
        name = rename(path)
        if name is not None and forward_position(name) is not None:
            return name
    return None


def ldm_name(canonical: str, base_model: str) -> str | None:
    """The native path that WebUIs use: ``input_blocks.1.1.transformer_blocks.0.attn1.to_q``.

    ``base_model`` is as in `LoraFile.base_model`; an unknown one is taken for SD1. A part of a fused
    projection leads to the fused module. ``None`` if that model has no such layer.
    """
    name = _REVERSE.get(base_model, _to_ldm)(canonical, base_model)
    return name if name is not None and forward_position(canonical) is not None else None


def host_layer_to_canonical(host_layer: str, base_model: str) -> str | None:
    """The canonical name of a layer as a WebUI calls it, or ``None`` if it is no layer of a denoiser.

    Takes A1111's ``diffusion_model_input_blocks_1_1_transformer_blocks_0_attn1_to_q`` and the dotted form of
    the others, with or without ``.weight``. ``base_model`` is taken for symmetry with `ldm_name`: native
    names are unambiguous by themselves.
    """
    del base_model
    path = host_layer.removesuffix(".weight")
    if path.startswith("diffusion_model_"):
        unflattened = dotted(path.removeprefix("diffusion_model_"))
        return None if unflattened is None else canonical_name(unflattened)
    return canonical_name(path.removeprefix("model.").removeprefix("diffusion_model."))
