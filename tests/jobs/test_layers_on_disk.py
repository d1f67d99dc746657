"""The rank of a full-matrix LoKr in a WebUI, which forms dW whole: from the factors in its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klora.files import read_lora
from klora.hosts.common.layers_on_disk import LayersOnDisk
from klora.planning import LayerView
from klora.planning.files import FilePair
from klora.planning.scoring import scores_of
from klora.scores import TOP_K_SUM, energy_rank
from klora.settings import TopK

STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_{}"
NAME = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{}"


def _lokr(path: Path, seed: int) -> Path:
    """A file of full-matrix LoKr layers of low energy rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for one in "qkv":
        fall = torch.arange(1, 41).float() ** -1.5
        tensors[f"{STEM.format(one)}.lokr_w1"] = torch.randn(8, 8, generator=generator)
        tensors[f"{STEM.format(one)}.lokr_w2"] = torch.randn(40, 40, generator=generator) * fall
    save_file(tensors, path)
    return path


class HostsPair:
    """Two files as a WebUI has them: every dW whole, and no rank but that of the files."""

    def __init__(self, paths: tuple[Path, Path]) -> None:
        self._files = FilePair(*map(read_lora, paths))
        self._ranks = LayersOnDisk([str(path) for path in paths])
        self.names = self._files.names
        self.score_key = self._files.score_key

    def layers(self) -> list[LayerView]:
        return list(self._files.layers())

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        return self._files.deltas(layer)

    def energy_rank(self, layer: str, place: int) -> int | None:
        return self._ranks.energy_rank(layer, place)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return _lokr(tmp_path / "fox.safetensors", 1), _lokr(tmp_path / "ink.safetensors", 2)


def test_it_is_that_of_dw(paths: tuple[Path, Path]) -> None:
    pair, ranks = FilePair(*map(read_lora, paths)), LayersOnDisk([str(path) for path in paths])
    for one in "qkv":
        told = [ranks.energy_rank(NAME.format(one), place) for place in (0, 1)]
        assert told == [energy_rank(delta) for delta in pair.deltas(NAME.format(one))]


def test_scores_need_no_eigenvalues_and_are_those_of_the_files(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise AssertionError("a rank was taken from dW")

    monkeypatch.setattr("klora.scores.scores.energy_rank", refused)
    monkeypatch.setattr("klora.scores.scores.energy_rank_of_rows", refused)
    host, files = HostsPair(paths), FilePair(*map(read_lora, paths))
    k = TopK.parse("rank")
    found = scores_of(host, host.layers(), (TOP_K_SUM,), k)
    assert min(found.top_k) > 1
    monkeypatch.setattr(host, "score_key", lambda: "another")
    monkeypatch.setattr(files, "score_key", lambda: "the files")
    expected = scores_of(files, files.layers(), (TOP_K_SUM,), k)
    assert found.top_k == expected.top_k
    assert found.measured[TOP_K_SUM] == pytest.approx(expected.measured[TOP_K_SUM])


def test_a_file_or_layer_that_only_the_host_knows_has_none(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"whatever": torch.zeros(1)}, other)
    ranks = LayersOnDisk([str(paths[0]), str(other)])
    assert ranks.energy_rank("mid_block.some", 0) is None
    assert ranks.energy_rank(NAME.format("q"), 1) is None
