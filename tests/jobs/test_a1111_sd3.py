"""SD3 on AUTOMATIC1111: q, k and v are one layer of the model, and three modules of a LoRA in diffusers'
dialect, under names that no layer has.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from klora.hosts.a1111.modules import HostModules
from klora.hosts.a1111.reading import exchange
from klora.hosts.a1111.seam import A1111Seam
from klora.hosts.common.rewriting import RewrittenLora
from klora.planning import Cast
from klora.schedule import LayerShares, Moment
from klora.weights import prepare
from tests.jobs.fakes import (
    SIZE,
    DoraModule,
    FakeModel,
    FakeNetwork,
    NetworkModuleLora,
    QkvLinear,
    install,
    make_network,
)
from tests.published import published

BLOCK = "diffusion_model_joint_blocks_0_x_block_attn_"
QKV, OUT = BLOCK + "qkv", BLOCK + "proj"
CANONICAL = "transformer_blocks.0.attn.to_qkv"
CANONICAL_OUT = "transformer_blocks.0.attn.to_out.0"
RANKS = (2, 1, 3)


class PartModule(NetworkModuleLora):
    """A module of q, k or v with its factors; its layer is the fused one."""

    def __init__(self, network: FakeNetwork, layer: Any, up: Tensor, down: Tensor) -> None:
        super().__init__(network, layer, 0.5 * (up @ down), len(down))
        self.up_model, self.down_model = SimpleNamespace(weight=up), SimpleNamespace(weight=down)
        self.mid_model = self.bias = self.dora_scale = None

    def calc_scale(self) -> float:
        return 0.5

    def multiplier(self) -> float:
        return self.network.unet_multiplier


PartModule.__name__ = "NetworkModuleLora"


def split(network: FakeNetwork, seed: int) -> None:
    """Let a LoRA have the parts of the fused layer in its place."""
    layer = network.modules.pop(QKV).sd_module
    generator = torch.Generator().manual_seed(seed)
    for letter, rank in zip("qkv", RANKS, strict=True):
        up, down = (torch.randn(*size, generator=generator) for size in ((SIZE, rank), (rank, SIZE)))
        network.modules[f"{QKV}_{letter}_proj"] = PartModule(network, layer, up, down)


class Scene:
    """Two LoRAs in diffusers' dialect, and one whose file has the fused layer."""

    def __init__(self) -> None:
        self.networks: Any = ModuleType("networks")
        install(self.networks)
        self.model = FakeModel(self.networks, (OUT,))
        self.layer = QkvLinear(SIZE, 3 * SIZE, bias=False)
        self.layer.weight.data = torch.randn(3 * SIZE, SIZE, generator=torch.Generator().manual_seed(9))
        self.layer.network_layer_name = QKV
        self.model.named[QKV] = self.layer
        self.clean = self.layer.weight.detach().clone()
        self.fox, self.ink, self.oak = (
            make_network(name, self.model, seed=at, layers=(OUT, QKV))
            for at, name in enumerate(("fox", "ink", "oak"))
        )
        self.ink.unet_multiplier = 0.7
        self.oak.modules[QKV].delta = torch.randn(3 * SIZE, SIZE, generator=torch.Generator().manual_seed(8))
        split(self.fox, 1)
        split(self.ink, 2)
        self.networks.loaded_networks = [self.fox, self.ink, self.oak]

    def seam(self) -> A1111Seam:
        checkpoint = SimpleNamespace(is_sd3=True, network_layer_mapping=dict(self.model.named))
        return A1111Seam(self.networks, checkpoint, (self.fox, self.ink), torch.device("cpu"))

    def delta(self, network: FakeNetwork) -> Tensor:
        """What the host adds at a multiplier of 1."""
        return torch.vstack([network.modules[f"{QKV}_{letter}_proj"].delta for letter in "qkv"])

    def output(self, fox: float, ink: float) -> Tensor:
        weight = self.clean + fox * self.delta(self.fox) + ink * self.delta(self.ink)
        return self.model.probe @ (weight + self.oak.modules[QKV].delta).T


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_the_parts_are_the_fused_layer_s(scene: Scene) -> None:
    views = {one.name: one for one in scene.seam().layers()}
    assert views.keys() == {CANONICAL, CANONICAL_OUT}
    assert all(one.is_attention and one.is_shared for one in views.values())
    assert views[CANONICAL].ranks == {0: sum(RANKS), 1: sum(RANKS)}
    scene.fox.dyn_dim = 2
    assert {one.name: one.ranks[0] for one in scene.seam().layers()}[CANONICAL] == 2 + 1 + 2


def test_deltas_are_what_the_host_adds(scene: Scene) -> None:
    content, style = scene.seam().deltas(CANONICAL)
    torch.testing.assert_close(content, scene.delta(scene.fox))
    torch.testing.assert_close(style, 0.7 * scene.delta(scene.ink))


