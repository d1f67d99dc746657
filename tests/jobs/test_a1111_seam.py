"""AUTOMATIC1111's seam: the host sees winner and others only, and afterwards nothing is left of it."""

from __future__ import annotations

import sys
from copy import copy
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from klora.errors import HostError, LoraFileError
from klora.hosts.a1111.rows import telling_rows
from klora.hosts.a1111.seam import A1111Seam
from klora.hosts.common.boundary import OutOfMemoryError
from klora.planning import Cast
from klora.schedule import LayerShares, Moment
from klora.weights import prepare
from klora.weights.branch import BatchRows, RowDelta
from tests.jobs.fakes import (
    ATTENTION,
    CANONICAL,
    FEED_FORWARD,
    IN_FORWARD_ORDER,
    SIZE,
    TEXT,
    DoraModule,
    FakeModel,
    FakeNetwork,
    NetworkModuleNorm,
    install,
    make_network,
)
from tests.published import published

C, S, BOTH, NONE = (LayerShares(shares) for shares in ((1, 0), (0, 1), (1, 1), (0, 0)))
CHECKPOINT = SimpleNamespace(sd_checkpoint_info=SimpleNamespace(filename="/models/sd.safetensors"))


@dataclass
class Scene:
    """A model, its Lora extension with three LoRAs loaded, and the seam for the first two."""

    networks: Any
    model: FakeModel
    fox: FakeNetwork
    ink: FakeNetwork
    oak: FakeNetwork

    def seam(self, checkpoint: Any = CHECKPOINT) -> A1111Seam:
        return A1111Seam(self.networks, checkpoint, (self.fox, self.ink), torch.device("cpu"))

    def check(self, output: dict[str, Tensor], name: str, *loras: FakeNetwork) -> None:
        torch.testing.assert_close(output[name], self.model.expected(name, *loras))


@pytest.fixture(params=["merged", "functional"])
def scene(request: pytest.FixtureRequest) -> Scene:
    networks = ModuleType("networks")
    install(networks)
    model = FakeModel(networks)
    networks.shared.opts.lora_functional = model.functional = request.param == "functional"
    loras = [make_network(name, model, seed=at + 1) for at, name in enumerate(("fox", "ink", "oak"))]
    loras[1].unet_multiplier = loras[1].te_multiplier = 0.7
    networks.loaded_networks = list(loras)
    return Scene(networks, model, *loras)


def test_layers_are_named_and_in_forward_order(scene: Scene) -> None:
    layers = scene.seam().layers()
    assert [one.name for one in layers] == list(CANONICAL.values())
    assert [one.is_attention for one in layers] == [name != FEED_FORWARD for name in CANONICAL]
    assert all(one.ranks == {0: 2, 1: 2} and one.is_shared for one in layers)


def test_attention_is_found_in_sd3_too(scene: Scene) -> None:
    block = "diffusion_model_joint_blocks_0_x_block_"
    for lora in (scene.fox, scene.ink):
        lora.modules = {
            block + leaf: lora.modules[ATTENTION[0]] for leaf in ("attn_qkv", "attn_proj", "mlp_fc1")
        }
    assert [one.is_attention for one in scene.seam().layers()] == [True, True, False]


def test_layers_that_are_no_contest_stay_with_the_host(scene: Scene) -> None:
    del scene.fox.modules[ATTENTION[0]]
    norm = NetworkModuleNorm(scene.ink, scene.model.named[ATTENTION[1]], torch.ones(SIZE, SIZE), None)
    scene.ink.modules[ATTENTION[1]] = norm
    scene.fox.modules[ATTENTION[2]].sd_module = torch.nn.LayerNorm(SIZE)
    names = [one.name for one in scene.seam().layers() if one.is_shared]
    assert {one.name for one in scene.seam().layers()} == set(CANONICAL.values())
    assert names == [CANONICAL[FEED_FORWARD], CANONICAL[ATTENTION[3]]]


def test_deltas_hold_the_multiplier_and_are_taken_on_the_clean_weight(scene: Scene) -> None:
    scene.model.run()
    asked: list[Tensor] = []
    module = scene.ink.modules[ATTENTION[0]]
    own = module.calc_updown
    module.calc_updown = lambda weight: asked.append(weight.clone()) or own(weight)
    content, style = scene.seam().deltas(CANONICAL[ATTENTION[0]])
    assert torch.equal(content, scene.fox.modules[ATTENTION[0]].delta)
    assert torch.equal(style, module.delta * 0.7)
    assert torch.equal(asked[0], scene.model.clean[ATTENTION[0]])


