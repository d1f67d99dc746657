"""Two independent judges: which subject a picture shows, and in which style; and how far the truth is.

Small classifiers trained on true drawings alone, never on anything that the diffusion model made.

What is kept out, for the accuracies that `train` reports:

- Style judge: all drawings of the lab's held-out subjects, and of every tenth of 900 subjects outside the
  lab's world. Its accuracy is so on pictures of things it has never seen.
- Subject judge: one drawing of nine in ten base subjects, in a style that rotates over the lab's seven. In
  vintage the judge has seen no drawing of this subject by that set ("by an unseen hand", the hard cases: one
  subject in 21). In the other styles it has seen the same shapes in a sibling style or set. That is
  close to what the lab asks of it: to name one of the subjects it knows, in one of the lab's styles. Both
  figures are reported. It must know the held-out subjects in all styles, so that none of their drawings are
  kept out; for them distortions that it has not met are reported.

The subject judge first learns to tell apart subjects outside the lab's world too, as classes that are then
dropped, and sees further icon sets: more hands for each subject teach it what a hand may change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.lab import world
from klora.lab.autoencoder import disturb, kept_average, reconstruct, to_signed
from klora.lab.lessons import STYLE_NAMES as STYLE_NAMES
from klora.lab.lessons import SUBJECTS as SUBJECTS
from klora.lab.lessons import (
    Drawings,
    all_drawings,
    by_an_unseen_hand,
    distort,
    kept_out_of_styles,
    kept_out_of_subjects,
)
from klora.lab.loop import Loop, Plan, device
from klora.lab.model import in_parts

BATCH = 64
KNOWN_SHARE = 0.65
"""Share of the subject judge's lessons that show subjects of the lab's world."""
LESSONS_PLAN = Plan(steps=2300, rate=2e-3, fall=0.5, averaging=0.995, seed=1)
SUBJECT_PLAN = Plan(steps=2000, rate=2e-3, warmup=50, fall=0.8, averaging=0.99, seed=3)
DISTURBANCE = 0.4
"""Most noise on the latents of drawings that the judges learn from, in their own deviation."""
STYLE_PLAN = Plan(steps=2000, rate=3e-3, warmup=50, fall=0.6, averaging=0.99, seed=2)


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
    """Strided convolutions on pictures [b, 3, 64, 64] in -1 to 1, then one linear layer."""

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


def subject_classifier(classes: int = len(SUBJECTS)) -> Classifier:
    """A fresh subject judge."""
    return Classifier(classes, (32, 64, 128, 160))


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


def style_classifier() -> StyleClassifier:
    """A fresh style judge."""
    return StyleClassifier(len(STYLE_NAMES))


def _shares(drawings: Drawings) -> Tensor:
    """How often each drawing is shown to the subject judge, [n]: all subjects of a kind alike."""
    often = 1 / drawings.subject.bincount()[drawings.subject].float()
    known = drawings.subject < len(SUBJECTS)
    often[known] *= KNOWN_SHARE / often[known].sum()
    if not known.all():
        often[~known] *= (1 - KNOWN_SHARE) / often[~known].sum()
    return often


def _train(
    name: str,
    model: Classifier | StyleClassifier,
    drawn: Tensor,
    labels: Tensor,
    often: Tensor,
    plan: Plan,
    cache: Path,
) -> Loop:
    """Train a judge with distorted drawings."""
    # Muon on a head of 1,170 classes would cost more than the rest of a step.
    loop = Loop(name, cache / "checkpoints", model, plan, muon=len(model.head.weight) < 1000)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        seen = distort(to_signed(drawn[chosen]), generator, colours=name != "style-judge")
        with torch.autocast(device().type, dtype=torch.bfloat16):
            scores = loop.model(seen.to(device()))
        return functional.cross_entropy(scores.float(), labels[chosen].to(device()), label_smoothing=0.05)

    loop.run(loss_of, math.inf)
    return loop


def train_subject_judge(cache: Path, drawings: Drawings, autoencoder: nn.Module) -> None:
    """Train the subject judge, or go on: on all subjects, then on those of the lab's world, in all views."""
    learnt = drawings.where(~kept_out_of_subjects(drawings))
    torch.manual_seed(LESSONS_PLAN.seed)
    model = subject_classifier(int(drawings.subject.max()) + 1)
    often = _shares(learnt)
    _train("subject-lessons", model, learnt.drawn, learnt.subject, often, LESSONS_PLAN, cache)
    judge, known = subject_classifier(), learnt.where(learnt.subject < len(SUBJECTS))
    judge.load_state_dict(known_classes(kept_average(cache, "subject-lessons")))
    often = _shares(known).repeat(3)
    drawn = views(autoencoder, known.drawn, SUBJECT_PLAN.seed)
    _train("subject-judge", judge, drawn, known.subject.repeat(3), often, SUBJECT_PLAN, cache)


