"""Shares, windows and guidance on tiny pipelines, against weights that are merged by hand.

The engine and the hand add in fp32 in the same order, so what goes through merged weights is equal bit for
bit. What goes through a branch beside the layer (rows of the guidance) is equal within fp32's rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import klora
from klora.errors import HostError
from klora.hosts.diffusers.clock import has_known_negative_side
from klora.rules import GUIDANCE
from tests.pipelines.tiny import (
    PIPELINES,
    STEPS,
    Hand,
    HandLora,
    denoiser_of,
    diffusers,
    merged_by_hand,
    picture,
    sampled_slowly,
    sd1,
    several_prompts,
    tiny_unet,
    tiny_vae,
    write_every_type,
    write_lora,
)
from tests.published import PUBLISHED

ADDED = {**PUBLISHED, "rule": "weights"}
SIX_NINE = {**ADDED, **{f"content_{end}": 0.6 for end in ("from", "to")}} | {
    f"style_{end}": 0.9 for end in ("from", "to")
}

#: The package offers the function under the module's name.
FUSE = import_module("klora.hosts.diffusers.fuse")

Case = tuple[Any, dict[str, Any], list[HandLora]]


def made(name: str, folder: Path) -> Case:
    pipe, inputs = PIPELINES[name]()
    files = [
        write_every_type(pipe, folder / f"{which}.safetensors", seed)
        for which, seed in (("content", 10), ("style", 20), ("guest", 30))
    ]
    return pipe, inputs, files


@pytest.fixture(params=PIPELINES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A pipeline, its inputs, and three LoRAs of every type."""
    return made(request.param, tmp_path)


