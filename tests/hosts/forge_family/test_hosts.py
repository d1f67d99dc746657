"""What the shared code asks of the hosts of the family, and what happens around a pass."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from klora.errors import HostError, KloraError, LoraFileError, PairError
from klora.files.container import Container
from klora.hosts.common import library
from klora.hosts.common.protocol import NOTHING_REWRITTEN
from klora.hosts.common.rewriting import RewrittenLora
from klora.hosts.forge import ForgeHost
from klora.hosts.forge_family.reading import read_again
from klora.hosts.model_patcher import ModelPatcherHost
from klora.hosts.which import this_host
from klora.schedule import Expected, LayerShares
from tests.hosts.forge_family.hosts import ERSATZ, FORGE, NEO, NEWER, REFORGE, FakeWebUI, Kind
from tests.hosts.forge_family.model import (
    CANONICAL,
    FUSED,
    IN_FORWARD_ORDER,
    Lora,
    Model,
    batch,
    expected,
    make_lora,
)
from tests.hosts.forge_family.passes import everywhere, sampling

PLAIN = [Kind(host) for host in (FORGE, ERSATZ, NEO, NEWER, REFORGE)]
PATCHERS = [kind for kind in PLAIN if kind.host not in (FORGE, ERSATZ)]
plain = pytest.mark.parametrize("kind", PLAIN, ids=str)
patchers = pytest.mark.parametrize("kind", PATCHERS, ids=str)
forge_and_neo = pytest.mark.parametrize("kind", [Kind(FORGE), Kind(NEO)], ids=str)


@plain
def test_each_host_is_told_by_what_it_can(webui: FakeWebUI) -> None:
    assert isinstance(this_host(), type(webui.adapter))
    assert ForgeHost.is_here() == webui.is_forge
    assert ModelPatcherHost.is_here() == (not webui.is_forge)


@patchers
def test_what_a_patcher_lacks_is_named(webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ModelPatcherHost.missing() == []
    del webui.networks.load_lora_for_models
    for name in ("backend.patcher.lora", "ldm_patched.modules.lora"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    webui.sd_model.forge_objects.unet = SimpleNamespace(patches={})
    assert ModelPatcherHost.missing() == [
        "unet.patches_uuid",
        "unet.backup",
        "unet.patch_weight_to_device",
        "unet.add_weight_wrapper",
        "networks.load_lora_for_models",
        "backend.patcher.lora.merge_lora_to_weight or ldm_patched.modules.lora.calculate_weight",
    ]


@plain
def test_loras_that_cannot_be_in_a_cast_are_refused(webui: FakeWebUI, tmp_path: Path) -> None:
    p = webui.job(fox=1.0)
    webui.adapter.after_activation(p, ("fox", "ink"))
    with pytest.raises(PairError, match="LoRA nobody was not found"):
        webui.adapter.seam(p, ("fox", "nobody"))
    with pytest.raises(PairError, match="LoRA ink changes no layer of the loaded checkpoint"):
        webui.adapter.seam(p, ("fox", "ink"))


@plain
def test_a_lora_that_does_not_fit_is_named_with_its_layer(webui: FakeWebUI, loras: list[Lora]) -> None:
    tensors = load_file(loras[1].path)
    tensors |= {  # a model of twice the width
        name: torch.ones(*(2 * size if size >= 8 else size for size in tensor.shape))
        for name, tensor in tensors.items()
        if "double_blocks" in name and tensor.ndim
    }
    save_file(tensors, loras[1].path)
    p = webui.job(fox=1.0, ink=1.0)
    webui.adapter.after_activation(p, ("fox", "ink"))
    seam = webui.adapter.seam(p, ("fox", "ink"))
    with pytest.raises(LoraFileError, match=r"ink: layer transformer_blocks\.0\.attn\.to_q does not fit"):
        seam.deltas("transformer_blocks.0.attn.to_q")


@plain
def test_a_file_that_was_replaced_is_read_again(webui: FakeWebUI, loras: list[Lora], tmp_path: Path) -> None:
    given = batch()
    with sampling(webui, ("fox", "ink")) as seam:
        key = seam.score_key()
        seam.apply(everywhere(seam, 1.0, 0.0))
        webui.run(given)
    read = len(webui.read_from_disk)
    with sampling(webui, ("fox", "ink")) as seam:
        assert seam.score_key() == key
    assert len(webui.read_from_disk) == read
    other = make_lora(tmp_path, "fox", 77)
    os.utime(other.path, (1, 1))
    with sampling(webui, ("fox", "ink")) as seam:
        assert seam.score_key() != key
        seam.apply(everywhere(seam, 1.0, 0.0))
        wanted = {"fox": 1.0}
        torch.testing.assert_close(
            webui.run(given), expected(webui.clean, [other], wanted, given), rtol=1e-4, atol=1e-4
        )


@plain
@pytest.mark.parametrize("is_hires", [True, False])
def test_loras_are_read_once_more_by_the_tags_of_their_prompt(webui: FakeWebUI, is_hires: bool) -> None:
    """The hires prompt is encoded before the first pass."""
    p = webui.job(fox=1.0, ink=1.0)
    tags = [SimpleNamespace(positional=["oak", 0.5])]
    p.is_hr_pass, p.hr_extra_network_data = False, {"lora": tags}
    if is_hires:
        webui.activate(p, tags)
    webui.adapter.after_activation(p, ["oak"] if is_hires else ["fox", "ink"], is_hires=is_hires)
    webui.load()
    given, wanted = batch(), {"oak": 0.5} if is_hires else {"fox": 1.0, "ink": 1.0}
    found = webui.run(given)
    torch.testing.assert_close(found, webui.own_picture(given, **wanted))
    assert not torch.equal(found, webui.own_picture(given))


@plain
def test_a_dialect_that_the_host_cannot_read(webui: FakeWebUI, loras: list[Lora]) -> None:
    """Bare names: the host makes nothing of them, and reads them in its own dialect for a pass of K-LoRA."""
    given = batch()
    tensors = load_file(loras[0].path)
    bare = {
        name.removeprefix("diffusion_model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("diffusion_model.double_blocks")
    }
    save_file(bare, loras[0].path)
    of_blocks = {name: value for name, value in loras[0].factors.items() if "double_blocks" in name}
    fox = Lora("fox", loras[0].path, of_blocks)
    base = webui.own_picture(given, fox=1.0)
    torch.testing.assert_close(base, webui.own_picture(given))
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 1.0, 0.0))
        wanted = {"fox": 1.0}
        torch.testing.assert_close(
            webui.run(given), expected(webui.clean, [fox], wanted, given), rtol=1e-4, atol=1e-4
        )
        assert webui.sd_model.current_lora_hash.endswith("(read by K-LoRA)")
    assert torch.equal(webui.own_picture(given, fox=1.0), base)


@plain
def test_the_next_pass_of_a_pair_reads_nothing_of_its_files(
    webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sampling(webui, ("fox", "ink")) as seam:
        known = [(view.name, view.ranks) for view in seam.layers()]
    monkeypatch.delattr(Container, "_bytes_between")
    with sampling(webui, ("fox", "ink")) as seam:
        assert [(view.name, view.ranks) for view in seam.layers()] == known
        seam.apply(everywhere(seam, 1.0, 0.0))
        webui.run(batch())


_BLOCK = "double_blocks.0"
_SHAPES = {"img_attn.qkv": (24, 8), "img_attn.proj": (8, 8), "img_mlp.0": (32, 8), "img_mlp.2": (8, 32)}
_ALL, _MLP, _PROJ = tuple(_SHAPES), ("img_mlp.0", "img_mlp.2"), ("img_attn.proj", "img_mlp.0")


@plain
@pytest.mark.parametrize("layers", [_ALL, _MLP])
@pytest.mark.parametrize("found", [None, (), _MLP, _PROJ, ("img_attn.qkv",)])
def test_a_file_whose_attention_the_host_has_missed_is_read_again(
    webui: FakeWebUI, loras: list[Lora], layers: tuple[str, ...], found: tuple[str, ...] | None
) -> None:
    """Some hosts know a part of a dialect's names; without attention there would be no contest."""
    tensors = {}
    for layer in layers:
        rows, columns = _SHAPES[layer]
        tensors[f"{_BLOCK}.{layer}.lora_A.weight"] = torch.zeros(2, columns)
        tensors[f"{_BLOCK}.{layer}.lora_B.weight"] = torch.ones(rows, 2)
    save_file(tensors, loras[0].path)
    p = webui.job(fox=1.0, ink=1.0)
    cast = [known for known in [library.find("fox")] if known is not None]
    names = None if found is None else [f"diffusion_model.{_BLOCK}.{layer}.weight" for layer in found]
    read_again(p, cast, lambda _path: names, {}, False)
    has_missed_it = found is None or (layers == _ALL and found in ((), _MLP))
    assert p.sd_model.current_lora_hash.endswith("(read by K-LoRA)") == has_missed_it


