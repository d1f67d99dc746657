"""What a picture is worth: is it that subject, is it in that style, and how far is the truth?"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from klora.lab.judges import Judges, same_things, worn
from klora.lab.recipes import INDIVIDUAL, Recipe
from klora.lab.world.individuals import BY_NAME
from klora.lab.world.kinds import SUBJECTS
from klora.lab.world.styles import STYLE_NAMES

MEASURES: tuple[str, ...] = ("identity", "style", "both", "kind", "style_probability", "distance")
"""Per picture: whether the judges name subject, style, both, and the subject's kind; the probability of the
style; and the distance to the true drawing."""


def kind_and_things(content: Recipe) -> tuple[str, frozenset[str]]:
    """The kind that a content LoRA's subject is of, and what it wears."""
    if content.kind == INDIVIDUAL:
        own = BY_NAME[content.subject]
        return own.kind, own.things
    return content.subject, frozenset()


def subject_scores(judges: Judges, content: Recipe, made: Tensor) -> tuple[Tensor, Tensor]:
    """Whether pictures [n, 3, h, w] in bytes show the subject's kind, and the subject itself, each [n]."""
    kind, things = kind_and_things(content)
    kinds, seen = judges.kinds_and_things(made)
    is_kind = kinds.argmax(1) == SUBJECTS.index(kind)
    return is_kind, is_kind & same_things(seen, worn(things).expand(len(made), -1))


def distance(judges: Judges, made: Tensor, true: Tensor) -> Tensor:
    """Mean over both judges of the cosine distance of what their last layers read, [n], 0 to 2.

    Pixels do not see style: by them the plain drawing of the right subject is nearer to the truth than any
    styled picture of it.
    """
    apart = [
        1 - functional.cosine_similarity(one, other)
        for one, other in zip(judges.features(made), judges.features(true[None]), strict=True)
    ]
    return (apart[0] + apart[1]) / 2


def score(judges: Judges, content: Recipe, style: str, made: Tensor, true: Tensor) -> dict[str, Tensor]:
    """All `MEASURES` of pictures [n, 3, h, w] in bytes, each [n]; ``true`` [3, h, w] is the true drawing."""
    is_kind, is_subject = subject_scores(judges, content, made)
    styles = judges.styles(made)
    place = STYLE_NAMES.index(style)
    is_style = styles.argmax(1) == place
    return {
        "identity": is_subject.float(),
        "style": is_style.float(),
        "both": (is_subject & is_style).float(),
        "kind": is_kind.float(),
        "style_probability": styles[:, place],
        "distance": distance(judges, made, true),
    }