@pytest.fixture(params=["sd1", "sdxl"])
def guided(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A pipeline that batches both passes of the guidance."""
    return made(request.param, tmp_path)


def by_hand(case: Case, loras: list[HandLora], at: Callable[[int], Any]) -> np.ndarray:
    pipe, inputs, _ = case
    with merged_by_hand(pipe, loras, at):
        return picture(pipe, inputs)


# --- Shares ---------------------------------------------------------------------------------------


def test_every_type_is_among_the_layers(case: Case) -> None:
    from klora.files import read_lora

    _, _, (content, style, _) = case
    kinds = set(read_lora(content.path).kinds) | set(read_lora(style.path).kinds)
    assert {"lora", "loha", "lokr", "full"} <= kinds
    assert content.biases


def test_shares_everywhere_are_a_plain_merge(case: Case) -> None:
    pipe, inputs, (content, style, _) = case
    expected = by_hand(case, [content, style], lambda _: (0.6, 0.9))
    with klora.fuse(pipe, content.path, style.path, SIX_NINE):
        np.testing.assert_array_equal(picture(pipe, inputs), expected)
    with klora.fuse(pipe, content.path, style.path, {**ADDED, "content_weight": 0.6, "style_weight": 0.9}):
        np.testing.assert_array_equal(picture(pipe, inputs), expected)


def test_shares_everywhere_are_what_the_library_makes_of_these_weights(case: Case, tmp_path: Path) -> None:
    """PEFT multiplies and adds in another order, so equal within the rounding of fp32."""
    pytest.importorskip("peft", reason="diffusers loads LoRAs by peft: install the extra 'oracles'")
    pipe, inputs, _ = case
    files = [write_lora(denoiser_of(pipe), tmp_path / f"plain{n}.safetensors", n, rank=3) for n in (1, 2)]
    with klora.fuse(pipe, *files, SIX_NINE):
        ours = picture(pipe, inputs)
    base = picture(pipe, inputs)
    for name, file in zip(("first", "second"), files, strict=True):
        pipe.load_lora_weights(file, adapter_name=name)
    pipe.set_adapters(["first", "second"], [0.6, 0.9])
    theirs = picture(pipe, inputs)
    pipe.unload_lora_weights()
    assert np.abs(theirs - base).max() > 0.05 * np.abs(base).max()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("settings", [{"keep": 1}, {"rule": "EST", "keep": 1}, ADDED, {"rule": "turns"}])
def test_keep_1_and_weights_of_1_are_adding(case: Case, settings: dict[str, Any]) -> None:
    pipe, inputs, (content, style, _) = case
    is_turns = settings.get("rule") == "turns"  # whose first turn has more steps than the picture
    expected = by_hand(case, [content, style], lambda _: (1, 0) if is_turns else (1, 1))
    with klora.fuse(pipe, content.path, style.path, {**PUBLISHED, **settings}):
        np.testing.assert_array_equal(picture(pipe, inputs), expected)


def test_weights_that_run_from_start_to_end(case: Case) -> None:
    pipe, inputs, (content, style, _) = case

    def at(step: int) -> tuple[float, float]:
        t = step / (STEPS - 1)
        return 1 * (1 - t) + 0.25 * t, 0.5 * (1 - t) + 1.5 * t

    ends = {"content_from": 1, "content_to": 0.25, "style_from": 0.5, "style_to": 1.5}
    expected = by_hand(case, [content, style], at)
    with klora.fuse(pipe, content.path, style.path, {**ADDED, **ends}) as fusion:
        np.testing.assert_array_equal(picture(pipe, inputs), expected)
    assert fusion.plan().shares[:, 0].max(axis=0).tolist() == [1, 1.5]


@pytest.mark.parametrize("rule", ["K-LoRA", "smooth", "EST"])
def test_a_contest_is_merged_as_it_was_planned(case: Case, rule: str) -> None:
    pipe, inputs, (content, style, _) = case
    wanted = {**PUBLISHED, "rule": rule, "other_layers": "fuse", "balance": 0.1}
    if rule != "smooth":
        wanted["keep"] = 0.4
    with klora.fuse(pipe, content.path, style.path, wanted) as fusion:
        fused = picture(pipe, inputs)
    plan = fusion.plan()
    assert plan.flips > 0
    both = [content.deltas.keys(), style.deltas.keys()]

    def at(step: int) -> dict[str, tuple[float, ...]]:
        decided = dict(zip(plan.layers, map(tuple, plan.shares[step].tolist()), strict=True))
        return {name: decided.get(name, (1, 1)) for name in set().union(*both)}

    np.testing.assert_array_equal(by_hand(case, [content, style], at), fused)


# --- Windows --------------------------------------------------------------------------------------


def test_a_lora_alone_from_the_middle_on(case: Case) -> None:
    pipe, inputs, (content, *_) = case
    expected = by_hand(case, [content], lambda step: (1.0 if step / STEPS >= 0.5 else 0.0,))
    with klora.add_timed(pipe, [klora.TimedLora(content.path, window="start=0.5")]) as fusion:
        np.testing.assert_array_equal(picture(pipe, inputs), expected)
        np.testing.assert_array_equal(picture(pipe, inputs), expected)
    assert fusion.plan().shares[:, :, 0].T.tolist() == [[0, 0, 0, 1, 1]] * len(fusion.plan().layers)


def test_several_loras_each_in_its_own_steps(case: Case) -> None:
    pipe, inputs, files = case
    windows = ["stop=0.4", "step=2-3", "w=0:0.2,0.5:1"]
    factors = [(0.5, 0, 0.1), (0.5, 2, 0.3), (0, 2, 0.5), (0, 0, 0.5), (0, 0, 0.5)]
    expected = by_hand(case, files, lambda step: factors[step])
    timed = [
        klora.TimedLora(one.path, weight, window)
        for one, weight, window in zip(files, (0.5, 2, 0.5), windows, strict=True)
    ]
    with klora.add_timed(pipe, timed):
        found = picture(pipe, inputs)
    # A weight times a curve's factor may round once more than the number written here.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_windows_beside_the_pair(case: Case) -> None:
    pipe, inputs, files = case
    content, style, guest = files

    def at(step: int) -> tuple[float, ...]:
        return 1, float(step / STEPS >= 0.5), 0.75 * (step in (1, 2))

    expected = by_hand(case, files, at)
    with klora.fuse(
        pipe,
        content.path,
        style.path,
        {**PUBLISHED, "keep": 1},
        style_window="start=0.5",
        others=[klora.TimedLora(guest.path, 0.75, "step=2-3")],
    ):
        np.testing.assert_array_equal(picture(pipe, inputs), expected)


def test_no_window_is_adding_beside_the_pair(case: Case) -> None:
    pipe, inputs, files = case
    content, style, guest = files
    expected = by_hand(case, files, lambda _: (1, 1, 0.5))
    with klora.fuse(pipe, content.path, style.path, ADDED, others=[klora.TimedLora(guest.path, 0.5)]):
        np.testing.assert_array_equal(picture(pipe, inputs), expected)


def test_parameters_come_back_as_the_very_same_objects(case: Case) -> None:
    pipe, inputs, (content, style, guest) = case
    model = denoiser_of(pipe)
    parameters = dict(model.named_parameters())
    without_bias = {name for name, one in model.named_modules() if getattr(one, "bias", 0) is None}
    bits = {name: one.detach().clone() for name, one in parameters.items()}
    wanted = {"rule": "smooth", "guidance": "both" if hasattr(pipe, "transformer") else "2"}
    others = [klora.TimedLora(guest.path, 0.5, "start=0.5")]
    with klora.fuse(pipe, content.path, style.path, wanted, others=others, content_window="stop=0.6"):
        picture(pipe, inputs)
        changed = dict(model.named_parameters())
        assert all(changed[f"{name}.weight"] is not parameters[f"{name}.weight"] for name in content.deltas)
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is one for name, one in parameters.items())
    assert all(torch.equal(after[name], one) for name, one in bits.items())
    assert {name for name, one in model.named_modules() if getattr(one, "bias", 0) is None} == without_bias
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


# --- Guidance -------------------------------------------------------------------------------------

G = 5.0
COUNTS = {"both": (1, 1), "content": (1, 0), "none": (0, 0), "3": (1, 0.5), "5": (1, 0), "9": (1, 0)}


@pytest.mark.parametrize("guidance", COUNTS)
def test_guidance_is_two_forwards_with_merged_weights(guided: Case, guidance: str) -> None:
    pipe, inputs, (content, style, _) = guided
    told = several_prompts(inputs, 2)
    factors = COUNTS[guidance]

    def at(step: int) -> tuple[tuple[float, float], tuple[float, float]]:
        t = step / (STEPS - 1)
        conditional = 0.8, 1 - t + 0.5 * t
        return (conditional[0] * factors[0], conditional[1] * factors[1]), conditional

    expected = sampled_slowly(pipe, told, G, Hand(pipe, [content, style]), at)
    ends = {"content_from": 0.8, "content_to": 0.8, "style_from": 1, "style_to": 0.5}
    with klora.fuse(pipe, content.path, style.path, {**ADDED, **ends, "guidance": guidance}):
        found = picture(pipe, {**told, "guidance_scale": G})
    close(found, expected)


@pytest.mark.parametrize("guidance", ["content", "2"])
def test_guidance_of_a_contest_beside_windows_and_a_guest(guided: Case, guidance: str) -> None:
    """The guest and what is outside the windows are the same in both passes."""
    pipe, inputs, files = guided
    content, style, guest = files
    told = several_prompts(inputs, 3)
    wanted = {**PUBLISHED, "keep": 0.5, "other_layers": "fuse", "guidance": guidance}
    others = [klora.TimedLora(guest.path, 0.75, "step=2-3")]
    with klora.fuse(
        pipe, content.path, style.path, wanted, style_window="start=0.2", others=others
    ) as fusion:
        found = picture(pipe, {**told, "guidance_scale": G})
    plan = fusion.plan()
    assert plan.unconditional is not None
    factor = 0.0 if guidance == "content" else (G - 2) / (G - 1)

    def at(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        decided = dict(zip(plan.layers, plan.shares[step].tolist(), strict=True))
        others_share = 0.75 * (step in (1, 2))
        conditional, unconditional = {}, {}
        for name in set().union(*(one.deltas for one in files)):
            shares = decided.get(name, [1, float(step / STEPS >= 0.2), 0])
            conditional[name] = (shares[0], shares[1], others_share)
            unconditional[name] = (shares[0], shares[1] * factor, others_share)
        return unconditional, conditional

    close(found, sampled_slowly(pipe, told, G, Hand(pipe, files), at))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within the rounding of fp32 over a sampling: a branch adds after the product, a merge before."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("guidance", ["content", "none", "3"])
def test_without_guidance_the_setting_has_no_effect(guided: Case, guidance: str) -> None:
    pipe, inputs, (content, style, _) = guided
    told = {**several_prompts(inputs, 1), "guidance_scale": 1.0}
    with klora.fuse(pipe, content.path, style.path, {**PUBLISHED, "keep": 0.5}):
        expected = picture(pipe, told)
    with klora.fuse(pipe, content.path, style.path, {**PUBLISHED, "keep": 0.5, "guidance": guidance}):
        np.testing.assert_array_equal(picture(pipe, told), expected)


def test_pipelines_whose_rows_are_not_known_are_refused_in_the_first_step(tmp_path: Path) -> None:
    pipe, inputs, (content, style, _) = made("flux", tmp_path)
    with (
        klora.fuse(pipe, content.path, style.path, {**PUBLISHED, "guidance": "content"}),
        pytest.raises(HostError, match=r"rows of FluxPipeline.*set guidance to both"),
    ):
        picture(pipe, inputs)
    pipe, inputs, (content, style, _) = made("sd1", tmp_path)
    type(pipe).image_guidance_scale = 1.5
    try:
        with (
            klora.fuse(pipe, content.path, style.path, {**PUBLISHED, "guidance": "content"}),
            pytest.raises(HostError, match="set guidance to both"),
        ):
            picture(pipe, inputs)
    finally:
        del type(pipe).image_guidance_scale


@pytest.mark.parametrize("family", ["flux", "sd1"])
def test_the_default_gives_way_where_no_negative_side_is_known(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, inputs, (content, style, _) = made(family, tmp_path)
    monkeypatch.setattr(FUSE, "GUIDANCE", replace(GUIDANCE, default="none"))
    if family == "sd1":
        monkeypatch.setattr(type(pipe), "image_guidance_scale", 1.5, raising=False)
    with klora.fuse(pipe, content.path, style.path, {"guidance": "both"}):
        expected = picture(pipe, inputs)
    with (
        pytest.warns(UserWarning, match="does not know the negative side"),
        klora.fuse(pipe, content.path, style.path, {"guidance": "none"}),
    ):
        np.testing.assert_array_equal(picture(pipe, inputs), expected)


def test_the_default_is_kept_where_the_negative_side_is_known(
    guided: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, inputs, (content, style, _) = guided
    told = {**several_prompts(inputs, 1), "guidance_scale": G}
    with klora.fuse(pipe, content.path, style.path, {"guidance": "none"}):
        expected = picture(pipe, told)
    monkeypatch.setattr(FUSE, "GUIDANCE", replace(GUIDANCE, default="none"))
    with klora.fuse(pipe, content.path, style.path, {"guidance": "none"}):
        np.testing.assert_array_equal(picture(pipe, told), expected)
    with klora.fuse(pipe, content.path, style.path, {"guidance": "both"}):
        assert not np.array_equal(picture(pipe, told), expected)


@pytest.mark.parametrize("kind", ["StableDiffusionInstructPix2PixPipeline", "StableDiffusionPAGPipeline"])
def test_a_third_part_of_the_batch_is_known_before_the_sampling(kind: str) -> None:
    """Their properties cannot be read before the first call, and some may never have a third part."""
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    unet = tiny_unet(cross_attention_dim=768)
    scheduler = diffusers.DDIMScheduler()
    pipe = getattr(diffusers, kind)(
        vae=tiny_vae(), unet=unet, scheduler=scheduler, requires_safety_checker=False, **parts
    )
    assert not has_known_negative_side(pipe)
    assert has_known_negative_side(sd1()[0])