def test_dyn_dim_limits_the_rank(scene: Scene) -> None:
    scene.fox.dyn_dim = 1
    scene.ink.dyn_dim = 64
    scene.ink.modules[ATTENTION[0]].dim = None
    first, second = scene.seam().layers()[:2]
    assert (first.ranks, second.ranks) == ({0: 1, 1: None}, {0: 1, 1: 2})


def test_a_delta_that_does_not_fit_is_named(scene: Scene) -> None:
    scene.ink.modules[ATTENTION[1]].delta = torch.ones(SIZE, SIZE + 1)
    with pytest.raises(LoraFileError, match=r"ink: layer .*attn2\.to_k does not fit the loaded checkpoint"):
        scene.seam().deltas(CANONICAL[ATTENTION[1]])


def test_the_host_sees_the_winner_and_the_others_only(scene: Scene) -> None:
    seam = scene.seam()
    winners = dict(zip(CANONICAL, (C, S, BOTH, NONE, C), strict=True))
    with seam.withheld(list(CANONICAL.values())):
        seam.apply({CANONICAL[name]: winner for name, winner in winners.items()})
        output = scene.model.run()
    fox, ink, oak = scene.fox, scene.ink, scene.oak
    applied = {C: (fox, oak), S: (ink, oak), BOTH: (fox, ink, oak), NONE: (oak,)}
    for name, winner in winners.items():
        scene.check(output, name, *applied[winner])
    scene.check(output, TEXT, fox, ink, oak)


def test_winners_change_and_only_changed_layers_are_merged_again(scene: Scene) -> None:
    seam = scene.seam()
    layers = list(CANONICAL.values())
    with seam.withheld(layers):
        seam.apply(dict.fromkeys(layers, C))
        scene.model.run()
        before = dict(scene.networks.merges)
        seam.apply({layers[1]: S})
        output = scene.model.run()
        scene.model.run()
    scene.check(output, ATTENTION[1], scene.ink, scene.oak)
    scene.check(output, ATTENTION[0], scene.fox, scene.oak)
    if not scene.model.functional:
        after = dict(scene.networks.merges)
        assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
            ATTENTION[1]: 1
        }


@pytest.mark.parametrize("schedule", ["S", "S*"])
def test_merges_per_layer_and_pass(scene: Scene, schedule: str) -> None:
    made = prepare(scene.seam(), Cast.of_pair("fox", "ink"), published(schedule=schedule, gamma="off"))
    scene.networks.merges.clear()
    with made.sampling():
        for step in range(40):
            made.at(Moment(step, 40))
            scene.model.run()
    assert max(scene.networks.merges.values(), default=0) <= (2 if schedule == "S" else 3)
    assert made.plan().flips > 0


def test_afterwards_weights_list_and_functions_are_as_before(scene: Scene) -> None:
    listed = scene.networks.loaded_networks
    functions = scene.networks.network_apply_weights, scene.networks.network_forward
    public = set(vars(scene.networks))
    added = scene.model.run()
    seam = scene.seam()
    with seam.withheld(list(CANONICAL.values())):
        assert scene.networks.network_apply_weights is not functions[0]
        assert scene.networks.network_forward is not functions[1]
        seam.apply(dict.fromkeys(CANONICAL.values(), S))
        assert not torch.equal(scene.model.run()[ATTENTION[0]], added[ATTENTION[0]])
        assert scene.networks.loaded_networks is listed
    assert scene.networks.loaded_networks is listed
    assert listed == [scene.fox, scene.ink, scene.oak]
    assert (scene.networks.network_apply_weights, scene.networks.network_forward) == functions
    assert set(vars(scene.networks)) == public
    again = scene.model.run()
    assert all(torch.equal(again[name], added[name]) for name in IN_FORWARD_ORDER)
    listed.clear()
    base = scene.model.run()
    assert all(torch.equal(base[name], scene.model.expected(name)) for name in IN_FORWARD_ORDER)


def test_an_exception_in_the_merge_leaves_the_list_whole(scene: Scene) -> None:
    if scene.model.functional:
        pytest.skip("the fake fails in the merge")
    listed, function = scene.networks.loaded_networks, scene.networks.network_apply_weights
    seam = scene.seam()
    scene.networks.fail_in = ATTENTION[2]

    def fails() -> None:
        with seam.withheld(list(CANONICAL.values())):
            seam.apply(dict.fromkeys(CANONICAL.values(), C))
            scene.model.run()

    with pytest.raises(RuntimeError, match="out of memory"):
        fails()
    assert scene.networks.loaded_networks is listed
    assert scene.networks.network_apply_weights is function
    scene.networks.fail_in = None
    scene.check(scene.model.run(), ATTENTION[0], scene.fox, scene.ink, scene.oak)


