"""Training of the judges on true drawings, and their accuracy on those kept out of their lessons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from klora.lab.judges import UNKNOWN, Judges, SubjectJudge, accuracy, same_things, style_judge
from klora.lab.keeping import kept
from klora.lab.model import in_bytes, in_parts, to_signed
from klora.lab.training.autoencoder import disturb, kept_average, reconstruct
from klora.lab.training.distortion import distort
from klora.lab.training.lessons import (
    Drawings,
    by_other_hands,
    composed,
    in_judged_styles,
    joined,
    kept_out_of_kinds,
    kept_out_of_styles,
    of_kinds,
    trial,
)
from klora.lab.training.loop import Loop, Plan, device, halved

BATCH = 64
DISTURBANCE = 0.4
"""Most noise on the latents of drawings that the judges learn from, in their own deviation."""
GROUPS: dict[str, Callable[[Path], Drawings]] = {
    "kinds": of_kinds,
    "composed": composed,
    "hands": by_other_hands,
}
"""The lessons: plain drawings, composed ones, and those of further designers."""
Shares = dict[str, float]
"""How much of a judge's lessons is of each of `GROUPS`."""
KIND_SHARES: Shares = {"kinds": 0.35, "composed": 0.35, "hands": 0.3}
THING_SHARES: Shares = {"kinds": 0.15, "composed": 0.85, "hands": 0.0}
WORN_WEIGHT = 3.0
"""How much more a thing that is worn counts than the many that are not."""
RECOLOURED = 0.4
"""Share of the judge of things' batches that are recoloured."""
KIND_PLAN = Plan(steps=10_000, rate=2e-3, warmup=50, fall=0.6, averaging=0.995, seed=1)
THING_PLAN = Plan(steps=19_500, rate=2e-3, warmup=50, fall=0.6, averaging=0.995, seed=3)
STYLE_PLAN = Plan(steps=1500, rate=3e-3, warmup=50, fall=0.6, averaging=0.99, seed=2)


def views(autoencoder: nn.Module, drawn: Tensor, seed: int) -> Tensor:
    """One other view of each drawing [n, 3, 128, 128] in bytes: by lot as the autoencoder gives it back, or
    with its latents disturbed as well."""
    generator = torch.Generator().manual_seed(seed)
    is_uneven = torch.rand(len(drawn), generator=generator) < 0.5
    seen = drawn.clone()
    with tqdm(total=len(drawn), desc="views", mininterval=10) as bar:
        for chosen, most in ((is_uneven, DISTURBANCE), (~is_uneven, 0.0)):
            made = []
            for part in in_parts(drawn[chosen]):
                made.append(in_bytes(disturb(autoencoder, to_signed(part), most, generator)))
                bar.update(len(part))
            seen[chosen] = torch.cat(made)
    return seen


def other_views(cache: Path, autoencoder: nn.Module, group: str, drawings: Drawings) -> Tensor:
    """`views` of the drawings of one of `GROUPS`; made once."""
    path = cache / "drawings" / f"views-{group}.pt"
    seen: Tensor = kept(path, lambda: views(autoencoder, drawings.drawn, 1))
    return seen


def reduced(drawn: Tensor) -> Tensor:
    """Pictures [n, 3, 128, 128] in bytes at half the size."""
    return torch.cat([functional.avg_pool2d(part.float(), 2).round().byte() for part in in_parts(drawn)])


