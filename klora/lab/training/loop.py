"""A training loop that can be stopped at any step and goes on exactly where it was.

The learning rate hangs on the step alone: a warm-up, a plateau, and a fall to zero at the end. More steps
can so be asked for later, as long as the fall has not begun.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from klora.lab.keeping import keep


def device() -> torch.device:
    """Where training happens: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def halved(where: torch.device) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where the device has instructions for it; elsewhere that takes 15 times as long as
    full precision (measured with AVX2).
    """
    told = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in a build without oneDNN
    has_it = where.type != "cpu" or (told is not None and bool(told()))
    return torch.autocast(where.type, dtype=torch.bfloat16) if has_it else nullcontext()


LossFunction = Callable[[torch.Generator], Tensor]
"""Draws a batch with the generator and returns its scalar loss."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast a model learns."""

    steps: int
    rate: float
    warmup: int = 100
    fall: float = 0.3
    """Share of the steps, at the end, over which the rate falls to zero."""
    averaging: float = 0.999
    """Decay of the exponential moving average of the weights."""
    clip: float = 1.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        start_of_fall = self.steps * (1 - self.fall)
        warm = min(1.0, (step + 1) / self.warmup)
        if step < start_of_fall:
            return self.rate * warm
        done = (step - start_of_fall) / max(1.0, self.steps - start_of_fall)
        return self.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def shortened(self, share: float) -> Plan:
        """The same plan with this share of its steps, one at least."""
        return replace(self, steps=max(1, round(share * self.steps)))


def orthogonal(updates: Tensor, iterations: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix of each update [..., m, n], by Newton-Schulz (Jordan, Muon, 2024).

    Each iteration multiplies from the left by a polynomial of the Gram matrix, and so does the next with a
    Gram matrix that follows from the last: all of them happen among the smaller [m, m].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    matrices = updates / (updates.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = matrices.shape[-2] > matrices.shape[-1]
    matrices = matrices.mT if tall else matrices
    gram = matrices @ matrices.mT
    product = torch.eye(gram.shape[-1]).to(gram)
    for _ in range(iterations):
        factor = b * gram + c * (gram @ gram)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product, gram = factor @ product, factor @ gram @ factor
    result = product @ matrices
    return result.mT if tall else result


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for weights of two or more dimensions; sized so that AdamW's rates fit it."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight by its orthogonal momentum, at a root mean square of 0.2 times the rate."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.flatten(1).shape].append(weight)
            for shape, weights in alike.items():
                ahead = torch.stack([self._ahead(weight, group["momentum"]) for weight in weights])
                size = 0.2 * math.sqrt(max(shape))
                for weight, matrix in zip(weights, orthogonal(ahead), strict=True):
                    weight.add_(matrix.reshape(weight.shape), alpha=-group["lr"] * size)

    def _ahead(self, weight: Tensor, momentum: float) -> Tensor:
        """The momentum of a weight, moved on by its gradient, where Nesterov looks: [rows, the rest]."""
        gradient: Tensor = weight.grad  # type: ignore[assignment]
        memory = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        memory.lerp_(gradient, 1 - momentum)
        return gradient.lerp(memory, momentum).flatten(1)


@dataclass
class Loop:
    """The state of one training: model, moving average, optimisers, generator and step."""

    name: str
    folder: Path
    model: nn.Module
    plan: Plan
    muon: bool = True
    step: int = 0
    loss: float = float("nan")
    average: dict[str, Tensor] = field(init=False)
    optimisers: list[torch.optim.Optimizer] = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.model.to(device())
        self.generator = torch.Generator().manual_seed(self.plan.seed)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [
            p for p in trained if self.muon and p.ndim >= 2 and p.shape[0] < 4096 and p.numel() > 4096
        ]
        chosen = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in chosen]
        self.optimisers = [torch.optim.AdamW(rest, lr=self.plan.rate, betas=(0.9, 0.99), weight_decay=0.0)]
        if matrices:
            self.optimisers.append(Muon(matrices, lr=self.plan.rate))
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if self.path.exists():
            self.load()

    @property
    def path(self) -> Path:
        """The checkpoint of this training."""
        return self.folder / f"{self.name}.pt"

    @property
    def finished(self) -> bool:
        """Whether all steps of the plan are done."""
        return self.step >= self.plan.steps

    def save(self) -> None:
        """Write the whole state, replacing the old checkpoint at once."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generator": self.generator.get_state(),
        }
        keep(state, self.path)

    def load(self) -> None:
        """Take up the state of the checkpoint."""
        state = torch.load(self.path, weights_only=True, map_location=device())
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())

    def run(self, loss_of: LossFunction, minutes: float = math.inf, save_minutes: float = 2.0) -> None:
        """Train until the plan or the time ends; the state is saved every few minutes and at the end."""
        from tqdm import tqdm

        begun = saved = time.monotonic()
        with tqdm(total=self.plan.steps, initial=self.step, desc=self.name, mininterval=10) as bar:
            while not self.finished and time.monotonic() - begun < 60 * minutes:
                self._advance(loss_of)
                bar.update()
                bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
                if time.monotonic() - saved > 60 * save_minutes:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _advance(self, loss_of: LossFunction) -> None:
        """One step."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = self.plan.rate_at(self.step)
        loss = loss_of(self.generator)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        value = float(loss.detach())
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Fold the weights into the moving average, which early on follows faster to forget the start."""
        keep = min(self.plan.averaging, (1 + self.step) / (10 + self.step))
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - keep)
            else:
                self.average[key].copy_(value)

    def averaged(self) -> nn.Module:
        """The model with the averaged weights in it, on the processor, for use after training."""
        self.model.load_state_dict(self.average)
        return self.model.cpu().eval()
