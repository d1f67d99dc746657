"""Fuse two LoRA files into a pipeline for as long as a ``with`` block lasts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from klora.files import LoraFile, read_lora
from klora.hosts.diffusers.calibration import Calibrated
from klora.hosts.diffusers.clock import clock, has_known_negative_side
from klora.hosts.diffusers.seam import PipelineSeam, WeightedFile
from klora.planning import Cast, Member, check_base_models, rewritten
from klora.rules import BOTH, GUIDANCE
from klora.schedule import ALWAYS, Window
from klora.schedule.window_text import read_window
from klora.settings import Settings
from klora.weights import Fusion, prepare


@dataclass(frozen=True)
class TimedLora:
    """A LoRA file, its weight, and the part of the sampling in which it takes part.

    ``window`` is written as in a WebUI's tag: ``start=0.2:stop=0.8``, ``step=5-20``, ``w=0:0.2,0.5:1``.
    """

    file: str | Path | LoraFile
    weight: float = 1.0
    window: str = ""

    def read(self) -> LoraFile:
        """The file; raises `LoraFileError`."""
        return self.file if isinstance(self.file, LoraFile) else read_lora(self.file)

    def span(self) -> Window:
        """The window; raises `SettingsError`."""
        return read_window(self.window) if self.window else ALWAYS


@contextmanager
def fuse(
    pipe: Any,
    content: str | Path | LoraFile,
    style: str | Path | LoraFile,
    settings: Settings | Mapping[str, object] | None = None,
    *,
    content_window: str = "",
    style_window: str = "",
    others: Sequence[TimedLora] = (),
    calibrate_with: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Fusion]:
    """Fuse a content LoRA and a style LoRA into a diffusers pipeline by the rule of the settings.

    ``content`` and ``style`` are files in any dialect that ``python -m klora inspect`` understands;
    ``settings`` as in the WebUI, among them ``content_weight`` and ``style_weight``. In the denoiser each
    layer gets its shares at each step of whatever sampling is run inside the block; in the text encoders
    both are added. The windows say in which steps a LoRA takes part; ``others`` are added beside the pair.
    On the way out all weights are the original Parameter objects again.

    A transform (setting ``transform``) replaces the pair first. SSR runs the first step twice more, with
    content alone and with style alone, before the first sampling; ``calibrate_with`` are keyword arguments of
    the denoiser for these two, such as ``{"encoder_hidden_states": embeddings}`` of each LoRA's own prompt.
    Without them both see the picture's.

    The `Fusion` that is yielded tells afterwards what was applied where: ``fusion.plan()``. Raises
    `KloraError` before anything is changed if the files, the pair or the pipeline will not do.
    """
    if not isinstance(settings, Settings):
        settings = Settings.from_mapping(settings or {})
    settings = _with_a_known_negative_side(pipe, settings)
    pair = (
        TimedLora(content, settings.content_weight, content_window),
        TimedLora(style, settings.style_weight, style_window),
    )
    with _applied(pipe, (*pair, *others), settings, calibrate_with) as fusion:
        yield fusion


@contextmanager
def add_timed(pipe: Any, loras: Sequence[TimedLora]) -> Iterator[Fusion]:
    """Add LoRAs to a pipeline while inside, each in its own window, without any contest.

    Raises as `fuse` does.
    """
    with _applied(pipe, loras, Settings(), has_pair=False) as fusion:
        yield fusion


@contextmanager
def _applied(
    pipe: Any,
    loras: Sequence[TimedLora],
    settings: Settings,
    calibrate_with: Sequence[Mapping[str, Any]] = (),
    *,
    has_pair: bool = True,
) -> Iterator[Fusion]:
    files = [lora.read() for lora in loras]
    for file in files:
        _say_what_is_left_out(file)
    needs_calibration = has_pair and settings.chosen_transform.needs_calibration
    if has_pair:
        check_base_models(*files[:2])
    if has_pair and not needs_calibration:
        files[:2] = rewritten(files[0], files[1], settings)
    weighted = [WeightedFile(file, lora.weight) for file, lora in zip(files, loras, strict=True)]
    seam = PipelineSeam(pipe, weighted)
    members = tuple(Member(file.name, lora.span()) for file, lora in zip(files, loras, strict=True))
    fusion = prepare(
        seam,
        Cast(members, has_pair),
        settings,
        lambda layers: tqdm(list(layers), desc="K-LoRA: scoring", leave=False, delay=1),
    )
    calibrated = None
    if needs_calibration:
        calibrated = Calibrated(pipe, seam, fusion, (files[0], files[1]), calibrate_with)
    with fusion.sampling(), clock(pipe, fusion, seam.branches.rows, calibrated):
        yield fusion


def _with_a_known_negative_side(pipe: Any, settings: Settings) -> Settings:
    """The default of the negative side gives way to ``both``, and says so, where a pipeline's is not known;
    any other value is refused there in the first step."""
    if settings.guidance == BOTH or settings.guidance != GUIDANCE.default or has_known_negative_side(pipe):
        return settings
    warnings.warn(
        f"K-LoRA does not know the negative side of the guidance in {type(pipe).__name__}; both LoRAs act on "
        "it, as with guidance set to both.",
        stacklevel=4,
    )
    return settings.replace(guidance=BOTH)


def _say_what_is_left_out(file: LoraFile) -> None:
    if file.left_to_host:
        kinds = ", ".join(sorted(set(file.left_to_host.values())))
        warnings.warn(
            f"{file.name}: {len(file.left_to_host)} layers of type {kinds} are no part of the contest and "
            "are not applied to a diffusers pipeline.",
            stacklevel=6,
        )
