"""Files from public bug reports (random numbers in people's layouts), and what is right for each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from klora.errors import KloraError, LoraFileError
from klora.files import pair_layers, read_lora, split_layers
from klora.files.conversion import convert
from klora.files.summary import summarise
from klora.planning import plan_files
from klora.settings import Settings
from tests.published import published

FILES = Path(__file__).parents[1] / "data" / "failing"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + LAYER.replace(".", "_")


def named(name: str) -> Path:
    return FILES / f"{name}.safetensors"


def one_layer(path: Path, **tensors: torch.Tensor) -> Path:
    """A file of one attention layer of a UNet; the parameters' dots are written as two underscores."""
    parameters = {f"{FLAT}.{key.replace('__', '.')}": one for key, one in tensors.items()}
    save_file(parameters, path)
    return path


def test_an_alpha_pattern_is_a_regular_expression() -> None:
    """axolotl#3673."""
    (layer,) = read_lora(named("d1_regex")).layers.values()
    tensors = load_file(named("d1_regex"))
    up, down = (tensors[f"unet.{LAYER}.lora_{way}.weight"].double() for way in "BA")
    assert layer.scale == 32 / 4
    assert torch.allclose(layer.delta(dtype=torch.float64), 8 * up @ down)


def test_pissa_is_refused_with_the_way_out() -> None:
    path = FILES / "pissa" / "adapter_model.safetensors"
    with pytest.raises(LoraFileError, match=r"init_lora_weights=pissa.*path_initial_model_for_weight_conver"):
        read_lora(path)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("d4_flux", "Flux"),
        ("d4_hunyuanvideo", "HunyuanVideo"),
        ("diffusers13107_flux2", "Flux.2"),
        ("d5_split", "Flux"),
        ("invoke9515_aitk_dora_magnitude", "Flux"),
        ("sdnext3714_flux_depth", "Flux"),
        ("comfy_extract_t5rab", "SDXL"),
        ("d8", "unknown"),
    ],
)
def test_each_is_known_by_its_own_marks(name: str, model: str) -> None:
    assert read_lora(named(name)).base_model == model


def test_another_model_is_not_planned_against_flux() -> None:
    with pytest.raises(KloraError, match=r"HunyuanVideo.*Flux|Flux.*HunyuanVideo"):
        plan_files(named("d4_hunyuanvideo"), named("d4_flux"), Settings(), 4)


def test_flux2_is_taken_apart_in_ninths() -> None:
    layers = split_layers(read_lora(named("diffusers13107_flux2")))
    block = "single_transformer_blocks.0.attn"
    assert [layers[f"{block}.{one}"].shape for one in ("to_q", "to_v", "mlp_in")] == [
        (24, 24),
        (24, 24),
        (144, 24),
    ]
    whole = load_file(named("diffusers13107_flux2"))
    stem = "diffusion_model.single_blocks.0.linear1"
    expected = whole[f"{stem}.lora_B.weight"][24:48] @ whole[f"{stem}.lora_A.weight"]
    assert torch.allclose(layers[f"{block}.to_k"].delta(), expected, atol=1e-6)


def test_the_same_weights_make_the_same_plan_in_every_dialect(tmp_path: Path) -> None:
    """Fused, the split projections stand on a block diagonal, and those that were not trained are zero."""
    source = named("d5_split")
    other = tmp_path / "other.safetensors"
    tensors = load_file(source)
    save_file({key: one.flip(0).contiguous() for key, one in tensors.items()}, other)
    plans = []
    for dialect in ("kohya", "diffusers", "peft"):
        target = tmp_path / f"{dialect}.safetensors"
        convert(source, target, dialect)
        plans.append(plan_files(target, other, published(), 6))
    before = plan_files(source, other, published(), 6)
    for plan in plans:
        assert plan.layers == before.layers
        assert np.array_equal(plan.content_leads, before.content_leads)
        assert plan.gamma == pytest.approx(before.gamma, rel=1e-6)
    first = pair_layers(read_lora(source), read_lora(other))
    fused = pair_layers(read_lora(tmp_path / "kohya.safetensors"), read_lora(other))
    assert [pair.content.rank for pair in first] == [pair.content.rank for pair in fused] == [2] * 4


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """The layout of ``d6_qwen``: attention of Qwen-Image, which has Flux's names and width."""
    tensors = {}
    for block in (0, 20):
        for leaf in ("to_q", "to_k"):
            stem = f"transformer.transformer_blocks.{block}.attn.{leaf}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(1, 3072)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(3072, 1)
    save_file(tensors, tmp_path / "d6_qwen.safetensors")
    return tmp_path / "d6_qwen.safetensors"