def refined(
    webui: FakeWebUI,
    seed: int,
    rewritten: Mapping[str, RewrittenLora] = NOTHING_REWRITTEN,
    names: tuple[str, str] = ("fox", "ink"),
) -> Any:
    """The refiner takes over in the middle of a pass: another checkpoint, activated and loaded."""
    p = webui.job_in_progress
    p.sd_model = webui.checkpoint(seed)
    webui.activate(p, p.extra_network_data["lora"])
    webui.adapter.after_activation(p, names, rewritten)
    webui.load()
    return p


@plain
def test_a_refiner_gets_the_shares_and_the_branches(webui: FakeWebUI, loras: list[Lora]) -> None:
    given = batch(4)
    clean = Model(seed=5).state_dict()
    first = webui.model
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 0.5, 1.0, rows=(0.5, 0.0)))
        webui.run(given, (0, 1))
        refined(webui, seed=5)
        assert webui.model is not first
        fox: Any = dict.fromkeys(IN_FORWARD_ORDER, 0.5)
        found = webui.run(given, (0, 1))
        for rows, ink in ((slice(0, 2), 1.0), (slice(2, 4), 0.0)):
            wanted = expected(clean, loras[:2], {"fox": fox, "ink": ink}, given)
            torch.testing.assert_close(found[rows], wanted[rows], rtol=1e-4, atol=1e-4)
        seam.apply(everywhere(seam, 0.0, 1.0))
        wanted = expected(clean, loras[:2], {"fox": 0.0, "ink": 1.0}, given)
        torch.testing.assert_close(webui.run(given, (0, 1)), wanted, rtol=1e-4, atol=1e-4)
    for model in (first, webui.model):
        assert not [one for one in model.modules() if one._forward_hooks or one._forward_pre_hooks]
    webui.own_picture(given)
    assert all(torch.equal(value, clean[name]) for name, value in webui.state().items())


