"""Canonical names: the order of a forward pass, and the way to native names and back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from klora.files import forward_position, host_layer_to_canonical, is_attention, ldm_name
from klora.files.canonical import part_names, parts_of, whole_rows
from klora.files.flat import flattened
from klora.files.native import canonical_from_flat, canonical_name
from tests.bench.models import sd1_shapes, sdxl_shapes

from .spellings import FLUX, SD3, SDXL, XLABS


def call_order(model: nn.Module, call: Callable[[], object]) -> list[str]:
    """Names of the modules with weights, in the order in which a forward pass calls them."""
    found: list[str] = []
    for name, module in model.named_modules():
        if getattr(module, "weight", None) is not None and not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: found.append(name))
    with torch.no_grad():
        call()
    return list(dict.fromkeys(found))


def unet_order(sdxl: bool) -> list[str]:
    diffusers = pytest.importorskip("diffusers")
    extra = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "use_linear_projection": True,
    }
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3) if sdxl else 1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        **(extra if sdxl else {}),
    )
    added = {"text_embeds": torch.randn(1, 16), "time_ids": torch.zeros(1, 6)}
    text, image = torch.randn(1, 3, 16), torch.randn(1, 4, 8, 8)
    return call_order(model, lambda: model(image, 1, text, added_cond_kwargs=added if sdxl else None))


@pytest.mark.parametrize("sdxl", [False, True])
def test_order_is_that_of_a_forward_pass_of_a_unet(sdxl: bool) -> None:
    names = unet_order(sdxl)
    assert len(names) > 150
    assert None not in map(forward_position, names)
    assert sorted(names, key=forward_position) == names


def test_order_is_that_of_a_forward_pass_of_flux() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    one = torch.tensor([1.0])
    text = (torch.randn(1, 3, 32), torch.randn(1, 32))
    places = (torch.zeros(4, 3), torch.zeros(3, 3))
    names = call_order(model, lambda: model(torch.randn(1, 4, 4), *text, one, *places, one))
    assert len(names) == 62
    assert sorted(names, key=forward_position) == names


def test_sd3_layers_are_known_and_in_order_of_blocks() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        caption_projection_dim=32, pooled_projection_dim=32, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    text = (torch.randn(1, 3, 32), torch.randn(1, 32))
    names = call_order(model, lambda: model(torch.randn(1, 16, 8, 8), *text, torch.tensor([1.0])))
    assert None not in map(forward_position, names)
    assert sorted(names, key=lambda name: forward_position(name)[:2])[-2:] == ["norm_out.linear", "proj_out"]
    blocks = [name for name in names if name.startswith("transformer_blocks")]
    # Within a block the order is Flux's, which calls to_out before to_add_out; SD3 does it the other way
    # round.
    moved = {"to_add_out", "norm_added_q", "norm_added_k", "norm_q", "norm_k"}
    kept = [name for name in blocks if not moved & set(name.split("."))]
    assert sorted(kept, key=forward_position) == kept


@pytest.mark.parametrize("sdxl", [False, True])
def test_ldm_name_and_back_for_every_layer(sdxl: bool) -> None:
    model = "SDXL" if sdxl else "SD1"
    for name in unet_order(sdxl):
        native = ldm_name(name, model)
        assert native is not None, name
        assert canonical_name(native) == name
        assert host_layer_to_canonical("diffusion_model_" + flattened(native), model) == name
        assert host_layer_to_canonical(f"diffusion_model.{native}.weight", model) == name


@pytest.mark.parametrize(
    ("canonical", "model", "native"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "SD1",
         "input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
        ("down_blocks.0.downsamplers.0.conv", "SD1", "input_blocks.3.0.op"),
        ("up_blocks.0.upsamplers.0.conv", "SD1", "output_blocks.2.1.conv"),
        ("up_blocks.0.upsamplers.0.conv", "SDXL", "output_blocks.2.2.conv"),
        ("up_blocks.2.upsamplers.0.conv", "SD2", "output_blocks.8.2.conv"),
        ("mid_block.resnets.1.conv2", "SD1", "middle_block.2.out_layers.3"),
        ("up_blocks.3.resnets.2.conv_shortcut", "SD1", "output_blocks.11.0.skip_connection"),
        ("time_embedding.linear_2", "SD1", "time_embed.2"),
        ("add_embedding.linear_1", "SDXL", "label_emb.0.0"),
        ("conv_in", "SD1", "input_blocks.0.0"),
        ("transformer_blocks.4.attn.to_k", "Flux", "double_blocks.4.img_attn.qkv"),
        ("single_transformer_blocks.4.proj_mlp", "Flux", "single_blocks.4.linear1"),
        ("transformer_blocks.4.attn.add_v_proj", "SD3", "joint_blocks.4.context_block.attn.qkv"),
        ("mid_block.attentions.0.proj_in", "Flux", None),
        ("nonsense", "SD1", None),
    ],
)  # fmt: skip
def test_native_names_by_hand(canonical: str, model: str, native: str | None) -> None:
    assert ldm_name(canonical, model) == native


def test_sdxl_names_by_hand() -> None:
    for canonical, (ldm, _, _) in SDXL.items():
        assert host_layer_to_canonical("diffusion_model_" + ldm, "SDXL") == canonical
    assert sorted(SDXL, key=forward_position) == list(SDXL)


def test_sdxl_names_as_diffusers_maps_them() -> None:
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    config = type("Config", (), {"layers_per_block": 2})
    keys = {f"lora_unet_{ldm}.lora_down.weight": torch.zeros(1) for ldm, _, _ in SDXL.values()}
    mapped = utils._maybe_map_sgm_blocks_to_diffusers(keys, config)
    # Its next step, inside a longer function, renames the blocks themselves.
    names = {"input_blocks": "down_blocks", "middle_block": "mid_block", "output_blocks": "up_blocks"}
    found = {re.sub("|".join(names), lambda match: names[match[0]], key) for key in mapped}
    assert found == {f"lora_unet_{flattened(name)}.lora_down.weight" for name in SDXL}


@pytest.mark.parametrize("table", [FLUX, SD3, XLABS])
def test_fused_names_and_their_parts(table: dict[str, tuple[list[str], list[int], int]]) -> None:
    for native, (parts, rows, _) in table.items():
        name = canonical_name(native)
        assert name is not None, native
        assert list(part_names(name) or [name]) == parts
        if len(parts) > 1:
            starts = [sum(rows[:at]) for at in range(len(rows))]
            expected = [((start, start + count),) for start, count in zip(starts, rows, strict=True)]
            assert [part.rows for part in parts_of(name, sum(rows))] == expected


def test_shift_and_scale_are_swapped() -> None:
    (part,) = parts_of("norm_out.shift_and_scale", 12)
    assert (part.name, part.rows) == ("norm_out.linear", ((6, 12), (0, 6)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", True),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", True),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.2", False),
        ("mid_block.attentions.0.proj_in", False),
        ("transformer_blocks.0.attn.to_add_out", True),
        ("transformer_blocks.0.attn.add_k_proj", True),
        ("transformer_blocks.0.attn.norm_q", False),
        ("transformer_blocks.0.attn2.to_v", True),
        ("single_transformer_blocks.0.attn.to_v", True),
        ("single_transformer_blocks.0.proj_mlp", False),
        ("single_transformer_blocks.0.proj_out", False),
    ],
)
def test_attention(name: str, expected: bool) -> None:
    assert is_attention(name) is expected


@pytest.mark.parametrize(("model", "count"), [("SD1", 128), ("SDXL", 560)])
def test_count_of_attention_linears(model: str, count: int) -> None:
    """The figures of the models, counted over the linears of the real ones, which take no memory here."""
    pytest.importorskip("diffusers")
    shapes = sdxl_shapes() if model == "SDXL" else sd1_shapes()
    linears = [name for name, shape in shapes.items() if len(shape) == 2]
    found = {name for name in linears if is_attention(name)}
    assert len(found) == count
    assert found == {name for name in shapes if re.search(r"\.attn[12]\.to_(q|k|v|out\.0)$", name)}
    paths = {ldm_name(name, model) for name in found}
    assert len(paths) == count
    assert {canonical_name(str(path)) for path in paths} == found


@pytest.mark.parametrize("flat", ["", "_", "down_blocks_0_", "to_q__", "x" * 500, "_".join("0" * 50), "no_0"])
def test_hostile_flat_names_are_no_names(flat: str) -> None:
    assert canonical_from_flat(flat) is None


@pytest.mark.parametrize(
    "path",
    [
        "down_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q_ip",
        "input_blocks.3.0.conv",
        "double_blocks.0.img_attn",
        "transformer_blocks.0.attn1.to_qkvo",
        "down_blocks.999.resnets.0.conv1",
        "",
        ".",
    ],
)
def test_paths_that_no_model_has(path: str) -> None:
    assert canonical_name(path) is None


@pytest.mark.parametrize(("rows", "whole"), [(36, 54), (6, 9), (4096, None), (7, None)])
def test_the_rows_of_a_whole_follow_from_a_part_if_they_can(rows: int, whole: int | None) -> None:
    """The MLP of Flux.2 has six ninths of the rows."""
    name = "single_transformer_blocks.0.attn"
    assert whole_rows(f"{name}.to_qkv_mlp_proj", {f"{name}.mlp_in": rows}) == whole
