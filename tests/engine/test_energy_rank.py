"""The energy rank of layers as wide as those of real models, against spectra that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klora.files import LayerRows, read_lora
from klora.scores import TOP_K_SUM, Scratch, energy_rank, score_layer
from klora.scores.energy_rank import MOST_EXACT, energy_rank_of_rows
from klora.settings import TopK

WIDTH = 1400
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

#: Name -> singular values by their number, from 1.
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": torch.ones_like,
    "power 1/4": lambda place: place**-0.25,
    "power 1/2": lambda place: place**-0.5,
    "power 1": lambda place: 1 / place,
    "steep": lambda place: torch.exp(-place / 100),
    "gentle": lambda place: torch.exp(-place / 400),
    "linear": lambda place: 1 - place / (WIDTH + 1),
    "few and noise": lambda place: 5.0 * (place <= 16) + 0.05,
    "two heights": lambda place: 1.0 * (place <= 64) + 0.7 * (place > 64) * (place <= 400),
}
#: Of these the rank is low, or there are few different singular values: the result is exact.
LOW: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"rank {rank}": lambda place, rank=rank: 1.0 * (place <= rank) for rank in (1, 8, 64)},  # type: ignore[misc]
    "rank 150": lambda place: (place <= 150) * place**-0.3,
    "rank 100, linear": lambda place: (place <= 100) * (1.2 - place / 100),
}


@pytest.fixture(scope="module")
def frames() -> tuple[Tensor, Tensor]:
    """Orthonormal columns: ``[2000, WIDTH]`` and ``[WIDTH, WIDTH]``."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(rows, WIDTH, generator=generator) for rows in (2000, WIDTH))
    return torch.linalg.qr(left).Q, torch.linalg.qr(right).Q


def exact_rank(values: Tensor, share: float) -> int:
    energies = values.double().square().sort(descending=True).values
    return int((energies.cumsum(0) < share * energies.sum()).sum()) + 1


@pytest.mark.parametrize("share", [0.9, 0.99])
@pytest.mark.parametrize("name", SPECTRA)
def test_an_estimate_is_within_a_twentieth(name: str, share: float, frames: tuple[Tensor, Tensor]) -> None:
    values = SPECTRA[name](torch.arange(1, WIDTH + 1).float())
    delta = (frames[0] * values) @ frames[1].T
    for one in (delta, delta.T.contiguous()):
        assert energy_rank(one, share) == pytest.approx(exact_rank(values, share), rel=0.05, abs=1)


@pytest.mark.parametrize("name", LOW)
def test_a_low_rank_is_exact(name: str, frames: tuple[Tensor, Tensor]) -> None:
    values = LOW[name](torch.arange(1, WIDTH + 1).float())
    assert energy_rank((frames[0] * values) @ frames[1].T) == exact_rank(values, 0.99)


def test_a_dw_that_is_zero_or_not_finite() -> None:
    assert energy_rank(torch.zeros(1500, 1500)) == 1
    broken = torch.ones(1500, 1500)
    broken[3, 4] = float("nan")
    assert energy_rank(broken) == 1


def test_the_work_is_bounded_however_wide_a_layer_is() -> None:
    """Counted in passes over dW, which is never whole in memory."""
    passes, width = 0, 3072
    block = torch.randn(64, width, generator=torch.Generator().manual_seed(2))

    def rows() -> Iterator[Tensor]:
        nonlocal passes
        passes += 1
        for number in range(48):
            yield block.roll(number, 1)

    assert energy_rank_of_rows(rows, width) > 64
    assert passes <= 14


class Counting:
    """dW's rows of a layer, of which nobody may ask for the whole."""

    def __init__(self, rows: LayerRows) -> None:
        self._rows = rows
        self.shape = rows.shape
        self.energy_rank = rows.energy_rank

    def rows(self, which: slice, into: Tensor) -> Tensor:
        return self._rows.rows(which, into)

    def whole(self) -> Tensor:
        raise AssertionError("formed whole")


@pytest.mark.parametrize("kind", ["full lokr", "full difference"])
def test_k_of_files_without_rank_needs_no_whole_dw(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    values = 1 / torch.arange(1, 701)
    if kind == "full lokr":
        first, second = torch.randn(20, 20), torch.randn(35, 35)
        tensors = {"lokr_w1": first, "lokr_w2": second}
        values = torch.outer(torch.linalg.svdvals(first), torch.linalg.svdvals(second)).flatten()
    else:
        left, right = (torch.linalg.qr(torch.randn(700, 700)).Q for _ in "lr")
        tensors = {"diff": (left * values) @ right}
    save_file({f"{FLAT}.{key}": one for key, one in tensors.items()}, tmp_path / "x.safetensors")
    (layer,) = read_lora(tmp_path / "x.safetensors").layers.values()
    assert values.numel() > MOST_EXACT
    sides = [Counting(LayerRows(layer)) for _ in "cs"]
    score = score_layer(
        layer.name,
        *sides,
        TopK.parse("rank"),
        (TOP_K_SUM,),
        content_rank=None,
        style_rank=3,
        scratch=Scratch(),
    )
    assert score.top_k == 3 * exact_rank(values, 0.99)
