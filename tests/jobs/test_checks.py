"""What is checked on a LoRA's file before a WebUI samples with it: every tensor, once for each file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klora.errors import LoraFileError
from klora.files import LoraFile
from klora.hosts.common.checks import CheckedFile, checked_file
from tests.engine.lora_files import ATTENTION, FEED_FORWARD, write_lora

TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
FOR_SDXL = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def write(path: Path, bad: str | None = None, value: float = float("nan")) -> Path:
    """A LoRA of attention, feed-forward and text encoder; the last number of ``bad`` is ``value``."""
    write_lora(path, (*ATTENTION, FEED_FORWARD, TEXT))
    if bad is not None:
        tensors = load_file(path)
        tensors[bad].flatten()[-1] = value
        save_file(tensors, path)
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layer", [TEXT, FEED_FORWARD, ATTENTION[1]])
@pytest.mark.parametrize("side", ["up", "down"])
def test_a_number_that_is_none_is_found_in_every_layer(
    layer: str, side: str, value: float, tmp_path: Path
) -> None:
    path = write(tmp_path / "fox.safetensors", f"{layer}.lora_{side}.weight", value)
    for _ in range(2):  # what was refused once is no more sound when it is asked for again
        with pytest.raises(LoraFileError, match=r"fox.*holds NaN or infinite values") as caught:
            checked_file(str(path))
        assert caught.value.layer is not None
        assert caught.value.layer.replace(".", "_").endswith(layer.removeprefix("lora_unet_")[-20:])


def test_a_file_is_read_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    verify = LoraFile.verify

    def counted(self: LoraFile) -> None:
        read.append(str(self.path))
        verify(self)

    monkeypatch.setattr(LoraFile, "verify", counted)
    paths = [str(write(tmp_path / f"{name}.safetensors")) for name in ("fox", "ink")]
    found = [checked_file(path) for path in paths * 3]
    assert read == paths
    assert all(one.has_attention for one in found)


def test_a_file_that_was_replaced_is_looked_at_again(tmp_path: Path) -> None:
    path = write(tmp_path / "fox.safetensors")
    first = checked_file(str(path))
    assert first.base_model != "SDXL"
    assert first.has_attention

    os.replace(write_lora(tmp_path / "other", (FOR_SDXL,), size=(640, 2048)), path)
    assert checked_file(str(path)) == CheckedFile("SDXL", has_attention=True)

    os.replace(write(tmp_path / "other", f"{TEXT}.lora_up.weight"), path)
    with pytest.raises(LoraFileError, match=r"fox.*holds NaN or infinite values"):
        checked_file(str(path))

    os.replace(write_lora(tmp_path / "other", (FEED_FORWARD,)), path)
    assert not checked_file(str(path)).has_attention

    os.replace(write(tmp_path / "other"), path)
    assert checked_file(str(path)) == first


def test_a_file_that_was_written_over_is_looked_at_again(tmp_path: Path) -> None:
    """In place, in the same size, as a training does that goes on."""
    path = write(tmp_path / "fox.safetensors")
    os.utime(path, ns=(1, 1))
    checked_file(str(path))
    content = write(tmp_path / "other", f"{FEED_FORWARD}.lora_down.weight").read_bytes()
    assert len(content) == path.stat().st_size
    with path.open("r+b") as stream:
        stream.write(content)
    with pytest.raises(LoraFileError, match=r"fox.*holds NaN or infinite values"):
        checked_file(str(path))


def test_what_is_no_file_of_ours_is_left_to_the_host(tmp_path: Path) -> None:
    pickled, missing, other = (tmp_path / name for name in ("fox.pt", "no.safetensors", "other.safetensors"))
    torch.save({}, pickled)
    save_file({"whatever": torch.zeros(1)}, other)
    for path in (pickled, missing, other):
        assert checked_file(str(path)) == CheckedFile("unknown", has_attention=False)
