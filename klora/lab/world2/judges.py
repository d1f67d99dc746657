"""The judges of world 2: which kind a picture shows, which things it wears, and in which style it is.

Small classifiers trained on true drawings alone, never on anything that the diffusion model made. Kind and
things share one body, which looks at half the size; style looks at the whole, for it is in the details.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.lab.autoencoder import disturb, kept_average, reconstruct, to_signed
from klora.lab.judges import Classifier, StyleClassifier, accuracy, in_bytes, pack, unpack
from klora.lab.lessons import distort
from klora.lab.loop import Loop, Plan, device
from klora.lab.model import in_parts
from klora.lab.world2.individuals import THINGS
from klora.lab.world2.kinds import SUBJECTS
from klora.lab.world2.lessons import (
    STYLE_NAMES,
    UNKNOWN,
    Drawings,
    composed,
    joined,
    kept_out_of_kinds,
    kept_out_of_styles,
    of_kinds,
    trial,
)

BATCH = 64
DISTURBANCE = 0.4
"""Most noise on the latents of drawings that the judges learn from, in their own deviation."""
THING_WEIGHT = 4.0
"""Weight of naming the things beside naming the kind."""
OWN_SHARE = 0.5
"""Share of the judge's lessons that are composed drawings."""
SMOOTHING = 0.05
WORN = 0.5
"""Probability from which a thing counts as worn."""
SUBJECT_PLAN = Plan(steps=4500, rate=2e-3, warmup=50, fall=0.6, averaging=0.995, seed=1)
STYLE_PLAN = Plan(steps=1500, rate=3e-3, warmup=50, fall=0.6, averaging=0.99, seed=2)


class SubjectJudge(nn.Module):
    """Scores of every kind and, after them, of every thing, for pictures [b, 3, 128, 128] in -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Classifier(len(SUBJECTS) + len(THINGS), (32, 64, 128, 160))

    def features(self, seen: Tensor) -> Tensor:
        """What the last layer reads, [b, features]."""
        return self.network.features(functional.avg_pool2d(seen, 2))

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the kinds [b, kinds] and of the things [b, things]."""
        return self.scores(functional.avg_pool2d(seen, 2))

    def scores(self, small: Tensor) -> tuple[Tensor, Tensor]:
        """The same for pictures that are reduced already, [b, 3, 64, 64]."""
        scores: Tensor = self.network(small)
        return scores[:, : len(SUBJECTS)], scores[:, len(SUBJECTS) :]


def style_judge() -> StyleClassifier:
    """A fresh style judge."""
    return StyleClassifier(len(STYLE_NAMES))


def views(autoencoder: nn.Module, drawn: Tensor, seed: int) -> Tensor:
    """One other view of each drawing [n, 3, 128, 128] in bytes: by lot as the autoencoder gives it back, or
    with its latents disturbed as well."""
    generator = torch.Generator().manual_seed(seed)
    is_uneven = torch.rand(len(drawn), generator=generator) < 0.5
    seen = drawn.clone()
    for chosen, most in ((is_uneven, DISTURBANCE), (~is_uneven, 0.0)):
        parts = [disturb(autoencoder, to_signed(part), most, generator) for part in in_parts(drawn[chosen])]
        seen[chosen] = torch.cat([in_bytes(part) for part in parts])
    return seen


def other_views(cache: Path, autoencoder: nn.Module, drawings: Drawings) -> Tensor:
    """`views` of all lessons; made once."""
    path = cache / "drawings" / "views.pt"
    if not path.exists():
        torch.save(views(autoencoder, drawings.drawn, 1), path)
    kept: Tensor = torch.load(path, weights_only=True)
    return kept


def reduced(drawn: Tensor) -> Tensor:
    """Pictures [n, 3, 128, 128] in bytes at half the size."""
    return torch.cat([functional.avg_pool2d(part.float(), 2).round().byte() for part in in_parts(drawn)])


def thing_loss(scores: Tensor, worn: Tensor) -> Tensor:
    """Binary cross-entropy of the things [b, things]; `UNKNOWN` does not count."""
    known = (worn != UNKNOWN).float()
    each = functional.binary_cross_entropy_with_logits(scores, worn.clamp_min(0).float(), reduction="none")
    return (each * known).sum() / known.sum()


