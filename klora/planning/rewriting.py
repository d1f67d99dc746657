"""The pair that stands for two files once the chosen transform has rewritten it."""

from __future__ import annotations

from collections.abc import Hashable

from klora.errors import PairError
from klora.files import LoraFile, pair_layers
from klora.rules import Calibration
from klora.settings import Settings

Pair = tuple[LoraFile, LoraFile]

#: The pair that was rewritten last, and from what: previews and batches ask for the same one many times.
_last: tuple[Hashable, Pair] | None = None


def rewritten(
    content: LoraFile, style: LoraFile, settings: Settings, calibration: Calibration | None = None
) -> Pair:
    """Content and style as the transform of the settings leaves them; the same objects where it changes none.

    Raises `LoraFileError` and `PairError` if they are for different base models, do not fit together, or
    cannot be rewritten exactly.
    """
    global _last
    transform = settings.chosen_transform
    if not transform.changes_pairs:
        return content, style
    check_base_models(content, style)
    pair_layers(content, style)  # refuses layers of different size
    if transform.needs_calibration:
        return transform.of_pair(content, style, settings.values, calibration)
    values = tuple(settings.values[one.name] for one in transform.settings)
    key = (transform.name, values, *((str(file.path), file.identity) for file in (content, style)))
    if _last is None or _last[0] != key:
        _last = (key, transform.of_pair(content, style, settings.values))
    return _last[1]


def check_base_models(content: LoraFile, style: LoraFile) -> None:
    """Raise `PairError` if the two files are for base models that are known and differ."""
    known = {content.base_model, style.base_model} - {"unknown"}
    if len(known) > 1:
        raise PairError(
            f"{content.name} is made for {content.base_model} and {style.name} for {style.base_model}; "
            "pick two LoRAs of the same base model."
        )
