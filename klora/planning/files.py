"""Two LoRA files as the LoRAs of a cast, without any model or WebUI."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from klora.files import LayerRows, LoraFile, LoraLayer, PairedLayer, pair_layers, read_lora
from klora.files.checkpoint import Checkpoint
from klora.files.models import BY_NAME
from klora.planning.cast import Cast, LayerView
from klora.planning.planner import Planner, make_planner
from klora.planning.rewriting import check_base_models, rewritten
from klora.planning.scoring import Progress, content_hash, file_stamp
from klora.schedule import Plan, evenly_spaced
from klora.settings import Settings

Formed = TypeVar("Formed")


class FilePair:
    """The LoRAs of two files, each at weight 1; raises `PairError` if they are for different base models.

    ``base_model`` is the checkpoint's file, for DoRA and GLoRA; of it only the layers that those change in
    both files are read. Raises `LoraFileError` if it is not sound.
    """

    def __init__(
        self, content: LoraFile, style: LoraFile, base_model: str | os.PathLike[str] | None = None
    ) -> None:
        check_base_models(content, style)
        known = next((one.base_model for one in (content, style) if one.base_model in BY_NAME), "unknown")
        self._checkpoint = None if base_model is None else Checkpoint(base_model, known)
        self._base_path = base_model
        self.names: tuple[str, ...] = (content.name, style.name)
        self._files = (content, style)
        self._pairs = {layer.name: layer for layer in pair_layers(content, style)}
        self._layers = [LayerView(name, one.attention, _ranks(one)) for name, one in self._pairs.items()]

    def layers(self) -> Sequence[LayerView]:
        """All layers of both files, in forward order."""
        return self._layers

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both dW in fp32."""
        return _both(self._pairs[layer], lambda one: one.delta(self._base_of(one)))

    def delta_rows(self, layer: str) -> tuple[LayerRows, LayerRows]:
        """The same, formed some rows at a time."""
        return _both(self._pairs[layer], lambda one: LayerRows(one, self._base_of(one)))

    def _base_of(self, layer: LoraLayer) -> Tensor | None:
        """The clean weight that the layer's type needs, out of the checkpoint."""
        if self._checkpoint is None or not layer.needs_base:
            return None
        return self._checkpoint.base_of(layer)

    def score_key(self) -> Hashable:
        """All files as they are on disk, and what a transform has made of them."""
        base = None if self._base_path is None else (str(self._base_path), file_stamp(self._base_path))
        files = ((str(file.path), file_stamp(file.path), file.identity.rewritten) for file in self._files)
        return (*files, base)

    def lasting_key(self) -> Sequence[object] | None:
        """What both files hold, and what a transform has made of it. Nothing else matters: each is at
        weight 1. ``None`` with a checkpoint, which is too large to be read whole for its hash.
        """
        if self._base_path is not None:
            return None
        return [(content_hash(file.path), file.identity.rewritten) for file in self._files]


def _ranks(pair: PairedLayer) -> dict[int, int | None]:
    sides = enumerate((pair.content, pair.style))
    return {place: layer.rank for place, layer in sides if layer is not None}


def _both(pair: PairedLayer, form: Callable[[LoraLayer], Formed]) -> tuple[Formed, Formed]:
    assert pair.content is not None, "only layers that both files change are contested"
    assert pair.style is not None, "only layers that both files change are contested"
    return form(pair.content), form(pair.style)


def planner_of_files(
    content: LoraFile,
    style: LoraFile,
    settings: Settings,
    base_model: str | os.PathLike[str] | None = None,
    progress: Progress = iter,
) -> Planner:
    """The planner of two files; ``base_model`` and errors as for `FilePair`. ``progress`` wraps the layers
    that are scored, which the console shows in any case.
    """
    return make_planner(
        FilePair(*rewritten(content, style, settings), base_model),
        Cast.of_pair(content.name, style.name),
        settings,
        lambda layers: progress(
            tqdm(list(layers), desc="K-LoRA: scoring", unit="layer", leave=False, delay=1)
        ),
    )


def plan_files(
    content: str | Path,
    style: str | Path,
    settings: Settings,
    steps: int,
    *,
    guidance_scale: float | None = None,
    strength: float = 1.0,
    base_model: str | os.PathLike[str] | None = None,
) -> Plan:
    """The plan of a sampling of ``steps`` steps for two LoRA files; ``base_model`` is as for `FilePair`.

    No sampler tells its noise levels here, so for the clock ``noise`` the timesteps are taken to lie
    evenly, from the share ``strength`` of the noise (img2img's denoising strength) to none. Raises
    `LoraFileError` for a bad file and `PairError` if the two do not fit together.
    """
    planner = planner_of_files(read_lora(content), read_lora(style), settings, base_model)
    return planner.plan(evenly_spaced(steps, guidance_scale, strength=strength))
