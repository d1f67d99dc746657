"""The words that call up what a LoRA was trained on. All of it is untrusted text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from klora.files.defects import shown
from klora.files.sidecars import read_sidecar

_SIDECAR_LIMIT = 2**20
_WORD_LENGTH = 200
_MOST_WORDS = 40


def trigger_words(path: Path, metadata: Mapping[str, str], count: int = 10) -> tuple[str, ...]:
    """Trigger words of the LoRA at ``path``, the surest source first, at most ``count``.

    The user's own note in the WebUI (``NAME.json``, "activation text"), else what the author declared
    (``modelspec.trigger_phrase``), else the most frequent training tags. Whatever is malformed is no trigger
    word.
    """
    for words in (_activation_text(path), _split(metadata.get("modelspec.trigger_phrase", ""))):
        if words:
            return words[:count]
    return _frequent_tags(metadata.get("ss_tag_frequency", ""))[:count]


def preferred_weight(path: Path) -> float | None:
    """The weight that the user noted in the WebUI for this LoRA, or ``None``."""
    weight = _sidecar(path).get("preferred weight")
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < abs(weight) < 100:
        return None
    return float(weight)


def _sidecar(path: Path) -> Mapping[str, object]:
    text = read_sidecar(path.with_suffix(".json"), _SIDECAR_LIMIT)
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _activation_text(path: Path) -> tuple[str, ...]:
    text = _sidecar(path).get("activation text")
    return _split(text) if isinstance(text, str) else ()


def _split(text: str) -> tuple[str, ...]:
    words = (shown(word.strip(), _WORD_LENGTH) for word in text[:10_000].split(","))
    return tuple(dict.fromkeys(word for word in words if word))[:_MOST_WORDS]


def _frequent_tags(text: str) -> tuple[str, ...]:
    """kohya's ``{"folder": {"tag": count}}``, summed over the folders."""
    try:
        folders = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return ()
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, number in tags.items() if isinstance(tags, dict) else ():
            if type(number) is int and 0 < number < 2**40:
                counts[shown(tag.strip(), _WORD_LENGTH)] += number
    return tuple(tag for tag, _ in counts.most_common(_MOST_WORDS) if tag)
