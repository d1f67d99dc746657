"""Shares that a host merges ahead, because a pass is likely to begin with them: right, wrong, out of date."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klora.hosts.forge_family import reading
from klora.schedule import Expected
from tests.hosts.forge_family.hosts import ERSATZ, FORGE, NEO, NEWER, REFORGE, FakeWebUI, Kind
from tests.hosts.forge_family.model import (
    BLOCK,
    CANONICAL,
    FUSED,
    IN_FORWARD_ORDER,
    Lora,
    batch,
    expected,
    make_lora,
)
from tests.hosts.forge_family.passes import by_layer, everywhere, sampling

BOTH = ("fox", "ink")
SHARES = st.sampled_from([0.0, 0.4, 1.0, 1.7])

#: The hosts that merge ahead.
TABLES, PATCHERS = (FORGE, ERSATZ), (NEO, NEWER, REFORGE)


def of_hosts(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", list(map(Kind, names)), ids=str)


ahead = of_hosts(*TABLES, *PATCHERS)


def close(webui: FakeWebUI, loras: list[Lora], wanted: dict[str, Any]) -> None:
    given_ = batch()
    torch.testing.assert_close(
        webui.run(given_), expected(webui.clean, loras[:2], wanted, given_), rtol=1e-4, atol=1e-4
    )


@ahead
@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_what_was_expected_is_merged_once_for_all_pictures(
    webui: FakeWebUI, loras: list[Lora], share: float
) -> None:
    loaded = []
    for _ in range(3):
        with sampling(webui, BOTH, expected=share) as seam:
            seam.apply(everywhere(seam, share, share))
            close(webui, loras, dict.fromkeys(BOTH, share))
            assert not seam._denoiser.exchanged._replaced
        loaded.append({name: id(parameter) for name, parameter in webui.model.named_parameters()})
    assert loaded[0] == loaded[1] == loaded[2]
    given_ = batch()
    own = webui.own_picture(given_)
    assert torch.equal(own, expected(webui.clean, [], {}, given_))


@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_expectation_changes_what_comes_out(
    webui: FakeWebUI, loras: list[Lora], data: st.DataObject
) -> None:
    """Pictures one after the other, each thought to begin with anything, in layers of their own choice."""
    for _ in range(data.draw(st.integers(1, 3))):
        held = data.draw(st.lists(st.sampled_from(IN_FORWARD_ORDER), unique=True))
        with sampling(webui, BOTH, held, expected=data.draw(SHARES)) as seam:
            wanted: dict[str, Any] = {name: {layer: data.draw(SHARES) for layer in held} for name in BOTH}
            seam.apply({name: one for name, one in by_layer(seam, wanted).items() if name in held})
            close(webui, loras, wanted)
    webui.own_picture(batch())
    after = webui.state()
    assert all(torch.equal(value, after[name]) for name, value in webui.clean.items())


@ahead
def test_another_weight_of_the_prompt_is_merged_anew(webui: FakeWebUI, loras: list[Lora]) -> None:
    for weight in (1.0, 0.5, 1.0):
        with sampling(webui, BOTH, fox=1.0, ink=weight) as seam:
            seam.apply(everywhere(seam, 1.0, 1.0))
            close(webui, loras, {"fox": 1.0, "ink": weight})


@of_hosts(*TABLES)
def test_weights_of_blocks_that_another_extension_changed_are_merged_anew(
    webui: FakeWebUI, loras: list[Lora]
) -> None:
    """As lora-block-weight does: in the host's own table, under the same identifier."""
    layer = f"diffusion_model.{FUSED}.weight"
    for strength in (1.0, 0.25):
        p = webui.job(fox=1.0, ink=1.0)
        table = p.sd_model.forge_objects.unet.lora_patches
        (entry,) = (one for identifier, one in table.items() if loras[0].path in identifier)
        entry[layer] = [(strength, *patch[1:]) for patch in entry[layer]]
        with sampling(webui, BOTH) as seam:
            seam.apply(everywhere(seam, 1.0, 1.0))
            close(webui, loras, {"fox": dict.fromkeys(CANONICAL[FUSED], strength), "ink": 1.0})


