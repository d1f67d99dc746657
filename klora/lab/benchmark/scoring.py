"""What a picture is worth: is the subject there, is the style there, and how far is the true drawing?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klora.lab import truth
from klora.lab.benchmark.making import Maker, Store
from klora.lab.benchmark.methods import Method
from klora.lab.distance import Distance, feature_distance
from klora.lab.judges import STYLE_NAMES, SUBJECTS, Judges
from klora.lab.pairs import Pair

MEASURES = ("subject", "style", "both", "subject_probability", "style_probability", "distance", "seconds")
"""Per picture: named right by the judge of subjects, of styles, of both (0 or 1); the judges' probability."""


@dataclass(frozen=True)
class Scored:
    """The scores of one method: every measure as [pairs, seeds]."""

    method: Method
    values: dict[str, Tensor]


def score(judges: Judges, distance: Distance, pair: Pair, pictures: Tensor) -> dict[str, Tensor]:
    """All measures but the time of pictures [n, 3, 64, 64] in bytes, each [n]."""
    true = truth.drawing(pair.subject, pair.style.style)[None].expand_as(pictures)
    subjects, styles = judges.subjects(pictures), judges.styles(pictures)
    subject, style = SUBJECTS.index(pair.subject), STYLE_NAMES.index(pair.style.style)
    right_subject, right_style = subjects.argmax(1) == subject, styles.argmax(1) == style
    return {
        "subject": right_subject.float(),
        "style": right_style.float(),
        "both": (right_subject & right_style).float(),
        "subject_probability": subjects[:, subject],
        "style_probability": styles[:, style],
        "distance": distance(pictures, true),
    }


def score_all(
    store: Store, pairs: Sequence[Pair], methods: Sequence[Method], seeds: Sequence[int]
) -> list[Scored]:
    """Scores of all methods from the pictures in the store, and of the truth."""
    from tqdm import tqdm

    judges = Judges.load(store.sampling.weights / "judges.safetensors")
    distance, maker = feature_distance(judges), Maker(store.sampling)
    scored = []
    for method in tqdm(methods, desc="scores", unit="method", leave=False, delay=1):
        rows: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
        for pair in pairs:
            made = maker.true(pair, seeds) if method.is_truth else store.get(pair, method, seeds)
            found = {**score(judges, distance, pair, made.pictures), "seconds": made.seconds}
            for name in MEASURES:
                rows[name].append(found[name])
        scored.append(Scored(method, {name: torch.stack(row) for name, row in rows.items()}))
    return scored