def test_the_prefix_is_that_which_diffusers_loads(qwen: Path, tmp_path: Path) -> None:
    assert read_lora(qwen).base_model == "Qwen-Image"
    made = convert(qwen, tmp_path / "kohya.safetensors", "kohya")
    assert all(key.startswith("lora_unet_transformer_blocks_") for key in made.container.entries)
    again = convert(made.path, tmp_path / "out.safetensors", "diffusers")
    assert set(again.container.entries) == set(load_file(qwen))
    loaders = pytest.importorskip("diffusers.loaders")
    loaded = loaders.QwenImageLoraLoaderMixin.lora_state_dict(str(again.path))
    before = load_file(qwen)
    assert set(loaded) == set(before)
    from_kohya = loaders.QwenImageLoraLoaderMixin.lora_state_dict(str(made.path))
    for stem in {key.rpartition(".lora_")[0] for key in before}:
        deltas = [
            one[f"{stem}.lora_B.weight"].double() @ one[f"{stem}.lora_A.weight"].double()
            for one in (before, loaded, from_kohya)
        ]
        assert torch.allclose(deltas[0], deltas[1])
        assert torch.allclose(deltas[0], deltas[2], rtol=1e-5, atol=1e-5)


def test_magnitudes_as_ai_toolkit_spells_them() -> None:
    """InvokeAI#9515."""
    file = read_lora(named("invoke9515_aitk_dora_magnitude"))
    assert len(file.layers) == 22
    assert {layer.kind for layer in file.layers.values()} == {"dora", "lora"} or file.kinds == ("dora",)
    layer = file.layers["transformer_blocks.0.attn.to_q"]
    base = torch.randn(24, 24)
    tensors = load_file(named("invoke9515_aitk_dora_magnitude"))
    stem = "diffusion_model.transformer_blocks.0.attn.to_q"
    moved = base + tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
    expected = tensors[f"{stem}.magnitude"][:, None] * moved / moved.norm(dim=1, keepdim=True) - base
    assert torch.allclose(layer.delta(base), expected, atol=1e-5)


def test_a_control_lora_is_used_but_for_what_is_left_to_the_host() -> None:
    """sdnext#3714: biases of lora_B, scales of norms, a wider embedder."""
    file = read_lora(named("sdnext3714_flux_depth"))
    assert len(file.layers) == 8
    assert sorted(file.left_to_host.values()) == ["bias"] * 8 + ["embedder"] + ["norm"] * 4
    assert file.embedders["x_embedder"].shape == (24, 16)
    pairs = pair_layers(file, file)
    assert all(pair.attention for pair in pairs)
    assert "x_embedder" not in {pair.name for pair in pairs}


def test_text_encoders_are_named_and_left(tmp_path: Path) -> None:
    file = read_lora(named("comfy_extract_t5rab"))
    assert list(file.layers) == ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]
    left = dict(file.left_to_host)
    t5 = "text_encoder_3.encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    assert left.pop(t5) == "text encoder"
    assert set(left.values()) == {"norm"}
    made = convert(named("comfy_extract_t5rab"), tmp_path / "out.safetensors", "kohya")
    assert sorted(made.left_to_host.values()) == sorted(file.left_to_host.values())


