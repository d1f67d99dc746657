"""The report on a pair of LoRA files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from klora.errors import SettingsError
from klora.files import LoraFile, PairedLayer, pair_layers, read_lora
from klora.files.lora_file import targeted_modules
from klora.planning import check_base_models, planner_of_files
from klora.report.compatibility import Compatibility, Verdict, verdict
from klora.report.contest import ContestSpread
from klora.report.directions import Factors, Overlap, overlap
from klora.schedule import USUAL_GUIDANCE_SCALE, Plan, evenly_spaced
from klora.scores import gamma as gamma_of
from klora.settings import Settings

#: More steps than any sampler is run with; a typing error should not fill the memory.
MOST_STEPS = 10_000


@dataclass(frozen=True)
class FileFacts:
    """What is said of each of the two. ``name`` is untrusted text: escape it in HTML."""

    name: str
    base_model: str
    kinds: tuple[str, ...]
    ranks: tuple[int, int] | None
    targets: tuple[str, ...]

    @staticmethod
    def of(file: LoraFile) -> FileFacts:
        """From a file that was read."""
        return FileFacts(file.name, file.base_model, file.kinds, file.ranks, targeted_modules(file))


@dataclass(frozen=True)
class LayerCounts:
    """How many of the denoiser's layers both change, and how many only one of the two."""

    shared_attention: int
    shared_other: int
    content_alone: int
    style_alone: int


@dataclass(frozen=True, eq=False)
class PairReport:
    """All that is known about a pair before sampling.

    ``overlap`` is summed over the shared layers; ``plan`` is that of the settings, from which shares and
    contest come.
    """

    content: FileFacts
    style: FileFacts
    counts: LayerCounts
    overlap: Overlap
    contest: ContestSpread
    compatibility: Compatibility
    verdict: Verdict
    plan: Plan

    @property
    def base_model(self) -> str:
        """The base model of both: ``unknown`` if neither tells."""
        known = {self.content.base_model, self.style.base_model} - {"unknown"}
        return known.pop() if known else "unknown"

    @property
    def strengths(self) -> tuple[float, float]:
        """Frobenius norms of content and style over the shared layers."""
        return self.overlap.energy[0] ** 0.5, self.overlap.energy[1] ** 0.5

    @property
    def strength_ratio(self) -> float | None:
        """Content's norm by the style's; ``None`` for a style that is zero."""
        content, style = self.strengths
        return content / style if style > 0 else None

    def as_json(self) -> dict[str, Any]:
        """Plain data, without any path."""
        return {
            "content": asdict(self.content),
            "style": asdict(self.style),
            "base_model": self.base_model,
            "layers": asdict(self.counts),
            "strength": {
                "content": self.strengths[0],
                "style": self.strengths[1],
                "ratio": self.strength_ratio,
                "gamma": self.plan.gamma,
            },
            "shares": {
                "rule": (self.plan.told or {}).get("rule"),
                "steps": self.plan.steps,
                "content": self.plan.content_share,
                "style": 1 - self.plan.content_share,
                "flips": self.plan.flips,
            },
            "contest": self.contest.as_json(),
            "directions": self._directions(),
            "compatibility": self.compatibility.as_json(),
            "verdict": asdict(self.verdict),
        }

    def _directions(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for name in ("rows", "columns"):
            measured = self.overlap.share(getattr(self.overlap, name))
            chance = self.overlap.share(getattr(self.overlap, f"{name}_by_chance"))
            told[name] = {
                "content_in_style": {"measured": measured[0], "chance": chance[0]},
                "style_in_content": {"measured": measured[1], "chance": chance[1]},
            }
        return {**told, "alignment": self.overlap.alignment, "beyond_chance": self.overlap.excess}


def report_files(content: str | Path, style: str | Path, settings: Settings, steps: int = 20) -> PairReport:
    """The report on two LoRA files; raises `LoraFileError`, `PairError` and `SettingsError`."""
    return report_of(read_lora(content), read_lora(style), settings, steps)


def report_of(content: LoraFile, style: LoraFile, settings: Settings, steps: int = 20) -> PairReport:
    """The report on two files that have been read; raises as `report_files` does."""
    if not 1 <= steps <= MOST_STEPS:
        raise SettingsError(f"K-LoRA: steps is {steps}; write a whole number from 1 to {MOST_STEPS}.")
    plan = planner_of_files(content, style, settings).plan(evenly_spaced(steps, USUAL_GUIDANCE_SCALE))
    pairs = pair_layers(content, style)
    shared = [pair for pair in pairs if pair.content is not None and pair.style is not None]
    overlaps = layer_overlaps(shared)
    total = sum(overlaps, Overlap.none())
    compatibility = compatibility_of(pairs, total)
    names = content.name, style.name
    strengths = total.energy[0] ** 0.5, total.energy[1] ** 0.5
    return PairReport(
        content=FileFacts.of(content),
        style=FileFacts.of(style),
        counts=_counts(pairs),
        overlap=total,
        contest=_contest(plan, shared, overlaps),
        compatibility=compatibility,
        verdict=verdict(names, strengths, compatibility, plan.content_share),
        plan=plan,
    )


def compare(content: LoraFile, style: LoraFile) -> tuple[Overlap, Compatibility]:
    """The overlap and the index of two files without any plan, by their factors alone.

    Raises `PairError` if they are for different base models and `LoraFileError` for a damaged layer.
    """
    check_base_models(content, style)
    pairs = pair_layers(content, style)
    shared = [pair for pair in pairs if pair.content is not None and pair.style is not None]
    total = sum(layer_overlaps(shared), Overlap.none())
    return total, compatibility_of(pairs, total)


def layer_overlaps(shared: Iterable[PairedLayer]) -> list[Overlap]:
    """The overlap in each layer that both files change."""
    found = []
    for pair in shared:
        assert pair.content is not None
        assert pair.style is not None
        found.append(overlap(Factors.of(pair.content), Factors.of(pair.style)))
    return found


def compatibility_of(pairs: Sequence[PairedLayer], total: Overlap) -> Compatibility:
    """The index from all layers of both and the overlap over those that they share."""
    attention = [pair for pair in pairs if pair.attention]
    of_content = sum(pair.content is not None for pair in attention)
    of_style = sum(pair.style is not None for pair in attention)
    both = sum(pair.content is not None and pair.style is not None for pair in attention)
    return Compatibility.of(total, both, min(of_content, of_style))


def _counts(pairs: Sequence[PairedLayer]) -> LayerCounts:
    shared = [pair for pair in pairs if pair.content is not None and pair.style is not None]
    return LayerCounts(
        shared_attention=sum(pair.attention for pair in shared),
        shared_other=sum(not pair.attention for pair in shared),
        content_alone=sum(pair.style is None for pair in pairs),
        style_alone=sum(pair.content is None for pair in pairs),
    )


def _contest(plan: Plan, shared: Sequence[PairedLayer], overlaps: Sequence[Overlap]) -> ContestSpread:
    """By the rule's own numbers, or by norms in the attention layers where it compares nothing."""
    if plan.scores is not None and plan.measure is not None:
        content, style = plan.scores.content(plan.measure), plan.scores.style(plan.measure)
        return ContestSpread.of(plan.measure, content, style, plan.gamma or 1.0)
    energies = [one.energy for pair, one in zip(shared, overlaps, strict=True) if pair.attention]
    norms = np.sqrt(np.array(energies, dtype=np.float64).reshape(-1, 2))
    return ContestSpread.of("norm", norms[:, 0], norms[:, 1], gamma_of("paper", norms[:, 0], norms[:, 1]))
