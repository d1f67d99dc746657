"""How far a picture is from the true drawing; chosen because it ranks obvious cases right.

Pixels, edges and latents do not see style: by them the plain drawing of the right subject is nearer to the
truth than any styled picture of it. What the last layers of the two judges read does: one half of the
distance tells subjects apart and hardly minds style, the other tells styles apart and hardly minds subject.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from klora.lab.autoencoder import to_signed
from klora.lab.judges import Judges
from klora.lab.lessons import distort

Distance = Callable[[Tensor, Tensor], Tensor]
"""Distance of pictures from true ones, both [n, 3, 64, 64] in bytes: [n], 0 if equal."""


def feature_distance(judges: Judges) -> Distance:
    """Mean over both judges of the cosine distance of what their last layer reads, 0 to 2."""

    @torch.no_grad()
    def distance(made: Tensor, true: Tensor) -> Tensor:
        apart = [
            1 - functional.cosine_similarity(judge.features(to_signed(made)), judge.features(to_signed(true)))  # type: ignore[operator]
            for judge in (judges.subject, judges.style)
        ]
        return torch.stack(apart).mean(0)

    return distance


def pixel_distance(made: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of pixels, 0 to 2, [n]: what a measure that sees no style looks like."""
    return (to_signed(made) - to_signed(true)).abs().mean(dim=(1, 2, 3))


def obvious_cases(distance: Distance, drawn: Tensor, seed: int = 0) -> dict[str, float]:
    """Share of obvious cases that a distance ranks right.

    `drawn` [subjects, styles, 3, 64, 64] in bytes are true drawings. Each is the truth in turn; beside it
    stand the same drawing moved, blurred and noisy, the subject in another style, another subject in
    the style, and another subject in another style, each pair of other subject and other style in turn.
    """
    subjects, styles = drawn.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    rows = [
        (i, j, a, b)
        for i in range(subjects)
        for j in range(styles)
        for a, b in _others(i, j, subjects, styles)
    ]
    i, j, a, b = torch.tensor(rows).T
    true = drawn[i, j]
    shaken = distort(to_signed(true), generator, colours=False)
    same = distance(((shaken + 1) * 127.5).round().byte(), true)
    restyled, other, wrong = (distance(drawn[x, y], true) for x, y in ((i, b), (a, j), (a, b)))
    return {
        "distorted truth before right subject, wrong style": _share(same < restyled),
        "distorted truth before wrong subject, right style": _share(same < other),
        "right subject, wrong style before wrong subject, wrong style": _share(restyled < wrong),
        "wrong subject, right style before wrong subject, wrong style": _share(other < wrong),
    }


def _others(subject: int, style: int, subjects: int, styles: int) -> list[tuple[int, int]]:
    """Other subjects beside other styles: every other style, each with a few other subjects."""
    return [
        ((subject + step) % subjects, (style + move) % styles)
        for move in range(1, styles)
        for step in range(move, subjects, styles)
    ]


def _share(ranked: Tensor) -> float:
    """Share of true entries."""
    return float(ranked.float().mean())