@ahead
def test_a_file_that_was_replaced_is_merged_anew(webui: FakeWebUI, loras: list[Lora], tmp_path: Path) -> None:
    with sampling(webui, BOTH) as seam:
        seam.apply(everywhere(seam, 1.0, 1.0))
        close(webui, loras, dict.fromkeys(BOTH, 1.0))
    other = make_lora(tmp_path, "fox", 77)
    webui.sd_model.current_lora_hash = ""  # as a host that looks at the time of the file
    reading._seen.clear()
    with sampling(webui, BOTH) as seam:
        seam.apply(everywhere(seam, 1.0, 1.0))
        close(webui, [other, loras[1]], dict.fromkeys(BOTH, 1.0))


@of_hosts(*PATCHERS)
@pytest.mark.parametrize("whose", ["fox", "oak"])
def test_strengths_that_another_extension_changed_in_place_are_merged_anew(
    webui: FakeWebUI, loras: list[Lora], whose: str
) -> None:
    """Under the host's own mark, of a LoRA of the pair or of a third."""
    path = f"{BLOCK}.attn1.to_v"
    for strength in (1.0, 0.25, 1.0):
        p = webui.job(fox=1.0, ink=1.0, oak=1.0)
        patches = p.sd_model.forge_objects.unet.patches[f"diffusion_model.{path}.weight"]
        at = ["fox", "ink", "oak"].index(whose)
        patches[at] = (strength, *patches[at][1:])
        with sampling(webui, BOTH, fox=1.0, ink=1.0, oak=1.0) as seam:
            seam.apply(everywhere(seam, 1.0, 1.0))
            given_ = batch()
            wanted: dict[str, Any] = {"fox": 1.0, "ink": 1.0, "oak": 1.0}
            wanted[whose] = dict.fromkeys(CANONICAL[path], strength)
            torch.testing.assert_close(
                webui.run(given_), expected(webui.clean, loras, wanted, given_), rtol=1e-4, atol=1e-4
            )


@of_hosts(*PATCHERS)
def test_what_does_not_last_is_left_to_the_pass(webui: FakeWebUI, loras: list[Lora]) -> None:
    """These hosts do not tell of loading: what they merged once they would merge again unseen."""
    with sampling(webui, BOTH, expected=0.4, lasts=False) as seam:
        assert not seam._denoiser.has_merged()
        seam.apply(everywhere(seam, 0.4, 0.4))
        close(webui, loras, dict.fromkeys(BOTH, 0.4))


@of_hosts(*PATCHERS)
@pytest.mark.parametrize("expected_share", [0.4, 1.0])
def test_a_model_that_is_loaded_anew_in_the_middle_of_a_pass(
    webui: FakeWebUI, loras: list[Lora], expected_share: float
) -> None:
    """The host merges what it was shown again, over what the pass has put there since."""
    with sampling(webui, BOTH, expected=expected_share) as seam:
        seam.apply(everywhere(seam, 0.4, 1.7))
        close(webui, loras, {"fox": 0.4, "ink": 1.7})
        webui.model.current_weight_patches_uuid = None
        webui.load()
        close(webui, loras, {"fox": 0.4, "ink": 1.7})
    webui.own_picture(batch())
    after = webui.state()
    assert all(torch.equal(value, after[name]) for name, value in webui.clean.items())


#: Layers that the hosts' own kind of module has, a fused one and one of several parts among them.
OFF_DEVICE = [
    f"diffusion_model.{path}.weight" for path in (FUSED, f"{BLOCK}.attn1.to_v", f"{BLOCK}.ff.net.2")
]