def known_classes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A subject judge's weights without the classes outside the lab's world."""
    return {k: v[: len(SUBJECTS)] if k.startswith("head.") else v for k, v in weights.items()}


def in_bytes(seen: Tensor) -> Tensor:
    """Pictures in -1 to 1 as bytes."""
    return ((seen + 1) * 127.5).round().clamp(0, 255).byte()


def through(autoencoder: nn.Module, drawn: Tensor) -> Tensor:
    """Pictures [n, 3, 64, 64] in bytes as the autoencoder gives them back: the best that a sample can be."""
    return in_bytes(reconstruct(autoencoder, to_signed(drawn)))


def views(autoencoder: nn.Module, drawn: Tensor, seed: int) -> Tensor:
    """Every drawing [n, 3, 64, 64] in bytes three times, [3n, 3, 64, 64]: as it is, as the autoencoder gives
    it back, and with its latents disturbed.

    A small autoencoder softens details and a sampler leaves them uneven; a judge of sharp drawings alone
    would mistake that for another subject or style.
    """
    generator = torch.Generator().manual_seed(seed)
    uneven = in_bytes(disturb(autoencoder, to_signed(drawn), DISTURBANCE, generator))
    return torch.cat([drawn, through(autoencoder, drawn), uneven])


def train_style_judge(cache: Path, drawings: Drawings, autoencoder: nn.Module) -> None:
    """Train the style judge, or go on; every style is shown as often as any other."""
    learnt = drawings.where((drawings.style < len(STYLE_NAMES)) & ~kept_out_of_styles(drawings))
    often = (1 / learnt.style.bincount()[learnt.style].float()).repeat(3)
    drawn = views(autoencoder, learnt.drawn, STYLE_PLAN.seed)
    torch.manual_seed(STYLE_PLAN.seed)
    _train("style-judge", style_classifier(), drawn, learnt.style.repeat(3), often, STYLE_PLAN, cache)


def train(cache: Path, autoencoder: nn.Module) -> dict[str, float]:
    """Train both judges and report their accuracy on drawings kept out of their training."""
    drawings = all_drawings(cache)
    train_style_judge(cache, drawings, autoencoder)
    train_subject_judge(cache, drawings, autoencoder)
    return accuracies(Judges.from_cache(cache), drawings, autoencoder)


def accuracies(judges: Judges, drawings: Drawings, autoencoder: nn.Module) -> dict[str, float]:
    """Accuracy of both judges on drawings that they did not learn from."""
    kept = drawings.where(kept_out_of_subjects(drawings))
    strange = by_an_unseen_hand(kept)
    held = drawings.where(
        (drawings.subject >= len(world.BASE_SUBJECTS))
        & (drawings.subject < len(SUBJECTS))
        & (drawings.style < len(STYLE_NAMES))
    )
    unseen = drawings.where((drawings.style < len(STYLE_NAMES)) & kept_out_of_styles(drawings))
    named = judges.subjects(kept.drawn).argmax(1) == kept.subject
    soft = through(autoencoder, held.drawn)
    return {
        "subject, kept-out drawings": float(named.float().mean()),
        "subject, kept-out drawings by an unseen hand": float(named[strange].float().mean()),
        "subject, kept-out drawings of known shapes": float(named[~strange].float().mean()),
        "subject, fresh distortions of the held-out subjects": _distorted_accuracy(judges, held),
        "style, kept-out drawings": accuracy(judges.styles(unseen.drawn), unseen.style),
        "style, held-out subjects alone": accuracy(judges.styles(held.drawn), held.style),
        "subject, held-out subjects through the autoencoder": accuracy(judges.subjects(soft), held.subject),
        "style, held-out subjects through the autoencoder": accuracy(judges.styles(soft), held.style),
    }


def _distorted_accuracy(judges: Judges, drawings: Drawings) -> float:
    """Accuracy of the subject judge on drawings distorted anew but not recoloured."""
    generator = torch.Generator().manual_seed(9)
    seen = distort(to_signed(drawings.drawn), generator, colours=False)
    with torch.no_grad():
        return accuracy(torch.cat([judges.subject(part) for part in in_parts(seen)]), drawings.subject)


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


@dataclass
class Judges:
    """The trained judges."""

    subject: nn.Module
    style: nn.Module

    @torch.no_grad()
    def subjects(self, drawn: Tensor) -> Tensor:
        """Probability of each of `SUBJECTS` for pictures [n, 3, 64, 64] in bytes."""
        return torch.cat([self.subject(to_signed(part)).softmax(1) for part in in_parts(drawn)])

    @torch.no_grad()
    def styles(self, drawn: Tensor) -> Tensor:
        """Probability of each of `STYLE_NAMES` for pictures [n, 3, 64, 64] in bytes."""
        return torch.cat([self.style(to_signed(part)).softmax(1) for part in in_parts(drawn)])

    def save(self, path: Path) -> None:
        """Write both judges to one file: matrices and kernels in 8 bits, the rest in 16-bit floats."""
        from safetensors.torch import save_file

        save_file(pack({"subject": self.subject, "style": self.style}), path)

    @classmethod
    def load(cls, path: Path) -> Judges:
        """Read the judges from their file."""
        from safetensors.torch import load_file

        judges = cls(subject_classifier().eval(), style_classifier().eval())
        unpack(load_file(path), {"subject": judges.subject, "style": judges.style})
        return judges

    @classmethod
    def from_cache(cls, cache: Path) -> Judges:
        """The judges as training left them in the cache."""
        judges = cls(subject_classifier().eval(), style_classifier().eval())
        for name, network in (("subject-judge", judges.subject), ("style-judge", judges.style)):
            network.load_state_dict(kept_average(cache, name))
        return judges