@pytest.mark.parametrize(
    ("shares", "weights"), [((1, 0), (1, 0)), ((0, 1), (0, 0.7)), ((0.5, 1), (0.5, 0.7))]
)
def test_shares_reach_the_parts(
    scene: Scene, shares: tuple[float, float], weights: tuple[float, float]
) -> None:
    seam = scene.seam()
    with seam.withheld([CANONICAL]):
        seam.apply({CANONICAL: LayerShares(shares)})
        torch.testing.assert_close(scene.model.run()[QKV], scene.output(*weights))
    torch.testing.assert_close(scene.model.run()[QKV], scene.output(1, 0.7))


@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_the_negative_side_has_its_own_shares(scene: Scene, kind: str) -> None:
    name = f"{QKV}_k_proj"
    if kind == "dora":
        scene.ink.modules[name] = DoraModule(scene.ink.modules[name], torch.linspace(1.0, 3.0, SIZE))
    scene.networks.loaded_networks = [scene.fox, scene.oak]
    expected = scene.model.run()[QKV]
    scene.networks.loaded_networks = [scene.fox, scene.ink, scene.oak]
    seam = scene.seam()
    with seam.withheld([CANONICAL]), torch.no_grad():
        seam.apply({CANONICAL: LayerShares((1, 1), (1, 0))})
        seam.branches.rows.tell(2, ((1, 2),))
        found = scene.model.run()[QKV]
    torch.testing.assert_close(found[1], expected[1])
    assert not torch.allclose(found[0], expected[0])


def test_a_whole_pass_and_a_key_that_lasts(scene: Scene, tmp_path: Path) -> None:
    for network in (scene.fox, scene.ink):
        path = tmp_path / f"{network.name}.bin"
        path.write_bytes(network.name.encode())
        network.network_on_disk.filename = str(path)
    assert scene.seam().lasting_key() is not None
    made = prepare(scene.seam(), Cast.of_pair("fox", "ink"), published(schedule="S", gamma="off"))
    with made.sampling():
        for step in range(10):
            made.at(Moment(step, 10))
            found = scene.model.run()[QKV]
            assert any(torch.allclose(found, scene.output(*one), atol=1e-5) for one in ((1, 0), (0, 0.7)))


def test_parts_that_the_host_leaves_out_are_none(scene: Scene) -> None:
    """It merges all three or nothing, and none in functional mode."""
    del scene.fox.modules[f"{QKV}_v_proj"]
    modules = HostModules(scene.networks)
    assert modules.layers(scene.fox) == [OUT]
    assert modules.layers(scene.ink) == [OUT, QKV]
    scene.networks.shared.opts.lora_functional = True
    assert modules.layers(scene.ink) == [OUT]
    assert modules.layers(scene.oak) == [QKV, OUT]


@pytest.mark.parametrize("is_sd3", [True, False])
def test_what_stands_for_a_file_has_names_that_the_host_can_split(
    a1111: Any, monkeypatch: pytest.MonkeyPatch, is_sd3: bool
) -> None:
    """For SD3 it splits each name from the right into three, of which ``lora_unet_x.alpha`` has two."""
    models = sys.modules["modules.sd_models"]
    monkeypatch.setattr(models, "read_state_dict", None, raising=False)
    checkpoint = SimpleNamespace(**({"diffusers_weight_mapping": lambda: iter(())} if is_sd3 else {}))
    monkeypatch.setattr(models.model_data, "sd_model", checkpoint)

    def load_network(name: str, on_disk: Any) -> Any:
        read = models.read_state_dict(on_disk.filename)
        if is_sd3:
            for key in read:
                _stem, _first, _last = key.rsplit(".", 2)
        return SimpleNamespace(name=name, network_on_disk=on_disk, read=read)

    scene = Scene()
    scene.networks.load_network = load_network
    scene.fox.bundle_embeddings = {}
    up, down = torch.ones(SIZE, 2), torch.ones(2, SIZE)
    stem = "lora_unet_joint_blocks_0_x_block_attn_proj"
    tensors = {
        f"{stem}.lora_up.weight": up,
        f"{stem}.lora_down.weight": down,
        f"{stem}.alpha": torch.tensor(1.0),
    }
    read = exchange(scene.networks, scene.fox, RewrittenLora(tensors, "mark")).read
    alpha = float(read.get(f"{stem}.alpha", 2.0))
    found = (alpha / 2) * read[f"{stem}.lora_up.weight"] @ read[f"{stem}.lora_down.weight"]
    torch.testing.assert_close(found, 0.5 * up @ down)
    assert (f"{stem}.alpha" in read) != is_sd3
    assert tensors[f"{stem}.lora_up.weight"] is up
    assert len(tensors) == 3