@forge_and_neo
def test_loras_that_the_host_replaces_for_a_refiner_are_followed(webui: FakeWebUI, loras: list[Lora]) -> None:
    """As Forge Neo does by its setting Lora Replacements: it renames the tags and activates those."""
    given, clean = batch(4), Model(seed=5).state_dict()
    with sampling(webui, ("fox", "oak")) as seam:
        seam.apply(everywhere(seam, 0.5, 1.0, rows=(0.5, 0.0)))
        webui.run(given, (0, 1))
        webui.job_in_progress.extra_network_data["lora"][1].positional[0] = "ink"
        encoded = webui.job_in_progress.cached_c = ["encoded by the first model"]
        refined(webui, seed=5, names=("fox", "oak"))
        assert webui.job_in_progress.cached_c is encoded  # with which the host may go on
        found = webui.run(given, (0, 1))
        fox: Any = dict.fromkeys(IN_FORWARD_ORDER, 0.5)
        for rows, ink in ((slice(0, 2), 1.0), (slice(2, 4), 0.0)):
            wanted = expected(clean, loras[:2], {"fox": fox, "ink": ink}, given)
            torch.testing.assert_close(found[rows], wanted[rows], rtol=1e-4, atol=1e-4)
    webui.own_picture(given)
    assert all(torch.equal(value, clean[name]) for name, value in webui.state().items())


