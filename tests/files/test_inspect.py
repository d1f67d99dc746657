"""What is known about a file, and the command that prints it."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klora.__main__ import main
from klora.commands import inspect as command
from klora.files import read_lora
from klora.files.summary import summarise
from klora.files.trigger_words import preferred_weight

from .spellings import SD1, UNET_DIALECTS, pairs, write


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write(tmp_path / "paint.safetensors", pairs(SD1), UNET_DIALECTS["kohya"])


def with_metadata(path: Path, metadata: dict[str, str]) -> Path:
    save_file(load_file(path), path, metadata=metadata)
    return path


def run(*words: str) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def test_summary(lora: Path) -> None:
    found = summarise(lora, verify=True)
    assert (found.dialect, found.base_model, found.kinds) == ("kohya", "SD1", {"lora": 5})
    assert (found.rank, found.alpha, found.number_format) == ("3", "1.5", ["F32"])
    assert (found.targets, found.layers, found.text_encoder_layers) == (["attention"], 5, 0)
    assert found.line == "SD1, lora rank 3, attention"
    assert found.hash == read_lora(lora).webui_hash[:12]


def test_webui_hash_leaves_the_header_out(lora: Path) -> None:
    before = read_lora(lora)
    hashes = before.webui_hash, before.content_hash
    after = read_lora(with_metadata(lora, {"a": "b"}))
    assert after.webui_hash == hashes[0]
    assert after.content_hash != hashes[1]


def test_json(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", str(lora), str(lora)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["base_model"] for one in found] == ["SD1", "SD1"]
    assert found[0] == json.loads(json.dumps(summarise(lora).as_json()))


def test_table_and_bad_file(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"")
    assert run(str(lora), str(tmp_path / "bad.safetensors")) == 2
    out, err = capsys.readouterr()
    assert "base model           SD1" in out
    assert "kinds                5 lora" in out
    assert err == "klora: bad.safetensors: the file is empty; download or save the file again.\n"


def test_verify_finds_nan(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(lora)
    next(one for key, one in tensors.items() if "lora_up" in key).fill_(float("nan"))
    save_file(tensors, lora)
    assert run(str(lora)) == 0
    assert run("--verify", str(lora)) == 2
    assert "NaN or infinite" in capsys.readouterr().err


def test_trigger_words_of_the_users_note_come_first(lora: Path) -> None:
    with_metadata(lora, {"modelspec.trigger_phrase": "author's word"})
    assert read_lora(lora).trigger_words() == ("author's word",)
    note = {"activation text": "sks dog, <i>oil</i>, sks dog", "preferred weight": 0.8}
    lora.with_suffix(".json").write_text(json.dumps(note))
    assert read_lora(lora).trigger_words() == ("sks dog", "<i>oil</i>")
    assert preferred_weight(lora) == 0.8


def test_trigger_words_from_tags(lora: Path) -> None:
    tags = {"10_dog": {"sks": 20, "dog ": 12, "\x1b[31m": 5}, "5_more": {"dog": 9}}
    with_metadata(lora, {"ss_tag_frequency": json.dumps(tags)})
    assert read_lora(lora).trigger_words() == ("dog", "sks", "?[31m")
    assert read_lora(lora).trigger_words(1) == ("dog",)


MALFORMED = ("", "{", "[]", '{"a": 1}', '{"a": {"b": "c"}}', '{"a": {"b": -1}}', "[" * 99999)


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_tags_are_no_words(text: str, lora: Path) -> None:
    with_metadata(lora, {"ss_tag_frequency": text})
    lora.with_suffix(".json").write_text(text)
    assert read_lora(lora).trigger_words() == ()
    assert preferred_weight(lora) is None


def test_targets(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block"
    tensors = {
        f"{stem}_resnets_0_conv1.diff": torch.ones(8, 8, 3, 3),
        f"{stem}_attentions_0_proj_in.diff": torch.ones(8, 8, 1, 1),
        f"{stem}_attentions_0_transformer_blocks_0_ff_net_2.diff": torch.ones(8, 32),
        f"{stem}_attentions_0_transformer_blocks_0_attn2_to_v.diff": torch.ones(8, 768),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    found = summarise(tmp_path / "x.safetensors")
    assert found.targets == ["attention", "feed-forward", "convolution", "other"]
    assert found.line == "SD1, full, attention + feed-forward + convolution + other"
    assert (found.rank, found.alpha) == (None, None)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("adir", "adir: it is a folder; name the LoRA file itself."),
        ("adir.safetensors", "adir.safetensors: it is a folder; name the LoRA file itself."),
        (".", ".: it is a folder; name the LoRA file itself."),
        ("analog", "analog: there is no such file; check the name and the folder."),
        ("no.safetensors", "no.safetensors: there is no such file; check the name and the folder."),
        ("no/x.safetensors", "x.safetensors: there is no such file; check the name and the folder."),
        ("x.pt", "x.pt: only .safetensors files are read; convert it to safetensors."),
    ],
)
@pytest.mark.parametrize("words", [("inspect",), ("convert",), ("plan",), ("plan", "--base-model")])
def test_what_is_no_lora_file_is_told_as_what_it_is(
    name: str,
    told: str,
    words: tuple[str, ...],
    lora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("adir", "adir.safetensors"):
        Path(folder).mkdir()
    Path("x.pt").write_bytes(b"PK")
    second = {"inspect": [], "convert": ["out.safetensors"], "plan": [str(lora)]}[words[0]]
    if "--base-model" in words:
        second *= 2
    assert main([*words, name, *second]) == 2
    assert capsys.readouterr() == ("", f"klora: {told}\n")


def test_nothing_found_is_an_empty_list_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", str(tmp_path / "no.safetensors")) == 2
    assert json.loads(capsys.readouterr().out) == []
