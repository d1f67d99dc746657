"""The seam for a diffusers pipeline: a layer's Parameter is exchanged, never written into.

The original Parameter objects are put back at the end, so the weights come back bit for bit and with
their identity, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from klora.errors import HostError, LoraFileError
from klora.files import LoraFile, LoraLayer, in_forward_order, is_attention, split_layers
from klora.planning import LayerView
from klora.schedule import LayerShares
from klora.scores import ENERGY_SHARE
from klora.weights.branch import Branches, RowDelta
from klora.weights.file_forms import form_of
from klora.weights.forms import Whole


@dataclass(frozen=True)
class WeightedFile:
    """A LoRA file and how strong it is applied."""

    file: LoraFile
    weight: float


class PipelineSeam:
    """The seam for the LoRA files of a cast and the denoiser and text encoders of ``pipe``."""

    def __init__(self, pipe: Any, files: Sequence[WeightedFile]) -> None:
        self.names = tuple(weighted.file.name for weighted in files)
        self.branches = Branches()
        self._pipe = pipe
        self._files = tuple(files)
        self._modules: dict[str, nn.Module] = {}
        self._originals: dict[str, nn.Parameter] = {}
        self._biases: dict[str, nn.Parameter | None] = {}
        self._driven: frozenset[str] = frozenset()
        self._layers = tuple(self._found(weighted.file) for weighted in files)

    def _found(self, file: LoraFile) -> dict[str, LoraLayer]:
        """The file's layers that the pipeline has, denoiser and text encoders, checked for their size."""
        denoiser = denoiser_of(self._pipe)
        found = {}
        for name, layer in split_layers(file).items():
            module = _linear(denoiser, name)
            if module is not None:
                self._modules[name] = _fitting(module, layer, file)
                found[name] = layer
        if not found:
            raise LoraFileError(
                f"{file.name} (made for {file.base_model}) changes no layer of the pipeline's "
                f"{type(denoiser).__name__}; use a LoRA made for this model.",
                file=file.name,
                defect="other base model",
            )
        return {**found, **self._found_in_text_encoders(file)}

    def _found_in_text_encoders(self, file: LoraFile) -> dict[str, LoraLayer]:
        found = {}
        for name, layer in file.text_encoder.items():
            component, _, path = name.partition(".")
            encoder = getattr(self._pipe, component, None)
            if encoder is None:
                continue  # a pipeline that is given embeddings needs none
            # Newer versions of transformers have no module "text_model" between the encoder and its layers.
            module = _linear(encoder, path) or _linear(encoder, path.removeprefix("text_model."))
            if module is None:
                raise LoraFileError(
                    f"{file.name}: layer {name} is not in the pipeline's {type(encoder).__name__}; "
                    "use a LoRA made for this model.",
                    file=file.name,
                    layer=name,
                    defect="no such layer",
                )
            self._modules[name] = _fitting(module, layer, file)
            found[name] = layer
        return found

    def layers(self) -> Sequence[LayerView]:
        """The denoiser's layers that any file changes, in forward order."""
        changed = {name for layers in self._layers for name in layers}
        of_text_encoders = {name for one in self._files for name in one.file.text_encoder}
        order = in_forward_order(changed - of_text_encoders, self._files[0].file.base_model)
        return [LayerView(name, is_attention(name), self._ranks(name)) for name in order]

    def _ranks(self, name: str) -> dict[int, int | None]:
        return {place: layers[name].rank for place, layers in enumerate(self._layers) if name in layers}

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both dW in fp32, on the model's device, scaled by alpha / rank and the weight."""
        return self._delta(0, 1.0, layer), self._delta(1, 1.0, layer)

    def energy_rank(self, layer: str, place: int) -> int | None:
        """As the factors tell it."""
        return self._layers[place][layer].energy_rank(ENERGY_SHARE)

    def _delta(self, place: int, share: float, layer: str) -> Tensor:
        base = self._base(layer)
        found = self._layers[place][layer]
        given = base.detach().reshape(found.shape) if found.needs_base else None
        weight = self._files[place].weight if share == 1 else self._files[place].weight * share
        return weight * found.delta(given, device=base.device).reshape(base.shape)

    def _base(self, layer: str) -> Tensor:
        original = self._originals.get(layer)
        return _parameter(self._modules[layer]) if original is None else original

    def score_key(self) -> Hashable:
        """Both files by content and weight; the weights too that some LoRA types depend on."""
        files = tuple((str(one.file.path), one.file.identity, one.weight) for one in self._files[:2])
        pair = self._layers[:2]
        based = {name for layers in pair for name, layer in layers.items() if layer.needs_base}
        return (*files, *(_summary(self._base(name)) for name in sorted(based)))

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        """Apply what is no contest while inside; put every original Parameter back on the way out."""
        self._originals = {name: _parameter(module) for name, module in self._modules.items()}
        self._biases = {name: self._modules[name].bias for name in self._with_bias()}  # type: ignore[misc]
        self._driven = frozenset(layers)
        try:
            self._apply_to_the_others()
            yield
        finally:
            for name, original in self._originals.items():
                self._modules[name].weight = original
            for name, bias in self._biases.items():
                self._modules[name].register_parameter("bias", bias)
            self._originals, self._biases = {}, {}
            self.branches.clear()

    def _apply_to_the_others(self) -> None:
        """Add all files in the layers that no share is told for."""
        for name in self._modules:
            if name not in self._driven:
                self._merge(name, (1.0,) * len(self._files))

    def apply_alone(self, place: int) -> None:
        """Apply one LoRA by its weight in the whole denoiser, and nothing else, until `exchange_pair`."""
        for layer in self.layers():
            shares = tuple(float(one == place) for one in range(len(self._files)))
            self._merge(layer.name, shares)
            self._branch(layer.name, LayerShares(shares))

    def exchange_pair(self, content: LoraFile, style: LoraFile) -> None:
        """Go on with other files for the pair, of the same layers and ranks; shares are to be told anew."""
        pair = (
            WeightedFile(file, before.weight)
            for file, before in zip((content, style), self._files[:2], strict=True)
        )
        self._files = (*pair, *self._files[2:])
        self._layers = tuple(self._found(weighted.file) for weighted in self._files)
        self._apply_to_the_others()

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the LoRAs."""
        return tuple(one.weight for one in self._files)

    def module(self, layer: str) -> nn.Module:
        """The layer itself."""
        return self._modules[layer]

    def _with_bias(self) -> set[str]:
        """The layers whose bias a file changes."""
        return {name for layers in self._layers for name, one in layers.items() if "diff_b" in one.keys}

    def apply(self, shares: Mapping[str, LayerShares]) -> None:
        """Give each layer the sum of its clean weight and the shares of the LoRAs' dW."""
        for layer, wanted in shares.items():
            self._merge(layer, wanted.conditional)
            self._branch(layer, wanted)

    def _merge(self, layer: str, shares: tuple[float, ...]) -> None:
        module, applied = self._modules[layer], self._present(layer, shares)
        original = self._originals[layer]
        module.weight = _exchanged(original, (self._delta(*one, layer) for one in applied))
        if layer in self._biases:
            bias = self._biases[layer]
            empty = nn.Parameter(original.new_zeros(original.shape[0]), requires_grad=original.requires_grad)
            changes = (share * self._bias_delta(place, layer) for place, share in applied)
            exchanged = _exchanged(empty if bias is None else bias, changes) if applied else bias
            module.register_parameter("bias", exchanged)

    def _present(self, layer: str, shares: Sequence[float]) -> list[tuple[int, float]]:
        """(place in the cast, share) of each LoRA that has a share in the layer."""
        return [(place, one) for place, one in enumerate(shares) if one and layer in self._layers[place]]

    def _branch(self, layer: str, shares: LayerShares) -> None:
        module = self._modules[layer]
        assert isinstance(module, nn.Linear | nn.Conv2d)
        differing = [
            (difference, self._row_delta(place, layer))
            for place, difference in self._present(layer, shares.difference)
        ]
        self.branches.put(module, layer, differing)

    def _row_delta(self, place: int, layer: str) -> RowDelta:
        bias = self._bias_delta(place, layer) if layer in self._biases else None
        form = form_of(self._layers[place][layer])
        if form is None:
            return RowDelta(Whole(self._delta(place, 1.0, layer)), bias)
        return RowDelta(form.times(self._files[place].weight), bias)

    def _bias_delta(self, place: int, layer: str) -> Tensor:
        """What a LoRA adds to the bias of a layer, ``[out]``; zeros where it leaves the bias alone."""
        base = self._originals[layer]
        bias = self._layers[place][layer].bias_delta()
        return (
            base.new_zeros(base.shape[0])
            if bias is None
            else self._files[place].weight * bias.to(base.device)
        )


