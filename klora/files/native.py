"""Module paths of the models' own code, and of the WebUIs, against canonical names, in both directions.

"Native" are the names of the original repositories, which the WebUIs keep: LDM's ``input_blocks`` for SD1,
SD2 and SDXL, Flux's ``double_blocks``, SD3's ``joint_blocks``. The tables are in `klora.files.models`.
"""

from __future__ import annotations

from functools import lru_cache

from klora.files.canonical import GRAMMARS
from klora.files.models.grammar import Grammar


@lru_cache(maxsize=65536)
def canonical_name(path: str, base_model: str = "unknown") -> str | None:
    """The canonical name of a denoiser's layer, from its native or diffusers path; ``None`` if unknown.

    Models disagree about some native names (``linear1`` of Flux.1 and Flux.2): ``base_model`` says whose it
    is, and is asked first.
    """
    found = (grammar.find(path) for grammar in _first(base_model))
    return next((one.name for one in found if one is not None), None)


@lru_cache(maxsize=65536)
def canonical_from_flat(path: str, base_model: str = "unknown") -> str | None:
    """The same, for a path with underscores in place of its dots."""
    found = (grammar.find_flat(path) for grammar in _first(base_model))
    return next((one.name for one in found if one is not None), None)


def _first(base_model: str) -> list[Grammar]:
    return sorted(GRAMMARS.values(), key=lambda one: one.model.name != base_model)


def ldm_name(canonical: str, base_model: str) -> str | None:
    """The native path that WebUIs use: ``input_blocks.1.1.transformer_blocks.0.attn1.to_q``.

    ``base_model`` is as in `LoraFile.base_model`; an unknown one is taken for SD1. A part of a fused
    projection leads to the fused module. ``None`` if that model has no such layer.
    """
    return GRAMMARS.get(base_model, GRAMMARS["SD1"]).native(canonical)


def host_layer_to_canonical(host_layer: str, base_model: str) -> str | None:
    """The canonical name of a layer as a WebUI calls it, or ``None`` if it is no layer of a denoiser.

    Takes A1111's ``diffusion_model_input_blocks_1_1_transformer_blocks_0_attn1_to_q`` and the dotted form of
    the others, with or without ``.weight``. ``base_model`` says whose names they are, where models disagree.
    """
    path = host_layer.removesuffix(".weight")
    if path.startswith("diffusion_model_"):
        return canonical_from_flat(path.removeprefix("diffusion_model_"), base_model)
    return canonical_name(path.removeprefix("model.").removeprefix("diffusion_model."), base_model)
