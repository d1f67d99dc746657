"""The judges: which kind a picture shows, which things it wears, and in which style it is.

Small networks trained on true drawings alone, never on anything that the diffusion model made. Kind and
things are looked for at half the size; style in the whole, for it is in the details.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.files.conversion import save_tensors
from klora.files.writing import written_whole
from klora.lab.model import in_parts, to_signed
from klora.lab.world.individuals import THINGS
from klora.lab.world.kinds import SUBJECTS
from klora.lab.world.styles import STYLE_NAMES

NAME = "judges.safetensors"
WORN = 0.5
"""Probability from which a thing counts as worn."""
UNKNOWN = -1
"""Stands for a label that does not count: whether a drawing of a hat shows a hat on something."""


class Refine(nn.Module):
    """A convolution at full width beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU())

    def forward(self, seen: Tensor) -> Tensor:
        """Features [b, width, h, w] to the same shape."""
        made: Tensor = seen + self.body(seen)
        return made


class Classifier(nn.Module):
    """Strided convolutions on pictures [b, 3, h, w] in -1 to 1, then one linear layer."""

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            if before > 3:
                layers.append(Refine(width))
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * before, classes)

    def features(self, seen: Tensor) -> Tensor:
        """What the linear layer reads, [b, features]."""
        return functional.adaptive_avg_pool2d(self.body(seen), 2).flatten(1)

    def forward(self, seen: Tensor) -> Tensor:
        """Scores before the softmax, [b, classes]."""
        scores: Tensor = self.head(self.features(seen))
        return scores


class StyleClassifier(nn.Module):
    """A palette and, from each of four strided convolutions, mean and spread of every channel; no places.

    Style is in colours and textures, wherever they are. What thing is where would only mislead.
    """

    def __init__(self, classes: int, widths: tuple[int, ...] = (32, 48, 64, 96)) -> None:
        super().__init__()
        self.palette = nn.Sequential(nn.Conv2d(3, 24, 1), nn.SiLU(), nn.Conv2d(24, 32, 1), nn.SiLU())
        stages: list[nn.Module] = []
        before = 3
        for width in widths:
            # The first stage is not normalised: that would hide which colours the picture has.
            norm = nn.GroupNorm(8, width) if stages else nn.Identity()
            stages.append(nn.Sequential(nn.Conv2d(before, width, 3, 2, 1), norm, nn.SiLU()))
            before = width
        self.stages = nn.ModuleList(stages)
        self.hidden = nn.Sequential(nn.Linear(32 + 2 * sum(widths), 96), nn.SiLU())
        self.head = nn.Linear(96, classes)

    def features(self, seen: Tensor) -> Tensor:
        """What the last layer reads, [b, 96]."""
        found = [self.palette(seen).mean(dim=(2, 3))]
        for stage in self.stages:
            seen = stage(seen)
            found += [seen.mean(dim=(2, 3)), seen.var(dim=(2, 3)).add(1e-4).sqrt()]
        hidden: Tensor = self.hidden(torch.cat(found, 1))
        return hidden

    def forward(self, seen: Tensor) -> Tensor:
        """Scores before the softmax, [b, classes]."""
        scores: Tensor = self.head(self.features(seen))
        return scores


