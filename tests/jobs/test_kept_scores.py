"""AUTOMATIC1111's scores on disk: there after a restart, and never those of other numbers."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from klora.hosts.webui.score_folder import score_folder
from klora.planning import forget_scores, keep_scores_in, scores_of, scoring
from klora.planning.content import _known
from klora.scores import TOTAL, Scores
from klora.settings import TopK
from tests.engine.lora_files import write_lora
from tests.jobs.conftest import SCRIPT
from tests.jobs.fake_webui import BOTH
from tests.jobs.fakes import ATTENTION, CANONICAL, FakeModel, NetworkModuleLora, install, make_network
from tests.jobs.test_a1111_seam import CHECKPOINT, Scene
from tests.published import PUBLISHED
from tests.webui.conftest import FakeEntry, FakeHost


class NetworkModuleGLora(NetworkModuleLora):
    """A type whose dW depends on the checkpoint's weight. The class name is the host's."""


class Restarts:
    """The scores of a scene as after a restart, and how many layers had to be scored for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scored = 0
        own = scoring.score_layer

        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.scored += 1
            return own(*arguments, **keywords)

        monkeypatch.setattr(scoring, "score_layer", counted)

    def scores(self, scene: Scene) -> tuple[Scores, int]:
        forget_scores()
        _known.clear()
        self.scored = 0
        seam = scene.seam()
        found = scores_of(seam, seam.layers(), (TOTAL,), TopK.parse("rank"))
        return found, self.scored


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    networks = ModuleType("networks")
    install(networks)
    model = FakeModel(networks)
    loras = [
        make_network(
            name,
            model,
            seed=at + 1,
            entry=FakeEntry(name, name, str(write_lora(tmp_path / f"{name}.safetensors", seed=at))),
        )
        for at, name in enumerate(("fox", "ink", "oak"))
    ]
    networks.loaded_networks = list(loras)
    return Scene(networks, model, *loras)


@pytest.fixture
def restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Restarts]:
    keep_scores_in(tmp_path / "cache")
    yield Restarts(monkeypatch)
    keep_scores_in(None)
    _known.clear()


def test_scores_are_there_after_a_restart(scene: Scene, restarts: Restarts) -> None:
    taken, scored = restarts.scores(scene)
    kept, scored_again = restarts.scores(scene)
    assert (scored, scored_again) == (len(CANONICAL), 0)
    assert (kept.content(TOTAL) == taken.content(TOTAL)).all()
    assert (kept.style(TOTAL) == taken.style(TOTAL)).all()
    assert kept.layers == taken.layers


def test_the_same_numbers_are_needed(scene: Scene, restarts: Restarts, tmp_path: Path) -> None:
    """Each change alone makes other scores; what was kept before stays true for what it was kept for."""
    restarts.scores(scene)
    for change in (
        lambda: setattr(scene.fox, "unet_multiplier", 0.5),
        lambda: setattr(scene.ink, "dyn_dim", 1),
        lambda: write_lora(tmp_path / "ink.safetensors", seed=9),
        lambda: scene.fox.modules[ATTENTION[0]].delta.mul_(2),
    ):
        change()
        assert restarts.scores(scene)[1] == len(CANONICAL)
        assert restarts.scores(scene)[1] == 0


def test_a_file_that_was_replaced_while_its_numbers_are_in_memory(
    scene: Scene, restarts: Restarts, tmp_path: Path
) -> None:
    """The host goes on with the numbers that it has read; they must not become those of the new file."""
    old = {name: one.delta.clone() for name, one in scene.ink.modules.items()}
    path = tmp_path / "ink.safetensors"
    status = path.stat()
    write_lora(tmp_path / "new.safetensors", seed=9)
    os.replace(tmp_path / "new.safetensors", path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    stale, _ = restarts.scores(scene)
    for module in scene.ink.modules.values():  # a restart: the host reads the new file
        module.delta = 3 * module.delta
    fresh, scored = restarts.scores(scene)
    assert scored == len(CANONICAL)
    expected = [float(3 * old[name].abs().sum()) for name in CANONICAL]
    assert fresh.style(TOTAL).tolist() == pytest.approx(expected)
    assert (fresh.style(TOTAL) != stale.style(TOTAL)).all()


def test_a_picture_leaves_nothing_on_disk_but_scores(
    webui: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    for at, (name, network) in enumerate(webui.known.items()):
        network.network_on_disk.filename = str(write_lora(loras / f"{name}.safetensors", seed=at))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)  # the host's data folder, too
    keep_scores_in(tmp_path / "cache" / "klora")
    webui.generate(BOTH, PUBLISHED)
    keep_scores_in(None)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path for path in after if path.parent == tmp_path / "cache" / "klora"}
    assert kept
    assert {path: raw for path, raw in after.items() if path not in kept} == before


