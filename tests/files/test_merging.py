"""Two files as one: every dW is the sum, names are kohya's, and nothing half done is left on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from klora.__main__ import main
from klora.errors import LoraFileError
from klora.files import LoraFile, read_lora, split_layers
from klora.files.merging import write_merged
from klora.planning import rewritten
from tests.engine.lora_files import ATTENTION, BLOCK, FEED_FORWARD, write_lora
from tests.published import PUBLISHED_OPTIONS, published

MORE = BLOCK + "attn2_to_v"
FLUX = "lora_unet_double_blocks_0_img_attn_"


def deltas(file: LoraFile) -> dict[str, torch.Tensor]:
    parts = {**split_layers(file), **file.text_encoder}
    return {name: layer.delta(dtype=torch.float64) for name, layer in parts.items()}


def assert_is_the_sum(
    made: LoraFile,
    pair: tuple[LoraFile, LoraFile],
    shares: dict[str, tuple[float, float]],
    tolerance: float = 1e-6,
) -> None:
    content, style, merged = deltas(pair[0]), deltas(pair[1]), deltas(made)
    for name in content.keys() | style.keys():
        of_content, of_style = shares.get(name, (1, 1))
        zero = torch.zeros(())
        expected = of_content * content.get(name, zero) + of_style * style.get(name, zero)
        found = merged.get(name, zero)
        assert float((found - expected).norm()) <= tolerance * max(1.0, float(expected.norm())), name
    assert merged.keys() <= content.keys() | style.keys()


def pair_in(folder: Path, *, alpha: float | None = None) -> tuple[LoraFile, LoraFile]:
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    content = write_lora(folder / "fox.safetensors", (*ATTENTION, FEED_FORWARD, text), seed=1, alpha=alpha)
    style = write_lora(folder / "ink.safetensors", (*ATTENTION[:2], MORE, text), seed=2, rank=3)
    return read_lora(content), read_lora(style)


def test_ranks_add_up_and_every_delta_is_the_sum(tmp_path: Path) -> None:
    pair = pair_in(tmp_path, alpha=0.5)
    made = write_merged(*pair, {}, tmp_path / "both.safetensors")
    assert_is_the_sum(made, pair, {})
    ranks = {name: layer.rank for name, layer in made.layers.items()}
    shared = pair[0].layers.keys() & pair[1].layers.keys()
    assert {ranks[name] for name in shared} == {5}
    assert {ranks[name] for name in pair[0].layers.keys() - shared} == {2}
    assert len(made.text_encoder) == 1
    assert made.dialect.startswith("kohya")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("both.safetensors", "fox.safetensors", "ink.safetensors")
    ]


share = st.sampled_from([0.0, 0.5, 1.0, -0.25, 1.7])


@given(data=st.data())
@examples(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shares(tmp_path: Path, data: st.DataObject) -> None:
    pair = pair_in(tmp_path)
    names = sorted({**split_layers(pair[0]), **split_layers(pair[1])})
    shares = {name: (data.draw(share), data.draw(share)) for name in names}
    made = write_merged(*pair, shares, tmp_path / "both.safetensors", overwrite=True)
    assert_is_the_sum(made, pair, shares)


@pytest.mark.parametrize(
    ("number_format", "dtype", "tolerance"), [("fp16", "F16", 2e-3), ("bf16", "BF16", 2e-2)]
)
def test_narrow_formats(tmp_path: Path, number_format: str, dtype: str, tolerance: float) -> None:
    pair = pair_in(tmp_path)
    made = write_merged(*pair, {}, tmp_path / "both.safetensors", number_format=number_format)
    assert made.dtypes == (dtype,)
    assert_is_the_sum(made, pair, {}, tolerance)


def flux_files(folder: Path, *, is_split: bool) -> tuple[LoraFile, LoraFile]:
    fused = write_lora(folder / "fox.safetensors", (FLUX + "qkv",), size=(36, 12), seed=1)
    names = tuple(f"{part}_proj" for part in "qkv")
    if not is_split:
        return read_lora(fused), read_lora(
            write_lora(folder / "ink.safetensors", (FLUX + "qkv",), size=(36, 12), seed=2)
        )
    tensors = {}
    for at, part in enumerate(names):
        generator = torch.Generator().manual_seed(10 + at)
        stem = f"transformer.transformer_blocks.0.attn.to_{part[0]}"
        tensors[f"{stem}.lora_B.weight"] = torch.randn(12, 2, generator=generator)
        tensors[f"{stem}.lora_A.weight"] = torch.randn(2, 12, generator=generator)
    save_file(tensors, folder / "ink.safetensors")
    return read_lora(fused), read_lora(folder / "ink.safetensors")


@pytest.mark.parametrize("is_split", [False, True])
def test_fused_projections(tmp_path: Path, is_split: bool) -> None:
    pair = flux_files(tmp_path, is_split=is_split)
    made = write_merged(*pair, {}, tmp_path / "both.safetensors")
    assert_is_the_sum(made, pair, {})
    (layer,) = made.layers.values()
    if not is_split:
        assert layer.rank == 4  # whole, not one block of ranks for each part


def test_parts_of_a_fused_projection_with_shares_of_their_own(tmp_path: Path) -> None:
    pair = flux_files(tmp_path, is_split=False)
    names = sorted(split_layers(pair[0]))
    shares = {names[0]: (1.0, 0.0), names[1]: (0.0, 1.0), names[2]: (0.5, 0.5)}
    made = write_merged(*pair, shares, tmp_path / "both.safetensors")
    assert_is_the_sum(made, pair, shares)


def test_types_without_factors_are_exact_too(tmp_path: Path) -> None:
    plain = load_file(write_lora(tmp_path / "fox.safetensors", seed=1))
    full = {
        f"{name}.diff": plain[f"{name}.lora_up.weight"] @ plain[f"{name}.lora_down.weight"]
        for name in ATTENTION
    }
    save_file(full, tmp_path / "full.safetensors")
    pair = (
        read_lora(tmp_path / "full.safetensors"),
        read_lora(write_lora(tmp_path / "ink.safetensors", seed=2)),
    )
    assert_is_the_sum(write_merged(*pair, {}, tmp_path / "both.safetensors"), pair, {})


def test_a_convolution_keeps_its_kernel(tmp_path: Path) -> None:
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    files = []
    for at, rank in enumerate((2, 3)):
        generator = torch.Generator().manual_seed(at)
        path = tmp_path / f"{at}.safetensors"
        save_file(
            {
                f"{stem}.lora_up.weight": torch.randn(8, rank, 1, 1, generator=generator),
                f"{stem}.lora_down.weight": torch.randn(rank, 4, 3, 3, generator=generator),
            },
            path,
        )
        files.append(read_lora(path))
    made = write_merged(*files, {}, tmp_path / "both.safetensors")
    assert_is_the_sum(made, (files[0], files[1]), {})
    assert next(iter(made.layers.values())).shape == (8, 4, 3, 3)


def test_what_a_merged_file_cannot_hold_is_named(tmp_path: Path) -> None:
    pair = pair_in(tmp_path)
    tensors = load_file(tmp_path / "ink.safetensors")
    tensors[f"{ATTENTION[0]}.diff_b"] = torch.zeros(12)
    save_file(tensors, tmp_path / "bias.safetensors")
    with pytest.raises(LoraFileError, match=r"bias\.safetensors: layer .*attn1\.to_q.*: it (is|has) a bias"):
        write_merged(pair[0], read_lora(tmp_path / "bias.safetensors"), {}, tmp_path / "both.safetensors")
    nothing = dict.fromkeys(split_layers(pair[0]), (0.0, 0.0))
    only = read_lora(write_lora(tmp_path / "only.safetensors", (*ATTENTION, FEED_FORWARD)))
    with pytest.raises(LoraFileError, match="nothing is left"):
        write_merged(only, only, nothing, tmp_path / "both.safetensors")
    assert not (tmp_path / "both.safetensors").exists()


def test_a_difference_leaves_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_in(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("klora.files.merging._relative", lambda *_tensors: 1.0)
    with pytest.raises(LoraFileError, match="differs from the sum of both"):
        write_merged(*pair, {}, tmp_path / "both.safetensors")
    assert sorted(tmp_path.iterdir()) == before


# -- the command --------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[LoraFile, LoraFile]:
    return pair_in(tmp_path)


def run(pair: tuple[LoraFile, LoraFile], *options: str) -> int:
    folder = pair[0].path.parent
    names = [str(file.path) for file in pair]
    out = str(folder / "both.safetensors")
    return main(["merge", *names, "--out", out, *PUBLISHED_OPTIONS, *options])


def test_adding_with_weights(pair: tuple[LoraFile, LoraFile], capsys: pytest.CaptureFixture[str]) -> None:
    weights = ("--content-from", "0.8", "--content-to", "0.8", "--style-from", "1.1", "--style-to", "1.1")
    assert run(pair, "--rule", "weights", *weights) == 0
    assert "every dW is the sum" in capsys.readouterr().out
    made = read_lora(pair[0].path.with_name("both.safetensors"))
    names = {**split_layers(pair[0]), **split_layers(pair[1])}
    assert_is_the_sum(made, pair, dict.fromkeys(names, (0.8, 1.1)))
    with safe_open(made.path, "pt") as file:
        told = json.loads(file.metadata()["klora_merge"])
    assert (told["content"], told["style"], told["rule"]) == ("fox", "ink", "weights")
    assert told["content_from"] == "0.8"


def test_locked_blocks_make_any_rule_static(pair: tuple[LoraFile, LoraFile]) -> None:
    assert run(pair, "--locks", "in0-11=C") == 0
    made = read_lora(pair[0].path.with_name("both.safetensors"))
    shared = split_layers(pair[0]).keys() & split_layers(pair[1]).keys()
    assert_is_the_sum(made, pair, dict.fromkeys(shared, (1.0, 0.0)))


def test_a_pair_that_a_transform_has_rewritten(pair: tuple[LoraFile, LoraFile]) -> None:
    assert run(pair, "--rule", "weights", "--transform", "NP-LoRA") == 0
    made = read_lora(pair[0].path.with_name("both.safetensors"))
    settings = published(rule="weights", transform="NP-LoRA")
    content, style = rewritten(*pair, settings)
    assert content is not pair[0]
    assert_is_the_sum(made, (content, style), {})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--rule", "weights", "--transform", "SSR"), "SSR"),
        (("--rule", "turns"), "layers change during the sampling, which one LoRA file cannot do"),
        (("--rule", "weights", "--content-to", "0"), "with the rule weights"),
        (("--rule", "weights", "--guidance", "content"), "set guidance to both"),
        (("--rule", "weights", "--out", "both.pt"), "only .safetensors files are written"),
        (("--rule", "weights", "--locks", "mid=Q"), "mid=Q does not say what to do"),
    ],
)
def test_what_one_file_cannot_do_is_refused(
    pair: tuple[LoraFile, LoraFile],
    options: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(pair, *options) == 2
    assert sentence in capsys.readouterr().err
    assert not pair[0].path.with_name("both.safetensors").exists()


def test_a_file_that_exists_is_not_replaced_unless_wanted(pair: tuple[LoraFile, LoraFile]) -> None:
    target = pair[0].path.with_name("both.safetensors")
    target.write_bytes(b"mine")
    assert run(pair, "--rule", "weights") == 2
    assert target.read_bytes() == b"mine"
    assert run(pair, "--rule", "weights", "--overwrite") == 0
    assert read_lora(target).layers