def test_a_refiner_that_empties_the_list_is_let_be(scene: Scene) -> None:
    seam = scene.seam()
    with seam.withheld(list(CANONICAL.values())):
        seam.apply(dict.fromkeys(CANONICAL.values(), C))
        scene.model.run()
        scene.networks.loaded_networks = emptied = []
        output = scene.model.run()
        assert scene.networks.loaded_networks is emptied
    assert scene.networks.loaded_networks is emptied
    for name in IN_FORWARD_ORDER:
        scene.check(output, name)


def test_entering_twice(scene: Scene) -> None:
    functions = scene.networks.network_apply_weights, scene.networks.network_forward
    for winner, lora in ((C, scene.fox), (S, scene.ink)):
        with scene.seam().withheld([]) as _, (seam := scene.seam()).withheld([]):
            seam.apply(dict.fromkeys(CANONICAL.values(), winner))
            scene.check(scene.model.run(), ATTENTION[0], lora, scene.oak)
        assert (scene.networks.network_apply_weights, scene.networks.network_forward) == functions


def test_entering_the_same_seam_twice(scene: Scene) -> None:
    seam, layers = scene.seam(), list(CANONICAL.values())
    with seam.withheld(layers):
        seam.apply(dict.fromkeys(layers, C))
        with seam.withheld(layers):
            seam.apply(dict.fromkeys(layers, S))
            scene.check(scene.model.run(), ATTENTION[0], scene.ink, scene.oak)
        scene.check(scene.model.run(), ATTENTION[0], scene.fox, scene.oak)
    scene.check(scene.model.run(), ATTENTION[0], scene.fox, scene.ink, scene.oak)


def test_another_extension_that_wraps_on_top_keeps_working(scene: Scene) -> None:
    name = "network_forward" if scene.model.functional else "network_apply_weights"
    calls: list[str] = []
    seam = scene.seam()
    with seam.withheld(list(CANONICAL.values())):
        seam.apply(dict.fromkeys(CANONICAL.values(), C))
        below = getattr(scene.networks, name)

        def theirs(layer: Any, *arguments: Any) -> Any:
            calls.append(layer.network_layer_name)
            return below(layer, *arguments)

        setattr(scene.networks, name, theirs)
        scene.check(scene.model.run(), ATTENTION[0], scene.fox, scene.oak)
    assert getattr(scene.networks, name) is theirs
    calls.clear()
    scene.check(scene.model.run(), ATTENTION[0], scene.fox, scene.ink, scene.oak)
    assert calls == list(IN_FORWARD_ORDER)
    setattr(scene.networks, name, below)  # they undo themselves: what lay below does nothing any more
    scene.check(scene.model.run(), ATTENTION[0], scene.fox, scene.ink, scene.oak)


def test_one_key_for_one_state_of_things(scene: Scene) -> None:
    keys = [scene.seam().score_key()]
    assert scene.seam().score_key() == keys[0]
    for change in (
        lambda: setattr(scene.fox, "unet_multiplier", 0.5),
        lambda: setattr(scene.ink, "dyn_dim", 1),
        lambda: setattr(scene.ink, "mtime", 2.0),
        lambda: setattr(scene.ink.network_on_disk, "filename", "/no-such-drive/loras/new.safetensors"),
    ):
        change()
        keys.append(scene.seam().score_key())
    other = SimpleNamespace(sd_checkpoint_info=SimpleNamespace(filename="/models/other.safetensors"))
    keys.append(scene.seam(other).score_key())
    assert len(set(keys)) == len(keys) == 6


def test_a_network_that_another_extension_renamed_and_scaled_has_a_key_of_its_own(scene: Scene) -> None:
    """As lora-block-weight does after activation."""
    up = torch.nn.Linear(2, SIZE, bias=False)
    scene.fox.modules[ATTENTION[0]].up_model = up
    plain = scene.seam().score_key()
    scene.fox.name = "fox_in_LBW_0.299"
    scaled = scene.seam().score_key()
    with torch.no_grad():
        up.weight *= 0.5
    assert len({plain, scaled, scene.seam().score_key()}) == 3
    assert scene.seam().names[0] == "fox"


def test_a_text_only_or_foreign_layer_is_no_contest(scene: Scene) -> None:
    for network in (scene.fox, scene.ink):
        network.modules = {TEXT: network.modules[TEXT]}
    assert scene.seam().layers() == []


# --- Fractions, and multipliers that change in time
# ----------------------------------------------------------