class ThingFinder(nn.Module):
    """Scores of every thing at each place of a map; of a thing's scores the largest count.

    A thing may be anywhere and is small beside the kind, so it is looked for place by place (log-sum-exp
    pooling: Pinheiro and Collobert, CVPR 2015, arXiv 1411.6228).
    """

    SHARPNESS = 3.0
    """From the mean over all places (0) to the largest score alone (infinite)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            stride = 1 if width == widths[-1] else 2
            layers += [nn.Conv2d(before, width, 3, stride, 1), nn.GroupNorm(8, width), nn.SiLU()]
            if before > 3:
                layers.append(Refine(width))
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(before, len(THINGS), 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, -4.0)  # most things are nowhere

    def features(self, seen: Tensor) -> Tensor:
        """The largest value of each channel before the scores, [b, features]."""
        return self.body(seen).amax(dim=(2, 3))  # type: ignore[no-any-return]

    def forward(self, seen: Tensor) -> Tensor:
        """Scores before the sigmoid, [b, things], for pictures [b, 3, 64, 64] in -1 to 1."""
        everywhere = self.head(self.body(seen)).flatten(2)
        scores: Tensor = torch.logsumexp(self.SHARPNESS * everywhere, 2) / self.SHARPNESS
        return scores


class SubjectJudge(nn.Module):
    """Scores of every kind and of every thing, for pictures [b, 3, 128, 128] in -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = Classifier(len(SUBJECTS), (32, 64, 128, 160))
        self.things = ThingFinder()

    def features(self, seen: Tensor) -> Tensor:
        """What both last layers read, each of length 1, [b, features]."""
        small = functional.avg_pool2d(seen, 2)
        sides = (self.kinds.features(small), self.things.features(small))
        return torch.cat([functional.normalize(side, dim=1) for side in sides], 1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the kinds [b, kinds] and of the things [b, things]."""
        small = functional.avg_pool2d(seen, 2)
        return self.kinds(small), self.things(small)


def style_judge() -> StyleClassifier:
    """A fresh style judge."""
    return StyleClassifier(len(STYLE_NAMES))


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows of scores [n, classes] whose largest is at the label [n]."""
    return float((scores.argmax(1) == labels).float().mean())


_STEP = ".step"


def _in_eight_bits(value: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, ...] in whole steps of -127 to 127, and the size of a step, [out, 1, ...]."""
    largest = value.flatten(1).abs().amax(1).clamp_min(1e-6)
    step = (largest / 127).reshape(-1, *[1] * (value.ndim - 1))
    return (value / step).round().clamp(-127, 127).to(torch.int8), step


def pack(rooms: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The weights of some networks under their names: matrices and kernels in 8 bits, others in 16."""
    named: dict[str, Tensor] = {}
    for room, network in rooms.items():
        for key, value in network.state_dict().items():
            if value.ndim < 2:
                named[f"{room}.{key}"] = value.half().contiguous()
            else:
                named[f"{room}.{key}"], named[f"{room}.{key}{_STEP}"] = _in_eight_bits(value)
    return named


def unpack(stored: dict[str, Tensor], rooms: dict[str, nn.Module]) -> None:
    """Set the weights of some networks to what `pack` made of them."""
    steps = {key.removesuffix(_STEP): stored[key].float() for key in stored if key.endswith(_STEP)}
    for room, network in rooms.items():
        keys = {key: f"{room}.{key}" for key in network.state_dict()}
        network.load_state_dict({k: stored[one].float() * steps.get(one, 1.0) for k, one in keys.items()})


def worn(things: frozenset[str]) -> Tensor:
    """1 for each of `THINGS` that is worn, [things]."""
    return torch.tensor([int(thing in things) for thing in THINGS])


def same_things(probabilities: Tensor, worn: Tensor) -> Tensor:
    """Whether exactly the things of `worn` [n, things] are seen, [n]; `UNKNOWN` does not count."""
    return (((probabilities > WORN) == (worn > 0)) | (worn == UNKNOWN)).all(1)


@dataclass
class Judges:
    """The trained judges; every question is asked of pictures [n, 3, 128, 128] in bytes."""

    subject: SubjectJudge
    style: StyleClassifier

    @torch.no_grad()
    def kinds_and_things(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of `SUBJECTS` [n, kinds], which add up to 1, and of each of `THINGS` [n, things]."""
        found = [self.subject(to_signed(part)) for part in in_parts(drawn)]
        kinds, things = (torch.cat(side) for side in zip(*found, strict=True))
        return kinds.softmax(1), things.sigmoid()

    @torch.no_grad()
    def styles(self, drawn: Tensor) -> Tensor:
        """Probability of each of `STYLE_NAMES`, [n, styles]."""
        return torch.cat([self.style(to_signed(part)).softmax(1) for part in in_parts(drawn)])

    @torch.no_grad()
    def features(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layers of both judges read, each [n, features]."""
        parts = [to_signed(part) for part in in_parts(drawn)]
        return (
            torch.cat([self.subject.features(part) for part in parts]),
            torch.cat([self.style.features(part) for part in parts]),
        )

    def save(self, path: Path) -> None:
        """Write both judges to one file: matrices and kernels in 8 bits, the rest in 16-bit floats."""
        with written_whole(path) as draft:
            save_tensors(pack({"subject": self.subject, "style": self.style}), draft, {})

    @classmethod
    def load(cls, path: Path) -> Judges:
        """Read the judges from their file."""
        from safetensors.torch import load_file

        judges = cls(SubjectJudge().eval(), style_judge().eval())
        unpack(load_file(path), {"subject": judges.subject, "style": judges.style})
        return judges


@lru_cache(maxsize=1)
def judges_of(weights: Path) -> Judges:
    """The judges of a folder of weights, loaded once in each process."""
    return Judges.load(weights / NAME)
