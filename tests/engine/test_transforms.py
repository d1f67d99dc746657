"""Transforms against dense formulas: NP-LoRA by a pseudo-inverse, SSR from the inputs themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from klora.__main__ import main
from klora.errors import LoraFileError, PairError
from klora.files import LoraFile, read_lora, split_layers
from klora.files.conversion import DIALECTS, state_dict_in
from klora.planning import forget_scores, plan_files, rewritten
from klora.rules import TRANSFORMS, Calibration
from klora.rules.np_lora import row_basis
from klora.settings import Settings
from tests.engine.lora_files import ATTENTION, FEED_FORWARD, write_lora
from tests.published import PUBLISHED_OPTIONS, published

CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
FLUX_BLOCK = "transformer.transformer_blocks.0.attn."
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def written(folder: Path, name: str, layers: Mapping[str, tuple[Tensor, Tensor]], **more: Tensor) -> LoraFile:
    """A file of plain LoRA layers: name -> (up, down)."""
    tensors = {}
    for layer, (up, down) in layers.items():
        spelled = ("lora_B", "lora_A") if "." in layer else ("lora_up", "lora_down")
        for parameter, one in zip(spelled, (up, down), strict=True):
            tensors[f"{layer}.{parameter}.weight"] = one.contiguous()
    path = folder / f"{name}.safetensors"
    save_file({**tensors, **more}, path)
    return read_lora(path)


def deltas(file: LoraFile) -> dict[str, np.ndarray]:
    return {
        name: one.delta(dtype=torch.float64).flatten(1).numpy() for name, one in split_layers(file).items()
    }


def transformed(name: str, content: LoraFile, style: LoraFile, **values: Any) -> tuple[LoraFile, LoraFile]:
    return rewritten(content, style, Settings(transform=name, **values))


def projector(down: Tensor) -> np.ndarray:
    """Onto the space of the rows of a matrix."""
    rows = down.flatten(1).double().numpy()
    return np.linalg.pinv(rows, rcond=1e-9) @ rows


# --- NP-LoRA --------------------------------------------------------------------------------------


@quick
@given(
    st.integers(0, 2**20),
    st.floats(0, 100),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([(6,), (4, 3, 3)]),
    st.booleans(),
)
def test_np_lora(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    mu: float,
    content_rank: int,
    style_rank: int,
    inside: tuple[int, ...],
    is_deficient: bool,
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    name = ATTENTION[0] if len(inside) == 1 else CONV
    ups, downs = [], []
    for offset, rank in ((0, content_rank), (10, style_rank)):
        up = normal(seed + offset, 8, rank)
        ups.append(up if len(inside) == 1 else up.reshape(8, rank, 1, 1))
        downs.append(normal(seed + offset + 1, rank, *inside))
    if is_deficient:
        downs[1][0] = 0
    alpha = {f"{name}.alpha": torch.tensor(0.5)}
    content = written(folder, "content", {name: (ups[0], downs[0])}, **alpha)
    style = written(folder, "style", {name: (ups[1], downs[1])})
    after, kept = transformed("NP-LoRA", content, style, mu=mu)
    (before,), (found,) = deltas(content).values(), deltas(after).values()
    taken = mu / (1 + mu)
    np.testing.assert_allclose(found, before - taken * before @ projector(downs[1]), rtol=1e-4, atol=1e-5)
    assert kept is style
    assert after.ranks == content.ranks


def test_mu_0_is_the_pair_itself_and_infinite_mu_leaves_nothing_in_the_styles_rows(tmp_path: Path) -> None:
    content, style = (read_lora(write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=3)) for n in (1, 2))
    assert transformed("NP-LoRA", content, style, mu=0) == (content, style)
    after, _ = transformed("NP-LoRA", content, style, mu=1e6)
    for name, layer in split_layers(style).items():
        rows = layer.tensor("lora_down.weight").double().numpy()
        left = deltas(after)[name] @ rows.T
        assert np.abs(left).max() < 1e-4 * np.abs(deltas(content)[name] @ rows.T).max()


def test_layers_that_one_lora_changes_stay(tmp_path: Path) -> None:
    content = read_lora(write_lora(tmp_path / "c.safetensors", (*ATTENTION, FEED_FORWARD), seed=1))
    style = read_lora(write_lora(tmp_path / "s.safetensors", ATTENTION[:1], seed=2))
    after, _ = transformed("NP-LoRA", content, style)
    changed = {name for name, one in deltas(after).items() if not np.array_equal(one, deltas(content)[name])}
    assert len(changed) == 1
    assert changed == set(split_layers(style))


def test_text_encoders_stay(tmp_path: Path) -> None:
    encoder = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    layers = {ATTENTION[0]: (normal(1, 8, 2), normal(2, 2, 6)), encoder: (normal(3, 8, 2), normal(4, 2, 8))}
    content, style = (written(tmp_path, name, layers) for name in ("content", "style"))
    after, _ = transformed("NP-LoRA", content, style, mu=1e6)
    (name,) = after.text_encoder
    assert torch.equal(after.text_encoder[name].delta(), content.text_encoder[name].delta())
    assert np.abs(next(iter(deltas(after).values()))).max() < 1e-5  # equal downs: nothing of it is left


def test_rows_that_depend_on_each_other_make_no_directions_of_their_own() -> None:
    down = torch.tensor([[1.0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]).double()
    basis = row_basis(down)
    assert basis.shape == (4, 1)
    torch.testing.assert_close((basis @ basis.T), torch.diag(torch.tensor([1.0, 0, 0, 0])).double())
    assert row_basis(torch.zeros(2, 4).double()).shape == (4, 0)


# --- Files ----------------------------------------------------------------------------------------


def test_what_is_rewritten_has_an_identity_of_its_own(tmp_path: Path) -> None:
    content, style = (read_lora(write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=3)) for n in (1, 2))
    once, _ = transformed("NP-LoRA", content, style, mu=0.5)
    other, _ = transformed("NP-LoRA", content, style, mu=2)
    again, _ = transformed("NP-LoRA", read_lora(content.path), style, mu=0.5)
    assert len({one.identity for one in (content, once, other)}) == 3
    assert once.identity == again.identity
    assert once.webui_hash == content.webui_hash


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_holds_what_was_rewritten(tmp_path: Path, dialect: str) -> None:
    layers = (*ATTENTION, FEED_FORWARD)
    content, style = (
        read_lora(write_lora(tmp_path / f"{n}.safetensors", layers, seed=n, alpha=1.0)) for n in (1, 2)
    )
    after, _ = transformed("NP-LoRA", content, style, mu=3)
    save_file(state_dict_in(after, dialect), tmp_path / "again.safetensors")
    again = deltas(read_lora(tmp_path / "again.safetensors"))
    expected = deltas(after)
    assert again.keys() == expected.keys()
    for name, one in expected.items():
        np.testing.assert_allclose(again[name], one, rtol=1e-5, atol=1e-6)
        assert not np.allclose(one, deltas(content)[name], rtol=1e-3)


def test_a_host_may_change_what_it_was_given(tmp_path: Path) -> None:
    content, style = (read_lora(write_lora(tmp_path / f"{n}.safetensors", seed=n)) for n in (1, 2))
    after, _ = transformed("NP-LoRA", content, style)
    before = deltas(after)
    for tensor in state_dict_in(after, "kohya").values():
        tensor.zero_()
    assert all(np.array_equal(one, before[name]) for name, one in deltas(after).items())


def test_scores_are_those_of_the_rewritten_pair(tmp_path: Path) -> None:
    pair = [write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=6) for n in (1, 2)]
    forget_scores()
    told = [
        plan_files(*pair, published(transform=transform, mu=mu, top_k="100%"), 4).as_json()
        for transform, mu in (("none", 0.5), ("NP-LoRA", 0), ("NP-LoRA", 1e6), ("none", 0.5))
    ]
    assert told[0]["content_score"] == told[1]["content_score"] == told[3]["content_score"]
    assert max(told[2]["content_score"]) < min(told[0]["content_score"])
    assert told[0]["style_score"] == told[2]["style_score"]


# --- Refusals -------------------------------------------------------------------------------------


def loha(name: str) -> dict[str, Tensor]:
    shapes = {"hada_w1_a": (12, 2), "hada_w1_b": (2, 12), "hada_w2_a": (12, 2), "hada_w2_b": (2, 12)}
    return {f"{name}.{key}": normal(5, *shape) for key, shape in shapes.items()}


def calibrated(content: LoraFile, style: LoraFile) -> Calibration:
    """A calibration that has seen a little of everything."""
    ranks = {name: one.rank or 1 for name, one in split_layers(content).items()}
    both = {name: ranks.get(name, 1) + (one.rank or 1) for name, one in split_layers(style).items()}
    moments = {name: (torch.eye(n).double(), torch.eye(n).double()) for name, n in both.items()}
    return Calibration((1.0, 1.0), moments)


@pytest.mark.parametrize("name", ["NP-LoRA", "SSR"])
@pytest.mark.parametrize("side", ["content", "style"])
def test_other_types_are_refused_where_both_change_a_layer(tmp_path: Path, name: str, side: str) -> None:
    plain = write_lora(tmp_path / "plain.safetensors", ATTENTION[:2], seed=1)
    save_file(loha(ATTENTION[0]), tmp_path / "other.safetensors")
    files = [read_lora(tmp_path / "other.safetensors"), read_lora(plain)]
    content, style = files if side == "content" else files[::-1]
    with pytest.raises(LoraFileError, match=rf"other\.safetensors: layer .*attn1.to_q: {name} cannot.*loha"):
        rewritten(content, style, Settings(transform=name), calibrated(content, style))
    save_file(loha(ATTENTION[2]), tmp_path / "other.safetensors")
    files = [read_lora(tmp_path / "other.safetensors"), read_lora(plain)]
    content, style = files if side == "content" else files[::-1]
    assert rewritten(content, style, Settings(transform=name), calibrated(content, style)) == (content, style)


def test_nan_is_named_with_its_file(tmp_path: Path) -> None:
    good = read_lora(write_lora(tmp_path / "good.safetensors", seed=1))
    bad = read_lora(write_lora(tmp_path / "bad.safetensors", seed=2, bad=float("nan")))
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(LoraFileError, match=r"bad\.safetensors: layer .*attn2.to_q: lora_up holds NaN"):
            transformed("NP-LoRA", *pair)


def test_layers_of_different_size_are_refused_first(tmp_path: Path) -> None:
    content = read_lora(write_lora(tmp_path / "c.safetensors", size=(12, 12)))
    style = read_lora(write_lora(tmp_path / "s.safetensors", size=(12, 16)))
    with pytest.raises(LoraFileError, match=r"\[12, 16\] where c.safetensors has \[12, 12\]"):
        transformed("NP-LoRA", content, style)


def flux(folder: Path, name: str, *, is_fused: bool, seed: int) -> LoraFile:
    """A Flux LoRA with one rank for q, k and v together, or one for each."""
    if is_fused:
        return written(folder, name, {QKV: (normal(seed, 9216, 2), normal(seed + 1, 2, 3072))})
    return written(
        folder,
        name,
        {
            f"{FLUX_BLOCK}{leaf}": (normal(seed + n, 3072, 2), normal(seed + n + 5, 2, 3072))
            for n, leaf in enumerate(("to_q", "to_k", "to_v"))
        },
    )


def test_np_lora_of_split_projections_against_a_fused_style(tmp_path: Path) -> None:
    content = flux(tmp_path, "content", is_fused=False, seed=1)
    style = flux(tmp_path, "style", is_fused=True, seed=20)
    after, _ = transformed("NP-LoRA", content, style, mu=1)
    (whole,) = style.layers.values()
    rows = whole.tensor("lora_down.weight")
    for name, layer in split_layers(content).items():
        down = layer.tensor("lora_down.weight").double().numpy()
        expected = down - 0.5 * (down @ np.linalg.pinv(rows.double().numpy())) @ rows.double().numpy()
        found = split_layers(after)[name].tensor("lora_down.weight").numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    fused, _ = transformed("NP-LoRA", flux(tmp_path, "fused", is_fused=True, seed=3), style, mu=1e6)
    left = next(iter(fused.layers.values())).tensor("lora_down.weight") @ rows.T
    assert float(left.abs().max()) < 1e-2


def test_np_lora_of_a_fused_content_against_a_split_style_is_refused(tmp_path: Path) -> None:
    content = flux(tmp_path, "content", is_fused=True, seed=1)
    style = flux(tmp_path, "style", is_fused=False, seed=20)
    with pytest.raises(
        LoraFileError, match=r"content\.safetensors: layer .*NP-LoRA cannot.*fused here.*none"
    ):
        transformed("NP-LoRA", content, style)


# --- SSR ------------------------------------------------------------------------------------------


def slow_ssr(
    ups: list[np.ndarray], downs: list[np.ndarray], inputs: list[np.ndarray], ridge: float
) -> np.ndarray:
    """B R A from the definition, dense; the scales and weights lie in the ups."""
    a, b = np.concatenate(downs), np.concatenate(ups, axis=1)
    seen = [a @ x for x in inputs]
    gram = sum(z @ z.T for z in seen)
    q = np.concatenate([(down @ x) @ z.T for down, x, z in zip(downs, inputs, seen, strict=True)])
    return b @ (q @ np.linalg.inv(gram + ridge * np.eye(len(a)))) @ a


def ssr(
    folder: Path,
    ups: list[Tensor],
    downs: list[Tensor],
    inputs: list[np.ndarray],
    ridge: float,
    weights: tuple[float, float],
    alpha: float,
) -> np.ndarray:
    """What the two files amount to at their weights, after the transform."""
    told = {f"{ATTENTION[0]}.alpha": torch.tensor(alpha)}
    content = written(folder, "content", {ATTENTION[0]: (ups[0], downs[0])}, **told)
    style = written(folder, "style", {ATTENTION[0]: (ups[1], downs[1])})
    a = torch.cat(downs).double().numpy()
    moments = tuple(torch.tensor((a @ x) @ (a @ x).T) for x in inputs)
    (name,) = split_layers(content)
    calibration = Calibration(weights, {name: moments})
    after = rewritten(content, style, Settings(transform="SSR", ridge=ridge), calibration)
    return sum(weight * deltas(one)[name] for weight, one in zip(weights, after, strict=True))


@quick
@given(
    st.integers(0, 2**20),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.floats(0.01, 2),
    st.tuples(st.floats(0.2, 2), st.floats(-2, -0.2)),
)
def test_ssr(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    content_rank: int,
    style_rank: int,
    tokens: int,
    ridge: float,
    weights: tuple[float, float],
) -> None:
    ranks = (content_rank, style_rank)
    ups = [normal(seed + n, 5, rank) for n, rank in enumerate(ranks)]
    downs = [normal(seed + 7 + n, rank, 6) for n, rank in enumerate(ranks)]
    inputs = [normal(seed + 20 + n, 6, tokens).double().numpy() for n in range(2)]
    alpha = 0.5
    found = ssr(tmp_path_factory.mktemp("pair"), ups, downs, inputs, ridge, weights, alpha)
    scales = (weights[0] * alpha / content_rank, weights[1])
    scaled = [scale * up.double().numpy() for scale, up in zip(scales, ups, strict=True)]
    expected = slow_ssr(scaled, [one.double().numpy() for one in downs], inputs, ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def orthogonal(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Ups, and downs whose row spaces are orthogonal."""
    rows = torch.linalg.qr(normal(seed, 8, 8).double())[0].float()
    return [normal(seed + 1, 5, 3), normal(seed + 2, 5, 2)], [rows[:3], rows[3:5]]


