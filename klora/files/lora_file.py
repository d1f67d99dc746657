"""A LoRA file as a whole: read, renamed, checked. Tensors stay on disk until a layer's dW is asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from klora.files.base_model import Identified, variant_of
from klora.files.canonical import in_forward_order, is_attention, part_names
from klora.files.container import Container, Identity, open_container
from klora.files.declared import DeclaredScales, declared_configs, digest_beside
from klora.files.defects import defect_error, shown
from klora.files.dialects import DENOISER
from klora.files.kinds import BIASES, left_to_host
from klora.files.late_torch import torch
from klora.files.layer import LoraLayer, build_layer
from klora.files.models import BY_NAME
from klora.files.recognition import Recognised, recognise
from klora.files.trigger_words import trigger_words
from klora.files.widths import wrong_size


@dataclass
class _Group:
    """One layer's keys: parameter -> key of the file; ``path`` is what the file calls the layer."""

    left_as: str | None
    path: str
    keys: dict[str, str] = field(default_factory=dict)


#: (component, canonical layer) -> its keys.
Grouped = Mapping[tuple[str, str], _Group]


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA file that has been understood whole.

    ``layers`` are the denoiser's (UNet or transformer), by canonical name, in the order in which a forward
    pass calls them; fused projections stand under a fused name (`LoraLayer.parts` splits them).
    ``text_encoder`` holds the layers of the text encoders under ``text_encoder.``, ``text_encoder_2.``,
    ``text_encoder_3.``. ``left_to_host`` names layers that are no contest, with their type: ``oft``,
    ``boft``, ``ia3``, ``norm``, ``bias``, ``embedding``, ``embedder``, ``text encoder``, ``other``;
    ``embedders`` are those of them that bring pictures, texts and time into the model. ``base_model`` is the
    name of one of `klora.files.models` or ``unknown``. ``notes`` are sentences about what the file declares
    in vain, ``beside`` is the `digest_beside` it.
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
    embedders: Mapping[str, LoraLayer] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    beside: str = ""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's metadata: untrusted text."""
        return self.container.metadata

    @property
    def identity(self) -> Identity:
        """Size, modification time and inode: another file under the same name has another identity, and so
        has the same file beside another configuration."""
        return replace(self.container.identity, beside=self.beside)

    @property
    def all_layers(self) -> tuple[LoraLayer, ...]:
        """The denoiser's layers and the text encoders'."""
        return (*self.layers.values(), *self.embedders.values(), *self.text_encoder.values())

    @property
    def variant(self) -> str | None:
        """Which of several models with the same layers the metadata or the file's name tell: ``Pony``."""
        model = BY_NAME.get(self.base_model)
        return None if model is None else variant_of(model, self.metadata, self.path.name)

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
    def parts(self) -> Mapping[str, LoraLayer]:
        """The denoiser's layers with every fused projection taken apart, by canonical name.

        A part that was not trained, which a fused layer cannot do without, is left out: so the plan is the
        same whether a LoRA is stored fused or split. To tell one, the fused layers are read, when first asked
        for; raises as `LoraLayer.tensor` does.
        """
        found = (part for layer in self.layers.values() for part in layer.parts())
        return {part.name: part for part in found if not part.is_absent}

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
                pieces = self.container.pieces(layer.keys[parameter])
                if not math.isfinite(sum(float(one.float().sum(dtype=torch.float64)) for one in pieces)):
                    raise layer.error(
                        f"{parameter.removesuffix('.weight')} holds NaN or infinite values",
                        "use another version of this file or train it again",
                    )


def identity_at(path: str | os.PathLike[str]) -> Identity:
    """The identity that the LoRA file at ``path`` has, without reading it; raises ``OSError``."""
    return replace(Identity.at(path), beside=digest_beside(path))


def read_lora(path: str | Path, *, name: str | None = None) -> LoraFile:
    """Read the LoRA file at ``path``: header and shapes, no tensors but a few alphas later.

    ``name`` is what messages call it; by default the file's name without ending. Raises `LoraFileError`,
    naming file, layer, defect and remedy, for a file that is not sound, and its subclass
    `UnknownDialectError` for one whose names are not understood.
    """
    container = open_container(path)
    file = container.path.name
    recognised = recognise(container)
    beside = digest_beside(container.path)  # first: a change meanwhile is noticed by whoever asks next
    configs = declared_configs(container.path, container.metadata)
    scales = {component: DeclaredScales(config, file) for component, config in configs.items()}
    contents = _sorted_out(_grouped(recognised, file), container, scales, recognised.model.name)
    _refuse_a_checkpoint(contents, file)
    _refuse_overlapping_parts(contents.denoiser, file)
    _refuse_wrong_sizes(contents.denoiser, recognised.model, file)
    return LoraFile(
        path=container.path,
        name=container.path.stem if name is None else name,
        dialect=recognised.dialect,
        base_model=recognised.model.name,
        layers=contents.denoiser,
        text_encoder=contents.text_encoder,
        embedders=contents.embedders,
        left_to_host=contents.left,
        container=container,
        recognised=recognised,
        notes=tuple(note for one in scales.values() for note in one.notes()),
        beside=beside,
    )


