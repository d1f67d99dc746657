"""A LoRA file as a whole: read, renamed, checked. Tensors stay on disk until a layer's dW is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from klora.files.canonical import in_forward_order, is_attention, part_names
from klora.files.container import Container, Identity, open_container
from klora.files.declared import Config, declared_configs, declared_scale
from klora.files.defects import defect_error, shown
from klora.files.dialects import DENOISER
from klora.files.kinds import left_to_host
from klora.files.layer import LoraLayer, build_layer
from klora.files.recognition import Recognised, recognise
from klora.files.trigger_words import trigger_words
from klora.files.widths import wrong_size

#: (component, canonical layer) -> parameter -> key of the file.
Grouped = Mapping[tuple[str, str], Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA file that has been understood whole.

    ``layers`` are the denoiser's (UNet or transformer), by canonical name, in the order in which a forward
    pass calls them; fused projections stand under a fused name (`LoraLayer.parts` splits them).
    ``text_encoder`` holds the layers of the text encoders under ``text_encoder.``, ``text_encoder_2.``,
    ``text_encoder_3.``. ``left_to_host`` names layers that are no contest, with their type: ``oft``,
    ``boft``, ``ia3``, ``norm``, ``bias``, ``embedding``. ``base_model`` is ``SD1``, ``SD2``, ``SDXL``,
    ``SD3``, ``Flux`` or ``unknown``.
    """

    path: Path
    name: str
    dialect: str
    base_model: str
    layers: Mapping[str, LoraLayer]
    text_encoder: Mapping[str, LoraLayer]
    left_to_host: Mapping[str, str]
    container: Container
    recognised: Recognised

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's metadata: untrusted text."""
        return self.container.metadata

    @property
    def identity(self) -> Identity:
        """Size, modification time and inode: another file under the same name has another identity."""
        return self.container.identity

    @property
    def all_layers(self) -> tuple[LoraLayer, ...]:
        """The denoiser's layers and the text encoders'."""
        return (*self.layers.values(), *self.text_encoder.values())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types in the file, the most frequent first."""
        names = [one.kind for one in self.all_layers] + list(self.left_to_host.values())
        return tuple(sorted(set(names), key=lambda kind: (-names.count(kind), kind)))

    @property
    def ranks(self) -> tuple[int, int] | None:
        """Smallest and largest rank, or ``None`` if no layer has one."""
        ranks = [one.rank for one in self.all_layers if one.rank is not None]
        return (min(ranks), max(ranks)) if ranks else None

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Number formats of the weights: ``("F16",)``."""
        return tuple(sorted({dtype for one in self.all_layers for dtype in one.dtypes}))

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        return self.container.hashes()

    @property
    def content_hash(self) -> str:
        """sha256 of the whole file, 64 hexadecimal digits; read when first asked for."""
        return self._hashes[0]

    @property
    def webui_hash(self) -> str:
        """sha256 of the tensors without the header: what WebUI's "Lora hashes" and Civitai's AutoV3 begin
        with."""
        return self._hashes[1]

    def trigger_words(self, count: int = 10) -> tuple[str, ...]:
        """Trigger words, the surest source first; see `klora.files.trigger_words`. Untrusted text."""
        return trigger_words(self.path, self.metadata, count)

    def verify(self) -> None:
        """Read every tensor once and raise `LoraFileError` if one holds NaN or Inf."""
        for layer in self.all_layers:
            for parameter in layer.keys:
                # A sum is NaN or Inf if any element is, takes a tenth of the time of a test of each, and in
                # fp64 no file's numbers overflow it. fp8 cannot be summed as it is.
                if not math.isfinite(float(layer.tensor(parameter).float().sum(dtype=torch.float64))):
                    raise layer.error(
                        f"{parameter.removesuffix('.weight')} holds NaN or infinite values",
                        "use another version of this file or train it again",
                    )


