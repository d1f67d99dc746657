"""Two independent judges: which subject a picture shows, and in which style.

Small classifiers trained on the true drawings alone, never on anything that the diffusion model made. The
style judge never sees the lab's held-out subjects, so its accuracy is on drawings of unknown things. The
subject judge must know the held-out subjects in all styles; of every base subject one drawing, in a style
that rotates, is kept out of its training, so that its accuracy there is on drawings by a hand it has not
seen draw this subject.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.lab import world
from klora.lab.autoencoder import kept_average, pictures, to_signed
from klora.lab.loop import Loop, Plan, device

BATCH = 64
SUBJECTS: tuple[str, ...] = world.BASE_SUBJECTS + world.HELD_OUT_SUBJECTS
STYLE_NAMES: tuple[str, ...] = tuple(world.STYLES)
SUBJECT_PLAN = Plan(steps=2400, rate=3e-3, averaging=0.998, seed=1)
STYLE_PLAN = Plan(steps=3000, rate=3e-3, averaging=0.998, seed=2)


class Classifier(nn.Module):
    """Strided convolutions on pictures [b, 3, 64, 64] in -1 to 1, then one linear layer."""

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
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


def subject_classifier() -> Classifier:
    """A fresh subject judge."""
    return Classifier(len(SUBJECTS), (32, 64, 96, 128))


def style_classifier() -> Classifier:
    """A fresh style judge."""
    return Classifier(len(STYLE_NAMES), (32, 48, 64, 96))


@dataclass
class Drawings:
    """True drawings with their labels."""

    drawn: Tensor
    """[n, 3, 64, 64] in bytes."""
    subject: Tensor
    """Index into `SUBJECTS`, [n]."""
    style: Tensor
    """Index into `STYLE_NAMES`, [n]."""

    def where(self, chosen: Tensor) -> Drawings:
        """The drawings for which `chosen` [n] is true."""
        return Drawings(self.drawn[chosen], self.subject[chosen], self.style[chosen])


def all_drawings(cache: Path) -> Drawings:
    """Every true drawing of the world; rendered once."""
    path = cache / "drawings.pt"
    if not path.exists():
        torch.save(pictures(cache, SUBJECTS, tuple(world.STYLES.values())), path)
    labels = [
        (i, j)
        for i, subject in enumerate(SUBJECTS)
        for j, style in enumerate(world.STYLES.values())
        if world.exists(cache, subject, style)
    ]
    subject, style = torch.tensor(labels).T
    return Drawings(torch.load(path, weights_only=True), subject, style)


def style_lessons(cache: Path) -> Drawings:
    """What the style judge learns from: all that the sets draw but the held-out subjects."""
    drawings = all_drawings(cache)
    drawings = drawings.where(drawings.subject < len(world.BASE_SUBJECTS))
    styles = (*world.BASE_STYLES, world.STYLES["firefox"])
    others = world.other_subjects(cache)
    path = cache / "other-drawings.pt"
    if not path.exists():
        torch.save(pictures(cache, others, styles), path)
    labels = [STYLE_NAMES.index(s.name) for name in others for s in styles if world.exists(cache, name, s)]
    return Drawings(
        torch.cat([drawings.drawn, torch.load(path, weights_only=True)]),
        torch.cat([drawings.subject, torch.full((len(labels),), -1)]),
        torch.cat([drawings.style, torch.tensor(labels)]),
    )


def kept_out_of_subjects(drawings: Drawings) -> Tensor:
    """True for the one drawing of every base subject that the subject judge does not learn from, [n]."""
    base = drawings.subject < len(world.BASE_SUBJECTS)
    return base & (drawings.style == drawings.subject % len(STYLE_NAMES))


def distort(seen: Tensor, generator: torch.Generator, colours: bool) -> Tensor:
    """Shifted, turned, resized, blurred, noisy pictures; with `colours` also tints, greys and negatives.

    No flips: the truth stays unambiguous.
    """
    count = len(seen)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    turn, size = uniform(-0.2, 0.2), uniform(0.85, 1.2)
    cosine, sine = size * turn.cos(), size * turn.sin()
    shift = 0.12 * (2 * torch.rand(count, 2, generator=generator) - 1)
    rows = [torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(seen.shape), align_corners=False)
    moved = functional.grid_sample(seen, grid, padding_mode="border", align_corners=False)
    soft = functional.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)
    blur = uniform(-0.5, 1).clamp_min(0)[:, None, None, None]
    moved = moved + blur * (soft - moved)
    if colours:
        moved = _recolour(moved, generator)
    noise = torch.randn(moved.shape, generator=generator) * uniform(0, 0.1)[:, None, None, None]
    return (moved + noise).clamp(-1, 1)


def _recolour(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Mix the channels at random, turn some pictures grey and some negative, so that shape must count."""
    count = len(seen)
    mix = torch.eye(3) + 0.25 * torch.randn(count, 3, 3, generator=generator)
    mixed = torch.einsum("bij,bjhw->bihw", mix / mix.sum(-1, keepdim=True), seen)
    grey = seen.mean(1, keepdim=True).expand_as(seen)
    chance = torch.rand(count, generator=generator)[:, None, None, None]
    mixed = torch.where(chance < 0.5, seen, torch.where(chance < 0.75, mixed, grey))
    negative = torch.rand(count, generator=generator)[:, None, None, None] < 0.1
    return torch.where(negative, -mixed, mixed)


