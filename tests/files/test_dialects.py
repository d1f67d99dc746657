"""Every dialect is read as the same LoRA: same layers, same dW, same base model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klora.files import LoraFile, UnknownDialectError, read_lora, split_layers

from .spellings import (
    FLUX,
    FLUX_SPLIT_DIALECTS,
    NATIVE_DIALECTS,
    SCALE,
    SD1,
    SD3,
    SDXL,
    UNET_DIALECTS,
    XLABS,
    deltas,
    flat,
    kohya,
    lora_dot,
    pairs,
    peft,
    write,
)

TOLERANCE = 1e-6


def assert_same(found: LoraFile, expected: dict[str, Tensor]) -> None:
    layers = split_layers(found)
    assert set(layers) == set(expected)
    for name, truth in expected.items():
        assert float((layers[name].delta().double() - truth).norm() / truth.norm()) < TOLERANCE, name


def split_truth(
    fused: dict[str, Tensor], table: dict[str, tuple[list[str], list[int], int]]
) -> dict[str, Tensor]:
    """The true dW of the parts, from those of fused modules."""
    return {
        part: rows
        for module, delta in fused.items()
        for part, rows in zip(table[module][0], delta.split(table[module][1]), strict=True)
    }


@pytest.mark.parametrize("dialect", UNET_DIALECTS)
def test_unet(dialect: str, tmp_path: Path) -> None:
    truth = pairs(SD1)
    file = read_lora(write(tmp_path / "x.safetensors", truth, UNET_DIALECTS[dialect]))
    assert file.dialect == dialect.split()[0]
    assert file.base_model == "SD1"
    assert list(file.layers) == list(SD1)
    assert_same(file, deltas(truth))


@pytest.mark.parametrize("naming", ["native", "diffusers"])
def test_kohya_sdxl_in_both_block_namings(naming: str, tmp_path: Path) -> None:
    truth = pairs({name: widths for name, (_, *widths) in SDXL.items()})
    stem = (lambda name: SDXL[name][0]) if naming == "native" else flat
    path = write(tmp_path / "x.safetensors", truth, kohya(lambda name: "lora_unet_" + stem(name)))
    file = read_lora(path)
    assert (file.dialect, file.base_model) == ("kohya-sdxl" if naming == "native" else "kohya", "SDXL")
    assert list(file.layers) == list(SDXL)
    assert_same(file, deltas(truth))


def test_sdxl_in_the_generic_dialect(tmp_path: Path) -> None:
    path = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    truth = pairs({path: (10, 2048)})
    file = read_lora(write(tmp_path / "x.safetensors", truth, peft(lambda name: name)))
    assert (file.dialect, file.base_model) == ("generic", "SDXL")
    assert_same(file, {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": deltas(truth)[path]})


@pytest.mark.parametrize("dialect", NATIVE_DIALECTS)
@pytest.mark.parametrize(("table", "model"), [(FLUX, "Flux"), (SD3, "SD3")], ids=["Flux", "SD3"])
def test_fused_transformers(
    dialect: str, table: dict[str, tuple[list[str], list[int], int]], model: str, tmp_path: Path
) -> None:
    truth = pairs({module: (sum(rows), inside) for module, (_, rows, inside) in table.items()})
    file = read_lora(write(tmp_path / "x.safetensors", truth, NATIVE_DIALECTS[dialect]))
    assert file.base_model == model
    assert len(file.layers) == len(table)
    assert_same(file, split_truth(deltas(truth), table))


@pytest.mark.parametrize("dialect", FLUX_SPLIT_DIALECTS)
def test_split_flux(dialect: str, tmp_path: Path) -> None:
    widths = {
        part: (rows, inside)
        for parts, counts, inside in FLUX.values()
        for part, rows in zip(parts, counts, strict=True)
    }
    truth = pairs(widths)
    file = read_lora(write(tmp_path / "x.safetensors", truth, FLUX_SPLIT_DIALECTS[dialect]))
    assert (file.dialect, file.base_model) == (dialect.split()[0], "Flux")
    assert_same(file, deltas(truth))


def test_xlabs(tmp_path: Path) -> None:
    truth = pairs({module: (sum(rows), inside) for module, (_, rows, inside) in XLABS.items()})
    file = read_lora(
        write(
            tmp_path / "x.safetensors", truth, lambda name: (f"{name}.down.weight", f"{name}.up.weight", None)
        )
    )
    assert (file.dialect, file.base_model) == ("xlabs", "Flux")
    assert_same(file, split_truth(deltas(truth), XLABS))


@pytest.mark.parametrize("table", ["kohya", "xlabs"])
def test_flux_as_diffusers_converts_it(table: str, tmp_path: Path) -> None:
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    path = tmp_path / "x.safetensors"
    if table == "kohya":
        # diffusers knows fewer kohya modules than there are; modulation is not among them.
        modules = {name: one for name, one in FLUX.items() if not name.endswith("lin")}
        modules = {
            name: ([*one[0]], [512 * n for n in one[1]], 512 * one[2]) for name, one in modules.items()
        }
        truth = pairs({name: (sum(rows), inside) for name, (_, rows, inside) in modules.items()})
        write(path, truth, NATIVE_DIALECTS["kohya"])
        convert = utils._convert_kohya_flux_lora_to_diffusers
    else:
        truth = pairs({name: (sum(rows), inside) for name, (_, rows, inside) in XLABS.items()})
        write(path, truth, lambda name: (f"{name}.down.weight", f"{name}.up.weight", None))
        convert = utils._convert_xlabs_flux_lora_to_diffusers
    from safetensors.torch import load_file

    oracle = {key: one.double() for key, one in convert(load_file(path)).items()}
    stems = {key.removesuffix(".lora_A.weight") for key in oracle if key.endswith(".lora_A.weight")}
    expected = {
        stem.removeprefix("transformer."): oracle[f"{stem}.lora_B.weight"] @ oracle[f"{stem}.lora_A.weight"]
        for stem in stems
    }
    assert len(expected) > 10
    assert_same(read_lora(path), expected)


def test_text_encoders(tmp_path: Path) -> None:
    clip = "text_model.encoder.layers"
    t5 = "text_encoder_3.encoder.block.0.layer"
    stems = {
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": f"text_encoder.{clip}.0.self_attn.q_proj",
        "lora_te2_text_model_encoder_layers_31_mlp_fc1": f"text_encoder_2.{clip}.31.mlp.fc1",
        "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0": f"{t5}.1.DenseReluDense.wi_0",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": f"{t5}.0.SelfAttention.q",
    }
    truth = pairs(dict.fromkeys(stems, (8, 8)))
    file = read_lora(write(tmp_path / "x.safetensors", truth, kohya(lambda name: name)))
    assert not file.layers
    assert set(file.text_encoder) == set(stems.values())
    for stem, name in stems.items():
        assert torch.allclose(
            file.text_encoder[name].delta().double(), deltas(truth)[stem], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    "key",
    ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer",
     "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora",
     "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora"],
)  # fmt: skip
def test_text_encoder_in_diffusers_spellings(key: str, tmp_path: Path) -> None:
    save_file(
        {f"{key}.down.weight": torch.ones(2, 8), f"{key}.up.weight": torch.ones(8, 2)},
        tmp_path / "x.safetensors",
    )
    file = read_lora(tmp_path / "x.safetensors")
    assert list(file.text_encoder) == ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]


def test_a_file_is_refused_whole_with_counts(tmp_path: Path) -> None:
    truth = pairs(SD1)
    path = write(tmp_path / "odd.safetensors", truth, UNET_DIALECTS["kohya"])
    from safetensors.torch import load_file

    save_file({**load_file(path), "lora_unet_new_block_0_to_z.lora_up.weight": torch.ones(1, 1)}, path)
    with pytest.raises(UnknownDialectError) as caught:
        read_lora(path)
    message = str(caught.value)
    assert (
        "15 of 16 keys understood as kohya; first unknown: lora_unet_new_block_0_to_z.lora_up.weight"
        in message
    )
    assert message.startswith("K-LoRA: odd.safetensors: ")
    assert caught.value.file == "odd.safetensors"


def test_a_file_of_no_dialect(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UnknownDialectError, match="0 of 2 keys understood; first unknown"):
        read_lora(tmp_path / "x.safetensors")


def test_what_is_left_to_the_host(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0"
    save_file(
        {
            f"{stem}_norm.w_norm": torch.ones(8),
            f"{stem}_norm.b_norm": torch.ones(8),
            f"{stem}_transformer_blocks_0_attn1_to_q.oft_blocks": torch.ones(2, 4, 4),
            f"{stem}_transformer_blocks_0_attn1_to_k.oft_blocks": torch.ones(2, 2, 4, 4),
            f"{stem}_transformer_blocks_0_attn1_to_v.weight": torch.ones(8),
            f"{stem}_transformer_blocks_0_attn1_to_v.on_input": torch.tensor(1),
            f"{stem}_transformer_blocks_0_attn2_to_q.lora_up.weight": torch.ones(8, 1),
            f"{stem}_transformer_blocks_0_attn2_to_q.lora_down.weight": torch.ones(1, 8),
            "bundle_emb.my style.string_to_param.*": torch.ones(2, 8),
        },
        tmp_path / "x.safetensors",
    )
    file = read_lora(tmp_path / "x.safetensors")
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert list(file.layers) == [f"{block}.attn2.to_q"]
    assert file.left_to_host == {
        "mid_block.attentions.0.norm": "norm",
        f"{block}.attn1.to_q": "oft",
        f"{block}.attn1.to_k": "boft",
        f"{block}.attn1.to_v": "ia3",
        "my style": "embedding",
    }


@pytest.mark.parametrize(
    ("metadata", "model"),
    [
        ({"ss_base_model_version": "sd_v1"}, "SD1"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "SD2"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({}, "unknown"),
    ],
)
def test_base_model_from_metadata_where_tensors_do_not_tell(
    metadata: dict[str, str], model: str, tmp_path: Path
) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{stem}.lora_up.weight": torch.ones(8, 1), f"{stem}.lora_down.weight": torch.ones(1, 8)}
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    assert read_lora(tmp_path / "x.safetensors").base_model == model


@pytest.mark.parametrize(
    ("block", "width", "said", "model"),
    [
        (18, 3072, "", "Flux"),
        (19, 3072, "", "HunyuanVideo"),
        (20, 3072, "", "Qwen-Image"),
        (18, 3072, "Qwen-Image/lora", "Qwen-Image"),
        (18, 3072, "flux-1-dev/lora", "Flux"),
        (30, 2432, "", "SD3"),
    ],
)
def test_base_model_from_the_width_of_double_blocks(
    block: int, width: int, said: str, model: str, tmp_path: Path
) -> None:
    stem = f"transformer.transformer_blocks.{block}.attn.to_q"
    tensors = {f"{stem}.lora_A.weight": torch.ones(1, width), f"{stem}.lora_B.weight": torch.ones(width, 1)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"modelspec.architecture": said})
    assert read_lora(tmp_path / "x.safetensors").base_model == model


def test_tensors_outweigh_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", pairs(SD1), UNET_DIALECTS["kohya"])
    from safetensors.torch import load_file

    save_file(load_file(path), path, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    assert read_lora(path).base_model == "SD1"


def test_a_scale_without_alpha_is_one(tmp_path: Path) -> None:
    truth = pairs(SD1)
    path = write(tmp_path / "x.safetensors", truth, lora_dot(lambda name: "unet." + name))
    assert {layer.scale for layer in read_lora(path).layers.values()} == {1.0}
    path = write(path, truth, UNET_DIALECTS["kohya"])
    assert {layer.scale for layer in read_lora(path).layers.values()} == {SCALE}
    assert {layer.alpha for layer in read_lora(path).layers.values()} == {SCALE * 3}
