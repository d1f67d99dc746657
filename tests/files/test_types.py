"""dW of every type against what the libraries' own layers do, measured (see ``make_samples``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from klora.files import LoraFile, read_lora

from .make_samples import main, truth_of

COMMITTED = Path(__file__).parents[1] / "data" / "files"
TOLERANCE = 1e-6
Numbers = NDArray[np.float64]
LIBRARIES = all(importlib.util.find_spec(one) for one in ("peft", "diffusers", "lycoris"))


def sample_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def worst_error(path: Path) -> tuple[float, LoraFile]:
    """Largest relative error of dW over the layers, by Frobenius norm."""
    file = read_lora(path)
    truth, weights = truth_of(path)
    errors = []
    for name, expected in truth.items():
        layer = file.layers[name]
        found = layer.delta(weights[name] if layer.needs_base else None)
        assert found.dtype == torch.float32
        errors.append(float((found.reshape(expected.shape) - expected).norm() / expected.norm()))
    return max(errors), file


def identity(path: Path) -> str:
    return str(path.relative_to(COMMITTED).with_suffix(""))


@pytest.mark.parametrize("path", sample_files(COMMITTED), ids=identity)
def test_dw_equals_the_librarys_layer(path: Path) -> None:
    error, file = worst_error(path)
    assert error < TOLERANCE
    assert set(file.left_to_host.values()) <= {"bias"}


def test_there_is_a_sample_of_every_type() -> None:
    names = {identity(path) for path in sample_files(COMMITTED)}
    assert len(names) == 17 + 6 + 3
    kinds = {kind for path in sample_files(COMMITTED) for kind in read_lora(path).kinds}
    assert kinds - {"bias"} == {"lora", "locon", "loha", "lokr", "full", "glora", "dora"}


@pytest.mark.skipif(not LIBRARIES, reason="peft, diffusers and lycoris-lora make the samples")
def test_samples_made_now_agree_too(tmp_path: Path) -> None:
    main(tmp_path)
    paths = sample_files(tmp_path)
    assert len(paths) == len(sample_files(COMMITTED))
    for path in paths:
        assert worst_error(path)[0] < TOLERANCE, path


@pytest.mark.parametrize(
    ("sample", "rank"),
    [("lycoris_locon", 3), ("lycoris_locon_tucker", 3), ("lycoris_loha_tucker", 3), ("lycoris_lokr_both", 1),
     ("lycoris_lokr_small", 1), ("lycoris_lokr_full", None), ("lycoris_full", None), ("lycoris_glora", None),
     ("lycoris_locon_dora_in", 3), ("peft_dora/adapter_model", 3)],
)  # fmt: skip
def test_rank_for_k_comes_from_the_tensors(sample: str, rank: int | None) -> None:
    file = read_lora(COMMITTED / f"{sample}.safetensors")
    assert {layer.rank for layer in file.layers.values()} == {rank}


@pytest.mark.parametrize("sample", ["lycoris_glora", "lycoris_locon_dora_out"])
def test_a_type_that_depends_on_the_weight_asks_for_it(sample: str) -> None:
    layer = next(iter(read_lora(COMMITTED / f"{sample}.safetensors").layers.values()))
    assert layer.needs_base
    with pytest.raises(Exception, match="depends on the model's own weight") as caught:
        layer.delta()
    assert layer.name in str(caught.value)


def test_glora_in_the_old_orientation(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = COMMITTED / "lycoris_glora.safetensors"
    swap = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = {}
    for key, tensor in load_file(path).items():
        stem, _, parameter = key.partition(".")
        name = parameter.removesuffix(".weight")
        old[f"{stem}.{swap[name]}.weight" if name in swap else key] = tensor
    linear = {key: one for key, one in old.items() if "conv" not in key and "proj_in" not in key}
    save_file(linear, tmp_path / "old.safetensors")
    truth, weights = truth_of(path)
    layers = read_lora(tmp_path / "old.safetensors").layers
    assert len(layers) == 4
    for name, layer in layers.items():
        assert float((layer.delta(weights[name]) - truth[name]).norm() / truth[name].norm()) < TOLERANCE


def in_fp64(of: Mapping[str, Numbers], base: Numbers | None) -> Numbers:
    """dW of a linear from its tensors and, where it is needed, the model's own weight; numpy's fp64."""

    def two(name: str) -> Numbers:
        return of[name] if name in of else of[f"{name}_a"] @ of[f"{name}_b"]

    low = [of[name] for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "b2.weight") if name in of]
    scale = float(of["alpha"]) / len(low[0]) if low else 1.0
    if "diff" in of:
        return of["diff"]
    if "a1.weight" in of:
        assert base is not None
        mixed = base @ of["a1.weight"] @ of["a2.weight"]
        return scale * (mixed + of["b1.weight"] @ of["b2.weight"])
    if "hada_w1_a" in of:
        delta = scale * two("hada_w1") * two("hada_w2")
    elif "lora_up.weight" in of:
        delta = scale * (of["lora_up.weight"] @ of["lora_down.weight"])
    else:
        delta = scale * np.kron(two("lokr_w1"), two("lokr_w2"))
    if "dora_scale" not in of:
        return delta
    assert base is not None
    per_output = len(of["dora_scale"]) > 1
    length = of["dora_scale"].reshape((-1, 1) if per_output else (1, -1))
    whole = base + delta
    return length * whole / np.sqrt((whole**2).sum(int(per_output), keepdims=True)) - base


@pytest.mark.parametrize(
    "sample",
    ["locon", "loha", "lokr", "lokr_both", "lokr_small", "lokr_full", "full", "glora",
     "locon_dora_out", "locon_dora_in", "loha_dora", "lokr_dora"],
)  # fmt: skip
def test_fp64_is_computed_in_fp64(sample: str) -> None:
    path = COMMITTED / f"lycoris_{sample}.safetensors"
    tensors, (_, weights) = load_file(path), truth_of(path)
    linears = {name: layer for name, layer in read_lora(path).layers.items() if len(layer.shape) == 2}
    assert len(linears) >= 4
    for name, layer in linears.items():
        base = weights[name] if layer.needs_base else None
        of = {parameter: tensors[key].double().numpy() for parameter, key in layer.keys.items()}
        # A convolution of 1 x 1 is a linear to LoHa.
        expected = in_fp64(of, None if base is None else base.double().numpy().reshape(layer.shape))
        wide = layer.delta(base, dtype=torch.float64)
        assert wide.dtype == torch.float64
        assert layer.shape == tuple(wide.shape) == expected.shape
        assert np.linalg.norm(wide.numpy() - expected) < 1e-12 * np.linalg.norm(expected), name
        small = layer.delta(base, dtype=torch.float16)
        assert small.dtype == torch.float16
        assert np.linalg.norm(small.double().numpy() - expected) < 1e-3 * np.linalg.norm(expected), name


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_other_formats_are_cast_up(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    up, down = torch.randn(8, 2).to(dtype), torch.randn(2, 8).to(dtype)
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, tmp_path / "x.safetensors")
    (layer,) = read_lora(tmp_path / "x.safetensors").layers.values()
    expected = up.double() @ down.double()
    assert float((layer.delta().double() - expected).norm() / expected.norm()) < TOLERANCE