def _train(name: str, model: Classifier, drawings: Drawings, labels: Tensor, plan: Plan, cache: Path) -> Loop:
    """Train a judge with distorted drawings."""
    loop = Loop(name, cache / "checkpoints", model, plan)
    # Every style as often as any other, though one set is much smaller.
    weight = 1 / drawings.style.bincount(minlength=len(STYLE_NAMES))[drawings.style].float()

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(weight, BATCH, replacement=True, generator=generator)
        seen = distort(to_signed(drawings.drawn[chosen]), generator, colours=name == "subject-judge")
        scores = loop.model(seen.to(device()))
        return functional.cross_entropy(scores, labels[chosen].to(device()), label_smoothing=0.02)

    loop.run(loss_of, math.inf)
    return loop


def train(cache: Path) -> dict[str, float]:
    """Train both judges and report their accuracy on drawings kept out of their training."""
    drawings = all_drawings(cache)
    kept_out = kept_out_of_subjects(drawings)
    torch.manual_seed(SUBJECT_PLAN.seed)
    learnt = drawings.where(~kept_out)
    subject = _train("subject-judge", subject_classifier(), learnt, learnt.subject, SUBJECT_PLAN, cache)
    held_out = drawings.subject >= len(world.BASE_SUBJECTS)
    torch.manual_seed(STYLE_PLAN.seed)
    learnt = style_lessons(cache)
    style = _train("style-judge", style_classifier(), learnt, learnt.style, STYLE_PLAN, cache)
    judges = Judges(subject.averaged(), style.averaged())
    unseen, strangers = drawings.where(kept_out), drawings.where(held_out)
    return {
        "subject, kept-out drawings": accuracy(judges.subjects(unseen.drawn), unseen.subject),
        "subject, fresh distortions of known drawings": _distorted_accuracy(
            judges, drawings.where(~kept_out)
        ),
        "subject, held-out subjects": accuracy(judges.subjects(strangers.drawn), strangers.subject),
        "style, held-out subjects": accuracy(judges.styles(strangers.drawn), strangers.style),
    }


def _distorted_accuracy(judges: Judges, drawings: Drawings) -> float:
    """Accuracy of the subject judge on drawings it learned from, distorted anew but not recoloured."""
    generator = torch.Generator().manual_seed(9)
    seen = distort(to_signed(drawings.drawn), generator, colours=False)
    with torch.no_grad():
        return accuracy(judges.subject(seen), drawings.subject)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows of scores [n, classes] whose largest is at the label [n]."""
    return float((scores.argmax(1) == labels).float().mean())


@dataclass
class Judges:
    """The trained judges."""

    subject: nn.Module
    style: nn.Module

    @torch.no_grad()
    def subjects(self, drawn: Tensor) -> Tensor:
        """Probability of each of `SUBJECTS` for pictures [n, 3, 64, 64] in bytes."""
        scores: Tensor = self.subject(to_signed(drawn)).softmax(1)
        return scores

    @torch.no_grad()
    def styles(self, drawn: Tensor) -> Tensor:
        """Probability of each of `STYLE_NAMES` for pictures [n, 3, 64, 64] in bytes."""
        scores: Tensor = self.style(to_signed(drawn)).softmax(1)
        return scores

    def save(self, path: Path) -> None:
        """Write both judges to one file, in 16-bit floats."""
        from safetensors.torch import save_file

        rooms = {"subject": self.subject, "style": self.style}
        save_file(
            {
                f"{room}.{k}": v.half().contiguous()
                for room, m in rooms.items()
                for k, v in m.state_dict().items()
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> Judges:
        """Read the judges from their file."""
        from safetensors.torch import load_file

        stored = load_file(path)
        judges = cls(subject_classifier().eval(), style_classifier().eval())
        for room, network in (("subject", judges.subject), ("style", judges.style)):
            network.load_state_dict({k: stored[f"{room}.{k}"].float() for k in network.state_dict()})
        return judges

    @classmethod
    def from_cache(cls, cache: Path) -> Judges:
        """The judges as training left them in the cache."""
        judges = cls(subject_classifier().eval(), style_classifier().eval())
        for name, network in (("subject-judge", judges.subject), ("style-judge", judges.style)):
            network.load_state_dict(kept_average(cache, name))
        return judges
