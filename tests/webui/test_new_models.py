"""Denoisers out of the ordinary: without names in the engine, as Forge Neo runs them, or quantised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from klora.errors import HostError
from klora.hosts.common.checks import loaded_family
from klora.hosts.forge_family import changed_layers
from klora.hosts.forge_family.storage import refuse_quantised, shape_of

#: Host's name of a weight in the model -> whether it is a linear of an attention.
LAYERS = {
    "layers.0.attention.qkv": True,  # Lumina, Z-Image
    "layers.0.attention.out": True,
    "layers.0.feed_forward.w1": False,
    "layers.0.adaLN_modulation.1": False,
    "blocks.0.self_attn.q": True,  # Wan
    "blocks.0.cross_attn.o": True,
    "blocks.0.cross_attn.k_img": True,  # Wan, from a picture
    "blocks.0.ffn.0": False,
    "blocks.0.attn.wq": True,  # Krea 2
    "blocks.0.attn.wo": True,
    "blocks.0.attn.gate": False,
    "blocks.1.self_attn.output_proj": True,  # Cosmos, Anima
    "transformer_blocks.0.attn.to_q": True,  # Qwen-Image
    "transformer_blocks.0.attn.add_k_proj": True,
    "transformer_blocks.0.img_mlp.net.2": False,
    "transformer_blocks.0.img_mod.1": False,
}


def _model() -> nn.Module:
    """A model with linears of these names, under ``diffusion_model``."""
    root = nn.Module()
    for path in LAYERS:
        module: nn.Module = root
        for part in ("diffusion_model", *path.split(".")[:-1]):
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.add_module(path.rpartition(".")[2], nn.Linear(8, 24, bias=False))
    return root


def _lora(path: Path) -> str:
    tensors = {}
    for name in LAYERS:
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.ones(2, 8)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.ones(24, 2)
    save_file(tensors, path)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A content and a style LoRA that change all layers."""
    return _lora(tmp_path / "content.safetensors"), _lora(tmp_path / "style.safetensors")


TOUCHED = [f"diffusion_model.{name}.weight" for name in LAYERS]


@pytest.mark.parametrize("base_model", ["unknown", "Lumina 2", "Z-Image", "Wan", "Krea 2", "Qwen-Image"])
def test_every_linear_is_contested_and_attention_is_told_by_its_words(
    files: tuple[str, str], base_model: str
) -> None:
    """Whosever names they are, and whatever the file is taken for."""
    layers = changed_layers(_model(), files, (TOUCHED, TOUCHED), base_model)
    assert all(layer.view.is_shared for layer in layers.values())
    attention = {layer.module.removeprefix("diffusion_model."): set() for layer in layers.values()}
    for layer in layers.values():
        attention[layer.module.removeprefix("diffusion_model.")].add(layer.view.is_attention)
    assert attention == {name: {is_attention} for name, is_attention in LAYERS.items()}


class _Packed(nn.Parameter):
    """As GGUF's parameters in Forge, whose shape is in numpy's numbers."""

    gguf_cls = object()

    @property
    def shape(self) -> tuple[np.uint64, ...]:  # type: ignore[override]
        return np.uint64(96), np.uint64(32)


def test_the_shape_of_packed_weights_is_that_of_their_numbers() -> None:
    shape = shape_of(_Packed(torch.zeros(7), requires_grad=False))
    assert shape == (96, 32)
    assert {type(size) for size in shape} == {int}
    nf4 = nn.Parameter(torch.zeros(1536, 1), requires_grad=False)
    nf4.quant_state = SimpleNamespace(shape=torch.Size((96, 32)))  # type: ignore[attr-defined]
    assert shape_of(nf4) == (96, 32)
    assert shape_of(torch.zeros(4, 2)) == (4, 2)


def test_weights_in_whole_numbers_are_refused_with_a_remedy() -> None:
    numbers = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(HostError, match=r"layer\.weight is torch\.int8.*load it in fp16"):
        refuse_quantised("layer.weight", numbers)
    numbers.bnb_quantized = True  # type: ignore[attr-defined]
    refuse_quantised("layer.weight", numbers)  # unless they are blocks, which stay in place
    refuse_quantised("layer.weight", torch.zeros(2, 2, dtype=torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("recognised", "family"),
    [("Flux", "Flux"), ("FluxSchnell", "Flux"), ("Chroma", "Chroma"), ("FluxLike", "another base model")],
)
def test_the_family_of_a_model_is_what_its_loras_look_like(recognised: str, family: str) -> None:
    model = type("Model", (), {"model_config": type(recognised, (), {})()})()
    assert loaded_family(model) == family