def _exchanged(original: nn.Parameter, changes: Iterable[Tensor]) -> nn.Parameter:
    """A Parameter like ``original``, with the changes added in fp32."""
    merged = original.detach().to(torch.float32, copy=True)
    for change in changes:
        merged += change
    return nn.Parameter(merged.to(original.dtype), requires_grad=original.requires_grad)


def denoiser_of(pipe: Any) -> nn.Module:
    """The pipeline's UNet or transformer; raises `HostError` if it has none or it is compiled."""
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if not isinstance(denoiser, nn.Module):
        raise HostError(f"{type(pipe).__name__} has neither a UNet nor a transformer to apply LoRAs to.")
    if hasattr(denoiser, "_orig_mod"):
        raise HostError(
            "The pipeline's denoiser is compiled, which would freeze the first shares of each layer; "
            "fuse before torch.compile, or pass the pipeline uncompiled."
        )
    return denoiser


def _linear(model: nn.Module, path: str) -> nn.Module | None:
    """The linear or convolution at ``path``, beneath peft's wrapper; ``None`` if there is none."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    module = getattr(module, "base_layer", module)
    return module if isinstance(module, nn.Linear | nn.Conv2d) else None


def _fitting(module: nn.Module, layer: LoraLayer, file: LoraFile) -> nn.Module:
    weight = _parameter(module)
    if not weight.is_floating_point() or not isinstance(module.weight, nn.Parameter):
        raise HostError(
            f"layer {layer.name} of the pipeline is quantised ({weight.dtype}), which the diffusers adapter "
            "cannot exchange; load the pipeline without quantisation."
        )
    if weight.shape.numel() != torch.Size(layer.shape).numel() or weight.shape[0] != layer.shape[0]:
        raise LoraFileError(
            f"{file.name}: layer {layer.name} is {list(layer.shape)} where the pipeline has "
            f"{list(weight.shape)}; use a LoRA made for this model.",
            file=file.name,
            layer=layer.name,
            defect="shape",
        )
    return module


def _parameter(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _summary(weight: Tensor) -> tuple[int, float, float]:
    """Two numbers of a weight that change with it, and its size: enough to tell checkpoints apart."""
    with torch.no_grad():
        total = weight.sum(dtype=torch.float32)
        norm = torch.linalg.vector_norm(weight, dtype=torch.float32)
    return weight.numel(), float(total), float(norm)