@pytest.mark.parametrize("is_computed", [False, True], ids=["attribute", "property"])
def test_a_fraction_is_that_many_times_the_multiplier(scene: Scene, is_computed: bool) -> None:
    if is_computed:
        fade(scene, scene.ink, lambda: 0.7)
    seam = scene.seam()
    added = scene.model.run()
    with seam.withheld(list(CANONICAL.values())):
        seam.apply(dict.fromkeys(CANONICAL.values(), LayerShares((0.25, 0.5))))
        output = scene.model.run()
        for name in CANONICAL:
            weight = scene.model.clean[name] + 0.25 * scene.fox.modules[name].delta
            weight = weight + 0.35 * scene.ink.modules[name].delta + scene.oak.modules[name].delta
            torch.testing.assert_close(output[name], scene.model.probe @ weight.T)
        scene.check(output, TEXT, scene.fox, scene.ink, scene.oak)
    assert (scene.fox.unet_multiplier, scene.ink.unet_multiplier) == (1.0, 0.7)
    again = scene.model.run()
    assert all(torch.equal(again[name], added[name]) for name in IN_FORWARD_ORDER)


def test_an_exception_leaves_the_multipliers(scene: Scene) -> None:
    if scene.model.functional:
        pytest.skip("the fake fails in the merge")
    scene.networks.fail_in = ATTENTION[0]
    seam = scene.seam()

    def fails() -> None:
        with seam.withheld([]):
            seam.apply({CANONICAL[ATTENTION[0]]: LayerShares((0.5, 0.5))})
            scene.model.run()

    with pytest.raises(RuntimeError, match="out of memory"):
        fails()
    assert (scene.fox.unet_multiplier, scene.ink.unet_multiplier) == (1.0, 0.7)