@quick
@given(st.integers(0, 2**20))
def test_where_neither_sees_the_others_rows_ssr_is_adding(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    ups, downs = orthogonal(seed)
    inputs = [
        (down.T @ normal(seed + n, len(down), 12)).double().numpy() for n, down in enumerate(downs, start=5)
    ]
    found = ssr(tmp_path_factory.mktemp("pair"), ups, downs, inputs, 1e-9, (1.0, 0.5), 3.0)
    added = ups[0] @ downs[0] + 0.5 * ups[1] @ downs[1]
    np.testing.assert_allclose(found, added.numpy(), rtol=1e-3, atol=1e-4)


def test_where_both_see_the_same_ssr_is_half_of_adding(tmp_path: Path) -> None:
    ups, downs = orthogonal(3)
    seen = normal(4, 8, 30).double().numpy()
    found = ssr(tmp_path, ups, downs, [seen, seen], 1e-9, (1.0, 1.0), 3.0)
    added = ups[0] @ downs[0] + ups[1] @ downs[1]
    np.testing.assert_allclose(found, added.numpy() / 2, rtol=1e-3, atol=1e-4)


def test_ssr_of_a_lora_without_weight_or_without_a_scale(tmp_path: Path) -> None:
    content, style = (read_lora(write_lora(tmp_path / f"{n}.safetensors", seed=n)) for n in (1, 2))
    moments = calibrated(content, style).moments
    wanted = Settings(transform="SSR")
    assert rewritten(content, style, wanted, Calibration((0.0, 1.0), moments)) == (content, style)
    silent = read_lora(write_lora(tmp_path / "silent.safetensors", alpha=0.0))
    with pytest.raises(LoraFileError, match=r"silent\.safetensors: layer .*SSR cannot.*alpha is 0"):
        rewritten(silent, style, wanted, Calibration((1.0, 1.0), moments))


def test_ssr_of_a_fused_and_a_split_file_is_part_by_part(tmp_path: Path) -> None:
    content = flux(tmp_path, "content", is_fused=True, seed=1)
    style = flux(tmp_path, "style", is_fused=False, seed=20)
    first, second = split_layers(content), split_layers(style)
    moments, expected = {}, {}
    for n, name in enumerate(sorted(first)):
        factors = [one.factors() for one in (first[name], second[name])]
        ups, downs = ([one.double().numpy() for one in side] for side in zip(*factors, strict=True))
        inputs = [normal(40 + n + 9 * k, 3072, 20).double().numpy() / 50 for k in range(2)]
        a = np.concatenate(downs)
        moments[name] = tuple(torch.tensor((a @ x) @ (a @ x).T) for x in inputs)
        expected[name] = slow_ssr([up[:4] for up in ups], downs, inputs, 0.1)
    after = rewritten(content, style, Settings(transform="SSR", ridge=0.1), Calibration((1, 1), moments))
    for name, one in expected.items():
        found = sum(split_layers(file)[name].delta()[:4].numpy() for file in after)
        np.testing.assert_allclose(found, one, rtol=1e-3, atol=1e-4)


# --- As a setting ---------------------------------------------------------------------------------


def test_a_transforms_settings_count_only_where_it_is_chosen() -> None:
    for transform in TRANSFORMS:
        told = Settings(transform=transform.name, rule="smooth")
        for other in TRANSFORMS:
            for setting in other.settings:
                assert told.shapes(setting) == (other is transform)
        assert told.shapes(Settings.declaration("transform"))
        assert told.shapes(Settings.declaration("tau"))
    assert Settings.declaration("transform").value_before == "none"


def test_the_command_line_rewrites_or_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=6)) for n in (1, 2)]
    plan = ["plan", *pair, *PUBLISHED_OPTIONS]
    scores = []
    for options in ((), ("--transform", "np-lora", "--mu", "1000000")):
        assert main([*plan, *options, "--json", str(tmp_path / "plan.json")]) == 0
        scores.append(json.loads((tmp_path / "plan.json").read_text())["content_score"])
    assert scores[0] != scores[1]
    capsys.readouterr()
    assert main([*plan, "--transform", "SSR"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "klora.fuse" in told


def test_a_pair_is_rewritten_once(tmp_path: Path) -> None:
    content, style = (read_lora(write_lora(tmp_path / f"{n}.safetensors", seed=n)) for n in (1, 2))
    first, _ = transformed("NP-LoRA", content, style)
    assert transformed("NP-LoRA", content, style)[0] is first
    assert transformed("NP-LoRA", content, style, mu=2)[0] is not first
    assert transformed("none", content, style) == (content, style)
    with pytest.raises(PairError, match="needs two extra steps"):
        transformed("SSR", content, style)
