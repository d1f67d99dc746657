"""Which rows of a batch of Forge's family belong to the unconditional pass, in the denoiser and in attn2.

The host tells the denoiser, in ``transformer_options``, of which pass each piece of its batch is
(``cond_or_uncond``); a piece has a row for each picture, of which ``sigmas`` has a value. A wrapper that cuts
pictures into tiles repeats the whole batch for each tile (MultiDiffusion). An ``attn2_patch`` gives attn2
other rows than it is given, as one for each part of a prompt (Forge Couple): these are traced through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from klora.errors import HostError
from klora.weights.branch import BatchRows, Ranges, ranges_of

#: How the host marks a piece of the batch that belongs to the unconditional pass.
_UNCONDITIONAL = 1

_PATCHES, _OF_ATTN2 = "patches", "attn2_patch"

#: What each row is in a tensor that is traced; 0 are rows that a patch adds to fill up.
_IS_CONDITIONAL, _IS_UNCONDITIONAL = 1.0, 2.0

#: q, k, v and the options of the layer -> q, k, v: an entry of ``attn2_patch``.
Patch = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Tensor, Tensor]]


def unconditional_rows(batch: int, options: Mapping[str, Any]) -> Ranges:
    """The unconditional ones of ``batch`` rows; raises `HostError` if the host does not say it."""
    marks = options.get("cond_or_uncond")
    pieces = len(marks or ())
    images = _images(options, batch, pieces)
    if not marks or not images or batch % (pieces * images):
        raise HostError(
            "K-LoRA cannot tell which rows of this batch belong to the negative side of the guidance, "
            "because the WebUI does not say it to the model; set Negative side to both."
        )
    of_tile = [mark == _UNCONDITIONAL for mark in marks for _ in range(images)]
    return ranges_of(of_tile * (batch // len(of_tile)))


def _images(options: Mapping[str, Any], batch: int, pieces: int) -> int:
    """How many pictures are made at once; by the batch where the host does not say it."""
    sigmas = options.get("sigmas")
    if isinstance(sigmas, Tensor) and sigmas.dim() == 1:
        return len(sigmas)
    return batch // pieces if pieces and batch % pieces == 0 else 0


class AttentionRows:
    """The rows of the denoiser, and those of attn2, where a patch makes others of them."""

    def __init__(self, of_denoiser: BatchRows) -> None:
        self.of_denoiser = of_denoiser
        self.of_attn2 = BatchRows()

    def of(self, module: str) -> BatchRows:
        """Those of a module by its name."""
        return self.of_attn2 if ".attn2." in module else self.of_denoiser

    def tell(self, batch: int, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Before a forward of the denoiser with ``batch`` rows: note them; returns the keywords to use.

        Raises `HostError` if nobody knows.
        """
        options = keywords.get("transformer_options") or {}
        rows = unconditional_rows(batch, options)
        self.of_denoiser.tell(batch, rows)
        self.of_attn2.tell(batch, rows)
        patches = options.get(_PATCHES) or {}
        chain = patches.get(_OF_ATTN2)
        if not chain:
            return dict(keywords)
        traced = {**patches, _OF_ATTN2: [self._traced(chain)]}
        return {**keywords, "transformer_options": {**options, _PATCHES: traced}}

    def _traced(self, chain: Sequence[Patch]) -> Patch:
        """The patches as one, which tells the rows that it gives to attn2."""
        known: dict[tuple[int, int], Ranges] = {}

        def patched(q: Tensor, k: Tensor, v: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
            given, result = len(q), _through(chain, q, k, v, options)
            there = len(result[0])
            if there == given:
                self.of_attn2.tell(given, self.of_denoiser.of(q))
                return result
            if (given, there) not in known:
                traced = _through(chain, _marked(q, self.of_denoiser.of(q)), k, v, options)[0]
                kinds = traced.flatten(1)[:, 0].tolist()
                known[given, there] = ranges_of([kind == _IS_UNCONDITIONAL for kind in kinds])
            self.of_attn2.tell(there, known[given, there])
            return result

        return patched


def _through(
    chain: Sequence[Patch], q: Tensor, k: Tensor, v: Tensor, options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    for patch in chain:
        q, k, v = patch(q, k, v, options)
    return q, k, v


def _marked(q: Tensor, unconditional: Ranges) -> Tensor:
    """A tensor like q of which every row says what it is."""
    marked = q.new_full(q.shape, _IS_CONDITIONAL)
    for start, stop in unconditional:
        marked[start:stop] = _IS_UNCONDITIONAL
    return marked
