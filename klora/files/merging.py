"""Two LoRA files as one: in each layer the sum of both dW, each times its share.

A sum of two LoRAs of ranks r and s is a LoRA of rank r + s: the ups stand side by side and the downs one
above the other, so nothing is lost. A type without factors is written at full rank, which is exact, too.
Shares are about the denoiser; the text encoders get both LoRAs in full, as they do from a WebUI.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from klora.files.conversion import Tensors, check_target, save_tensors, state_dict_in
from klora.files.defects import defect_error
from klora.files.kinds import BIASES
from klora.files.layer import LoraLayer
from klora.files.lora_file import LoraFile, read_lora
from klora.files.models import BY_NAME
from klora.files.writing import written_whole

#: Layer, with fused projections taken apart -> the shares of content and style.
SharesOfLayers = Mapping[str, tuple[float, float]]

#: Number format -> largest relative difference of dW after writing in it, by Frobenius norm.
FORMATS = {"fp32": (torch.float32, 1e-5), "fp16": (torch.float16, 2e-3), "bf16": (torch.bfloat16, 2e-2)}

_BOTH = (1.0, 1.0)


@dataclass(frozen=True)
class _Term:
    """One LoRA's part of a merged layer: share * dW."""

    layer: LoraLayer
    share: float

    def factors(self) -> tuple[Tensor, Tensor]:
        """(up ``[out, r]``, down ``[r, in, ...]``), the share multiplied in."""
        found = self.layer.factors()
        if found is None:
            delta = self.layer.delta()
            return torch.eye(delta.shape[0]) * self.share, delta
        up, down = found
        return up.flatten(1) * self.share, down.reshape(down.shape[0], *self.layer.shape[1:])


def merged_layers(
    content: LoraFile, style: LoraFile, shares: SharesOfLayers
) -> Iterator[tuple[str, list[_Term]]]:
    """(canonical name, terms) of each layer in which anything is left. A fused projection stays whole where
    its parts have equal shares and the other file does not have them split.
    """
    files = (content, style)
    done: set[str] = set()
    for name in dict.fromkeys([*content.layers, *style.layers]):
        parts = [part.name for part in _first(files, name).parts()]
        wholes = [file.layers.get(name) for file in files]
        is_split = any(
            whole is None and _has_any(file, parts) for whole, file in zip(wholes, files, strict=True)
        )
        told = {shares.get(part, _BOTH) for part in parts}
        if not is_split and len(told) == 1:
            units = {name: (wholes, told.pop())}
        else:
            split = [_parts(file, name, parts) for file in files]
            units = {part: ([one.get(part) for one in split], shares.get(part, _BOTH)) for part in parts}
        for unit, (layers, both) in units.items():
            if unit not in done:
                done.add(unit)
                yield from _with_terms(unit, layers, both)
    for name in dict.fromkeys([*content.text_encoder, *style.text_encoder]):
        yield from _with_terms(name, [file.text_encoder.get(name) for file in files], _BOTH)


def _with_terms(
    name: str, layers: list[LoraLayer | None], shares: tuple[float, float]
) -> Iterator[tuple[str, list[_Term]]]:
    pairs = zip(layers, shares, strict=True)
    terms = [_Term(layer, share) for layer, share in pairs if layer is not None and share]
    if terms:
        yield name, terms


def _first(files: tuple[LoraFile, LoraFile], name: str) -> LoraLayer:
    return next(file.layers[name] for file in files if name in file.layers)


def _has_any(file: LoraFile, names: list[str]) -> bool:
    return any(part.name in names for layer in file.layers.values() for part in layer.parts())


def _parts(file: LoraFile, name: str, parts: list[str]) -> dict[str, LoraLayer]:
    """The parts of a fused layer that a file has, whole or split."""
    found = (part for layer in file.layers.values() for part in layer.parts())
    return {part.name: part for part in found if part.name in parts or part.name == name}


def write_merged(
    content: LoraFile,
    style: LoraFile,
    shares: SharesOfLayers,
    target: str | Path,
    *,
    number_format: str = "fp32",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> LoraFile:
    """Write the sum as ``target``, in kohya's dialect, and read it back.

    ``target`` appears only when every dW in it has been found equal. Raises `LoraFileError` for what such a
    file cannot hold and if ``target`` exists, and `KloraError` if it cannot be written.
    """
    target = Path(target)
    check_target(target, overwrite=overwrite)
    _refuse_what_is_no_delta(content, style)
    layers = dict(merged_layers(content, style, shares))
    if not layers:
        raise defect_error(target.name, "nothing is left to write", "choose shares above 0")
    dtype, tolerance = FORMATS[number_format]
    told = dict(metadata or {})
    with written_whole(target) as draft:
        whole = draft.with_name(f"whole-{draft.name}")
        try:
            save_tensors(_tensors(layers, _prefix(content, style)), whole, told)
            kohya = state_dict_in(read_lora(whole), "kohya")
            save_tensors({key: _narrowed(key, one, dtype) for key, one in kohya.items()}, draft, told)
        finally:
            whole.unlink(missing_ok=True)
        _refuse_difference(layers, read_lora(draft), tolerance)
    return read_lora(target)


def _narrowed(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return (tensor if key.endswith(".alpha") else tensor.to(dtype)).contiguous()


def _refuse_what_is_no_delta(*files: LoraFile) -> None:
    for file in files:
        for name, kind in file.left_to_host.items():
            raise defect_error(
                file.path.name,
                f"it is a {kind}, which a merged LoRA cannot hold",
                "use both files",
                layer=name,
            )
        for layer in file.all_layers:
            if layer.keys.keys() & BIASES:
                raise layer.error("it has a bias, which a merged LoRA cannot hold", "use both files")


def _prefix(content: LoraFile, style: LoraFile) -> str:
    known = next((one.base_model for one in (content, style) if one.base_model in BY_NAME), None)
    return "unet." if known is None else BY_NAME[known].diffusers_prefix


def _tensors(layers: Mapping[str, list[_Term]], prefix: str) -> Tensors:
    """In diffusers' dialect, which is the same for all models and types of layers."""
    tensors: Tensors = {}
    for name, terms in layers.items():
        ups, downs = zip(*(term.factors() for term in terms), strict=True)
        stem = name if name.startswith("text_encoder") else prefix + name
        up, down = (
            torch.cat(ups, 1),
            torch.cat([one.reshape(one.shape[0], *downs[0].shape[1:]) for one in downs]),
        )
        kernel = [1] * (down.dim() - 2)
        tensors[f"{stem}.lora_A.weight"] = down.contiguous()
        tensors[f"{stem}.lora_B.weight"] = up.reshape(*up.shape, *kernel).contiguous()
    return tensors


def _refuse_difference(layers: Mapping[str, list[_Term]], written: LoraFile, tolerance: float) -> None:
    """Raise `LoraFileError` unless each dW that was written is the sum that it should be."""
    found = {part.name: part for layer in written.all_layers for part in layer.parts()}
    for name, terms in layers.items():
        expected = sum(term.share * term.layer.delta().flatten(1) for term in terms)
        assert isinstance(expected, Tensor)
        whole = written.layers.get(name) or written.text_encoder.get(name) or found.get(name)
        if whole is None or _relative(expected, whole.delta().flatten(1)) > tolerance:
            raise defect_error(
                written.path.name,
                "the merged layer differs from the sum of both",
                "report this pair; nothing was written",
                layer=name,
            )


def _relative(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return math.inf
    norm = float(expected.norm())
    return float((expected - found).norm()) / norm if norm else float(found.norm())
