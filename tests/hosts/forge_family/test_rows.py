"""Which rows of a batch are unconditional, however an extension arranges them: tiles, parts of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klora.errors import HostError
from klora.hosts.forge_family.rows import AttentionRows, Patch, unconditional_rows
from klora.weights.branch import BatchRows, Branches, RowDelta
from klora.weights.forms import Whole

UNCONDITIONAL, CONDITIONAL = 1, 0
WIDTH, TOKENS = 4, 3


def marked(batch: int, rows: Sequence[tuple[int, int]]) -> list[bool]:
    return [any(start <= place < stop for start, stop in rows) for place in range(batch)]


def told(marks: Sequence[int], images: int, **more: Any) -> dict[str, Any]:
    """What the host tells its denoiser of a forward."""
    return {"cond_or_uncond": list(marks), "sigmas": torch.ones(images), **more}


@pytest.mark.parametrize("marks", [(1, 0), (0, 1), (0, 0, 1), (1,), (0,)])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_rows_of_tiles(marks: tuple[int, ...], images: int, tiles: int) -> None:
    """A wrapper puts the whole batch of one tile behind that of another."""
    whole = torch.tensor([mark == UNCONDITIONAL for mark in marks]).repeat_interleave(images)
    batch = torch.cat([whole] * tiles)
    rows = unconditional_rows(len(batch), told(marks, images))
    assert marked(len(batch), rows) == batch.tolist()
    assert all(start < stop for start, stop in rows)
    assert all(stop < start for (_, stop), (start, _) in pairwise(rows))


def test_without_the_number_of_pictures_the_batch_is_cut_evenly() -> None:
    assert unconditional_rows(6, {"cond_or_uncond": [1, 0]}) == ((0, 3),)


@pytest.mark.parametrize(
    ("batch", "options"),
    [(3, told((1, 0), 1)), (6, told((1, 0), 2)), (3, {"cond_or_uncond": [1, 0]}), (2, {})],
)
def test_a_batch_of_which_nobody_knows_is_refused(batch: int, options: dict[str, Any]) -> None:
    with pytest.raises(HostError, match=r"cannot tell which rows.*set Negative side to both"):
        unconditional_rows(batch, options)


# --- attn2 ------------------------------------------------------------------------------------------------


def couples(regions: int, fill_up: bool = True) -> Patch:
    """A patch that gives attn2 a conditional piece once for each region, as attention couples do."""

    def patch(q: Tensor, k: Tensor, v: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
        marks = options["cond_or_uncond"]
        found: list[list[Tensor]] = []
        for one in (q, k, v):
            pieces = zip(one.chunk(len(marks)), marks, strict=True)
            parts = [
                piece if mark == UNCONDITIONAL else piece.repeat(regions, 1, 1) for piece, mark in pieces
            ]
            if fill_up and sum(map(len, parts)) % 2:
                parts.append(torch.zeros_like(one[:1]))
            found.append(parts)
        made_q, made_k, made_v = map(torch.cat, found)
        return made_q, made_k, made_v

    return patch


def weighs_words(q: Tensor, k: Tensor, v: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A patch that changes words and no rows."""
    return q, k[:, ::2], v[:, 1::2]


class Block(nn.Module):
    """A block with the linears of its attention, which calls patches as the hosts' do."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = (
            nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v", "to_out")})
            for _ in range(2)
        )
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        options = {name: value for name, value in transformer_options.items() if name != "patches"}
        patches = transformer_options.get("patches", {})
        self._attend("attn1", x, x, x)
        q, k, v = x, context, context
        for patch in patches.get("attn2_patch", ()):
            q, k, v = patch(q, k, v, options)
        return self._attend("attn2", q, k, v)

    def _attend(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        linears = getattr(self, name)
        for part, given in (("to_q", q), ("to_k", k), ("to_v", v), ("to_out", q)):
            self.seen[f"{name}.{part}"] = linears[part](given)
        return self.seen[f"{name}.to_out"]


def rows_with_a_branch(
    block: Block, marks: Sequence[int], images: int, patches: dict[str, Any]
) -> dict[str, list[bool]]:
    """By layer, whether each row got the branch; and whether each row that attn2 was given is unconditional,
    by what stands in it.
    """
    branches = Branches()
    rows = AttentionRows(branches.rows)
    for name in ("attn1", "attn2"):
        for part, linear in getattr(block, name).items():
            linear.weight.data.zero_()
            linear.bias.data.zero_()
            branches.put(
                linear, part, [(1.0, RowDelta(Whole(torch.eye(WIDTH))))], rows.of(f"b.{name}.{part}")
            )
    x = torch.tensor([1.0 + mark for mark in marks]).repeat_interleave(images)
    x = x[:, None, None].expand(-1, TOKENS, WIDTH)
    keywords = {"context": x, "transformer_options": told(marks, images, patches=patches)}
    keywords = rows.tell(len(x), keywords)
    block(x, **keywords)
    branches.clear()
    return {name: one.flatten(1).any(1).tolist() for name, one in block.seen.items()}


@pytest.mark.parametrize("marks", [(1, 0), (0, 1), (0, 0, 1), (1,), (0,)])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("regions", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("is_filled", [True, False])
def test_rows_of_parts_of_a_prompt(
    marks: tuple[int, ...], images: int, regions: int, is_filled: bool
) -> None:
    """Exactly the unconditional rows get the branch, in attn2 as in every other layer."""
    patches = {"attn2_patch": [weighs_words, couples(regions, is_filled)]}
    found = rows_with_a_branch(Block(), marks, images, patches)
    of_pieces = [(mark == UNCONDITIONAL, 1 if mark == UNCONDITIONAL else regions) for mark in marks]
    expected = [is_one for is_one, times in of_pieces for _ in range(times * images)]
    if is_filled and len(expected) % 2:
        expected.append(False)
    whole = [mark == UNCONDITIONAL for mark in marks for _ in range(images)]
    for name, rows in found.items():
        assert rows == (expected if name.startswith("attn2") else whole), name


def test_rows_are_traced_once_in_a_forward() -> None:
    """The patch is asked again only where it makes other rows, and then once for all layers."""
    calls = list[int]()

    def counted(*given: Any) -> Any:
        calls.append(1)
        return couples(3)(*given)

    rows = AttentionRows(BatchRows())
    x = torch.ones(2, TOKENS, WIDTH)
    keywords = rows.tell(2, {"transformer_options": told((1, 0), 1, patches={"attn2_patch": [counted]})})
    options = keywords["transformer_options"]
    (traced,) = options["patches"]["attn2_patch"]
    for _ in range(4):
        traced(x, x, x, options)
    assert len(calls) == 5
    assert rows.of_attn2.of(torch.zeros(4, 1)) == ((0, 1),)


def test_what_the_host_holds_stays_as_it_is() -> None:
    patches = {"attn2_patch": [couples(2)], "attn1_patch": [weighs_words]}
    options = told((1, 0), 1, patches=patches)
    keywords = {"context": None, "transformer_options": options}
    held = (dict(keywords), dict(options), dict(patches), list(patches["attn2_patch"]))
    found = AttentionRows(BatchRows()).tell(2, keywords)
    assert (keywords, options, patches, patches["attn2_patch"]) == held
    assert found["transformer_options"]["patches"]["attn1_patch"] is patches["attn1_patch"]
    assert AttentionRows(BatchRows()).tell(2, {"transformer_options": told((1, 0), 1)}).keys() == {
        "transformer_options"
    }