def mirrored(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures [b, 3, h, w] mirrored, by lot: designers let the same thing look left or right."""
    is_mirrored = torch.rand(len(seen), generator=generator) < 0.5
    return torch.where(is_mirrored[:, None, None, None], seen.flip(-1), seen)


def thing_loss(scores: Tensor, worn: Tensor) -> Tensor:
    """Binary cross-entropy of the things [b, things]; `UNKNOWN` does not count."""
    known = (worn != UNKNOWN).float()
    each = functional.binary_cross_entropy_with_logits(
        scores, worn.clamp_min(0).float(), reduction="none", pos_weight=torch.tensor(WORN_WEIGHT)
    )
    return (each * known).sum() / known.sum()


@dataclass(frozen=True)
class Reduced:
    """The lessons and their other views, [n, 3, 64, 64] in bytes, and of which of `GROUPS` each is, [n]."""

    lessons: Drawings
    drawn: Tensor
    others: Tensor
    group: Tensor

    def often(self, shares: Shares, learnt: Tensor) -> Tensor:
        """How often each lesson is shown, [n]; those that are not `learnt` [n] never."""
        counts = torch.bincount(self.group, minlength=len(GROUPS))
        return (torch.tensor([shares[name] for name in GROUPS]) / counts)[self.group] * learnt

    def seen(self, chosen: Tensor, generator: torch.Generator, colours: bool) -> Tensor:
        """Distorted pictures of the chosen lessons, half of them in their other view."""
        is_other = torch.rand(len(chosen), generator=generator) < 0.5
        shown = torch.where(is_other[:, None, None, None], self.others[chosen], self.drawn[chosen])
        return distort(to_signed(shown), generator, colours).to(device())


def reduced_lessons(lessons: Drawings, others: Tensor, counts: Sequence[int]) -> Reduced:
    """The lessons and their other views at half the size; `counts` says how many are of each of `GROUPS`."""
    group = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Reduced(lessons, reduced(lessons.drawn), reduced(others), group)


def train_kind_judge(cache: Path, small: Reduced, plan: Plan) -> Loop:
    """Train the judge of kinds, or go on; what is kept out of its lessons it does not see dressed either."""
    often = small.often(KIND_SHARES, ~kept_out_of_kinds(small.lessons))
    torch.manual_seed(plan.seed)
    loop = Loop("kind-judge", cache / "checkpoints", SubjectJudge().kinds, plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        seen = mirrored(small.seen(chosen, generator, colours=True), generator)
        with halved(device()):
            scores = loop.model(seen)
        kinds = small.lessons.kind[chosen].to(device())
        return functional.cross_entropy(scores.float(), kinds, label_smoothing=0.05)

    loop.run(loss_of, math.inf)
    return loop


def train_thing_judge(cache: Path, small: Reduced, plan: Plan) -> Loop:
    """Train the judge of things, or go on."""
    often = small.often(THING_SHARES, torch.ones(len(small.group)))
    torch.manual_seed(plan.seed)
    loop = Loop("thing-judge", cache / "checkpoints", SubjectJudge().things, plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        is_recoloured = bool(torch.rand(1, generator=generator) < RECOLOURED)
        seen = small.seen(chosen, generator, colours=is_recoloured)
        with halved(device()):
            scores = loop.model(seen)
        return thing_loss(scores.float(), small.lessons.things[chosen].to(device()))

    loop.run(loss_of, math.inf)
    return loop


def train_style_judge(cache: Path, lessons: Drawings, others: Tensor, plan: Plan) -> Loop:
    """Train the judge of styles, or go on."""
    often = (~kept_out_of_styles(lessons)).float()
    torch.manual_seed(plan.seed)
    loop = Loop("style-judge", cache / "checkpoints", style_judge(), plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        is_other = torch.rand(BATCH, generator=generator) < 0.6
        shown = torch.where(is_other[:, None, None, None], others[chosen], lessons.drawn[chosen])
        seen = distort(to_signed(shown), generator, colours=False)
        with halved(device()):
            scores = loop.model(seen.to(device()))
        return functional.cross_entropy(
            scores.float(), lessons.style[chosen].to(device()), label_smoothing=0.05
        )

    loop.run(loss_of, math.inf)
    return loop


def train(cache: Path, autoencoder: nn.Module, share: float = 1.0) -> None:
    """Train the judges, or go on; each for a share of its plan's steps."""
    groups = {name: drawn(cache) for name, drawn in GROUPS.items()}
    others = torch.cat([other_views(cache, autoencoder, *group) for group in groups.items()])
    lessons = joined(list(groups.values()))
    train_style_judge(cache, lessons, others, STYLE_PLAN.shortened(share))
    small = reduced_lessons(lessons, others, [len(drawings.kind) for drawings in groups.values()])
    train_thing_judge(cache, small, THING_PLAN.shortened(share))
    train_kind_judge(cache, small, KIND_PLAN.shortened(share))


def from_cache(cache: Path) -> Judges:
    """The judges as training left them in the cache."""
    judges = Judges(SubjectJudge().eval(), style_judge().eval())
    judges.subject.kinds.load_state_dict(kept_average(cache, "kind-judge"))
    judges.subject.things.load_state_dict(kept_average(cache, "thing-judge"))
    judges.style.load_state_dict(kept_average(cache, "style-judge"))
    return judges


def _named(judges: Judges, drawings: Drawings, drawn: Tensor) -> tuple[float, float]:
    """Share of drawings whose kind is named right, and whose kind and things are."""
    kinds, things = judges.kinds_and_things(drawn)
    kind = kinds.argmax(1) == drawings.kind
    identity = kind & same_things(things, drawings.things)
    return float(kind.float().mean()), float(identity.float().mean())


EVERY_STYLE = "in every style"
"""Recorded beside the styles in which samples are judged: things are hard to see in some of the others."""


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
        found[f"kind, individuals, {view}"] = _named(judges, own, seen(own))[0]
        for name, drawings in (("identity", own), ("identity, what could be mistaken", mistakable)):
            asked = drawings.where(in_judged_styles(drawings))
            found[f"{name}, {view}"] = _named(judges, asked, seen(asked))[1]
            found[f"{name}, {view}, {EVERY_STYLE}"] = _named(judges, drawings, seen(drawings))[1]
    return found
