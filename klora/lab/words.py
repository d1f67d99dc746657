"""The prompts of the base training, and the part of CLIP's vocabulary that they use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from klora.lab import tokens, world


@dataclass
class Words:
    """The rows of CLIP's vocabulary that training meets, so that it carries 300 vectors and not 49,408."""

    numbers: Tensor
    """Token numbers in ascending order, [rows]."""

    @classmethod
    def of(cls, prompts: list[str]) -> Words:
        """The words of some prompts, start and end among them."""
        return cls(torch.unique(tokens.encode(prompts)))

    def rows(self, encoded: Tensor) -> Tensor:
        """Token numbers to rows, same shape."""
        return torch.searchsorted(self.numbers, encoded)


def base_prompts() -> list[str]:
    """Every prompt of the base training: none, each subject alone, then each subject in each base style."""
    pairs = [world.prompt(s, style) for s in world.BASE_SUBJECTS for style in world.BASE_STYLES]
    return ["", *(world.prompt(s) for s in world.BASE_SUBJECTS), *pairs]
