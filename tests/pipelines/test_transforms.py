"""Transforms on tiny pipelines: the pair that was rewritten by hand, and SSR's extra forwards done slowly."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import klora
from klora.errors import LoraFileError
from tests.pipelines.tiny import (
    ATTENTION,
    CONVOLUTION,
    OTHER,
    PIPELINES,
    Hand,
    HandLora,
    denoiser_of,
    merged_by_hand,
    picture,
    several_prompts,
    write_every_type,
)
from tests.published import PUBLISHED

ADDED = {**PUBLISHED, "rule": "weights"}
RIDGE = 0.01
TOLERANCE = 1e-5
Factors = dict[str, tuple[Tensor, Tensor]]


def plain(pipe: Any, path: Path, seed: int, rank: int) -> Factors:
    """A file of plain LoRA for linears and convolutions: module -> (up, down) as matrices in fp64."""
    prefix = "transformer" if hasattr(pipe, "transformer") else "unet"
    factors, tensors = {}, {}
    for name, module in denoiser_of(pipe).named_modules():
        wanted = any(one.fullmatch(name) for one in (ATTENTION, OTHER, CONVOLUTION))
        if not (isinstance(module, nn.Linear | nn.Conv2d) and wanted):
            continue
        if seed == 20 and re.search(r"to_out|ff", name):
            continue  # layers that content alone changes
        chance = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        shape = tuple(module.weight.shape)
        down = torch.randn(rank, *shape[1:], generator=chance) / np.prod(shape[1:]) ** 0.5
        up = 0.3 * torch.randn(shape[0], rank, generator=chance)
        factors[name] = (up.double(), down.flatten(1).double())
        spread = up.reshape(*up.shape, *[1] * (len(shape) - 2))
        tensors[f"{prefix}.{name}.lora_B.weight"] = spread
        tensors[f"{prefix}.{name}.lora_A.weight"] = down
    save_file(tensors, path)
    return factors


@pytest.fixture(params=["sd1", "flux"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    pipe, inputs = PIPELINES[request.param]()
    paths = [tmp_path / f"{name}.safetensors" for name in ("content", "style")]
    factors = [
        plain(pipe, path, seed, rank) for path, seed, rank in zip(paths, (10, 20), (4, 3), strict=True)
    ]
    return pipe, inputs, paths, factors


def dense(pipe: Any, path: Path, factors: Factors) -> HandLora:
    shapes = {name: denoiser_of(pipe).get_submodule(name).weight.shape for name in factors}
    return HandLora(path, {n: (up @ down).float().reshape(shapes[n]) for n, (up, down) in factors.items()})


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Both are merged in fp32, from factors that were rounded elsewhere, and five steps make more of it."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def far(found: np.ndarray, expected: np.ndarray) -> None:
    """The tolerance would tell the two apart."""
    assert np.abs(found - expected).max() > 20 * TOLERANCE * np.abs(expected).max()


# --- NP-LoRA --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.5, 1e6])
def test_np_lora_is_the_projected_pair_merged_by_hand(case: Any, mu: float) -> None:
    pipe, inputs, paths, (content, style) = case
    projected = dict(content)
    for name in content.keys() & style.keys():
        up, down = content[name]
        rows = style[name][1]
        projected[name] = (up, down - mu / (1 + mu) * down @ torch.linalg.pinv(rows) @ rows)
    loras = [dense(pipe, paths[0], projected), dense(pipe, paths[1], style)]
    with merged_by_hand(pipe, loras, lambda _: (1, 1)):
        expected = picture(pipe, inputs)
    with klora.fuse(pipe, *paths, {**ADDED, "transform": "NP-LoRA", "mu": mu}):
        found = picture(pipe, inputs)
    with klora.fuse(pipe, *paths, ADDED):
        far(picture(pipe, inputs), found)
    close(found, expected)


def test_mu_0_is_the_untouched_pair_bit_for_bit_under_any_rule(case: Any) -> None:
    pipe, inputs, paths, _ = case
    for rule in ("K-LoRA", "smooth"):
        with klora.fuse(pipe, *paths, {**PUBLISHED, "rule": rule}):
            expected = picture(pipe, inputs)
        with klora.fuse(pipe, *paths, {**PUBLISHED, "rule": rule, "transform": "NP-LoRA", "mu": 0}):
            np.testing.assert_array_equal(picture(pipe, inputs), expected)


# --- SSR ------------------------------------------------------------------------------------------


def inputs_of(
    pipe: Any, names: set[str], lora: HandLora, weight: float, given: tuple[Any, dict[str, Any]]
) -> dict[str, Tensor]:
    """X of each layer, ``[in * kernel, columns]``, in a forward with one LoRA merged by hand."""
    model, seen, handles = denoiser_of(pipe), {}, []

    def watch(name: str) -> Any:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].double()
            if isinstance(module, nn.Conv2d):
                x = functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
                seen[name] = x.movedim(1, 0).flatten(1)
            else:
                seen[name] = x.flatten(0, -2).T

        return before

    hand = Hand(pipe, [lora])
    hand.merge((weight,))
    for name in names:
        handles.append(model.get_submodule(name).register_forward_pre_hook(watch(name)))
    with torch.no_grad():
        model(*given[0], **given[1])
    for handle in handles:
        handle.remove()
    hand.restore()
    return seen


def mixed_by_hand(
    content: tuple[Tensor, Tensor],
    style: tuple[Tensor, Tensor],
    weights: tuple[float, float],
    seen: list[Tensor],
) -> Tensor:
    """B R A with the weights inside B."""
    a = torch.cat([content[1], style[1]])
    b = torch.cat([weights[0] * content[0], weights[1] * style[0]], dim=1)
    z = [a @ x for x in seen]
    gram = z[0] @ z[0].T + z[1] @ z[1].T
    q = torch.cat([content[1] @ seen[0] @ z[0].T, style[1] @ seen[1] @ z[1].T])
    return b @ q @ torch.linalg.inv(gram + RIDGE * torch.eye(len(a)).double()) @ a


def first_call(pipe: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What the pipeline gives its denoiser in the first step."""
    found: list[Any] = []

    def before(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.append((arguments, dict(keywords)))

    handle = denoiser_of(pipe).register_forward_pre_hook(before, with_kwargs=True)
    picture(pipe, inputs)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("has_own_prompts", [False, True])
def test_ssr_is_the_pair_that_two_forwards_by_hand_give(case: Any, has_own_prompts: bool) -> None:
    pipe, inputs, paths, (content, style) = case
    is_guided = hasattr(pipe, "unet")
    if is_guided:
        inputs = {**several_prompts(inputs, 2), "guidance_scale": 4.0}
    weights = (0.8, 1.2)
    arguments, keywords = first_call(pipe, inputs)
    if is_guided:  # the conditional rows of the batch
        arguments = (arguments[0][2:], *arguments[1:])
        keywords["encoder_hidden_states"] = keywords["encoder_hidden_states"][2:]
    own: tuple[dict[str, Any], ...] = ()
    if has_own_prompts:
        shape = keywords["encoder_hidden_states"].shape[1:]
        chance = torch.Generator().manual_seed(8)
        own = tuple({"encoder_hidden_states": torch.randn(1, *shape, generator=chance)} for _ in range(2))
    names = content.keys() & style.keys()
    loras = [dense(pipe, path, one) for path, one in zip(paths, (content, style), strict=True)]
    seen = []
    for place in range(2):
        given = dict(keywords)
        for key, one in (own[place] if own else {}).items():
            given[key] = one.expand(len(keywords[key]), *one.shape[1:])
        seen.append(inputs_of(pipe, names, loras[place], weights[place], (arguments, given)))
    mixed = HandLora(paths[0])
    for name in content:
        shape = denoiser_of(pipe).get_submodule(name).weight.shape
        if name in names:
            both = [one[name] for one in seen]
            delta = mixed_by_hand(content[name], style[name], weights, both)
        else:
            delta = weights[0] * content[name][0] @ content[name][1]
        mixed.deltas[name] = delta.float().reshape(shape)
    with merged_by_hand(pipe, [mixed], lambda _: (1,)):
        expected = picture(pipe, inputs)
    wanted = {
        **ADDED,
        "transform": "SSR",
        "ridge": RIDGE,
        "content_weight": weights[0],
        "style_weight": weights[1],
    }
    before = dict(denoiser_of(pipe).named_parameters())
    with klora.fuse(pipe, *paths, wanted, calibrate_with=own):
        found, again = picture(pipe, inputs), picture(pipe, inputs)
    np.testing.assert_array_equal(found, again)
    close(found, expected)
    with klora.fuse(pipe, *paths, {**wanted, "transform": "none"}):
        far(picture(pipe, inputs), found)
    assert all(before[name] is one for name, one in denoiser_of(pipe).named_parameters())
    assert not any(one._forward_pre_hooks for one in denoiser_of(pipe).modules())


def test_ssr_goes_with_a_contest_and_windows(case: Any) -> None:
    pipe, inputs, paths, _ = case
    contest = {**PUBLISHED, "keep": 0.3}
    with klora.fuse(pipe, *paths, contest, style_window="start=0.5") as plainly:
        picture(pipe, inputs)
    with klora.fuse(pipe, *paths, {**contest, "transform": "SSR"}, style_window="start=0.5") as fusion:
        picture(pipe, inputs)
    before, after = plainly.plan(), fusion.plan()
    assert before.layers == after.layers
    assert before.as_json()["content_score"] != after.as_json()["content_score"]
    assert (after.shares[:2, :, 1] == 0).all()


def test_a_type_that_cannot_be_rewritten_is_refused_on_entry(tmp_path: Path) -> None:
    pipe, _ = PIPELINES["sd1"]()
    files = [write_every_type(pipe, tmp_path / f"{n}.safetensors", n).path for n in (1, 2)]
    base = dict(denoiser_of(pipe).named_parameters())
    for name in ("NP-LoRA", "SSR"):
        with (
            pytest.raises(LoraFileError, match=rf"{name} cannot rewrite it"),
            klora.fuse(pipe, *files, {"transform": name}),
        ):
            pass
    assert all(base[name] is one for name, one in denoiser_of(pipe).named_parameters())
