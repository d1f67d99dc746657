"""LoRA files that are kept once they were read: as long as nothing has changed on disk, and not too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from klora.errors import LoraFileError
from klora.files import identity_at, read_lora, split_layers
from klora.files.container import Container
from klora.hosts.common import checks, kept_files
from klora.hosts.common.kept_files import read_kept
from klora.hosts.forge_family import reading
from tests.engine.lora_files import write_lora


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> None:
    kept_files._files.clear()


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "fox.safetensors"
    write_lora(path)
    first = read_kept(str(path))
    assert read_kept(str(path)) is first
    assert kept_files._keep(str(path), read_lora(path)) is first  # as another thread has read it meanwhile
    write_lora(path, rank=4)
    assert read_kept(str(path)).ranks == (4, 4)


def test_a_configuration_that_is_changed_beside_a_file_is_noticed(tmp_path: Path) -> None:
    """PEFT keeps alpha in it."""
    path = write_lora(tmp_path / "adapter_model.safetensors")
    plain = read_kept(str(path))
    assert read_kept(str(path)) is plain
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8}')
    told = read_kept(str(path))
    assert read_kept(str(path)) is told
    assert told.identity != plain.identity
    assert told.identity == identity_at(path)
    scales = [{layer.scale for layer in file.layers.values()} for file in (plain, told)]
    assert scales == [{1.0}, {4.0}]
    (tmp_path / "adapter_config.json").unlink()
    assert read_kept(str(path)).identity == plain.identity


def test_a_configuration_that_breaks_beside_a_file_that_was_sound_is_told(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "adapter_model.safetensors")
    assert checks.checked_file(str(path)).has_attention
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(LoraFileError, match="its adapter configuration is not sound JSON"):
        checks.checked_file(str(path))


def test_forge_reads_a_file_again_whose_configuration_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is given of the file has the declared alpha in it."""
    monkeypatch.setattr(reading, "_seen", {})
    path = str(write_lora(tmp_path / "adapter_model.safetensors"))
    assert [reading._is_new(path, "") for _ in range(2)] == [True, False]
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8}')
    assert [reading._is_new(path, "") for _ in range(2)] == [True, False]


def test_a_file_that_is_replaced_just_before_it_is_read_is_kept_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fox.safetensors"
    write_lora(path)
    read = kept_files.read_lora

    def replaced(name: Any) -> Any:
        write_lora(path, rank=4)
        return read(name)

    with monkeypatch.context() as patched:
        patched.setattr(kept_files, "read_lora", replaced)
        found = read_kept(str(path))
    assert found.ranks == (4, 4)
    assert read_kept(str(path)) is found


def test_the_one_that_was_asked_for_longest_ago_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_files, "_MOST_KEPT", 2)
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("fox", "ink", "oak")]
    for path in paths:
        write_lora(Path(path))
    fox, ink = map(read_kept, paths[:2])
    assert read_kept(paths[0]) is fox
    read_kept(paths[2])
    assert read_kept(paths[0]) is fox
    assert read_kept(paths[1]) is not ink
    assert len(kept_files._files) == 2


def test_a_file_that_is_gone_is_named_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "fox.safetensors"
    write_lora(path)
    read_kept(str(path))
    path.unlink()
    with pytest.raises(LoraFileError, match=r"fox\.safetensors: there is no such file"):
        read_kept(str(path))


def test_fused_layers_are_read_once_to_be_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lora(tmp_path / "fox.safetensors", ("lora_unet_double_blocks_0_img_attn_qkv",), size=(24, 8))
    known = split_layers(read_kept(str(path)))
    assert [layer.rank for layer in known.values()] == [2, 2, 2]
    monkeypatch.delattr(Container, "_bytes_between")
    again = split_layers(read_kept(str(path)))
    assert [layer.rank for layer in again.values()] == [2, 2, 2]
    again.clear()
    assert split_layers(read_kept(str(path))) == known
