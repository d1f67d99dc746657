"""What is kept on disk: whole or not at all, bounded, never an error, and never of another file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from klora.errors import LoraFileError
from klora.files import read_lora
from klora.planning import FilePair, content_hash, file_stamp, forget_scores, keep_scores_in, scores_of, shelf
from klora.planning.content import _known
from klora.planning.shelf import Shelf, folder_of_user
from klora.scores import TOP_K_SUM, TOTAL, Scores
from klora.settings import TopK
from tests.engine.lora_files import write_lora

KEY = ["scores", 1, "a" * 64, "rank", ["total"], ["layer"]]


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    forget_scores()
    _known.clear()
    yield
    keep_scores_in(None)
    forget_scores()
    _known.clear()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_lora(tmp_path / "fox.safetensors", seed=1),
        write_lora(tmp_path / "ink.safetensors", seed=2),
    )


class Counted(FilePair):
    """A pair that counts the layers that are formed."""

    formed = 0

    def delta_rows(self, layer: str):  # type: ignore[no-untyped-def]
        self.formed += 1
        return super().delta_rows(layer)


def taken(pair: tuple[Path, Path], top_k: str = "rank") -> tuple[Scores, int]:
    """The scores of a pair as after a restart, and how many layers had to be formed for them."""
    forget_scores()
    _known.clear()
    loras = Counted(*map(read_lora, pair))
    return scores_of(loras, loras.layers(), (TOP_K_SUM, TOTAL), TopK.parse(top_k)), loras.formed


def same(one: Scores, other: Scores) -> bool:
    return (
        one.layers == other.layers
        and one.top_k == other.top_k
        and all((one.measured[name] == other.measured[name]).all() for name in (TOP_K_SUM, TOTAL))
    )


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    kept = Shelf(tmp_path / "new" / "folder")
    assert kept.get(KEY) is None
    kept.put(KEY, {"total": [0.1, 1e-300, 3]})
    assert Shelf(kept.folder).get(list(KEY)) == {"total": [0.1, 1e-300, 3]}
    assert kept.get([*KEY, "more"]) is None


def test_a_torn_file_is_none(tmp_path: Path) -> None:
    kept = Shelf(tmp_path)
    kept.put(KEY, {"total": [1.0] * 50})
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for torn in (
        b"",
        whole[:10],
        whole[:-1],
        whole[:-9] + b"x" + whole[-8:],
        b"\x00" * len(whole),
        whole * 2,
    ):
        file.write_bytes(torn)
        assert kept.get(KEY) is None
    kept.put(KEY, 5)
    assert kept.get(KEY) == 5


def test_a_result_under_another_name_is_none(tmp_path: Path) -> None:
    kept = Shelf(tmp_path)
    kept.put(KEY, 1)
    (file,) = tmp_path.iterdir()
    kept.put(["other"], 2)
    (other,) = set(tmp_path.iterdir()) - {file}
    os.replace(file, other)
    assert kept.get(["other"]) is None


def test_many_writers_and_readers_at_once(tmp_path: Path) -> None:
    """Threads here and two other processes write the same results; whoever reads sees one of them whole."""
    code = (
        "import sys; from pathlib import Path; from klora.planning.shelf import Shelf\n"
        "s = Shelf(Path(sys.argv[1]))\n"
        "for n in range(150): s.put(['key', n % 3], [n % 3] * 4000)"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    wrong: list[object] = []

    def work() -> None:
        kept = Shelf(tmp_path)
        for number in range(150):
            kept.put(["key", number % 3], [number % 3] * 4000)
            seen = kept.get(["key", number % 3])
            if seen != [number % 3] * 4000:
                wrong.append(seen)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    assert wrong == []
    assert len(list(tmp_path.iterdir())) == 3


def test_the_folder_stays_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MOST_FILES", 5)
    kept = Shelf(tmp_path)
    abandoned = tmp_path / "tmpx.part"
    abandoned.write_bytes(b"x")
    os.utime(abandoned, (0, 0))
    (tmp_path / "notes.txt").write_text("not ours")
    for number in range(9):
        kept.put(["key", number], number)
        os.utime(max(tmp_path.glob("*.json"), key=os.path.getctime), (number + 1, number + 1))
        kept.get(["key", 0])  # in use, so it stays
    assert not abandoned.exists()
    assert (tmp_path / "notes.txt").exists()
    assert [number for number in range(9) if kept.get(["key", number]) is not None] == [0, 5, 6, 7, 8]
    monkeypatch.setattr(shelf, "MOST_BYTES", 1)
    kept.put(["key", 10], 10)
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize("trouble", ["a file in its place", "disk full", "read only"])
def test_no_trouble_is_an_error_and_the_console_is_told_once(
    trouble: str,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "cache"

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    def read_only(*_arguments: object, **_keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    if trouble == "a file in its place":
        folder.write_text("x")
    elif trouble == "disk full":
        monkeypatch.setattr(shelf.os, "replace", full)
    else:
        monkeypatch.setattr(shelf.tempfile, "mkstemp", read_only)
    expected, _ = taken(pair)
    keep_scores_in(folder)
    for _ in range(2):
        scores, formed = taken(pair)
        assert same(scores, expected)
        assert formed == len(scores.layers)
    assert capsys.readouterr().err.count("cannot be kept") == 1
    assert not folder.is_dir() or list(folder.iterdir()) == []


def test_scores_are_there_after_a_restart(pair: tuple[Path, Path], tmp_path: Path) -> None:
    expected, formed = taken(pair)
    keep_scores_in(tmp_path / "cache")
    first, formed_first = taken(pair)
    again, formed_again = taken(pair)
    assert same(first, expected)
    assert same(again, expected)
    assert (formed, formed_first, formed_again) == (len(expected.layers), len(expected.layers), 0)
    assert taken((pair[1], pair[0]))[1] > 0  # style and content are not the same
    assert taken(pair, "3")[1] > 0
    assert taken(pair, "3")[1] == 0


def test_a_copy_elsewhere_has_the_same_scores(pair: tuple[Path, Path], tmp_path: Path) -> None:
    keep_scores_in(tmp_path / "cache")
    taken(pair)
    moved = tmp_path / "sub"
    moved.mkdir()
    copies = tuple(Path(os.replace(one, moved / one.name) or moved / one.name) for one in pair)
    assert taken((copies[0], copies[1]))[1] == 0


@pytest.mark.parametrize("has_shelf", [True, False])
@pytest.mark.parametrize("way", ["moved there", "written over"])
def test_a_file_replaced_with_the_same_size_and_time(
    way: str, has_shelf: bool, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The old scores would be those of another LoRA."""
    keep_scores_in(tmp_path / "cache" if has_shelf else None)
    before = FilePair(*map(read_lora, pair))
    old = scores_of(before, before.layers(), (TOTAL,), TopK.parse("rank"))
    status = pair[1].stat()
    other = write_lora(tmp_path / "other.safetensors", seed=3)
    assert other.stat().st_size == status.st_size
    if way == "moved there":
        os.replace(other, pair[1])
    else:
        pair[1].write_bytes(other.read_bytes())
    os.utime(pair[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    after = FilePair(*map(read_lora, pair))
    new = scores_of(after, after.layers(), (TOTAL,), TopK.parse("rank"))
    assert (new.style(TOTAL) != old.style(TOTAL)).all()
    assert (new.content(TOTAL) == old.content(TOTAL)).all()


def test_samples_tell_files_apart_where_no_time_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network drive without inodes, or on Windows, where no time of change can be had."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(os.urandom(300_000))
    real = os.fstat

    def fstat(handle: int) -> os.stat_result:
        return os.stat_result((0, 0, 0, 0, 0, 0, real(handle).st_size, 0, 0, 0))

    monkeypatch.setattr("klora.planning.content.os.fstat", fstat)
    stamp, digest = file_stamp(file), content_hash(file)
    assert (file_stamp(file), content_hash(file)) == (stamp, digest)
    file.write_bytes(os.urandom(300_000))
    assert file_stamp(file) != stamp
    assert content_hash(file) != digest


def test_what_peft_declares_beside_a_file_is_part_of_what_it_holds(tmp_path: Path) -> None:
    """An edited alpha of one layer changes what is applied, and no byte of the tensors."""
    made = [write_lora(tmp_path / name / "adapter_model.safetensors") for name in _folders(tmp_path, "ab")]
    before = [file_stamp(made[0]), content_hash(made[0])]
    pair = FilePair(*map(read_lora, made))
    in_process, lasting = pair.score_key(), pair.lasting_key()
    (tmp_path / "b" / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8}')
    assert [file_stamp(made[0]), content_hash(made[0])] == before
    changed = FilePair(*map(read_lora, made))
    assert changed.score_key() != in_process
    assert changed.lasting_key() != lasting
    beside = tmp_path / "a" / "notes.json"
    beside.write_text("{}")
    assert [file_stamp(made[0]), content_hash(made[0])] == before


def _folders(within: Path, names: str) -> str:
    for name in names:
        (within / name).mkdir()
    return names


def test_content_hash_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    file = tmp_path / "a.safetensors"
    file.write_bytes(os.urandom(100_000))
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    keep_scores_in(tmp_path / "cache")
    assert content_hash(file) == expected
    _known.clear()
    monkeypatch.setattr("klora.planning.content.hashlib.sha256", _only_samples(hashlib.sha256))
    assert content_hash(file) == expected


def _only_samples(real):  # type: ignore[no-untyped-def]
    class Sampling:
        def __init__(self, start: bytes = b"") -> None:
            self._digest = real(start)

        def update(self, data: bytes) -> None:
            assert len(data) <= 4096, "the whole file is read again"
            self._digest.update(data)

        def hexdigest(self) -> str:
            return str(self._digest.hexdigest())

    return Sampling


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    for ask in (content_hash, file_stamp):
        with pytest.raises(LoraFileError, match=r"gone\.safetensors.*no longer be read"):
            ask(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/klora"),
        ("linux", {"HOME": "/home/a"}, "/home/a/.cache/klora"),
        ("darwin", {"HOME": "/Users/a"}, "/Users/a/Library/Caches/klora"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/klora"),
        ("win32", {"LOCALAPPDATA": "/l", "KLORA_CACHE": "/mine"}, "/mine"),
        ("linux", {"XDG_CACHE_HOME": "/x", "KLORA_CACHE": ""}, None),
    ],
)
def test_the_users_folder(
    platform: str, variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "KLORA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shelf.sys, "platform", platform)
    found = folder_of_user()
    assert (None if found is None else found.as_posix()) == expected