def train_subject_judge(cache: Path, lessons: Drawings, others: Tensor) -> Loop:
    """Train the judge of kinds and things, or go on: half on composed drawings, half on plain ones."""
    is_composed = torch.arange(len(lessons.kind)) >= len(SUBJECTS) * len(STYLE_NAMES)
    learnt = ~kept_out_of_kinds(lessons) | is_composed
    often = torch.where(is_composed, OWN_SHARE / is_composed.sum(), (1 - OWN_SHARE) / (~is_composed).sum())
    often = often * learnt
    drawn, other = reduced(lessons.drawn), reduced(others)
    torch.manual_seed(SUBJECT_PLAN.seed)
    loop = Loop("subject-judge", cache / "checkpoints", SubjectJudge(), SUBJECT_PLAN)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        is_other = torch.rand(BATCH, generator=generator) < 0.5
        shown = torch.where(is_other[:, None, None, None], other[chosen], drawn[chosen])
        seen = distort(to_signed(shown), generator, colours=True)
        with torch.autocast(device().type, dtype=torch.bfloat16):
            kinds, things = loop.model.scores(seen.to(device()))  # type: ignore[operator]
        naming = functional.cross_entropy(
            kinds.float(), lessons.kind[chosen].to(device()), label_smoothing=0.05
        )
        return naming + THING_WEIGHT * thing_loss(things.float(), lessons.things[chosen].to(device()))

    loop.run(loss_of, math.inf)
    return loop


def train_style_judge(cache: Path, lessons: Drawings, others: Tensor) -> Loop:
    """Train the judge of styles, or go on."""
    often = (~kept_out_of_styles(lessons)).float()
    torch.manual_seed(STYLE_PLAN.seed)
    loop = Loop("style-judge", cache / "checkpoints", style_judge(), STYLE_PLAN)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        is_other = torch.rand(BATCH, generator=generator) < 0.6
        shown = torch.where(is_other[:, None, None, None], others[chosen], lessons.drawn[chosen])
        seen = distort(to_signed(shown), generator, colours=False)
        with torch.autocast(device().type, dtype=torch.bfloat16):
            scores = loop.model(seen.to(device()))
        return functional.cross_entropy(
            scores.float(), lessons.style[chosen].to(device()), label_smoothing=0.05
        )

    loop.run(loss_of, math.inf)
    return loop


def train(cache: Path, autoencoder: nn.Module) -> None:
    """Train both judges, or go on."""
    lessons = joined([of_kinds(cache), composed(cache)])
    others = other_views(cache, autoencoder, lessons)
    train_style_judge(cache, lessons, others)
    train_subject_judge(cache, lessons, others)


@dataclass
class Judges:
    """The trained judges of world 2; every question is asked of pictures [n, 3, 128, 128] in bytes."""

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
        from safetensors.torch import save_file

        save_file(pack({"subject": self.subject, "style": self.style}), path)

    @classmethod
    def load(cls, path: Path) -> Judges:
        """Read the judges from their file."""
        from safetensors.torch import load_file

        judges = cls(SubjectJudge().eval(), style_judge().eval())
        unpack(load_file(path), {"subject": judges.subject, "style": judges.style})
        return judges

    @classmethod
    def from_cache(cls, cache: Path) -> Judges:
        """The judges as training left them in the cache."""
        judges = cls(SubjectJudge().eval(), style_judge().eval())
        judges.subject.load_state_dict(kept_average(cache, "subject-judge"))
        judges.style.load_state_dict(kept_average(cache, "style-judge"))
        return judges


def same_things(probabilities: Tensor, worn: Tensor) -> Tensor:
    """Whether exactly the things of `worn` [n, things] are seen, [n]; `UNKNOWN` does not count."""
    return (((probabilities > WORN) == (worn > 0)) | (worn == UNKNOWN)).all(1)


def _named(judges: Judges, drawings: Drawings, drawn: Tensor) -> tuple[float, float]:
    """Share of drawings whose kind is named right, and whose kind and things are."""
    kinds, things = judges.kinds_and_things(drawn)
    kind = kinds.argmax(1) == drawings.kind
    identity = kind & same_things(things, drawings.things)
    return float(kind.float().mean()), float(identity.float().mean())


def accuracies(judges: Judges, cache: Path, autoencoder: nn.Module) -> dict[str, float]:
    """Accuracy of the judges on drawings that they did not learn from, as they are and through the
    autoencoder."""
    plain = of_kinds(cache)
    own, mistakable = trial(cache)
    styles = plain.where(kept_out_of_styles(plain))
    found: dict[str, float] = {}
    for view in ("kept-out drawings", "through the autoencoder"):

        def seen(drawings: Drawings, view: str = view) -> Tensor:
            if view == "kept-out drawings":
                return drawings.drawn
            return in_bytes(reconstruct(autoencoder, to_signed(drawings.drawn)))

        kinds = plain.where(kept_out_of_kinds(plain))
        found[f"kind, {view}"] = _named(judges, kinds, seen(kinds))[0]
        found[f"style, {view}"] = accuracy(judges.styles(seen(styles)), styles.style)
        found[f"style, individuals, {view}"] = accuracy(judges.styles(seen(own)), own.style)
        found[f"kind, individuals, {view}"], found[f"identity, {view}"] = _named(judges, own, seen(own))
        found[f"identity, what could be mistaken, {view}"] = _named(judges, mistakable, seen(mistakable))[1]
    return found
