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
from klora.hosts.a1111.multiplier import keep_told_by, multiplied
from klora.hosts.a1111.reading import exchange
from klora.hosts.common.block_weight import check_untouched
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
    models.model_data = SimpleNamespace(sd_model=None)
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, "modules.sd_models", models)
    monkeypatch.setattr(sys.modules["modules"], "sd_models", models, raising=False)

    def load_network(name: str, on_disk: Any) -> Any:
        read = models.read_state_dict(on_disk.filename)
        return SimpleNamespace(name=name, network_on_disk=on_disk, tensors=read)

    moss, fox, ink = (network(name) for name in ("moss", "fox", "ink"))
    networks: Any = SimpleNamespace(loaded_networks=[moss, fox, ink, fox], load_network=load_network)
    before = dict(vars(fox))
    exchange(networks, fox, RewrittenLora({"from": torch.ones(1)}, "NP-LoRA 0123"))
    again = networks.loaded_networks[1]
    assert networks.loaded_networks == [moss, again, ink, again]  # the tag of fox stands twice
    assert again.name == "fox (NP-LoRA 0123)"
    assert again.tensors == {"from": torch.ones(1)}
    assert (again.te_multiplier, again.unet_multiplier, again.mentioned_name) == (0.5, 0.7, "fox")
    assert again.bundle_embeddings is fox.bundle_embeddings
    assert vars(fox) == before
    assert models.read_state_dict("fox") == {"from": "disk"}


class Told:
    """A network whose multipliers another extension computes by its name, as sd-webui-loractl does."""

    weights = {"fox": 0.25}  # noqa: RUF012 - that extension has one table as well
    te_multiplier = property(lambda self: self.weights.get(self.name, 1.0), lambda self, value: None)
    unet_multiplier = property(lambda self: self.weights.get(self.name, 1.0), lambda self, value: None)

    def __init__(self, name: str) -> None:
        self.name = name


def test_a_renamed_network_keeps_the_weights_that_go_by_its_name() -> None:
    fox, ink = Told("fox"), Told("ink")
    for one in (fox, ink):
        keep_told_by(one, one.name)
        one.name += " (rewritten)"
    assert (fox.te_multiplier, fox.unet_multiplier) == (0.25, 0.25)
    assert fox.name == "fox (rewritten)"
    assert (ink.te_multiplier, ink.unet_multiplier) == (1, 1)
    with multiplied(fox, 0.5):
        assert fox.unet_multiplier == 0.125
    Told.weights = {"fox": 0.75}
    assert fox.unet_multiplier == 0.75
    plain = network("fox")
    keep_told_by(plain, "fox")
    assert type(plain) is SimpleNamespace


@pytest.mark.parametrize(
    ("items", "named"), [(["fox", "1", "lbw=MIDD"], "lbw"), (["fox", "1", "step=2-4", "W=MIDD"], "step, w")]
)
def test_blocks_of_a_lora_that_another_has_replaced_are_refused(
    a1111: Any, items: list[str], named: str
) -> None:
    told = {"lora": [SimpleNamespace(items=items)]}
    first = SimpleNamespace(extra_network_data=told, hr_extra_network_data={})
    hires = SimpleNamespace(extra_network_data={}, hr_extra_network_data=told)
    check_untouched(first, "fox", is_hires=False)  # without that extension the keys mean nothing
    a1111.scripts.scripts_data.append(SimpleNamespace(path="/host/extensions/lbw/lora_block_weight.py"))
    for p, is_hires in ((first, False), (hires, True)):
        check_untouched(p, "ink", is_hires)
        check_untouched(p, "fox", not is_hires)
        with pytest.raises(PairError, match=f"LoRA fox has {named} of lora-block-weight"):
            check_untouched(p, "fox", is_hires)
