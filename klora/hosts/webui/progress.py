"""How far the scoring is, in the WebUI's own bar and on the console."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm

from klora.planning import LayerView


def with_progress(layers: Iterable[LayerView]) -> Iterable[LayerView]:
    """Say in the UI and on the console how far the scoring is."""
    from modules import shared

    listed = list(layers)
    before = shared.state.textinfo
    try:
        for done, layer in enumerate(tqdm(listed, desc="K-LoRA: scoring", unit="layer", leave=False)):
            shared.state.textinfo = f"K-LoRA: scoring layer {done + 1} of {len(listed)}"
            yield layer
    finally:
        shared.state.textinfo = before
