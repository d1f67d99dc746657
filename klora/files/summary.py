"""What is known about a LoRA file, in a form to show: for ``inspect`` and for the UI's line about the chosen
pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from klora.files.lora_file import LoraFile, read_lora, targeted_modules
from klora.files.models import BY_NAME
from klora.files.trigger_words import preferred_weight


@dataclass(frozen=True)
class Summary:
    """Facts about one file. Trigger words are untrusted text: escape them in HTML.

    ``tried_on`` names the programs on which a pair for this base model was tried; none of them is no reason
    against a plan.
    """

    file: str
    dialect: str
    base_model: str
    variant: str | None
    tried_on: list[str]
    kinds: Mapping[str, int]
    rank: str | None
    alpha: str | None
    targets: list[str]
    layers: int
    text_encoder_layers: int
    left_to_host: Mapping[str, int]
    number_format: list[str]
    trigger_words: list[str]
    preferred_weight: float | None
    hash: str
    notes: list[str]

    def as_json(self) -> dict[str, object]:
        """The same as a plain table."""
        return asdict(self)

    @property
    def line(self) -> str:
        """One line for the UI: ``SDXL, lora rank 8-32, attention + feed-forward``. Plain text, without
        trigger words."""
        kinds = " + ".join(self.kinds) or "no layers"
        rank = "" if self.rank is None else f" rank {self.rank}"
        return ", ".join(filter(None, (self.base_model, kinds + rank, " + ".join(self.targets))))


def summarise(path: str | Path, *, verify: bool = False) -> Summary:
    """Read a file and gather what is known about it; raises `LoraFileError`.

    ``verify`` also reads every tensor and looks for NaN and Inf.
    """
    file = read_lora(path)
    if verify:
        file.verify()
    return summary_of(file)


def summary_of(file: LoraFile) -> Summary:
    """What is known about a file that has been read."""
    alphas = [alpha for layer in file.all_layers if (alpha := layer.alpha) is not None]
    return Summary(
        file=str(file.path),
        dialect=file.dialect,
        base_model=file.base_model,
        variant=file.variant,
        tried_on=_tried_on(file.base_model),
        kinds=_counted(layer.kind for layer in file.all_layers),
        rank=None if file.ranks is None else _range(*file.ranks),
        alpha=_range(min(alphas), max(alphas)) if alphas else None,
        targets=list(targeted_modules(file)),
        layers=len(file.layers),
        text_encoder_layers=len(file.text_encoder),
        left_to_host=_counted(file.left_to_host.values()),
        number_format=list(file.dtypes),
        trigger_words=list(file.trigger_words()),
        preferred_weight=preferred_weight(file.path),
        hash=file.webui_hash[:12],
        notes=list(file.notes),
    )


def _tried_on(base_model: str) -> list[str]:
    return list(BY_NAME[base_model].hosts) or ["no host yet"] if base_model in BY_NAME else []


def _counted(names: Iterable[str]) -> Mapping[str, int]:
    return dict(Counter(names).most_common())


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
