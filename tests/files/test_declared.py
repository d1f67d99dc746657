"""Scales and beginnings that PEFT declares, against PEFT itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from klora.errors import LoraFileError
from klora.files import read_lora
from klora.files.patterns import Patterns

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
NAMES = (
    NAME,
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.10.attn2.to_out.0",
    "transformer_blocks.3.attn.add_q_proj",
    "mid_block.resnets.1.conv1",
)
PIECES = (
    "to_q",
    "attn1",
    "attn2",
    r"\.",
    ".",
    ".*",
    r"\d+",
    "^",
    "blocks",
    "_",
    "0",
    "[qkv]",
    "(to_q|conv1)",
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join), max_size=5, unique=True)
)
def test_patterns_match_as_in_peft(patterns: list[str]) -> None:
    peft = pytest.importorskip("peft.utils.other")
    table = {pattern: number for number, pattern in enumerate(patterns)}
    try:
        ours = Patterns(table, "alpha_pattern", "x.safetensors")
    except LoraFileError:
        assert any(sum(pattern.count(sign) for sign in "*+") > 3 for pattern in patterns)
        return
    for name in NAMES:
        expected = table.get(peft.get_pattern_key(patterns, name), "general")
        assert ours.value((name,), "general") == expected, name


def test_thousands_of_patterns_and_layers() -> None:
    """Looked up, not tried one by one: quadratic, it would be twelve million tries."""
    table = {f"blocks.{number}.attn.to_q": number for number in range(3000)}
    patterns = Patterns(table, "alpha_pattern", "x.safetensors")
    names = [f"transformer.blocks.{number}.attn.to_q" for number in range(4000)]
    assert [patterns.value((name,), None) for name in names] == [*range(3000), *[None] * 1000]
    assert patterns.notes() == ()


@pytest.mark.parametrize(
    ("most", "pattern"),
    [
        (300, r"blocks\.\d+\.{}".format),  # tried on every layer
        (300, lambda number: "a" * (number + 1)),  # looked up, those of each length at once
        (20_000, "blocks.{:05}.to_q".format),  # looked up, all at once
    ],
    ids=["wildcards", "lengths", "names"],
)
def test_a_table_has_a_largest_number_of_patterns(most: int, pattern: Callable[[int], str]) -> None:
    table = {pattern(number): number for number in range(most)}
    assert len(table) == most
    Patterns(table, "rank_pattern", "x.safetensors")
    with pytest.raises(LoraFileError, match=f"its rank_pattern has {most + 1} patterns, too many to follow"):
        Patterns({**table, pattern(most): 1}, "rank_pattern", "x.safetensors")


def saved(folder: Path, **options: Any) -> tuple[nn.Linear, nn.Module]:
    """A LoRA of PEFT on one linear, moved and saved: the linear as it was, and PEFT's layer around it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    root, clean = nn.Module(), nn.Linear(12, 12, bias=False)
    parent = root
    *path, leaf = NAME.split(".")
    for piece in path:
        parent.add_module(piece, nn.Module())
        parent = getattr(parent, piece)
    parent.add_module(leaf, nn.Linear(12, 12, bias=False))
    getattr(parent, leaf).load_state_dict(clean.state_dict())
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=[NAME], **options)
    model = peft.get_peft_model(root, config)
    wrapped = model.base_model.model.get_submodule(NAME)
    with torch.no_grad():
        for one in (*wrapped.lora_A.values(), *wrapped.lora_B.values()):
            one.weight += 0.1 * torch.randn_like(one.weight)
    model.save_pretrained(folder)
    return clean, wrapped


def merged_difference(clean: nn.Linear, wrapped: Any) -> torch.Tensor:
    """What PEFT's merge makes of the plain checkpoint's weight, less that weight."""
    wrapped.merge()
    return wrapped.base_layer.weight.detach() - clean.weight.detach()


@pytest.mark.parametrize("beginning", [True, False, "gaussian", "orthogonal"])
def test_beginnings_that_leave_the_weight_alone(beginning: object, tmp_path: Path) -> None:
    clean, wrapped = saved(tmp_path, init_lora_weights=beginning)
    (layer,) = read_lora(tmp_path / "adapter_model.safetensors").layers.values()
    assert torch.allclose(layer.delta(), merged_difference(clean, wrapped), atol=1e-5)


@pytest.mark.parametrize("beginning", ["pissa", "pissa_niter_4", "olora"])
def test_beginnings_that_change_the_weight_are_refused(beginning: str, tmp_path: Path) -> None:
    clean, wrapped = saved(tmp_path, init_lora_weights=beginning)
    product = wrapped.get_delta_weight("default").detach()
    assert not torch.allclose(product, merged_difference(clean, wrapped), atol=1e-2)
    with pytest.raises(LoraFileError, match=rf"init_lora_weights={beginning}.*makes an ordinary LoRA"):
        read_lora(tmp_path / "adapter_model.safetensors")


def test_a_pissa_that_was_converted_is_an_ordinary_lora(tmp_path: Path) -> None:
    """The way out that the message names, by PEFT's own export."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 12, bias=False))
    before = root[0].weight.detach().clone()
    model = peft.get_peft_model(
        root, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights="pissa")
    )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight += 0.1
    model.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    stem = f"base_model.model.{NAME}"
    renamed = {key.replace("base_model.model.0", stem): one for key, one in tensors.items()}
    save_file(renamed, tmp_path / "out" / "adapter_model.safetensors")
    (read,) = read_lora(tmp_path / "out" / "adapter_model.safetensors").layers.values()
    layer.merge()
    assert torch.allclose(read.delta(), layer.base_layer.weight.detach() - before, atol=1e-4)
