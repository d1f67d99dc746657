"""dW in blocks of rows, ranks without dW, and weights out of a checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klora.errors import LoraFileError
from klora.files import ldm_name, read_lora
from klora.files.checkpoint import Checkpoint
from klora.files.layer import LoraLayer
from tests.files.make_samples import truth_of

SAMPLES = Path(__file__).parents[1] / "data" / "files"
PATHS = sorted(SAMPLES.rglob("*.safetensors"))
ROOT = Path(__file__).parents[2]
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("elements", [1, 37, 2**20])
def test_blocks_put_together_are_the_whole(path: Path, elements: int) -> None:
    """Against the library's own dW; for DoRA and GLoRA with the clean weight at hand."""
    deltas, weights = truth_of(path)
    for name, truth in deltas.items():
        layer = read_lora(path).layers[name]
        blocks = list(layer.delta_blocks(weights.get(name), elements=elements))
        found = torch.cat(blocks)
        assert found.shape[:2] == truth.shape[:2]
        found = found.reshape(truth.shape)
        assert torch.allclose(found, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()) + 1e-7), name
        assert max(block.numel() for block in blocks) <= max(elements, truth[0].numel())


def lokr(path: Path, first: Tensor, second: Tensor, stem: str = FLAT) -> LoraLayer:
    save_file({f"{stem}.lokr_w1": first, f"{stem}.lokr_w2": second}, path)
    return next(iter(read_lora(path).layers.values()))


def slow_energy_rank(delta: Tensor, share: float) -> int:
    energies = torch.linalg.svdvals(delta.double().flatten(1)).square()
    return int((energies.cumsum(0) < share * energies.sum()).sum()) + 1


@pytest.mark.parametrize("shapes", [((4, 4), (6, 6)), ((3, 5), (8, 2)), ((8, 2), (2, 9))])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_energy_rank_of_a_full_lokr_is_that_of_its_dw(
    shapes: tuple[tuple[int, int], tuple[int, int]], share: float, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    layer = lokr(tmp_path / "x.safetensors", torch.randn(shapes[0]), torch.randn(shapes[1]))
    assert layer.rank is None
    assert layer.energy_rank(share) == slow_energy_rank(torch.cat(list(layer.delta_blocks())), share)


def test_energy_rank_of_a_part_of_a_fused_lokr(tmp_path: Path) -> None:
    torch.manual_seed(3)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    layer = lokr(tmp_path / "x.safetensors", torch.randn(6, 4), torch.randn(4, 2), stem)
    for part in layer.parts():
        assert part.energy_rank(0.9) == slow_energy_rank(part.delta(), 0.9)
        assert torch.allclose(torch.cat(list(part.delta_blocks(elements=8))), part.delta(), atol=1e-6)
    crooked = lokr(tmp_path / "y.safetensors", torch.randn(2, 4), torch.randn(12, 2), stem)
    assert crooked.parts()[0].energy_rank(0.9) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the most memory so")
def test_a_layer_of_16384_needs_little_memory(tmp_path: Path) -> None:
    """64 KB of file; its dW would have a gigabyte."""
    tensors = {
        f"{FLAT}.lora_up.weight": torch.randn(16384, 1).half(),
        f"{FLAT}.lora_down.weight": torch.randn(1, 16384).half(),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    script = (
        "import sys, torch; from klora.files import read_lora\n"
        # Not resource's ru_maxrss, which begins with the memory of the process that started this one.
        "def most():\n"
        "    told = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "    return int(told['VmHWM'].split()[0])\n"
        "before = most()\n"
        "layer = next(iter(read_lora(sys.argv[1]).layers.values()))\n"
        "rows = sum(block.shape[0] for block in layer.delta_blocks())\n"
        "print(rows, (most() - before) // 1024)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x.safetensors")]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    rows, megabytes = map(int, ran.stdout.split())
    assert rows == 16384
    assert megabytes < 120


@pytest.mark.parametrize("naming", ["diffusers", "native"])
@pytest.mark.parametrize("sample", ["peft_dora/adapter_model", "lycoris_glora", "lycoris_locon_dora_in"])
def test_weights_out_of_a_checkpoint(naming: str, sample: str, tmp_path: Path) -> None:
    path = SAMPLES / f"{sample}.safetensors"
    deltas, weights = truth_of(path)
    stem = "" if naming == "diffusers" else "model.diffusion_model."
    names = {name: name if naming == "diffusers" else ldm_name(name, "SD1") for name in weights}
    save_file(
        {f"{stem}{names[name]}.weight": one for name, one in weights.items()}, tmp_path / "m.safetensors"
    )
    checkpoint = Checkpoint(tmp_path / "m.safetensors", "SD1")
    for name, truth in deltas.items():
        layer = read_lora(path).layers[name]
        assert torch.allclose(layer.delta(checkpoint.base_of(layer)), truth, rtol=1e-4, atol=1e-5)


def test_a_part_gets_the_weight_of_the_whole(tmp_path: Path) -> None:
    """A DoRA on a fused projection, from a checkpoint that is fused and from one that is split."""
    torch.manual_seed(4)
    whole = torch.randn(18, 6)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{stem}.lora_up.weight": torch.randn(18, 2),
        f"{stem}.lora_down.weight": torch.randn(2, 6),
        f"{stem}.dora_scale": torch.rand(18, 1),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    (layer,) = read_lora(tmp_path / "x.safetensors").layers.values()
    save_file({"double_blocks.0.img_attn.qkv.weight": whole}, tmp_path / "fused.safetensors")
    block = "transformer_blocks.0.attn"
    split = {
        f"{block}.to_{one}.weight": rows.clone() for one, rows in zip("qkv", whole.split(6), strict=True)
    }
    save_file(split, tmp_path / "split.safetensors")
    for name in ("fused", "split"):
        checkpoint = Checkpoint(tmp_path / f"{name}.safetensors", "Flux")
        for part, rows in zip(layer.parts(), layer.delta(whole).split(6), strict=True):
            base = checkpoint.base_of(part)
            assert torch.equal(base, whole)
            assert torch.allclose(part.delta(base), rows)
            assert torch.allclose(torch.cat(list(part.delta_blocks(base, elements=12))), rows, atol=1e-6)


def test_a_checkpoint_without_the_layer(tmp_path: Path) -> None:
    path = SAMPLES / "lycoris_glora.safetensors"
    save_file({"x.weight": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    layer = next(iter(read_lora(path).layers.values()))
    with pytest.raises(LoraFileError, match="it has no such layer in floating-point numbers"):
        Checkpoint(tmp_path / "m.safetensors", "SD1").base_of(layer)