@forge_and_neo
def test_loras_that_cannot_be_followed_to_a_refiner_stop_its_first_forward(webui: FakeWebUI) -> None:
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 1.0, 1.0))
        webui.job_in_progress.extra_network_data["lora"][1].positional[0] = "oak"
        refined(webui, seed=5, rewritten={"fox": RewrittenLora({}, "a mark")})
        with pytest.raises(PairError, match="the refiner has other LoRAs"):
            webui.run(batch())


@forge_and_neo
def test_what_goes_wrong_with_a_refiner_stops_its_first_forward(
    webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = batch()
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 1.0, 1.0))
        monkeypatch.setattr(Model, "_orig_mod", "compiled", raising=False)
        monkeypatch.setattr(type(webui.model.diffusion_model), "_orig_mod", "compiled", raising=False)
        refined(webui, seed=5)
        with pytest.raises(HostError, match=r"torch\.compile"):
            webui.run(given)


@forge_and_neo
@pytest.mark.parametrize("marks", [None, (0, 1, 1)])
def test_rows_that_nobody_tells_are_refused_only_where_they_matter(
    webui: FakeWebUI, marks: tuple[int, ...] | None
) -> None:
    given = batch()
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 1.0, 1.0))
        webui.run(given, marks)
        seam.apply(everywhere(seam, 1.0, 1.0, rows=(1.0, 0.0)))
        with pytest.raises(HostError, match="negative side of the guidance"):
            webui.run(given, marks)


def expecting(layer: str) -> Expected:
    """Both LoRAs whole in one layer."""
    return Expected({layer: LayerShares((1, 1))}, lasts=lambda: True)


@plain
def test_weights_in_whole_numbers_are_refused_when_they_are_to_change(webui: FakeWebUI) -> None:
    name = f"diffusion_model.{FUSED}"
    layer: Any = webui.model.get_submodule(name)
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    p = webui.job(fox=1.0, ink=1.0)
    webui.adapter.after_activation(p, ("fox", "ink"))
    seam = webui.adapter.seam(p, ("fox", "ink"))
    webui.adapter.before_loading(p, seam, expecting(IN_FORWARD_ORDER[0]))
    with pytest.raises(HostError, match=r"int8.*load it in fp16"):
        webui.adapter.before_loading(p, seam, expecting(CANONICAL[FUSED][0]))


@patchers
def test_models_that_apply_loras_in_ways_of_their_own_are_refused(webui: FakeWebUI) -> None:
    p = webui.job(fox=1.0, ink=1.0)
    webui.adapter.after_activation(p, ("fox", "ink"))
    webui.model._torch_compile_config = {}  # type: ignore[assignment]
    with pytest.raises(HostError, match="Torch Compile off"):
        webui.adapter.seam(p, ("fox", "ink"))
    del webui.model._torch_compile_config
    webui.sd_model.forge_objects.unet.online_patches = ["int8"]
    with pytest.raises(HostError, match="kernels of its own"):
        webui.adapter.seam(p, ("fox", "ink"))


