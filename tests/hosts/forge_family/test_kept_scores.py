"""The family's scores on disk: there after a restart, and never those of other numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klora.hosts.forge_family import reading
from klora.planning import content, forget_scores, keep_scores_in, scores_of, scoring
from klora.scores import TOTAL, Scores
from klora.settings import TopK
from tests.hosts.forge_family.hosts import FORGE, NEO, NEWER, REFORGE, FakeWebUI, Kind
from tests.hosts.forge_family.model import OUT, Lora, make_lora

kinds = pytest.mark.parametrize(
    "kind",
    [*(Kind(host) for host in (FORGE, NEO, NEWER, REFORGE)), Kind(FORGE, is_packed=True)],
    ids=str,
)


@pytest.fixture(autouse=True)
def _kept(tmp_path: Path) -> Iterator[None]:
    keep_scores_in(tmp_path / "cache")
    yield
    keep_scores_in(None)


class Restarts:
    """The scores of a pair as after a restart, and how many layers had to be scored for them."""

    def __init__(self, webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch) -> None:
        self.webui, self.scored = webui, 0
        own = scoring.score_layer

        def counted(*arguments: object, **keywords: object) -> object:
            self.scored += 1
            return own(*arguments, **keywords)  # type: ignore[arg-type]

        monkeypatch.setattr(scoring, "score_layer", counted)

    def scores(self, fox: float = 1.0) -> tuple[Scores, int]:
        forget_scores()
        content._known.clear()
        reading._seen.clear()
        self.scored = 0
        p = self.webui.job(fox=fox, ink=1.0)
        self.webui.adapter.after_activation(p, ("fox", "ink"))
        seam = self.webui.adapter.seam(p, ("fox", "ink"))
        contested = [view for view in seam.layers() if view.is_shared]
        return scores_of(seam, contested, (TOTAL,), TopK.parse("rank")), self.scored


@pytest.fixture
def restarts(webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch) -> Restarts:
    return Restarts(webui, monkeypatch)


@kinds
def test_scores_are_there_after_a_restart(restarts: Restarts, loras: list[Lora], tmp_path: Path) -> None:
    taken, scored = restarts.scores()
    kept, scored_again = restarts.scores()
    assert (scored, scored_again) == (len(taken.layers), 0)
    assert (kept.content(TOTAL) == taken.content(TOTAL)).all()
    assert (kept.style(TOTAL) == taken.style(TOTAL)).all()
    assert restarts.scores(fox=0.5)[1] == scored
    restarts.webui.checkpoint(seed=5)  # the LoRAs' own numbers do not depend on the checkpoint
    assert restarts.scores()[1] == 0
    make_lora(tmp_path, "fox", 77)
    assert restarts.scores()[1] == scored


@kinds
def test_what_depends_on_the_checkpoint_is_not_kept(
    restarts: Restarts, loras: list[Lora], tmp_path: Path
) -> None:
    tensors = load_file(loras[1].path)
    stem = next(name for name in tensors if OUT in name).partition(".lora")[0]
    tensors[f"{stem}.dora_scale"] = torch.ones(8, 1)
    save_file(tensors, loras[1].path)
    for _ in range(2):
        assert restarts.scores()[1] > 0
    assert not (tmp_path / "cache").exists()
