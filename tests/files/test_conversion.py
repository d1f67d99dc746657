"""Files in another dialect: the same dW, read back by us and by the libraries whose dialect it is."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from klora.commands import convert as command
from klora.errors import LoraFileError
from klora.files import pair_layers, read_lora, split_layers
from klora.files.conversion import DIALECTS, convert, refuse_difference, state_dict_in

from .make_samples import tiny_unet
from .spellings import (
    FLUX,
    FLUX_SPLIT_DIALECTS,
    NATIVE_DIALECTS,
    SD1,
    SD3,
    SDXL,
    UNET_DIALECTS,
    XLABS,
    deltas,
    flat,
    kohya,
    pairs,
    write,
)

SAMPLES = Path(__file__).parents[1] / "data" / "files"

every_sample = pytest.mark.parametrize(
    "path", sorted(SAMPLES.rglob("*.safetensors")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)


def split_widths(table: dict[str, tuple[list[str], list[int], int]]) -> dict[str, tuple[int, int]]:
    return {
        part: (rows, inside)
        for parts, counts, inside in table.values()
        for part, rows in zip(parts, counts, strict=True)
    }


def xlabs(name: str) -> tuple[str, str, str | None]:
    return (f"{name}.down.weight", f"{name}.up.weight", None)


@pytest.mark.parametrize("target", DIALECTS)
@pytest.mark.parametrize("source", UNET_DIALECTS)
def test_unet_dialects(source: str, target: str, tmp_path: Path) -> None:
    path = write(tmp_path / "in.safetensors", pairs(SD1), UNET_DIALECTS[source])
    made = convert(path, tmp_path / "out.safetensors", target)
    assert made.base_model == "SD1"
    assert list(made.layers) == list(SD1)
    for name, truth in deltas(pairs(SD1)).items():
        found = made.layers[name].delta().double()
        assert float((found - truth).norm() / truth.norm()) < 1e-6


@pytest.mark.parametrize("target", DIALECTS)
@pytest.mark.parametrize("form", ["kohya fused", "generic fused", "split", "xlabs", "sd3"])
def test_transformers(form: str, target: str, tmp_path: Path) -> None:
    table = {"xlabs": XLABS, "sd3": SD3}.get(form, FLUX)
    fused = pairs({module: (sum(rows), inside) for module, (_, rows, inside) in table.items()})
    speller = {
        "kohya fused": (fused, NATIVE_DIALECTS["kohya"]),
        "generic fused": (fused, NATIVE_DIALECTS["generic"]),
        "sd3": (fused, NATIVE_DIALECTS["generic"]),
        "split": (pairs(split_widths(FLUX)), FLUX_SPLIT_DIALECTS["bare-transformer"]),
        "xlabs": (fused, xlabs),
    }[form]
    source = read_lora(write(tmp_path / "in.safetensors", *speller))
    made = convert(source.path, tmp_path / "out.safetensors", target)
    assert set(split_layers(source)) <= set(split_layers(made))
    refuse_difference(source, made)
    kept = [pair for pair in pair_layers(source, made) if pair.content and pair.style]
    assert len(kept) == len(split_widths(table))
    if target == "kohya":
        # linear1 is seven widths tall, also when only its q, k, v were trained.
        assert all(key.startswith("lora_unet_") for key in made.container.entries)
        heights = {name: layer.shape[0] for name, layer in made.layers.items() if name.endswith("to_qkv_mlp")}
        assert set(heights.values()) <= {42}


def test_only_some_projections_of_a_fused_module(tmp_path: Path) -> None:
    """A kohya file has the whole module: the parts that were not trained are zero, and as if not there."""
    widths = {"transformer_blocks.0.attn.to_k": (6, 6), "single_transformer_blocks.7.attn.to_v": (6, 6)}
    path = write(tmp_path / "in.safetensors", pairs(widths), FLUX_SPLIT_DIALECTS["bare-transformer"])
    made = convert(path, tmp_path / "out.safetensors", "kohya")
    found = {name: layer.delta() for name, layer in split_layers(made).items()}
    truth = deltas(pairs(widths))
    for name, delta in found.items():
        expected = truth.get(name, torch.zeros(delta.shape, dtype=torch.float64))
        assert torch.allclose(delta.double(), expected, rtol=1e-5, atol=1e-6), name
    assert set(found) == set(truth)
    assert sum(len(layer.parts()) for layer in made.layers.values()) == 7


def test_a_split_type_that_is_not_low_rank_becomes_a_difference(tmp_path: Path) -> None:
    stem = "transformer.single_transformer_blocks.0"
    diffs = {f"{stem}.attn.to_q.diff": torch.randn(6, 6), f"{stem}.proj_mlp.diff": torch.randn(24, 6)}
    save_file(diffs, tmp_path / "in.safetensors")
    made = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "kohya")
    whole = load_file(made.path)["lora_unet_single_blocks_0_linear1.diff"]
    assert torch.equal(whole[:6], diffs[f"{stem}.attn.to_q.diff"])
    assert torch.equal(whole[18:], diffs[f"{stem}.proj_mlp.diff"])
    assert not whole[6:18].any()


def test_shift_and_scale_change_places(tmp_path: Path) -> None:
    diff = torch.arange(24.0).reshape(12, 2) + 1
    other = "transformer.single_transformer_blocks.0.norm.linear.diff"
    tensors = {"transformer.norm_out.linear.diff": diff, other: torch.ones(18, 6)}
    save_file(tensors, tmp_path / "in.safetensors")
    made = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "kohya")
    native = load_file(made.path)["lora_unet_final_layer_adaLN_modulation_1.diff"]
    assert torch.equal(native, torch.cat([diff[6:], diff[:6]]))


def test_sdxl_gets_the_names_of_kohyas_scripts(tmp_path: Path) -> None:
    truth = pairs({name: widths for name, (_, *widths) in SDXL.items()})
    path = write(tmp_path / "in.safetensors", truth, UNET_DIALECTS["peft"])
    keys = state_dict_in(read_lora(path), "kohya")
    expected = {
        f"lora_unet_{SDXL[name][0]}.{one}"
        for name in SDXL
        for one in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    assert set(keys) == expected


def test_a_kohya_file_is_given_unchanged(tmp_path: Path) -> None:
    path = write(tmp_path / "in.safetensors", pairs(SD1), UNET_DIALECTS["kohya"])
    before, after = load_file(path), state_dict_in(read_lora(path), "kohya")
    assert list(after) == list(read_lora(path).container.entries)
    assert all(torch.equal(before[key], after[key]) for key in before)


@every_sample
def test_every_type_as_kohya(path: Path, tmp_path: Path) -> None:
    source = read_lora(path)
    made = convert(path, tmp_path / "out.safetensors", "kohya")
    assert made.dialect == "kohya"
    assert sorted(made.layers) == sorted(source.layers)
    assert [layer.rank for layer in made.layers.values()] == [layer.rank for layer in source.layers.values()]


@every_sample
@pytest.mark.parametrize("target", ["diffusers", "peft"])
def test_every_type_in_a_dialect_that_holds_few(path: Path, target: str, tmp_path: Path) -> None:
    """Either every dW is equal, or the error names the layer and the type."""
    held = {"lora", "locon"} if target == "diffusers" else {"lora", "locon", "loha", "lokr", "dora"}
    source, kinds = read_lora(path), set(read_lora(path).kinds)
    # PEFT's DoRA is LoRA with a magnitude per output, no more.
    odd_dora = any(part in path.stem for part in ("dora_in", "loha_dora", "lokr_dora"))
    if kinds <= held and not odd_dora:
        refuse_difference(source, convert(path, tmp_path / "out.safetensors", target))
        return
    with pytest.raises(LoraFileError, match=f"{target} files hold no") as caught:
        convert(path, tmp_path / "out.safetensors", target)
    assert caught.value.layer in source.layers
    assert not list(tmp_path.iterdir())


def lora_layers(model: nn.Module) -> dict[str, Tensor]:
    """dW of every PEFT layer in a model."""
    return {
        name: module.get_delta_weight(module.active_adapters[0]).detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize("target", ["kohya", "diffusers"])
def test_diffusers_loads_what_was_written(target: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    diffusers = pytest.importorskip("diffusers")
    source = SAMPLES / "diffusers_declared.safetensors"
    made = convert(source, tmp_path / "out.safetensors", target)
    unet = tiny_unet()
    mixin = diffusers.StableDiffusionPipeline
    state, alphas = mixin.lora_state_dict(str(made.path))
    mixin.load_lora_into_unet(state, alphas, unet)
    loaded = lora_layers(unet)
    assert set(loaded) == set(made.layers)
    for name, layer in read_lora(source).layers.items():
        assert float((loaded[name] - layer.delta()).norm() / layer.delta().norm()) < 1e-6


def test_peft_loads_what_was_written(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    source = SAMPLES / "peft_patterns" / "adapter_model.safetensors"
    made = convert(source, tmp_path / "out.safetensors", "peft")
    from .make_samples import LAYERS, tree

    ranks = {name: layer.rank for name, layer in made.layers.items()}
    config = peft.LoraConfig(target_modules=list(LAYERS), rank_pattern=ranks, alpha_pattern=ranks)
    model = peft.get_peft_model(tree(), config)
    peft.set_peft_model_state_dict(model, load_file(made.path))
    loaded = lora_layers(model.base_model.model)
    assert set(loaded) == set(LAYERS)
    for name, layer in read_lora(source).layers.items():
        assert float((loaded[name] - layer.delta()).norm() / layer.delta().norm()) < 1e-6


def test_half_precision_stays_where_nothing_is_lost(tmp_path: Path) -> None:
    truth = {name: (down.half(), up.half()) for name, (down, up) in pairs(SD1).items()}
    path = tmp_path / "in.safetensors"
    stem = "lora_unet_" + flat(next(iter(SD1)))
    down, up = next(iter(truth.values()))
    for alpha, dtype in ((1.5, torch.float16), (1.0, torch.float32)):
        tensors = {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
        save_file(tensors, path)
        written = state_dict_in(read_lora(path), "diffusers")
        assert {key.rpartition("lora_")[2]: one.dtype for key, one in written.items()} == {
            "A.weight": torch.float16,
            "B.weight": dtype,
        }


def test_metadata_are_kept(tmp_path: Path) -> None:
    metadata = {
        "ss_base_model_version": "sd_v1",
        "modelspec.title": "<b>mine</b>",
        "lora_adapter_metadata": "{}",
    }
    path = write(tmp_path / "in.safetensors", pairs(SD1), UNET_DIALECTS["peft"])
    save_file(load_file(path), path, metadata=metadata)
    made = convert(path, tmp_path / "out.safetensors", "kohya")
    with safe_open(made.path, "pt") as stream:
        assert stream.metadata() == {
            key: metadata[key] for key in ("ss_base_model_version", "modelspec.title")
        }


def test_layers_left_to_the_host_go_along_as_kohya_only(tmp_path: Path) -> None:
    stem = "unet.mid_block.attentions.0.transformer_blocks.0"
    tensors = {
        f"{stem}.attn1.to_q.oft_blocks": torch.ones(2, 4, 4),
        f"{stem}.attn1.to_k.lora_A.weight": torch.ones(2, 8),
        f"{stem}.attn1.to_k.lora_B.weight": torch.ones(8, 2),
        "text_encoder.text_model.encoder.layers.0.layer_norm1.w_norm": torch.ones(8),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    made = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "kohya")
    assert sorted(made.left_to_host.values()) == ["norm", "oft"]
    assert "lora_te_text_model_encoder_layers_0_layer_norm1.w_norm" in made.container.entries
    with pytest.raises(LoraFileError, match=r"diffusers files hold no (oft|norm)"):
        convert(tmp_path / "in.safetensors", tmp_path / "no.safetensors", "diffusers")


def test_dora_on_a_split_projection_is_refused(tmp_path: Path) -> None:
    stem = "transformer.single_transformer_blocks.0.attn.to_q"
    tensors = {
        f"{stem}.lora_A.weight": torch.ones(2, 6),
        f"{stem}.lora_B.weight": torch.ones(6, 2),
        f"{stem}.lora_magnitude_vector": torch.ones(6),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(LoraFileError, match="a dora layer for a part of a fused projection"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "kohya")


def test_a_difference_is_seen(tmp_path: Path) -> None:
    first = read_lora(write(tmp_path / "a.safetensors", pairs(SD1, 1), UNET_DIALECTS["kohya"]))
    second = read_lora(write(tmp_path / "b.safetensors", pairs(SD1, 2), UNET_DIALECTS["kohya"]))
    with pytest.raises(LoraFileError, match="would differ in this layer"):
        refuse_difference(first, second)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    command.add_arguments(parser)
    source = write(tmp_path / "in.safetensors", pairs(SD1), UNET_DIALECTS["diffusers"])
    words = [str(source), str(tmp_path / "out.safetensors"), "--dialect", "peft"]
    assert command.run(parser.parse_args(words)) == 0
    assert "5 layers for SD1 as peft-base-model; every dW equal" in capsys.readouterr().out
    with pytest.raises(LoraFileError, match="exists already"):
        command.run(parser.parse_args(words))
    assert command.run(parser.parse_args([*words, "--overwrite"])) == 0
    with pytest.raises(LoraFileError, match="safetensors files are written"):
        convert(source, tmp_path / "out.pt", "kohya")
    with pytest.raises(ValueError, match="no dialect 'x'"):
        state_dict_in(read_lora(source), "x")


def test_text_encoders(tmp_path: Path) -> None:
    stem = "text_model_encoder_layers_0_self_attn_q_proj"
    truth = pairs({f"te1_{stem}": (8, 8), f"te2_{stem}": (8, 8)})
    source = write(tmp_path / "in.safetensors", truth, kohya(lambda name: f"lora_{name}"))
    made = convert(source, tmp_path / "out.safetensors", "diffusers")
    assert {key.split(".")[0] for key in made.container.entries} == {"text_encoder", "text_encoder_2"}
    again = convert(made.path, tmp_path / "again.safetensors", "kohya")
    assert {key.split(".")[0] for key in again.container.entries} == {f"lora_{name}" for name in truth}
