"""Forms in which dW of a layer can be multiplied with rows of its input, the cheapest that its type allows.

Shapes: dW is ``[out, in]``, or ``[out, in * kh * kw]`` of a convolution, rows of an input ``[..., in]`` or
``[n, in, h, w]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.files import formulas


class Form(ABC):
    """One dW; a frozen dataclass of tensors, of which dW is linear in the first."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it consists of."""
        return tuple(vars(self).values())

    def times(self, factor: float) -> Form:
        """factor * dW."""
        first, *others = self.tensors
        return self._of(factor * first, *others)

    def to(self, device: torch.device, dtype: torch.dtype) -> Form:
        """The same there, in that dtype."""
        return self._of(*(one.to(device, dtype) for one in self.tensors))

    def _of(self, *tensors: Tensor) -> Form:
        return type(self)(*tensors)

    @property
    @abstractmethod
    def elements(self) -> int:
        """Of the whole matrix."""

    @property
    @abstractmethod
    def work(self) -> int:
        """Products of two numbers that one row of a linear's input takes."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """dW itself."""

    @abstractmethod
    def add_to(self, outputs: Sequence[Tensor], given: Tensor) -> None:
        """Add a linear's dW x in place to ``outputs``, views that share dW's rows in order."""

    @abstractmethod
    def convolved(self, layer: nn.Conv2d, given: Tensor) -> Tensor:
        """dW applied as a convolution like ``layer``."""


@dataclass(frozen=True)
class Whole(Form):
    """The matrix: types of which nothing less is known, DoRA among them."""

    delta: Tensor

    @property
    def elements(self) -> int:
        """out * in."""
        return self.delta.numel()

    @property
    def work(self) -> int:
        """All of it."""
        return self.delta.numel()

    def matrix(self) -> Tensor:
        """A view."""
        return self.delta.flatten(1)

    def add_to(self, outputs: Sequence[Tensor], given: Tensor) -> None:
        """A product for each output."""
        _add_products(outputs, given, self.matrix())

    def convolved(self, layer: nn.Conv2d, given: Tensor) -> Tensor:
        """One convolution."""
        kernel = self.delta.reshape(self.delta.shape[0], -1, *layer.kernel_size)
        return functional.conv2d(given, kernel, groups=layer.groups, **_like(layer))


@dataclass(frozen=True)
class LowRank(Form):
    """up ``[out, r]`` @ down ``[r, in, ...]``."""

    up: Tensor
    down: Tensor

    @property
    def elements(self) -> int:
        """out * in."""
        return len(self.up) * self.down[0].numel()

    @property
    def work(self) -> int:
        """r * (in + out)."""
        return self.up.numel() + self.down.numel()

    def matrix(self) -> Tensor:
        """Their product."""
        return formulas.product(self.up, self.down)

    def add_to(self, outputs: Sequence[Tensor], given: Tensor) -> None:
        """The small product first."""
        inner = functional.linear(given, self.down.flatten(1)).to(given.dtype)
        _add_products(outputs, inner, self.up.flatten(1))

    def convolved(self, layer: nn.Conv2d, given: Tensor) -> Tensor:
        """A convolution to r channels, and one of 1 x 1."""
        down = self.down.reshape(self.down.shape[0], -1, *layer.kernel_size)
        inner = functional.conv2d(given, down, **_like(layer))
        return functional.conv2d(inner, self.up.reshape(*self.up.shape[:2], 1, 1))


@dataclass(frozen=True)
class Kronecker(Form):
    """first ``[a, b]`` (x) second ``[c, d, ...]``, of LoKr: dW has a * c rows and b * d columns."""

    first: Tensor
    second: Tensor

    @property
    def elements(self) -> int:
        """a * b * c * d."""
        return self.first.numel() * self.second.numel()

    @property
    def work(self) -> int:
        """The second factor for each column of the first, then the first for each row of the second."""
        return self.first.shape[1] * self.second.numel() + self.first.numel() * self.second.shape[0]

    def matrix(self) -> Tensor:
        """Their Kronecker product."""
        return formulas.kronecker(self.first, self.second).flatten(1)

    def add_to(self, outputs: Sequence[Tensor], given: Tensor) -> None:
        """Each piece of the input by the second factor, then the pieces by the first."""
        pieces = given.reshape(*given.shape[:-1], self.first.shape[1], -1)
        mixed = torch.matmul(self.first, functional.linear(pieces, self.second.flatten(1)))
        done = 0
        for output in outputs:
            output.add_(mixed.flatten(-2)[..., done : done + output.shape[-1]])
            done += output.shape[-1]

    def convolved(self, layer: nn.Conv2d, given: Tensor) -> Tensor:
        """The same with the channels of an image."""
        kernel = self.second.reshape(self.second.shape[0], -1, *layer.kernel_size)
        pieces = given.reshape(-1, kernel.shape[1], *given.shape[2:])
        inner = functional.conv2d(pieces, kernel, **_like(layer))
        grouped = inner.reshape(len(given), self.first.shape[1], *inner.shape[1:])
        return torch.einsum("ab,nbc...->nac...", self.first, grouped).flatten(1, 2)


def _like(layer: nn.Conv2d) -> Mapping[str, Any]:
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}


def _add_products(outputs: Sequence[Tensor], inner: Tensor, matrix: Tensor) -> None:
    """Add inner @ rows.T in place to each output, whose rows of ``matrix`` follow one another."""
    done = 0
    for output in outputs:
        rows = matrix[done : done + output.shape[-1]]
        done += output.shape[-1]
        if output.is_contiguous():  # no memory for the product
            output.view(-1, output.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), rows.t())
        else:
            output.add_(functional.linear(inner, rows))


def added_up(forms: Sequence[Form]) -> tuple[Form, ...]:
    """The sum of several dW of a layer, in forms that cost no more together.

    Factors of low rank stand side by side, [up1, up2] @ [down1; down2], so that two LoRAs take two products
    instead of four. Where that is more work than the matrix itself, or beside a matrix, all are added up.
    """
    low = [form for form in forms if isinstance(form, LowRank)]
    others: list[Form] = [form for form in forms if not isinstance(form, LowRank)]
    if low:
        up = torch.cat([form.up.flatten(1) for form in low], dim=1)
        others.append(LowRank(up, torch.cat([form.down.flatten(1) for form in low])))
    is_whole = any(isinstance(form, Whole) for form in others)
    if is_whole or sum(form.work for form in others) >= others[0].elements:
        return (Whole(torch.stack([form.matrix() for form in forms]).sum(0)),)
    return tuple(others)


def dtype_to_keep(weight: Tensor) -> torch.dtype:
    """Of a whole dW: the weight's, or half precision where the weight is stored in less."""
    is_wide = weight.is_floating_point() and weight.element_size() > 1
    return weight.dtype if is_wide else torch.float16