def sampling_state(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The host's counter of steps, in the fourth of twenty."""
    state = SimpleNamespace(sampling_step=3, sampling_steps=20)
    shared, modules = ModuleType("modules.shared"), ModuleType("modules")
    shared.state = state  # type: ignore[attr-defined]
    modules.shared = shared  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    return state


def fade(scene: Scene, network: FakeNetwork, value: Any) -> None:
    """Make the multiplier a property of the class, as sd-webui-loractl does, and deaf to what is set."""
    own = type(network)
    network.__class__ = type(
        "Network", (own,), {"unet_multiplier": property(lambda _: value(), lambda *_: None)}
    )


def test_a_lora_that_fades_in_is_weighed_at_1_and_applied_at_its_own(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = sampling_state(monkeypatch)
    fade(scene, scene.ink, lambda: state.sampling_step / state.sampling_steps)
    layer = CANONICAL[ATTENTION[0]]
    state.sampling_step = 0
    first = scene.seam()
    assert torch.equal(first.deltas(layer)[1], scene.ink.modules[ATTENTION[0]].delta)
    key = first.score_key()
    state.sampling_step = 10
    assert first.score_key() == key
    assert (state.sampling_step, state.sampling_steps) == (10, 20)
    with first.withheld([layer]):
        first.apply({layer: LayerShares((0, 0.5))})
        output = scene.model.run()
    weight = scene.model.clean[ATTENTION[0]] + 0.25 * scene.ink.modules[ATTENTION[0]].delta
    weight = weight + scene.oak.modules[ATTENTION[0]].delta
    torch.testing.assert_close(output[ATTENTION[0]], scene.model.probe @ weight.T)


# --- Rows of the guidance
# --------------------------------------------------------------------------------------


def test_the_unconditional_rows_are_those_after_the_conditional_ones(scene: Scene) -> None:
    """Two pictures of which one has two prompts joined by AND, in calls of two rows: 3 conditional, 2 not."""
    rows = BatchRows()
    unet = torch.nn.Identity()
    seen = []

    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner_model = torch.nn.Sequential(unet)

        def forward(self, x: Tensor, sigma: Tensor, cond: Any) -> None:
            for start in range(0, len(x), 2):
                self.inner_model(x[start : start + 2])
                seen.append(rows.of(x[start : start + 2]))

    denoiser = Denoiser()
    cond = SimpleNamespace(batch=[["a", "b"], ["c"]])
    calls: list[int] = []
    with telling_rows(denoiser, lambda: unet, rows, lambda: calls.append(len(seen)), pytest.fail):
        for _ in range(2):
            denoiser(torch.zeros(5, 4), torch.ones(2), cond=cond)
    assert seen == [(), ((1, 2),), ((0, 1),)] * 2
    assert calls == [0, 1, 2, 3, 4, 5]
    assert not denoiser._forward_pre_hooks
    assert not unet._forward_pre_hooks
    assert not denoiser.inner_model._forward_pre_hooks
    assert not denoiser.inner_model._forward_hooks


class TilingModel(torch.nn.Module):
    """An inner model that cuts pictures into tiles, as Tiled Diffusion makes one of the host's.

    ``together`` tiles go through the UNet in one call, each with all rows; with ``parts`` a tile's rows go
    one part after another, as where the prompts differ in length.
    """

    def __init__(self, unet: torch.nn.Module, together: int, parts: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.unet, self.together, self.parts = unet, together, parts

    def forward(self, x: Tensor) -> None:
        tiles = x.split(1, dim=1)
        for start in range(0, len(tiles), self.together):
            batch = torch.cat(tiles[start : start + self.together])
            for part in batch.split(self.parts or len(batch)):
                self.unet(part)


class Telling(torch.nn.Module):
    """A UNet whose rows hold 1 where they are unconditional; notes what is told of them, and what is so."""

    def __init__(self, rows: BatchRows) -> None:
        super().__init__()
        self.rows, self.seen, self.true = rows, list[list[bool]](), list[list[bool]]()

    def forward(self, x: Tensor) -> None:
        told = [False] * len(x)
        for start, stop in self.rows.of(x):
            told[start:stop] = [True] * (stop - start)
        self.seen.append(told)
        self.true.append(x.flatten(1)[:, 0].bool().tolist())


class TilingDenoiser(torch.nn.Module):
    """The host's CFG module with such an inner model, in calls of ``size`` rows."""

    def __init__(self, inner_model: torch.nn.Module, size: int) -> None:
        super().__init__()
        self.inner_model, self.size = inner_model, size

    def forward(self, x: Tensor, sigma: Tensor, cond: Any) -> None:
        for rows in x.split(self.size):
            self.inner_model(rows)


@pytest.mark.parametrize(
    ("together", "parts", "size"),
    [(1, (), 5), (2, (), 5), (4, (), 5), (3, (), 2), (1, (3, 2), 5), (1, (2, 2, 1), 5), (6, (), 3)],
)
def test_rows_of_tiles(together: int, parts: tuple[int, ...], size: int) -> None:
    """Two pictures, three conditional rows, two that are not; eight tiles."""
    rows = BatchRows()
    unet = Telling(rows)
    denoiser = TilingDenoiser(TilingModel(unet, together, parts), size)
    x = torch.tensor([0.0, 0, 0, 1, 1]).reshape(5, 1).expand(5, 8)
    cond = SimpleNamespace(batch=[["a", "b"], ["c"]])
    with telling_rows(denoiser, lambda: unet, rows, lambda: None, pytest.fail):
        for _ in range(2):
            denoiser(x, torch.ones(2), cond=cond)
    assert len(unet.seen) > 2
    assert unet.seen == unet.true


def test_rows_that_are_no_tiles_are_refused_where_they_matter() -> None:
    rows = BatchRows()
    unet = torch.nn.Identity()

    class Odd(torch.nn.Module):
        def forward(self, x: Tensor) -> None:
            unet(torch.cat([x, x[:1]]))

    denoiser = TilingDenoiser(Odd(), 2)
    with telling_rows(denoiser, lambda: unet, rows, lambda: None, pytest.fail):
        denoiser(torch.zeros(2, 4), torch.ones(1), cond=SimpleNamespace(batch=[["a"]]))
        with pytest.raises(HostError, match=r"cannot tell which rows.*set Negative side to both"):
            rows.of(torch.zeros(3, 4))


def test_rows_are_told_of_the_model_that_a_refiner_brings() -> None:
    rows, seen, models = BatchRows(), list[Any](), [torch.nn.Identity(), torch.nn.Identity()]

    class Denoiser(torch.nn.Module):
        """Switches in the middle of its second call, as the host does."""

        current = 0

        @property
        def inner_model(self) -> torch.nn.Module:
            return models[self.current]

        def update_inner_model(self) -> None:
            self.current = 1

        def forward(self, x: Tensor, sigma: Tensor, cond: Any) -> None:
            if seen:
                self.update_inner_model()
            models[self.current](x)
            seen.append(rows.of(x))
            rows.tell(0, ())

    denoiser = Denoiser()
    switches: list[int] = []
    arguments = (torch.zeros(2, 4), torch.ones(2), SimpleNamespace(batch=[["a"]]))
    with telling_rows(
        denoiser, lambda: models[denoiser.current], rows, lambda: None, lambda: switches.append(len(seen))
    ):
        for _ in range(2):
            denoiser(arguments[0], arguments[1], cond=arguments[2])
    assert seen == [((1, 2),)] * 2
    assert switches == [1]
    assert not any(one._forward_pre_hooks for one in (denoiser, *models))


def called(scene: Scene, layer: Any) -> Tensor:
    """What the host gives for a layer, hooks included."""
    if scene.model.functional:
        output: Tensor = scene.networks.network_forward(
            layer, scene.model.probe, lambda one, given: one(given)
        )
        return output
    scene.networks.network_apply_weights(layer)
    return layer(scene.model.probe)  # type: ignore[no-any-return]


def mapped(scene: Scene, model: FakeModel, **more: Any) -> Any:
    """A checkpoint of the host with its table of layers by name."""
    return SimpleNamespace(**vars(CHECKPOINT), network_layer_mapping=dict(model.named), **more)


@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_loras_that_were_read_for_another_checkpoint_in_memory(scene: Scene, kind: str) -> None:
    """The host keeps several, and LoRAs by name: they name the layers of the checkpoint they were read for.

    So does a refiner that takes over in the middle.
    """
    other = FakeModel(scene.networks)
    other.functional = scene.model.functional
    name = ATTENTION[0]
    for model, factor in ((scene.model, 1.0), (other, 2.0)):
        model.named[name].weight.data *= factor
        model.clean[name] *= factor
    if kind == "dora":
        scene.ink.modules[name] = DoraModule(scene.ink.modules[name], torch.linspace(1.0, 3.0, SIZE))
    seam = scene.seam(mapped(scene, other))
    with seam.withheld([CANONICAL[name]]), torch.no_grad():
        seam.apply({CANONICAL[name]: LayerShares((1, 1), (1, 0))})
        for model in (other, scene.model):
            if model is scene.model:
                seam.follow_model(mapped(scene, model))
            seam.branches.rows.tell(2, ((1, 2),))
            found = called(scene, model.named[name])
            torch.testing.assert_close(found[1], model.expected(name, scene.fox, scene.oak)[1])
            assert not torch.allclose(found[0], model.expected(name, scene.fox, scene.oak)[0])
        assert not other.named[name]._forward_hooks
    assert not scene.model.named[name]._forward_hooks


def test_a_refiner_without_such_a_layer_or_loras_has_no_branch(scene: Scene) -> None:
    seam, name = scene.seam(mapped(scene, scene.model)), ATTENTION[0]
    shares = {CANONICAL[name]: LayerShares((1, 1), (1, 0))}
    other = FakeModel(scene.networks)
    wider = SimpleNamespace(network_layer_mapping={name: torch.nn.Linear(SIZE + 1, SIZE)})
    for refiner, loaded in (
        (SimpleNamespace(network_layer_mapping={TEXT: other.named[TEXT]}), True),
        (wider, True),
        (mapped(scene, other), False),
    ):
        with seam.withheld(list(shares)):
            seam.apply(shares)
            listed = scene.networks.loaded_networks
            scene.networks.loaded_networks = listed if loaded else []
            seam.follow_model(refiner)
            hooks = [layer._forward_hooks for layer in refiner.network_layer_mapping.values()]
            assert not any(hooks)
            scene.networks.loaded_networks = listed
        seam.follow_model(mapped(scene, scene.model))


@pytest.mark.parametrize("name", ["fox", "My Fox v2", "fox (read by K-LoRA)"])
def test_a_merge_that_the_host_counts_as_failed(scene: Scene, name: str) -> None:
    """It counts by the word of the tag, or the name that a LoRA was given when it was read here."""
    if scene.model.functional:
        pytest.skip("nothing is merged")
    scene.fox.name = name
    seam, layer = scene.seam(mapped(scene, scene.model)), scene.model.named[ATTENTION[0]]
    shares = {CANONICAL[ATTENTION[0]]: LayerShares((1, 0))}
    scene.networks.fail_merge_in = ATTENTION[0]
    with seam.withheld(list(shares)):
        seam.apply(shares)
        for _ in range(2):  # it is not taken for merged
            with pytest.raises(OutOfMemoryError, match="in the merge of fox and ink into"):
                scene.networks.network_apply_weights(layer)
        scene.networks.fail_merge_in = None
        scene.networks.network_apply_weights(layer)
        merged = layer.weight.detach().clone()
    own = (one.modules[ATTENTION[0]].calc_updown(merged)[0] for one in (scene.fox, scene.oak))
    torch.testing.assert_close(merged, scene.model.clean[ATTENTION[0]] + sum(own))


def test_a_refiner_s_layers_of_another_shape_are_left_to_the_host(scene: Scene) -> None:
    """It counts there what it goes without, and makes the picture."""
    if scene.model.functional:
        pytest.skip("nothing is merged")
    seam, name = scene.seam(mapped(scene, scene.model)), ATTENTION[0]
    wider: Any = torch.nn.Linear(SIZE + 1, SIZE)
    wider.network_layer_name = name
    before = wider.weight.detach().clone()
    with seam.withheld([CANONICAL[name]]):
        seam.apply({CANONICAL[name]: LayerShares((1, 0.5))})
        seam.follow_model(SimpleNamespace(network_layer_mapping={name: wider}))
        scene.networks.network_apply_weights(wider)
    assert scene.networks.extra_network_lora.errors
    assert torch.equal(wider.weight, before)


@pytest.mark.parametrize("kind", ["plain", "dora"])
@pytest.mark.parametrize("is_refiner", [True, False])
def test_networks_that_the_host_loads_again_in_the_middle_of_a_pass(
    scene: Scene, kind: str, is_refiner: bool
) -> None:
    """New objects for the same files: they get the shares of those before, on both sides of the guidance."""
    seam, name = scene.seam(mapped(scene, scene.model)), ATTENTION[0]
    layer = scene.model.named[name]
    if kind == "dora":
        scene.ink.modules[name] = DoraModule(scene.ink.modules[name], torch.linspace(1.0, 3.0, SIZE))
    expected = [own_outputs(scene, name, 1.0, ink * 0.7, 1.0)[row] for row, ink in enumerate((0.5, 0.0))]
    with seam.withheld([CANONICAL[name]]), torch.no_grad():
        seam.apply({CANONICAL[name]: LayerShares((1, 0.5), (1, 0))})
        for again in (False, True):
            if again:
                fox, ink = map(copied, (scene.fox, scene.ink))
                for one in (scene.fox, scene.ink):
                    one.modules = {}  # they are gone
                scene.networks.loaded_networks = [fox, ink, scene.oak]
            if again and is_refiner:
                seam.follow_model(mapped(scene, scene.model))
            seam.branches.rows.tell(2, ((1, 2),))
            seam.follow_multipliers()
            found = called(scene, layer)
            for row in (0, 1):
                torch.testing.assert_close(found[row], expected[row])
    assert not layer._forward_hooks


def copied(network: FakeNetwork) -> FakeNetwork:
    """What the host makes of the same file and tag once more."""
    again = FakeNetwork(network.network_on_disk, network.unet_multiplier)
    again.modules = {name: copy(module) for name, module in network.modules.items()}
    for module in again.modules.values():
        module.network = again
    return again


def test_the_branch_gives_the_unconditional_rows_what_they_get(scene: Scene) -> None:
    seam, name = scene.seam(), ATTENTION[0]
    layer = scene.model.named[name]
    with seam.withheld([CANONICAL[name]]), torch.no_grad():
        seam.apply({CANONICAL[name]: LayerShares((1, 1), (1, 0.5))})
        seam.branches.rows.tell(2, ((1, 2),))
        scene.networks.network_apply_weights(layer)
        output = layer(scene.model.probe)
        expected = scene.model.expected(name, scene.fox, scene.ink, scene.oak)
        missing = scene.model.probe @ (0.5 * 0.7 * scene.ink.modules[name].delta).T
        torch.testing.assert_close(output[0], expected[0])
        torch.testing.assert_close(output[1], (expected - missing)[1])
    assert not layer._forward_hooks


def own_outputs(scene: Scene, name: str, *weights: float) -> Tensor:
    """What the host itself makes of the probe in a layer, each of the three LoRAs at a weight."""
    loras = [scene.fox, scene.ink, scene.oak]
    before = [one.unet_multiplier for one in loras]
    for one, weight in zip(loras, weights, strict=True):
        one.unet_multiplier = weight
    output = scene.model.run()[name]
    for one, multiplier in zip(loras, before, strict=True):
        one.unet_multiplier = multiplier
    return output


@pytest.mark.parametrize("which", [("fox",), ("ink",), ("oak",), ("fox", "ink"), ("fox", "ink", "oak")])
@pytest.mark.parametrize("unconditional", [(0, 0), (1, 0.5), (0.3, 1)])
def test_what_depends_on_the_weight_is_what_the_host_makes_of_each_side(
    scene: Scene, which: tuple[str, ...], unconditional: tuple[float, float]
) -> None:
    """DoRA changes what the LoRAs before it have left, so the sides differ by more than a dW of each."""
    name = ATTENTION[0]
    layer = scene.model.named[name]
    for one in which:
        network = getattr(scene, one)
        magnitude = torch.linspace(1.0, 3.0, SIZE)
        network.modules[name] = DoraModule(network.modules[name], magnitude)
    expected = [own_outputs(scene, name, fox, ink * 0.7, 1.0) for fox, ink in ((1.0, 0.6), unconditional)]
    seam = scene.seam()
    with seam.withheld([CANONICAL[name]]), torch.no_grad():
        seam.apply({CANONICAL[name]: LayerShares((1, 0.6), unconditional)})
        seam.branches.rows.tell(2, ((1, 2),))
        output = called(scene, layer)
    for row in (0, 1):
        torch.testing.assert_close(output[row], expected[row][row])
    assert (expected[0][1] - expected[1][1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_a_lora_whose_tag_stands_twice_counts_twice(scene: Scene, kind: str) -> None:
    """The host adds it twice, so the contest and the branch count it twice."""
    name = ATTENTION[0]
    layer, once = scene.model.named[name], scene.seam()
    delta, key = once.deltas(CANONICAL[name])[1], once.score_key()
    if kind == "dora":
        scene.oak.modules[name] = DoraModule(scene.oak.modules[name], torch.linspace(1.0, 3.0, SIZE))
    scene.networks.loaded_networks = [scene.fox, scene.ink, scene.ink]
    if kind == "dora":
        scene.networks.loaded_networks.append(scene.oak)
    seam = scene.seam()
    torch.testing.assert_close(seam.deltas(CANONICAL[name])[1], 2 * delta)
    assert seam.score_key() != key
    expected = own_outputs(scene, name, 1.0, 0.25 * 0.7, 1.0)
    with seam.withheld([CANONICAL[name]]), torch.no_grad():
        seam.apply({CANONICAL[name]: LayerShares((1, 1), (1, 0.25))})
        seam.branches.rows.tell(2, ((1, 2),))
        found = called(scene, layer)
    torch.testing.assert_close(found[1], expected[1])


def test_the_delta_of_a_branch_is_formed_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    seam, name, formed = scene.seam(), ATTENTION[0], []
    own = A1111Seam._formed

    def counted(seam: A1111Seam, place: int, layer: str) -> RowDelta:
        formed.append(place)
        return own(seam, place, layer)

    monkeypatch.setattr(A1111Seam, "_formed", counted)
    with seam.withheld([CANONICAL[name]]):
        for share in (0.5, 0.4, 0.3):
            seam.apply({CANONICAL[name]: LayerShares((1, 1), (1, share))})
        assert formed == [1]
    assert not seam._row_deltas


def test_a_change_in_one_layer_leaves_the_other_branches_alone(scene: Scene) -> None:
    """What a rule that changes in time costs at a step is that of the layers that change."""
    seam, (changed, left) = scene.seam(), ATTENTION[:2]
    layers, formed = [scene.model.named[name] for name in (changed, left)], []
    with seam.withheld([CANONICAL[changed], CANONICAL[left]]), torch.no_grad():
        seam.apply({CANONICAL[name]: LayerShares((1, 1), (1, 0.5)) for name in (changed, left)})
        for share in (0.5, 0.4):
            seam.apply({CANONICAL[changed]: LayerShares((1, 1), (1, share))})
            seam.branches.rows.tell(2, ((1, 2),))
            seam.follow_multipliers()
            for layer in layers:
                layer(scene.model.probe)
            formed.append([seam.branches._sums[layer] for layer in layers])
    assert formed[0][0] is not formed[1][0]
    assert formed[0][1] is formed[1][1]


@pytest.mark.parametrize("is_computed", [False, True])
def test_a_branch_follows_a_weight_that_another_extension_changes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, is_computed: bool
) -> None:
    """From step to step, with shares that stay: the unconditional rows have none of the style in any step."""
    seam, name, weights = scene.seam(), ATTENTION[0], (0.0, 0.25, 0.25, 1.0, 0.0, 0.5)
    layer, style = scene.model.named[name], scene.ink
    state = sampling_state(monkeypatch)
    if is_computed:
        fade(scene, style, lambda: weights[min(state.sampling_step, 5)])
    with seam.withheld([CANONICAL[name]]), torch.no_grad():
        seam.apply({CANONICAL[name]: LayerShares((1, 1), (1, 0))})
        for state.sampling_step, weight in enumerate(weights):
            if not is_computed:
                style.unet_multiplier = weight
            seam.branches.rows.tell(2, ((1, 2),))
            seam.follow_multipliers()
            scene.networks.network_apply_weights(layer)
            output = layer(scene.model.probe)
            without = scene.model.expected(name, scene.fox, scene.oak)
            change = scene.model.probe @ (weight * style.modules[name].delta).T
            torch.testing.assert_close(output[0], (without + change)[0])
            torch.testing.assert_close(output[1], without[1])
    assert not layer._forward_hooks
