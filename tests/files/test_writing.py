"""Files are written whole or not at all, and what hinders that is said in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from klora import __main__ as command_line
from klora.commands import inspect
from klora.errors import KloraError
from klora.files.writing import made_folder, write_text, write_with
from tests.published import PUBLISHED_OPTIONS


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{stem}.lora_up.weight": torch.ones(8, 1), f"{stem}.lora_down.weight": torch.ones(1, 8)}
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("klora: ")
    return lines[0]


def test_a_missing_folder(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "no" / "such" / "out.safetensors"
    assert command_line.main(["convert", str(lora), str(target)]) == 2
    assert "there is no folder" in one_line(capsys)


def test_a_folder_in_place_of_a_file(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.safetensors").mkdir()
    words = ["convert", str(lora), str(tmp_path / "out.safetensors"), "--overwrite"]
    assert command_line.main(words) == 2
    assert "is a folder" in one_line(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert command_line.main(["convert", str(lora), str(folder / "out.safetensors")]) == 2
    assert "cannot be written" in one_line(capsys)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    target.write_text("before")

    def fill(draft: Path) -> None:
        draft.write_text("half")
        with open("/dev/full", "w") as full:
            full.write("x" * 100_000)

    with pytest.raises(KloraError, match=r"cannot be written .*No space left"):
        write_with(target, fill)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_save_of_safetensors_is_one_line(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def fail(*_arguments: object, **_keywords: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("klora.files.conversion.save_file", fail)
    assert command_line.main(["convert", str(lora), str(tmp_path / "out.safetensors")]) == 2
    assert "No space left on device" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_text_is_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "水墨\n")
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "水墨\n"
    with pytest.raises(KloraError, match="there is no folder"):
        write_text(tmp_path / "no" / "x.txt", "")


def test_an_error_stands_on_a_line_of_its_own(
    lora: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = []

    def run(_arguments: object) -> int:
        bars.append(tqdm(range(10), desc="scoring", leave=False, mininterval=0))
        bars[0].update(3)
        raise KloraError("the second file is damaged.")

    monkeypatch.setattr(inspect, "run", run)
    assert command_line.main(["inspect", str(lora)]) == 2
    text = capsys.readouterr().err
    assert "scoring" in text
    assert text.endswith("\nklora: the second file is damaged.\n")


@pytest.mark.parametrize("option", ["--json", "--picture"])
def test_a_plan_into_a_missing_folder(
    option: str, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "no" / "plan.png"
    assert command_line.main(["plan", str(lora), str(lora), "--steps", "2", option, str(target)]) == 2
    assert "there is no folder" in one_line(capsys)


def test_a_merged_file_into_a_missing_folder(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = (*PUBLISHED_OPTIONS, "--rule", "weights")
    words = ["merge", str(lora), str(lora), *rule, "--out", str(tmp_path / "no" / "x.safetensors")]
    locked = tmp_path / "file"
    locked.write_text("a file where a folder should be")
    for out in (words[-1], str(locked / "x.safetensors")):
        assert command_line.main([*words[:-1], out]) == 2
        assert "cannot be written" in one_line(capsys)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "in.safetensors"]


def test_what_is_no_ordinary_file_is_not_replaced(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    assert command_line.main(["convert", str(lora), str(pipe), "--overwrite"]) == 2
    assert "no ordinary file" in one_line(capsys)
    assert pipe.is_fifo()


@pytest.fixture
def umask() -> Iterator[None]:
    """New files may be read by all and written by their owner's group."""
    before = os.umask(0o002)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


posix = pytest.mark.skipif(os.name != "posix", reason="this system has no modes of files")


@posix
@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("command", ["convert", "merge"])
def test_who_may_read_a_written_lora_is_as_for_any_new_file_or_as_before(
    command: str, lora: Path, tmp_path: Path
) -> None:
    """safetensors' own files can be read by their owner alone."""
    target = tmp_path / "out.safetensors"
    words = {
        "convert": ["convert", str(lora), str(target)],
        "merge": [
            "merge",
            str(lora),
            str(lora),
            *PUBLISHED_OPTIONS,
            "--rule",
            "weights",
            "--out",
            str(target),
        ],
    }
    assert command_line.main(words[command]) == 0
    assert mode(target) == "0o664"
    target.chmod(0o604)
    assert command_line.main([*words[command], "--overwrite"]) == 0
    assert mode(target) == "0o604"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]


@posix
@pytest.mark.usefixtures("umask")
def test_who_may_read_a_text_stays(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    write_text(target, "first")
    assert mode(target) == "0o664"
    target.chmod(0o400)
    write_text(target, "second")
    assert (mode(target), target.read_text()) == ("0o400", "second")


@posix
def test_a_disk_without_modes_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)

    def write(draft: Path) -> None:
        draft.unlink()
        os.close(os.open(draft, os.O_CREAT, 0o600))

    write_with(tmp_path / "x.bin", write)
    assert (tmp_path / "x.bin").exists()


def test_a_folder_for_what_is_written(tmp_path: Path) -> None:
    assert made_folder(tmp_path / "new" / "er").is_dir()
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(KloraError) as told:
        made_folder(tmp_path / "text.txt")
    assert told.value.reason == f"{tmp_path / 'text.txt'} cannot be used (it is a file); name a folder."
    with pytest.raises(KloraError, match=r"in-it cannot be used \(.*\); name another folder\.$"):
        made_folder(tmp_path / "text.txt" / "in-it")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(KloraError, match=r"locked cannot be used \(it is read-only\); name another folder\."):
        made_folder(tmp_path / "locked")


def test_where_nothing_can_be_written_is_said_before_the_work(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_arguments: object, **_keywords: object) -> None:
        raise AssertionError("this is the work")

    for name in ("plan.plan_files", "report.report_files", "merge.planner_of_files"):
        monkeypatch.setattr(f"klora.commands.{name}", work)
    monkeypatch.setattr("klora.files.conversion.state_dict_in", work)
    pair, missing = [str(lora), str(lora)], str(tmp_path / "no" / "x.safetensors")
    for words in (
        ["plan", *pair, "--json", missing],
        ["plan", *pair, "--picture", missing],
        ["report", *pair, "--html", missing],
        ["merge", *pair, "--out", missing],
        ["convert", str(lora), missing],
    ):
        assert command_line.main(words) == 2
        folder = tmp_path / "no"
        told = f"{missing} cannot be written: there is no folder {folder}; make it or name another."
        assert one_line(capsys) == f"klora: {told}"