def _make_glora(scene: Scene) -> None:
    scene.ink.modules[ATTENTION[1]].__class__ = NetworkModuleGLora


def _make_dora(scene: Scene) -> None:
    scene.ink.modules[ATTENTION[1]].dora_scale = torch.ones(1)


def _rename(scene: Scene) -> None:
    scene.fox.name = "fox_in_LBW_0.299"


def _remove(scene: Scene) -> None:
    os.remove(scene.fox.network_on_disk.filename)


@pytest.mark.parametrize("doubt", [_make_glora, _make_dora, _rename, _remove])
def test_where_the_numbers_cannot_be_told_nothing_is_kept(
    scene: Scene, restarts: Restarts, doubt: Any, tmp_path: Path
) -> None:
    """A type that depends on the checkpoint, another extension's numbers, a file that is gone."""
    doubt(scene)
    assert restarts.scores(scene)[1] == len(CANONICAL)
    assert restarts.scores(scene)[1] == len(CANONICAL)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("trouble", ["a file in its place", "torn"])
def test_trouble_with_the_folder_is_no_trouble_for_a_picture(
    scene: Scene, restarts: Restarts, trouble: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    if trouble == "torn":
        restarts.scores(scene)
        for file in folder.iterdir():
            file.write_bytes(file.read_bytes()[:-3])
    else:
        folder.write_text("")
    assert restarts.scores(scene)[1] == len(CANONICAL)


def test_another_checkpoint_of_the_same_shape_has_the_same_scores(scene: Scene, restarts: Restarts) -> None:
    restarts.scores(scene)
    scene.model.named[ATTENTION[0]].weight.data *= 2
    assert restarts.scores(scene)[1] == 0
    assert scene.seam().score_key() != scene.seam(SimpleNamespace()).score_key()
    assert CHECKPOINT.sd_checkpoint_info.filename == "/models/sd.safetensors"


# --- Where they are kept
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "told", "expected"),
    [
        (None, "/hashes", "/hashes/klora"),
        (None, None, "/data/cache/klora"),
        ("/mine", "/hashes", "/mine"),
        ("", "/hashes", None),
    ],
)
def test_the_folder(
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    chosen: str | None,
    told: str | None,
    expected: str | None,
) -> None:
    cache = ModuleType("modules.cache")
    if told is not None:
        cache.cache_dir = told  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules.cache", cache)
    monkeypatch.setattr(sys.modules["modules.paths_internal"], "data_path", "/data")
    monkeypatch.delenv("KLORA_CACHE")
    if chosen is not None:
        monkeypatch.setenv("KLORA_CACHE", chosen)
    found = score_folder()
    assert (None if found is None else found.as_posix()) == expected


def test_a_host_without_such_a_folder(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLORA_CACHE")
    monkeypatch.setitem(sys.modules, "modules.cache", None)
    assert score_folder() is None


def test_the_script_says_where(
    webui: Any, host: FakeHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KLORA_CACHE", str(tmp_path / "mine"))
    sys.modules["modules.script_callbacks"].on_app_started = lambda _: None  # type: ignore[attr-defined]
    importlib.import_module(SCRIPT).register()
    assert scoring._shelf is not None
    assert scoring._shelf.folder == tmp_path / "mine"
    keep_scores_in(None)