def _refuse_wrong_sizes(layers: Mapping[str, LoraLayer], model: Identified, file: str) -> None:
    if model.reading is None:
        return
    if wrong := wrong_size({one.name: one.shape for one in layers.values()}, model.reading):
        remedy = f"check that it is a LoRA for {model.reading.name}, or use another version of this file"
        raise defect_error(file, wrong[1], remedy, layer=wrong[0])


def _grouped(recognised: Recognised, file: str) -> Grouped:
    """Gather the parameters of each layer; two keys for one parameter are an error."""
    grouped: dict[tuple[str, str], _Group] = {}
    for key, target in recognised.targets.items():
        group = grouped.setdefault((target.component, target.layer), _Group(target.left_as, target.path))
        if (first := group.keys.get(target.parameter)) is not None:
            raise defect_error(
                file,
                f"duplicate target: {shown(first)} and {shown(key)} are the same tensor",
                "keep one of the two",
                layer=target.layer,
            )
        group.keys[target.parameter] = key
    return grouped


@dataclass
class _Contents:
    """The layers of a file, sorted by what is done with them."""

    denoiser: dict[str, LoraLayer] = field(default_factory=dict)
    text_encoder: dict[str, LoraLayer] = field(default_factory=dict)
    embedders: dict[str, LoraLayer] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def add(self, component: str, layer: LoraLayer, left_as: str | None) -> None:
        """Put a layer where it belongs."""
        if left_as == "embedder":
            self.embedders[layer.name] = layer
            self.left[layer.name] = left_as
        elif component == DENOISER:
            self.denoiser[layer.name] = layer
        else:
            self.text_encoder[layer.name] = layer
        if BIASES & set(layer.keys):
            self.left[f"{layer.name}.bias"] = "bias"


def _sorted_out(
    grouped: Grouped, container: Container, scales: Mapping[str, DeclaredScales], base_model: str
) -> _Contents:
    """The layers of the denoiser in forward order, those of the text encoders, and those left to the host."""
    contents = _Contents()
    for (component, name), group in grouped.items():
        shapes = {parameter: container.entries[key].shape for parameter, key in group.keys.items()}
        kind = "embedding" if component == "embedding" else left_to_host(shapes)
        if kind is None and group.left_as in ("text encoder", "other"):
            kind = group.left_as
        if kind is not None:
            contents.left[name] = kind
            continue
        layer = build_layer(name, group.keys, container)
        if "alpha" not in group.keys and scales:
            layer = _with_declared_scale(layer, component, group.path, scales)
        contents.add(component, layer, group.left_as)
    ordered = in_forward_order(contents.denoiser, base_model)
    contents.denoiser = {name: contents.denoiser[name] for name in ordered}
    return contents


def _with_declared_scale(
    layer: LoraLayer, component: str, path: str, scales: Mapping[str, DeclaredScales]
) -> LoraLayer:
    prefixes = ("unet", "transformer", "") if component == DENOISER else (component, "")
    declared = next((scales[prefix] for prefix in prefixes if prefix in scales), None)
    if declared is None:
        return layer
    name = layer.name if component == DENOISER else layer.name.partition(".")[2]
    return layer.with_declared_scale(declared.scale((path, name), layer.divisor))


def _refuse_a_checkpoint(contents: _Contents, file: str) -> None:
    is_any_lora = contents.denoiser or contents.text_encoder or contents.embedders
    if not is_any_lora and "whole weight" in contents.left.values():
        raise defect_error(
            file, "it holds a model's whole weights and no LoRA", "name a LoRA file; this may be a checkpoint"
        )


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
    """The modules that the LoRA touches: ``("attention", "feed-forward", "convolution",
    "other")``."""
    found = {_module_kind(part) for layer in file.layers.values() for part in layer.parts()}
    return tuple(one for one in ("attention", "feed-forward", "convolution", "other") if one in found)


def _module_kind(layer: LoraLayer) -> str:
    if is_attention(layer.name):
        return "attention"
    if ".ff" in layer.name or layer.name.endswith("proj_mlp"):
        return "feed-forward"
    spatial = len(layer.shape) == 4 and layer.shape[2:] != (1, 1)
    return "convolution" if spatial else "other"
