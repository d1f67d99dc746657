"""A transform on its way from the settings of a job to AUTOMATIC1111's list of networks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from klora.errors import LoraFileError, PairError
from klora.files import read_lora
from klora.hosts.a1111.reading import exchange
from klora.hosts.common.library import KnownLora
from klora.hosts.common.rewriting import RewrittenLora, rewritten_loras
from klora.planning import rewritten
from klora.settings import Settings
from tests.engine.lora_files import write_lora


def known(path: Path) -> KnownLora:
    return KnownLora(path.stem, path.stem, str(path), SimpleNamespace(shorthash="ab"))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[KnownLora, KnownLora]:
    fox, ink = (
        known(write_lora(tmp_path / f"{name}.safetensors", seed=n)) for n, name in enumerate(["fox", "ink"])
    )
    return fox, ink


def test_nothing_is_rewritten_without_a_transform(pair: tuple[KnownLora, KnownLora]) -> None:
    assert rewritten_loras(*pair, Settings()) == {}
    assert rewritten_loras(*pair, Settings(transform="NP-LoRA", mu=0)) == {}


def test_the_content_is_rewritten_in_kohyas_dialect(pair: tuple[KnownLora, KnownLora]) -> None:
    wanted = Settings(transform="NP-LoRA", mu=2)
    found = rewritten_loras(*pair, wanted)
    assert list(found) == ["fox"]
    files = [read_lora(one.path) for one in pair]
    after, _ = rewritten(files[0], files[1], wanted)
    for key, tensor in found["fox"].tensors.items():
        assert torch.equal(tensor, after.container.read(key))
    marks = {rewritten_loras(*pair, wanted.replace(mu=mu))["fox"].mark for mu in (2, 3, 2)}
    assert len(marks) == 2
    assert all(mark.startswith("NP-LoRA ") for mark in marks)


def test_what_cannot_be_rewritten_is_refused(pair: tuple[KnownLora, KnownLora], tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"only diffusers can run.*set Rewrite the pair to none or NP-LoRA"):
        rewritten_loras(*pair, Settings(transform="SSR"))
    bad = known(write_lora(tmp_path / "bad.safetensors", bad=float("nan")))
    with pytest.raises(LoraFileError, match="bad"):
        rewritten_loras(pair[0], bad, Settings(transform="NP-LoRA"))


def network(name: str, **more: Any) -> Any:
    defaults = {"te_multiplier": 0.5, "unet_multiplier": 0.7, "dyn_dim": None, "mentioned_name": name}
    return SimpleNamespace(
        name=name,
        network_on_disk=SimpleNamespace(name=name, filename=f"{name}.safetensors"),
        bundle_embeddings={},
        **{**defaults, **more},
    )


def test_a_network_is_exchanged_in_the_list_and_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    models: Any = ModuleType("modules.sd_models")
    models.read_state_dict = lambda _path: {"from": "disk"}
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, "modules.sd_models", models)
    monkeypatch.setattr(sys.modules["modules"], "sd_models", models, raising=False)

    def load_network(name: str, on_disk: Any) -> Any:
        read = models.read_state_dict(on_disk.filename)
        return SimpleNamespace(name=name, network_on_disk=on_disk, tensors=read)

    moss, fox, ink = (network(name) for name in ("moss", "fox", "ink"))
    networks: Any = SimpleNamespace(loaded_networks=[moss, fox, ink], load_network=load_network)
    before = dict(vars(fox))
    exchange(networks, fox, RewrittenLora({"from": torch.ones(1)}, "NP-LoRA 0123"))
    again = networks.loaded_networks[1]
    assert networks.loaded_networks == [moss, again, ink]
    assert again.name == "fox (NP-LoRA 0123)"
    assert again.tensors == {"from": torch.ones(1)}
    assert (again.te_multiplier, again.unet_multiplier, again.mentioned_name) == (0.5, 0.7, "fox")
    assert again.bundle_embeddings is fox.bundle_embeddings
    assert vars(fox) == before
    assert models.read_state_dict("fox") == {"from": "disk"}
