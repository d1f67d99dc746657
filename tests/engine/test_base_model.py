"""Plans for DoRA and GLoRA against the libraries' own dW, with the clean weights out of a checkpoint's
file.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from klora.__main__ import main
from klora.errors import LoraFileError
from klora.files import LayerRows, ldm_name, read_lora
from klora.files.container import Container
from klora.planning.files import FilePair
from tests.files.make_samples import truth_of
from tests.published import PUBLISHED_OPTIONS

SAMPLES = Path(__file__).parents[1] / "data" / "files"
NEEDING = ["peft_dora/adapter_model", "lycoris_glora", "lycoris_locon_dora_in", "lycoris_loha_dora"]


def checkpoint(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A WebUI's checkpoint with these layers by canonical name, and many others that nobody asks for."""
    tensors = {f"model.diffusion_model.{ldm_name(name, 'SD1')}.weight": one for name, one in weights.items()}
    tensors |= {f"first_stage_model.decoder.up.{number}.weight": torch.ones(2, 2) for number in range(50)}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("sample", NEEDING)
def test_the_plan_is_that_of_the_librarys_dw(sample: str, tmp_path: Path) -> None:
    path = SAMPLES / f"{sample}.safetensors"
    deltas, weights = truth_of(path)
    base, told = checkpoint(tmp_path / "base.safetensors", weights), tmp_path / "plan.json"
    wanted = (*PUBLISHED_OPTIONS, "--top-k", "5", "--other-layers", "fuse")
    words = ["plan", str(path), str(path), *wanted, "--json", str(told)]
    assert main([*words, "--base-model", str(base)]) == 0
    plan = json.loads(told.read_text(encoding="utf-8"))
    assert set(plan["layers"]) == set(deltas)
    for name, score in zip(plan["layers"], plan["content_score"], strict=True):
        largest = deltas[name].double().abs().flatten().topk(5).values
        assert score == pytest.approx(float(largest.sum()), rel=1e-3)


def test_only_the_layers_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SAMPLES / "peft_dora" / "adapter_model.safetensors"
    _, weights = truth_of(path)
    base = checkpoint(tmp_path / "base.safetensors", weights)
    read: list[str] = []
    before = Container.read_all

    def counted(self: Container, keys: list[str]) -> list[torch.Tensor]:
        if self.path == base:
            read.extend(keys)
        return before(self, keys)

    monkeypatch.setattr(Container, "read_all", counted)
    file = read_lora(path)
    pair = FilePair(file, file, base)
    assert not read
    name = next(iter(file.layers))
    first, second = pair.delta_rows(name)
    assert torch.equal(first.whole(), second.whole())
    assert set(read) == {f"model.diffusion_model.{ldm_name(name, 'SD1')}.weight"}


@pytest.mark.parametrize("rows", [slice(None), slice(1, None, 3)])
def test_rows_are_those_of_the_whole(rows: slice) -> None:
    for sample in NEEDING:
        path = SAMPLES / f"{sample}.safetensors"
        deltas, weights = truth_of(path)
        for name, layer in read_lora(path).layers.items():
            found = LayerRows(layer, weights[name]).rows(rows, torch.empty(0))
            assert torch.allclose(found, deltas[name].flatten(1)[rows], rtol=1e-4, atol=1e-5), (sample, name)


def test_without_it_one_sentence_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(SAMPLES / "lycoris_glora.safetensors")
    assert main(["plan", path, path]) == 2
    told = capsys.readouterr()
    assert told.err.strip().count("\n") == 0
    assert "depends on the model's own weight" in told.err
    assert "--base-model" in told.err


def test_a_checkpoint_of_another_model_or_size_is_named(tmp_path: Path) -> None:
    path = SAMPLES / "lycoris_glora.safetensors"
    _, weights = truth_of(path)
    wrong = {name: torch.ones(one.shape[0] + 1, *one.shape[1:]) for name, one in weights.items()}
    file = read_lora(path)
    name = next(iter(file.layers))
    for tensors, message in (({}, "it has no such layer"), (wrong, "wrong input or output size")):
        pair = FilePair(file, file, checkpoint(tmp_path / "base.safetensors", tensors))
        with pytest.raises(LoraFileError, match=message):
            pair.delta_rows(name)