def read_lora(path: str | Path, *, name: str | None = None) -> LoraFile:
    """Read the LoRA file at ``path``: header and shapes, no tensors but a few alphas later.

    ``name`` is what messages call it; by default the file's name without ending. Raises `LoraFileError`,
    naming file, layer, defect and remedy, for a file that is not sound, and its subclass
    `UnknownDialectError` for one whose names are not understood.
    """
    container = open_container(path)
    file = container.path.name
    recognised = recognise(container)
    layers, text_encoder, left = _built(_grouped(recognised, file), container)
    _refuse_overlapping_parts(layers, file)
    if recognised.model.reading is not None:
        shapes = {one.name: one.shape for one in layers.values()}
        if wrong := wrong_size(shapes, recognised.model.reading):
            raise defect_error(
                file, wrong[1], "use another version of this file or train it again", layer=wrong[0]
            )
    return LoraFile(
        path=container.path,
        name=container.path.stem if name is None else name,
        dialect=recognised.dialect,
        base_model=recognised.model.name,
        layers=layers,
        text_encoder=text_encoder,
        left_to_host=left,
        container=container,
        recognised=recognised,
    )


def _grouped(recognised: Recognised, file: str) -> Grouped:
    """Gather the parameters of each layer; two keys for one parameter are an error."""
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    for key, target in recognised.targets.items():
        keys = grouped.setdefault((target.component, target.layer), {})
        if target.parameter in keys:
            raise defect_error(
                file,
                f"duplicate target: {shown(keys[target.parameter])} and {shown(key)} are the same tensor",
                "keep one of the two",
                layer=target.layer,
            )
        keys[target.parameter] = key
    return grouped


def _built(
    grouped: Grouped, container: Container
) -> tuple[dict[str, LoraLayer], dict[str, LoraLayer], dict[str, str]]:
    """The layers of the denoiser in forward order, those of the text encoders, and those left to the host."""
    configs = declared_configs(container.path, container.metadata)
    denoiser: dict[str, LoraLayer] = {}
    text_encoder: dict[str, LoraLayer] = {}
    left: dict[str, str] = {}
    for (component, name), keys in grouped.items():
        kind = _left_kind(component, keys, container)
        if kind is not None:
            left[name] = kind
            continue
        layer = build_layer(name, keys, container)
        if "alpha" not in keys and configs:
            layer = _with_declared_scale(layer, component, configs)
        (denoiser if component == DENOISER else text_encoder)[name] = layer
    ordered = in_forward_order(denoiser)
    return {name: denoiser[name] for name in ordered}, text_encoder, left


def _left_kind(component: str, keys: Mapping[str, str], container: Container) -> str | None:
    if component == "embedding":
        return "embedding"
    return left_to_host({parameter: container.entries[key].shape for parameter, key in keys.items()})


def _with_declared_scale(layer: LoraLayer, component: str, configs: Mapping[str, Config]) -> LoraLayer:
    prefixes = ("unet", "transformer", "") if component == DENOISER else (component, "")
    config = next((configs[prefix] for prefix in prefixes if prefix in configs), None)
    if config is None:
        return layer
    file = layer.container.path.name
    return layer.with_declared_scale(declared_scale(config, layer.name, layer.divisor, file))


def _refuse_overlapping_parts(layers: Iterable[str], file: str) -> None:
    """A fused projection and one of its parts in one file: two LoRAs for the same weight."""
    owners: dict[str, str] = {}
    for name in sorted(layers):
        for part in part_names(name) or (name,):
            if part in owners:
                raise defect_error(
                    file,
                    f"duplicate target: {part} is there twice, once inside a fused projection",
                    "keep one of the two",
                    layer=name if part != name else owners[part],
                )
            owners[part] = name


def targeted_modules(file: LoraFile) -> tuple[str, ...]:
    """The kinds of modules that the LoRA touches: ``("attention", "feed-forward", "convolution",
    "other")``."""
    found = {_module_kind(part) for layer in file.layers.values() for part in layer.parts()}
    return tuple(kind for kind in ("attention", "feed-forward", "convolution", "other") if kind in found)


def _module_kind(layer: LoraLayer) -> str:
    if is_attention(layer.name):
        return "attention"
    if ".ff" in layer.name or layer.name.endswith("proj_mlp"):
        return "feed-forward"
    spatial = len(layer.shape) == 4 and layer.shape[2:] != (1, 1)
    return "convolution" if spatial else "other"
