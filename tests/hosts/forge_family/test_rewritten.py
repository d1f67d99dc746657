"""A LoRA that a transform has rewritten: applied for a pass in every way of the hosts, and then gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from klora.hosts.common.rewriting import RewrittenLora
from klora.hosts.forge_family.seam import FamilySeam
from klora.schedule import Expected
from tests.hosts.forge_family.hosts import FakeWebUI
from tests.hosts.forge_family.model import Lora, batch, expected, make_lora
from tests.hosts.forge_family.passes import everywhere

NAMES = ("fox", "ink")
BOTH = dict.fromkeys(NAMES, 1.0)


@pytest.fixture
def others(tmp_path: Path) -> list[Lora]:
    """What two transforms have made of the content."""
    folder = tmp_path / "rewritten"
    folder.mkdir()
    (folder / "more").mkdir()
    return [make_lora(folder, "fox", 41), make_lora(folder / "more", "fox", 42)]


@contextmanager
def sampling(webui: FakeWebUI, lora: Lora | None, held: Sequence[str] | None = None) -> Iterator[FamilySeam]:
    """A pass with ``lora`` in the place of the content, in which the shares of ``held`` are set."""
    rewritten: Mapping[str, RewrittenLora] = {}
    if lora is not None:
        rewritten = {"fox": RewrittenLora(load_file(lora.path), f"NP-LoRA {lora.path}")}
    p = webui.job(**BOTH)
    webui.adapter.after_activation(p, NAMES, rewritten)
    seam = webui.adapter.seam(p, NAMES)
    layers = [view.name for view in seam.layers()] if held is None else held
    shares = {name: one for name, one in everywhere(seam, 1.0, 1.0).items() if name in layers}
    webui.adapter.before_loading(p, seam, Expected(shares, lasts=lambda: True))
    webui.load()
    with seam.withheld(layers), webui.adapter.telling_rows(None, seam):
        seam.apply(shares)
        yield seam


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("held", [None, ()])
def test_it_is_applied_and_the_hosts_own_is_back_afterwards(
    webui: FakeWebUI, loras: list[Lora], others: list[Lora], held: Sequence[str] | None
) -> None:
    """Held or left to the host: what is merged or in a list of the host's must not outlive the job."""
    given, ink = batch(), loras[1]
    own = webui.own_picture(given, **BOTH)
    for lora in (others[0], others[1], None, others[0]):
        with sampling(webui, lora, held):
            close(webui.run(given), expected(webui.clean, [lora or loras[0], ink], BOTH, given))
    assert torch.equal(webui.own_picture(given, **BOTH), own)
    with sampling(webui, others[1], held):
        pass
    assert torch.equal(webui.own_picture(given, **BOTH), own)
    known = webui.networks.available_networks["fox"].filename
    assert repr(known) == repr(loras[0].path)


def test_what_is_rewritten_is_scored_anew(webui: FakeWebUI, others: list[Lora]) -> None:
    keys, deltas = [], []
    for lora in (None, others[0], others[1], others[0], None):
        with sampling(webui, lora) as seam:
            keys.append(seam.score_key())
            deltas.append(seam.deltas(seam.layers()[0].name)[0])
    assert len(set(keys)) == 3
    assert keys[0] == keys[4]
    assert keys[1] == keys[3]
    assert torch.equal(deltas[1], deltas[3])
    assert not torch.equal(deltas[0], deltas[1])