@patchers
def test_a_refiner_in_the_same_model_is_refused(webui: FakeWebUI) -> None:
    p = webui.job(fox=1.0, ink=1.0)
    webui.adapter.after_activation(p, ("fox", "ink"))
    webui.options.refiner_fast_sd = True
    webui.adapter.seam(p, ("fox", "ink"))
    p.refiner_checkpoint_info = "other"
    with pytest.raises(HostError, match="cannot follow a refiner"):
        webui.adapter.seam(p, ("fox", "ink"))


@patchers
def test_the_host_gets_its_function_back_on_reload(webui: FakeWebUI) -> None:
    original = webui.networks.load_lora_for_models
    with sampling(webui, ("fox", "ink")):
        assert webui.networks.load_lora_for_models != original
    for unload in webui.unloading:
        unload()
    assert webui.networks.load_lora_for_models == original


@forge_and_neo
@pytest.mark.parametrize("sigma_max", [1.0, 14.6])
def test_progress_by_noise(webui: FakeWebUI, sigma_max: float) -> None:
    predictor = SimpleNamespace(sigma_max=sigma_max, timestep=lambda sigma: 999 * sigma / sigma_max)
    inner: Any = SimpleNamespace(predictor=predictor, sigmas=[], inner_model=webui.sd_model)
    webui.model.predictor = predictor  # type: ignore[assignment]
    sampler = SimpleNamespace(model_wrap_cfg=SimpleNamespace(inner_model=inner))
    assert webui.adapter.noise_progress(sampler, sigma_max) == pytest.approx(0)
    assert webui.adapter.noise_progress(sampler, sigma_max / 4) == pytest.approx(0.75)
    sampler.model_wrap_cfg.inner_model = SimpleNamespace()
    assert webui.adapter.noise_progress(sampler, 999 / 4) == pytest.approx(0.75)


@pytest.mark.parametrize("kind", [Kind(FORGE), Kind(FORGE, is_on_the_fly=True)], ids=str)
def test_the_host_loads_afresh_in_the_middle_of_a_pass(webui: FakeWebUI, loras: list[Lora]) -> None:
    given = batch()
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply({name: LayerShares((0.0, 1.0)) for name in IN_FORWARD_ORDER})
        found = webui.run(given)
        webui.sd_model.forge_objects.unet.lora_patches["another", 1.0, 1.0, False] = {}
        webui.load()
        assert torch.equal(webui.run(given), found)
    webui.own_picture(given)
    after = webui.state()
    assert all(torch.equal(value, after[name]) for name, value in webui.clean.items())


@plain
def test_a_file_damaged_just_before_the_host_reads_it_again(webui: FakeWebUI, loras: list[Lora]) -> None:
    given = batch()
    p = webui.job(fox=1.0, ink=1.0)
    path = Path(loras[1].path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoraFileError, match=r"ink\.safetensors: .*truncated|ink\.safetensors: .*damaged"):
        webui.adapter.after_activation(p, ("fox", "ink"))
    path.write_bytes(whole)
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 0.0, 1.0))
        wanted = expected(webui.clean, loras[:2], {"fox": 0.0, "ink": 1.0}, given)
        torch.testing.assert_close(webui.run(given), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("alpha"), r"once more \(KeyError: 'alpha'\): fox, ink; take out"),
        (torch.OutOfMemoryError("CUDA out of memory"), r"memory ran out \(CUDA out of memory\); make"),
    ],
)
@plain
def test_a_host_that_cannot_read_a_sound_file_again(
    webui: FakeWebUI,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    sentence: str,
) -> None:
    given = batch()
    base = webui.own_picture(given, fox=1.0, ink=1.0)
    p = webui.job(fox=1.0, ink=1.0)

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(webui.networks, "load_lora_state_dict", fails)
        with pytest.raises(KloraError, match=sentence) as caught:
            webui.adapter.after_activation(p, ("fox", "ink"))
    assert "report it" not in str(caught.value)
    assert "Traceback" in capsys.readouterr().err
    assert torch.equal(webui.own_picture(given, fox=1.0, ink=1.0), base)