@pytest.mark.parametrize("leaf", ["k_proj.to_k_lora", "out_proj.to_out_lora"])
def test_text_projections_of_early_diffusers(leaf: str, tmp_path: Path) -> None:
    """diffusers#3437: each projection got four, of which one was ever applied."""
    stem = "text_encoder.text_model.encoder.layers.0.self_attn"
    other = f"{stem}.k_proj.to_v_lora"
    tensors = {f"{stem}.{leaf}.down.weight": torch.ones(2, 8), f"{stem}.{leaf}.up.weight": torch.ones(8, 2)}
    tensors |= {f"{other}.down.weight": torch.ones(2, 8), f"{other}.up.weight": torch.ones(8, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors")
    assert list(file.text_encoder) == [f"{stem}.{leaf.partition('.')[0]}"]
    assert list(file.left_to_host.values()) == ["text encoder"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_shows_what_it_can(encoding: str) -> None:
    command = [sys.executable, "-m", "klora", "inspect", str(named("d3_trigger"))]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=FILES.parents[2])
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert rb"\u6c34\u58a8" in ran.stdout


@pytest.mark.parametrize("kind", ["pipe", "folder", "large"])
def test_a_sidecar_that_is_no_ordinary_file_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "d8.safetensors"
    shutil.copyfile(named("d8"), path)
    beside = tmp_path / "d8.json"
    if kind == "pipe":
        os.mkfifo(beside)
    elif kind == "folder":
        beside.mkdir()
    else:
        with beside.open("wb") as stream:
            stream.truncate(2**31)
    assert summarise(path).trigger_words == []


def test_a_pipe_for_a_configuration_does_not_hang(tmp_path: Path) -> None:
    shutil.copyfile(FILES / "pissa" / "adapter_model.safetensors", tmp_path / "adapter_model.safetensors")
    os.mkfifo(tmp_path / "adapter_config.json")
    assert read_lora(tmp_path / "adapter_model.safetensors").layers[LAYER].scale == 1.0


def test_a_fused_layer_in_each_block_is_read_in_one_pass(tmp_path: Path) -> None:
    """The layout of ``fused3000``: to look for parts that are there twice was quadratic."""
    tensors = {}
    for block in range(1000):
        for stem in ("transformer_blocks.{}.attn.to_qkv", "transformer_blocks.{}.attn.to_added_qkv"):
            path = "transformer." + stem.format(block)
            tensors[f"{path}.lora_A.weight"] = torch.ones(1, 1)
            tensors[f"{path}.lora_B.weight"] = torch.ones(3, 1)
    save_file(tensors, tmp_path / "x.safetensors")
    assert len(read_lora(tmp_path / "x.safetensors").layers) == 2000


def test_a_truncated_file_is_called_damaged(tmp_path: Path) -> None:
    whole = named("d8").read_bytes()
    for cut in (len(whole) - 100, 60):
        (tmp_path / "x.safetensors").write_bytes(whole[:cut])
        with pytest.raises(LoraFileError, match=rf"damaged: it ends after {cut} of \d+ bytes"):
            read_lora(tmp_path / "x.safetensors")


def test_patterns_that_match_nothing_are_said(tmp_path: Path) -> None:
    config = {"unet.r": 4, "unet.lora_alpha": 4, "unet.alpha_pattern": {"attn3": 8, ".*attn1\\.to_q": 32}}
    save_file(
        load_file(named("d1_regex")),
        tmp_path / "x.safetensors",
        metadata={"lora_adapter_metadata": json.dumps(config)},
    )
    assert summarise(tmp_path / "x.safetensors").notes == [
        "alpha_pattern 'attn3' matches no layer of the file"
    ]


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"transformer.lora_alpha": "8", "transformer.r": "2"}, 4.0),  # SimpleTuner, Comfy#15830
        ({"alpha": "1"}, 0.5),  # LightX2V
        ({"lora_alpha": "nan"}, 1.0),
        ({"ss_network_alpha": "1", "ss_network_dim": "2"}, 1.0),  # kohya: no alpha is alpha = rank
        ({"text_encoder.lora_alpha": "8"}, 1.0),
    ],
)
def test_an_alpha_in_the_header(metadata: dict[str, str], scale: float, tmp_path: Path) -> None:
    save_file(load_file(named("d5_split")), tmp_path / "x.safetensors", metadata=metadata)
    file = read_lora(tmp_path / "x.safetensors")
    assert {layer.scale for layer in file.layers.values()} == {scale}
    made = convert(file.path, tmp_path / "out.safetensors", "kohya")
    again = {layer.scale for layer in read_lora(made.path).layers.values()}
    assert again == {1.0}  # it is in the tensors now, and declared no more


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", ".*.*.*.*x", "(", "x" * 500])
def test_a_pattern_that_could_run_for_ever_is_refused(pattern: str, tmp_path: Path) -> None:
    config = {"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 8}}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    save_file(load_file(named("d1_regex")), tmp_path / "x.safetensors", metadata=metadata)
    if pattern.startswith("x"):
        assert read_lora(tmp_path / "x.safetensors").layers[LAYER].scale == 1.0
        return
    with pytest.raises(LoraFileError, match="cannot be followed"):
        read_lora(tmp_path / "x.safetensors")
