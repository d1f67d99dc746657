"""From two LoRA files to a plan: the engine's main line, without any WebUI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from klora.errors import PairError
from klora.files import LoraFile, PairedLayer, pair_layers, read_lora
from klora.schedule import Plan, Rule
from klora.scores import Contest, Scores, score_layer
from klora.settings import Settings, TopK


def plan_files(content: str | Path, style: str | Path, settings: Settings, steps: int) -> Plan:
    """The plan of a sampling of ``steps`` steps for two LoRA files.

    Raises `LoraFileError` for a bad file and `PairError` if the two do not fit together. The clock
    ``noise`` depends on a sampler's noise levels, which files alone do not tell: it is planned here
    as ``step``.
    """
    content_file, style_file = read_lora(content), read_lora(style)
    return Rule.of(score_files(content_file, style_file, settings), settings).plan(steps)


def score_files(content: LoraFile, style: LoraFile, settings: Settings) -> Scores:
    """Score every contested layer of two files, in the order of a forward pass."""
    contested = contested_layers(content, style, settings.other_layers)
    top_k = settings.top_k_rule
    progress = tqdm(contested, desc="K-LoRA: scoring", unit="layer", leave=False, delay=1)
    return Scores(tuple(_score(layer, top_k, content.name, style.name) for layer in progress))


def contested_layers(content: LoraFile, style: LoraFile, other_layers: str) -> Sequence[PairedLayer]:
    """The layers for which both files compete, in forward order; raises `PairError` if there are none.

    Attention layers that both touch, and with ``other_layers`` = ``fuse`` all others that both touch.
    """
    check_base_models(content, style)
    shared = [one for one in pair_layers(content, style) if one.content is not None and one.style is not None]
    if not any(one.attention for one in shared):
        raise PairError(
            f"{content.name} ({content.base_model}) and {style.name} ({style.base_model}) share no attention "
            "layer, so there is nothing to fuse; pick two LoRAs that were trained on attention layers."
        )
    return [one for one in shared if one.attention or other_layers == "fuse"]


def check_base_models(content: LoraFile, style: LoraFile) -> None:
    """Raise `PairError` if the two files are for base models that are known and differ."""
    known = {content.base_model, style.base_model} - {"unknown"}
    if len(known) > 1:
        raise PairError(
            f"{content.name} is made for {content.base_model} and {style.name} for {style.base_model}; "
            "pick two LoRAs of the same base model."
        )


def _score(layer: PairedLayer, top_k: TopK, content_file: str, style_file: str) -> Contest:
    if layer.content is None or layer.style is None:
        raise PairError(f"layer {layer.name} is not in both files, so it cannot be contested.")
    return score_layer(
        layer.name,
        layer.content.delta(),
        layer.style.delta(),
        top_k,
        content_rank=layer.content.rank,
        style_rank=layer.style.rank,
        content_file=content_file,
        style_file=style_file,
    )
