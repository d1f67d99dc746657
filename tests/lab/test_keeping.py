"""What takes long to make is made once, and its file is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from klora.lab.keeping import keep, kept  # noqa: E402


def test_what_is_kept_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> list[object]:
        made.append(1)
        return [torch.arange(3), (1, 2)]

    path = tmp_path / "folder" / "kept.pt"
    first, again = kept(path, make), kept(path, make)
    assert made == [1]
    for found in (first, again):
        assert found[0].tolist() == [0, 1, 2]
        assert tuple(found[1]) == (1, 2)


def test_what_ends_while_it_is_written_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.pt"
    keep(torch.ones(2), path)

    def half(_value: object, draft: Path) -> None:
        draft.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        keep(torch.zeros(2), path)
    assert torch.equal(torch.load(path, weights_only=True), torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["kept.pt"]
