"""A small denoiser under the family's names, LoRA files for it, and what must come out, by a slow formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8
BLOCK = "input_blocks.1.1.transformer_blocks.0"
CONV = "input_blocks.0.0"
NORM = f"{BLOCK}.norm1"
OUT = f"{BLOCK}.attn1.to_out.0"
FUSED = "double_blocks.0.img_attn.qkv"

#: Path in the model -> shape of its weight.
MATRICES: dict[str, tuple[int, ...]] = {
    CONV: (WIDTH, 4, 3, 3),
    **{f"{BLOCK}.attn1.to_{which}": (WIDTH, WIDTH) for which in "qkv"},
    OUT: (WIDTH, WIDTH),
    f"{BLOCK}.ff.net.2": (WIDTH, 4 * WIDTH),
    FUSED: (3 * WIDTH, WIDTH),
    "double_blocks.0.img_attn.proj": (WIDTH, WIDTH),
}

#: Path in the model -> what the engine calls it; the fused projection is taken apart.
CANONICAL = {
    CONV: ("conv_in",),
    NORM: ("down_blocks.0.attentions.0.transformer_blocks.0.norm1",),
    **{
        f"{BLOCK}.{leaf}": (f"down_blocks.0.attentions.0.transformer_blocks.0.{leaf}",)
        for leaf in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.2")
    },
    FUSED: tuple(f"transformer_blocks.0.attn.to_{which}" for which in "qkv"),
    "double_blocks.0.img_attn.proj": ("transformer_blocks.0.attn.to_out.0",),
}
IN_FORWARD_ORDER = tuple(name for names in CANONICAL.values() for name in names)


class HostLayer:
    """What the hosts' layers have in common: functions and lists that are applied in each forward."""

    weight: Any
    bias: Any
    weight_function: list[Any]
    bias_function: list[Any]
    #: The host's function: (patches, weight, name, dtype) -> the weight with the patches.
    merge: Any

    def numbers(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they are multiplied."""
        lists = getattr(self, "forge_online_loras", {})
        found = []
        for leaf in ("weight", "bias"):
            value = getattr(self, leaf)
            if hasattr(value, "gguf_cls"):
                value = value.dequantize_as_pytorch_parameter()
            if leaf in lists:
                value = self.merge(lists[leaf], value.clone(), leaf, value.dtype)
            for function in getattr(self, f"{leaf}_function", []):
                value = function(value)
            found.append(value)
        return found[0], found[1]


class HostLinear(HostLayer, nn.Linear):
    """A linear."""

    def forward(self, given: Tensor) -> Tensor:
        return functional.linear(given, *self.numbers())


class HostConv(HostLayer, nn.Conv2d):
    """A convolution."""

    def forward(self, given: Tensor) -> Tensor:
        weight, bias = self.numbers()
        return functional.conv2d(given, weight, bias, padding=1)


class HostNorm(HostLayer, nn.LayerNorm):
    """A norm."""

    def forward(self, given: Tensor) -> Tensor:
        return functional.layer_norm(given, self.normalized_shape, *self.numbers())


class Denoiser(nn.Module):
    """A convolution, an attention with a norm, and a fused projection; what it computes is no matter."""

    def forward(self, x: Tensor, timesteps: Any, **_: Any) -> Tensor:
        tokens = self._at(CONV)(x).flatten(2).transpose(1, 2)
        normed = self._at(NORM)(tokens)
        q, k, v = (self._at(f"{BLOCK}.attn1.to_{which}")(normed) for which in "qkv")
        tokens = tokens + self._at(OUT)(torch.tanh(q) * k + v)
        tokens = tokens + self._at(f"{BLOCK}.ff.net.2")(tokens.repeat(1, 1, 4))
        q, k, v = self._at(FUSED)(tokens).chunk(3, dim=-1)
        made: Tensor = tokens + self._at("double_blocks.0.img_attn.proj")(torch.tanh(q * k) + v)
        return made

    def _at(self, path: str) -> Any:
        return self.get_submodule(path)


class Model(nn.Module):
    """What the hosts wrap: the denoiser under its name."""

    diffusion_model: Denoiser

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.diffusion_model = Denoiser()
        for path, shape in MATRICES.items():
            if len(shape) == 4:
                layer: nn.Module = HostConv(shape[1], shape[0], 3, padding=1)
            else:
                layer = HostLinear(shape[1], shape[0], bias=path in (OUT, FUSED))
            self._add(path, layer)
        self._add(NORM, HostNorm(WIDTH))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)

    def _add(self, path: str, layer: nn.Module) -> None:
        *parents, leaf = path.split(".")
        module: nn.Module = self.diffusion_model
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.add_module(leaf, layer)


def batch(pictures: int = 2) -> Tensor:
    """An input of the denoiser."""
    return torch.randn(pictures, 4, 3, 3, generator=torch.Generator().manual_seed(99))


@dataclass
class Lora:
    """A LoRA for the model: parameter -> (up, down) or what is added; and where its file lies."""

    name: str
    path: str
    factors: dict[str, tuple[Tensor, Tensor]]
    added: dict[str, Tensor] = field(default_factory=dict)
    alpha: float = 3.0

    def deltas(self) -> dict[str, Tensor]:
        """dW by parameter, at weight 1."""
        found = {
            name: (self.alpha / down.shape[0]) * (up.flatten(1) @ down.flatten(1))
            for name, (up, down) in self.factors.items()
        }
        return {**found, **self.added}


def make_lora(
    folder: Path,
    name: str,
    seed: int,
    *,
    rank: int = 2,
    leave_out: Sequence[str] = (),
    beside: bool = True,
    whole: Sequence[str] = (),
    weighed: Sequence[str] = (),
) -> Lora:
    """A LoRA of all matrices but ``leave_out``; ``beside``: of a norm and a bias too. ``whole`` are those
    that it has as they are and not as a product, ``weighed`` those of which it sets the length of each
    column, as DoRA does.
    """
    generator = torch.Generator().manual_seed(seed)
    lora = Lora(name, str(folder / f"{name}.safetensors"), {})
    tensors = {}
    for path, shape in MATRICES.items():
        if path in leave_out:
            continue
        if path in whole:
            added = 0.2 * torch.randn(shape, generator=generator)
            lora.added[f"diffusion_model.{path}.weight"] = added
            tensors[f"diffusion_model.{path}.diff"] = added
            continue
        kernel = shape[2:]
        up = 0.3 * torch.randn(shape[0], rank, *(1 for _ in kernel), generator=generator)
        down = 0.3 * torch.randn(rank, *shape[1:], generator=generator)
        lora.factors[f"diffusion_model.{path}.weight"] = up, down
        tensors[f"diffusion_model.{path}.lora_B.weight"] = up
        tensors[f"diffusion_model.{path}.lora_A.weight"] = down
        tensors[f"diffusion_model.{path}.alpha"] = torch.tensor(lora.alpha)
        if path in weighed:
            length = 1 + torch.rand(1, shape[1], *(1 for _ in kernel), generator=generator)
            tensors[f"diffusion_model.{path}.dora_scale"] = length
    if beside:
        norm, bias = (torch.randn(WIDTH, generator=generator) for _ in range(2))
        lora.added[f"diffusion_model.{NORM}.weight"] = norm
        lora.added[f"diffusion_model.{OUT}.bias"] = bias
        tensors[f"diffusion_model.{NORM}.diff"] = norm
        tensors[f"diffusion_model.{OUT}.diff_b"] = bias
    save_file(tensors, lora.path)
    return lora


#: LoRA -> its share everywhere, or by the engine's name of a layer.
Wanted = Mapping[str, float | Mapping[str, float]]


def expected(clean: Mapping[str, Tensor], loras: Sequence[Lora], wanted: Wanted, given: Tensor) -> Tensor:
    """What the model makes of ``given`` with these shares of the LoRAs added to its clean weights."""
    weights = {name: value.clone() for name, value in clean.items()}
    for lora in loras:
        for name, delta in lora.deltas().items():
            factor = _factors(name, wanted[lora.name], weights[name].shape[0])
            weights[name] += factor.reshape(-1, *(1 for _ in weights[name].shape[1:])) * delta.reshape(
                weights[name].shape
            )
    return _run(weights, given)


def _run(weights: Mapping[str, Tensor], given: Tensor) -> Tensor:
    model = Model()
    model.load_state_dict(dict(weights))
    with torch.no_grad():
        return model.diffusion_model(given, None)  # type: ignore[no-any-return]


def _factors(parameter: str, share: float | Mapping[str, float], height: int) -> Tensor:
    """A factor for each row."""
    names = CANONICAL[parameter.removeprefix("diffusion_model.").rpartition(".")[0]]
    shares = [share if isinstance(share, float | int) else share.get(name, 1.0) for name in names]
    return torch.tensor(shares, dtype=torch.float32).repeat_interleave(height // len(names))
