"""Which layers a cast changes, by the parameters that the host has found in the files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klora.files.container import Container
from klora.hosts.forge_family import changed_layers
from klora.hosts.forge_family.regions import Region, Regions, assembled
from klora.schedule import LayerShares
from tests.hosts.forge_family.model import BLOCK, CANONICAL, FUSED, NORM, OUT, WIDTH, Model, make_lora

Q, K, V = CANONICAL[FUSED]
TO_Q = CANONICAL[f"{BLOCK}.attn1.to_q"][0]
WEIGHT = f"diffusion_model.{FUSED}.weight"


def save(path: Path, **tensors: torch.Tensor) -> str:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return str(path)


def split_lora(folder: Path, *parts: str) -> str:
    tensors = {}
    for part in parts:
        stem = f"transformer.transformer_blocks.0.attn.to_{part}"
        tensors[f"{stem}.lora_A.weight"] = torch.ones(2, WIDTH)
        tensors[f"{stem}.lora_B.weight"] = torch.ones(WIDTH, 2)
    save_file(tensors, folder / "split.safetensors")
    return str(folder / "split.safetensors")


def test_a_file_for_parts_of_a_fused_projection_changes_these_alone(tmp_path: Path) -> None:
    whole = make_lora(tmp_path, "fox", 1)
    split = split_lora(tmp_path, "q", "v")
    layers = changed_layers(Model(), (whole.path, split), (whole.deltas(), [WEIGHT]), "SD1")
    assert layers[Q].view.ranks == {0: 2, 1: 2}
    assert layers[K].view.ranks == {0: 2}
    assert layers[V].rows == ((2 * WIDTH, 3 * WIDTH),)
    assert [name for name in (Q, K, V) if layers[name].view.is_shared] == [Q, V]


def test_a_fused_file_is_read_for_the_first_pass_and_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fox = make_lora(tmp_path, "fox", 1)
    reads = 0
    read = Container._bytes_between

    def counted(self: Container, spans: Sequence[tuple[int, int]]) -> list[bytearray]:
        nonlocal reads
        reads += 1
        return read(self, spans)

    monkeypatch.setattr(Container, "_bytes_between", counted)

    def ranks() -> list[int | None]:
        layers = changed_layers(Model(), (fox.path,), (fox.deltas(),), "SD1")
        return [layers[name].view.ranks[0] for name in (Q, K, V) if name in layers]

    assert ranks() == [2, 2, 2]
    assert reads
    reads = 0
    assert ranks() == [2, 2, 2]
    assert not reads
    tensors = load_file(fox.path)
    tensors[f"diffusion_model.{FUSED}.lora_B.weight"][:WIDTH] = 0  # of the same size
    tensors[f"diffusion_model.{FUSED}.lora_B.weight"][-WIDTH:, 0] = 0
    save_file(tensors, fox.path)
    os.utime(fox.path, (1, 1))
    assert ranks() == [2, 1]
    assert reads


def test_a_type_without_an_amount_is_changed_but_no_contest(tmp_path: Path) -> None:
    fox = make_lora(tmp_path, "fox", 1)
    name = f"diffusion_model.{BLOCK}.attn1.to_q"
    ia3 = tmp_path / "ia3.safetensors"
    save_file({f"{name}.on_input": torch.tensor(False), f"{name}.weight": torch.ones(WIDTH)}, ia3)
    layers = changed_layers(Model(), (fox.path, str(ia3)), (fox.deltas(), [f"{name}.weight"]), "SD1")
    assert layers[TO_Q].view.ranks == {0: 2, 1: None}
    assert not layers[TO_Q].view.is_contestable
    assert layers[TO_Q].needs_base == {0: False, 1: True}
    as_guest = changed_layers(
        Model(), (fox.path, fox.path, str(ia3)), (fox.deltas(), fox.deltas(), [f"{name}.weight"]), "SD1"
    )
    assert as_guest[TO_Q].view.is_shared  # it is none of the two that are weighed


def test_a_bias_alone_is_changed_but_no_contest(tmp_path: Path) -> None:
    fox = make_lora(tmp_path, "fox", 1)
    bias = f"diffusion_model.{OUT}.bias"
    file = save(tmp_path / "bias.safetensors", **{f"diffusion_model.{OUT}.diff_b": torch.ones(WIDTH)})
    layer = changed_layers(Model(), (fox.path, file), (fox.deltas(), [bias]), "SD1")[CANONICAL[OUT][0]]
    assert layer.view.ranks == {0: 2, 1: None}
    assert not layer.view.is_contestable
    assert set(layer.parameters) == {bias, f"diffusion_model.{OUT}.weight"}
    alone = changed_layers(Model(), (file,), ([bias],), "SD1")
    assert [(one.view.is_contestable, one.weight) for one in alone.values()] == [(False, None)]


def test_what_is_no_parameter_of_the_denoiser_is_left_to_the_host(tmp_path: Path) -> None:
    fox = make_lora(tmp_path, "fox", 1)
    strange = ["clip.layer.weight", "diffusion_model.no.such.weight", f"diffusion_model.{NORM}.weight"]
    assert list(changed_layers(Model(), (fox.path,), (strange,), "SD1")) == [CANONICAL[NORM][0]]


def test_regions_of_a_fused_parameter(tmp_path: Path) -> None:
    fox = make_lora(tmp_path, "fox", 1)
    layers = changed_layers(Model(), (fox.path, fox.path), (fox.deltas(), fox.deltas()), "SD1")
    regions = Regions(layers, 2)
    assert regions.of_parameter(WEIGHT, 24) == (Region((1.0, 1.0), None),)
    changed = regions.decide({Q: LayerShares((0.5, 0.0)), V: LayerShares((0.5, 0.0)), K: LayerShares((1, 1))})
    assert changed == (WEIGHT,)
    found = regions.of_parameter(WEIGHT, 24)
    assert found[0].rows is None
    assert {one.shares for one in found} == {(0.5, 0.0), (1.0, 1.0)}
    whole: dict[tuple[float, ...], torch.Tensor] = {
        (0.5, 0.0): torch.full((24, 1), 5.0),
        (1.0, 1.0): torch.full((24, 1), 1.0),
    }
    made = assembled(found, lambda shares: whole[shares].clone()).flatten().tolist()
    assert made == [5.0] * 8 + [1.0] * 8 + [5.0] * 8


def test_rows_that_no_layer_claims_stay_as_the_host_has_them(tmp_path: Path) -> None:
    split = split_lora(tmp_path, "q", "v")
    layers = changed_layers(Model(), (split, split), ([WEIGHT], [WEIGHT]), "SD1")
    regions = Regions(layers, 2, {Q: LayerShares((0.0, 1.0))})
    assert set(layers) == {Q, V}
    assert regions.decided() == (WEIGHT,)
    assert regions.of_parameter(WEIGHT, 24) == (
        Region((1.0, 1.0), None),
        Region((0.0, 1.0), ((0, 8),)),
    )