def is_clean(webui: FakeWebUI) -> bool:
    """Whether the host's own picture leaves the checkpoint's own weights, and nothing beside them."""
    given_ = batch()
    own = webui.own_picture(given_)
    after = webui.state()
    return torch.equal(own, expected(webui.clean, [], {}, given_)) and all(
        torch.equal(value, after[name]) for name, value in webui.clean.items()
    )


@of_hosts(*PATCHERS)
@pytest.mark.parametrize("lasts", [True, False])
@pytest.mark.parametrize("by", ["host", "us"])
def test_layers_that_left_the_device_between_two_pictures(
    webui: FakeWebUI, loras: list[Lora], by: str, lasts: bool
) -> None:
    """Each forward applies to them what the patcher has that took them off; loading ours changes nothing."""
    for _ in range(3):
        with sampling(webui, BOTH, expected=0.4, lasts=lasts) as seam:
            seam.apply(everywhere(seam, 0.4, 0.4))
            close(webui, loras, dict.fromkeys(BOTH, 0.4))
        objects = webui.sd_model.forge_objects_after_applying_lora
        patcher = objects.unet if by == "host" else webui.sd_model.forge_objects.unet
        patcher.unload_in_part(OFF_DEVICE)
    assert is_clean(webui)


@of_hosts(*PATCHERS)
def test_layers_that_are_off_the_device_get_other_shares_than_were_expected(
    webui: FakeWebUI, loras: list[Lora]
) -> None:
    for _ in range(2):
        with sampling(webui, BOTH, expected=0.4) as seam:
            seam.apply(everywhere(seam, 0.4, 0.4))
            webui.sd_model.forge_objects.unet.unload_in_part(OFF_DEVICE)
            close(webui, loras, dict.fromkeys(BOTH, 0.4))
            seam.apply(everywhere(seam, 0.4, 1.7))
            close(webui, loras, {"fox": 0.4, "ink": 1.7})
            webui.sd_model.forge_objects.unet.unload_in_part(OFF_DEVICE)
            close(webui, loras, {"fox": 0.4, "ink": 1.7})
    assert is_clean(webui)


@of_hosts(*PATCHERS)
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_model_that_is_unloaded_after_the_last_forward(
    webui: FakeWebUI, loras: list[Lora], is_ours: bool
) -> None:
    """What the host has put back is clean, and is not exchanged for what it had merged."""
    p = webui.job(fox=1.0, ink=1.0)
    webui.adapter.after_activation(p, BOTH)
    seam = webui.adapter.seam(p, BOTH)
    webui.adapter.before_loading(p, seam, Expected(everywhere(seam, 0.4, 0.4), lasts=lambda: True))
    if not is_ours:  # another extension's, with a mark of its own
        clone = p.sd_model.forge_objects.unet.clone()
        clone.patches_uuid = uuid.uuid4()
        p.sd_model.forge_objects.unet = clone
    webui.load()
    with seam.withheld([view.name for view in seam.layers()]):
        seam.apply(everywhere(seam, 0.4, 1.7))
        close(webui, loras, {"fox": 0.4, "ink": 1.7})
        webui.sd_model.forge_objects.unet.unload()
    assert is_clean(webui)


@of_hosts(*TABLES)
def test_a_patcher_that_another_extension_put_in_our_place(webui: FakeWebUI, loras: list[Lora]) -> None:
    """It shows the host its own table: nothing may be taken for merged."""
    p = webui.job(fox=1.0, ink=1.0)
    webui.adapter.after_activation(p, BOTH)
    seam = webui.adapter.seam(p, BOTH)
    shares = everywhere(seam, 0.4, 1.7)
    webui.adapter.before_loading(p, seam, Expected(shares, lasts=lambda: True))
    clone = p.sd_model.forge_objects.unet.clone()
    clone.lora_patches = {}
    p.sd_model.forge_objects.unet = clone
    webui.load()
    with seam.withheld(list(shares)), webui.adapter.telling_rows(None, seam):
        assert not seam._denoiser.has_merged()
        seam.apply(shares)
        close(webui, loras, {"fox": 0.4, "ink": 1.7})
