"""The scores of a pair, taken once and kept: the one way for command line, preview, route and sampling."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from klora.errors import LoraFileError
from klora.options import TopK
from klora.planning import content
from klora.planning.cast import LayerView, Loras
from klora.planning.shelf import Shelf
from klora.scores import MEASURES, DeltaRows, LayerScore, Scores, Scratch, score_layer


@runtime_checkable
class ByRows(Protocol):
    """LoRAs that need not form a dW whole to have it scored."""

    def delta_rows(self, layer: str) -> tuple[DeltaRows, DeltaRows]:
        """dW of content and style as `Loras.deltas` gives them, formed some rows at a time."""
        ...


@runtime_checkable
class KnowsFactors(Protocol):
    """LoRAs of which some types without rank tell their energy rank by their factors."""

    def energy_rank(self, layer: str, place: int) -> int | None:
        """That of content (0) or style (1) in a layer; ``None`` where only dW tells it."""
        ...


@runtime_checkable
class Lasting(Protocol):
    """LoRAs whose scores may be kept on disk."""

    def lasting_key(self) -> Sequence[object] | None:
        """Plain data, equal exactly when the deltas and ranks of content and style are, in every process.

        So it holds `content_hash` of the files, not their places, how strongly they are applied, and the
        checkpoint's where a LoRA's type depends on it. ``None`` where that cannot be told.
        """
        ...


Progress = Callable[[Iterable[LayerView]], Iterable[LayerView]]

#: Scores of the pairs used last. A few kilobytes each; people go back and forth between a few pairs.
MOST_KEPT = 32
_kept: OrderedDict[Hashable, Scores] = OrderedDict()

#: Raised when the numbers for a key change, so that what an older version kept is not read any more.
_FORMAT = 2

_shelf: Shelf | None = None


def keep_scores_in(folder: str | os.PathLike[str] | None) -> None:
    """Keep scores in this folder from one start to the next; ``None`` (as at first): in this process only.

    A folder that cannot be written is no error: the scores are then taken anew, and the console is told once.
    """
    global _shelf
    _shelf = None if folder is None else Shelf(Path(folder))


def file_stamp(path: str | os.PathLike[str]) -> Hashable:
    """What tells this version of a file from every other in this process: quick enough for each picture.

    Unlike size and time of modification, it tells a file that was replaced by one that has the same. Raises
    `ReplacedFileError` if the file cannot be read.
    """
    return content.stamp(path)


def content_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a file; read whole once, and not again after a restart if a folder keeps scores.

    Raises `ReplacedFileError` if the file cannot be read.
    """
    return content.content_hash(path, _shelf)


def scores_of(
    loras: Loras,
    layers: Sequence[LayerView],
    measures: Sequence[str],
    top_k: TopK,
    progress: Progress = iter,
) -> Scores:
    """The scores of ``layers`` by ``measures``, or those kept from last time.

    ``progress`` wraps the layers to be scored, as tqdm does. Raises `LoraFileError` if a delta is not finite.
    """
    names = tuple(layer.name for layer in layers)
    if not measures:
        return Scores(names, (0,) * len(names), {})
    key = (loras.score_key(), top_k, tuple(measures), names)
    if key not in _kept:
        _kept[key] = _from_shelf_or_taken(loras, layers, measures, top_k, progress)
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key]


def forget_scores() -> None:
    """Forget all scores that are kept."""
    _kept.clear()


def kept_scores() -> int:
    """How many pairs' scores are kept."""
    return len(_kept)


def _from_shelf_or_taken(
    loras: Loras, layers: Sequence[LayerView], measures: Sequence[str], top_k: TopK, progress: Progress
) -> Scores:
    shelf = _shelf
    lasting = _lasting_key(loras) if shelf is not None else None
    if shelf is None or lasting is None:
        return _taken(loras, layers, measures, top_k, progress)
    names = [layer.name for layer in layers]
    key = ["scores", _FORMAT, *lasting, str(top_k), list(measures), names]
    scores = _read(shelf.get(key), names, measures)
    if scores is None:
        scores = _taken(loras, layers, measures, top_k, progress)
        measured = {name: numbers.tolist() for name, numbers in scores.measured.items()}
        shelf.put(key, {"top_k": list(scores.top_k), "measured": measured})
    return scores


def _lasting_key(loras: Loras) -> Sequence[object] | None:
    try:
        return loras.lasting_key() if isinstance(loras, Lasting) else None
    except LoraFileError:  # gone since the host read it, or unfit in a layer that is perhaps not scored
        return None


def _read(told: Any, names: Sequence[str], measures: Sequence[str]) -> Scores | None:
    if told is None:
        return None
    measured = {one: np.array(told["measured"][one], dtype=np.float64).reshape(-1, 2) for one in measures}
    return Scores(tuple(names), tuple(told["top_k"]), measured)


def _taken(
    loras: Loras, layers: Sequence[LayerView], measures: Sequence[str], top_k: TopK, progress: Progress
) -> Scores:
    scratch, shown = Scratch(), progress(layers)
    try:
        return Scores.of((_score(loras, one, measures, top_k, scratch) for one in shown), measures)
    finally:
        # A bar would stand for as long as somebody keeps the error that ended the scoring.
        close = getattr(shown, "close", None)
        if close is not None:
            close()


def _score(
    loras: Loras, layer: LayerView, measures: Sequence[str], top_k: TopK, scratch: Scratch
) -> LayerScore:
    deltas = loras.delta_rows if isinstance(loras, ByRows) else loras.deltas
    content, style = deltas(layer.name)
    needs_rank = top_k.form == "rank" and any(MEASURES[name].needs_k for name in measures)
    content_rank, style_rank = (
        _rank(loras, layer, place) if needs_rank else layer.ranks[place] for place in (0, 1)
    )
    return score_layer(
        layer.name,
        content,
        style,
        top_k,
        measures,
        content_rank=content_rank,
        style_rank=style_rank,
        content_file=loras.names[0],
        style_file=loras.names[1],
        scratch=scratch,
    )


def _rank(loras: Loras, layer: LayerView, place: int) -> int | None:
    known = layer.ranks[place]
    return loras.energy_rank(layer.name, place) if not known and isinstance(loras, KnowsFactors) else known
