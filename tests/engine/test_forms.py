"""Forms of dW that cost less than the matrix: each against the matrix itself, merged by torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from klora.files import LoraLayer, read_lora, split_layers
from klora.weights.file_forms import fitted, form_of
from klora.weights.forms import Form, Kronecker, LowRank, Whole, added_up

CHANCE = torch.Generator().manual_seed(11)
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=CHANCE)


def close(found: Tensor, expected: Tensor) -> None:
    """The same but for rounding, which grows with the largest element."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


#: Forms of dW of 12 x 18.
FORMS: dict[str, Form] = {
    "whole": Whole(normal(12, 18)),
    "low rank": LowRank(normal(12, 3), normal(3, 18)),
    "of rank 1": LowRank(normal(12, 1, 1, 1), normal(1, 18, 1, 1)),
    "kronecker": Kronecker(normal(4, 3), normal(3, 6)),
    "kronecker of a row": Kronecker(normal(1, 6), normal(12, 3)),
    "kronecker of a column": Kronecker(normal(12, 1), normal(1, 18, 1, 1)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("shape", [(18,), (5, 18), (2, 5, 18), (2, 3, 5, 18)])
def test_a_linear_gets_what_the_matrix_gives(name: str, shape: tuple[int, ...]) -> None:
    form, given_ = FORMS[name], normal(*shape)
    output = normal(*shape[:-1], 12)
    expected = output + functional.linear(given_, form.matrix())
    form.add_to([output], given_) if output.dim() > 1 else form.add_to([output[None]], given_[None])
    close(output, expected)


@pytest.mark.parametrize("name", FORMS)
def test_parts_of_a_wider_output(name: str) -> None:
    form, given_, output = FORMS[name], normal(2, 5, 18), normal(2, 5, 20)
    before, product = output.clone(), functional.linear(given_, form.matrix())
    form.add_to([output[..., 1:6], output[..., 10:17]], given_)
    close(output[..., 1:6], before[..., 1:6] + product[..., :5])
    close(output[..., 10:17], before[..., 10:17] + product[..., 5:])
    for rest in (slice(0, 1), slice(6, 10), slice(17, 20)):
        assert torch.equal(output[..., rest], before[..., rest])


@pytest.mark.parametrize("name", FORMS)
def test_an_output_that_lies_otherwise_in_memory(name: str) -> None:
    form, given_ = FORMS[name], normal(3, 4, 18)
    output = normal(4, 3, 12).transpose(0, 1)
    expected = output + functional.linear(given_, form.matrix())
    form.add_to([output], given_)
    close(output, expected)


OPTIONS = ({}, {"padding": 1}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2})


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "form",
    [
        Whole(normal(6, 4, 3, 3)),
        LowRank(normal(6, 2), normal(2, 4, 3, 3)),
        LowRank(normal(6, 2, 1, 1), normal(2, 36)),
        Kronecker(normal(3, 2), normal(2, 2, 3, 3)),
        Kronecker(normal(2, 1), normal(3, 4, 3, 3)),
    ],
    ids=lambda form: type(form).__name__,
)
def test_a_convolution_gets_what_the_matrix_gives(form: Form, options: dict[str, int]) -> None:
    layer, given_ = nn.Conv2d(4, 6, 3, **options), normal(2, 4, 9, 9)
    expected = functional.conv2d(given_, form.matrix().reshape(6, 4, 3, 3), **options)
    close(form.convolved(layer, given_), expected)


@pytest.mark.parametrize("name", FORMS)
def test_what_a_form_tells_of_itself(name: str) -> None:
    form = FORMS[name]
    assert form.elements == form.matrix().numel() == 12 * 18
    close(form.times(-0.5).matrix(), -0.5 * form.matrix())
    moved = form.to(torch.device("cpu"), torch.bfloat16)
    assert all(one.dtype == torch.bfloat16 for one in moved.tensors)
    assert (form.work == form.elements) == isinstance(form, Whole)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([*FORMS]), min_size=1, max_size=5))
def test_a_sum_is_the_sum_and_never_more_work(names: list[str]) -> None:
    forms = [FORMS[name] for name in names]
    total = added_up(forms)
    close(_matrix(total), _matrix(forms))
    assert sum(form.work for form in total) <= min(sum(form.work for form in forms), 12 * 18)
    assert sum(isinstance(form, LowRank) for form in total) <= 1


def _matrix(forms: Sequence[Form]) -> Tensor:
    return torch.stack([form.matrix() for form in forms]).sum(0)


# --- Of a file ------------------------------------------------------------------------------------


def written(folder: Path, **tensors: Tensor) -> LoraLayer:
    """The layer of a file with these parameters."""
    path = folder / "one.safetensors"
    save_file({f"{STEM}.{name.replace('__', '.')}": one for name, one in tensors.items()}, path)
    (layer,) = split_layers(read_lora(path)).values()
    return layer


def loha(rank: int) -> dict[str, Tensor]:
    """Parameters of a LoHa of 320 x 320."""
    shapes = {"a": (320, rank), "b": (rank, 320)}
    return {f"hada_w{half}_{one}": normal(*shape) for half in "12" for one, shape in shapes.items()}


#: Parameters of a layer of 320 x 320 -> the form that is used.
IN_FILES: dict[str, tuple[dict[str, Tensor], type[Form] | None]] = {
    "LoRA": ({"lora_up__weight": normal(320, 8), "lora_down__weight": normal(8, 320)}, LowRank),
    "LoRA of a rank too high": (
        {"lora_up__weight": normal(320, 160), "lora_down__weight": normal(160, 320)},
        None,
    ),
    "LoHa": (loha(4), LowRank),
    "LoHa of a rank too high": (loha(13), None),
    "LoKr": ({"lokr_w1": normal(8, 8), "lokr_w2": normal(40, 40)}, Kronecker),
    "LoKr, decomposed": (
        {
            "lokr_w1_a": normal(8, 2),
            "lokr_w1_b": normal(2, 8),
            "lokr_w2_a": normal(40, 4),
            "lokr_w2_b": normal(4, 40),
        },
        Kronecker,
    ),
    "full": ({"diff": normal(320, 320)}, None),
}


@pytest.mark.parametrize("name", IN_FILES)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_form_of_a_file_is_its_delta(tmp_path: Path, name: str, alpha: float | None) -> None:
    tensors, kind = IN_FILES[name]
    layer = written(tmp_path, **tensors, **({} if alpha is None else {"alpha": torch.tensor(alpha)}))
    form = form_of(layer)
    if kind is None:
        assert form is None
        return
    assert isinstance(form, kind)
    delta = layer.delta()
    torch.testing.assert_close(form.matrix(), delta, rtol=1e-4, atol=1e-4 * float(delta.abs().max()))
    host_s = fitted(form, 0.37 * delta)
    assert isinstance(host_s, kind)
    torch.testing.assert_close(host_s.matrix(), 0.37 * delta, rtol=1e-3, atol=1e-3 * float(delta.abs().max()))


@pytest.mark.parametrize("name", ["LoRA", "LoHa", "LoKr"])
def test_a_magnitude_takes_the_whole_matrix(tmp_path: Path, name: str) -> None:
    layer = written(tmp_path, **IN_FILES[name][0], dora_scale=torch.rand(320, 1) + 1)
    assert form_of(layer) is None


def test_rows_of_a_fused_projection(tmp_path: Path) -> None:
    """The host tells each part's dW; of the file's factors the rows of the part are used."""
    for parameters, kind in (
        ({"lora_up.weight": normal(96, 4), "lora_down.weight": normal(4, 32)}, LowRank),
        ({"hada_w1_a": normal(96, 3), "hada_w1_b": normal(3, 32), "hada_w2_a": normal(96, 3),
          "hada_w2_b": normal(3, 32)}, LowRank),
        ({"lokr_w1": normal(8, 4), "lokr_w2": normal(12, 8)}, None),
    ):  # fmt: skip
        path = tmp_path / "fused.safetensors"
        stem = "lora_unet_double_blocks_0_img_attn_qkv"
        save_file({f"{stem}.{name}": one for name, one in parameters.items()}, path)
        parts = split_layers(read_lora(path))
        assert len(parts) == 3
        for layer in parts.values():
            form = form_of(layer)
            if kind is None:
                assert form is None
            else:
                assert isinstance(form, kind)
                close(form.matrix(), layer.delta())


# --- Which form -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["low rank", "kronecker"]), st.floats(-4, 4).filter(lambda one: abs(one) > 1e-3))
def test_a_form_is_taken_when_it_is_the_delta_but_for_a_number(name: str, scale: float) -> None:
    form = FORMS[name]
    found = fitted(form, scale * form.matrix())
    assert isinstance(found, type(form))
    close(found.matrix(), scale * form.matrix())


def test_the_delta_itself_is_taken_otherwise() -> None:
    up, down, dense = normal(8, 2), normal(2, 6), normal(8, 6)
    for form, wanted in (
        (None, dense),
        (LowRank(up, down), dense),
        (LowRank(up, down), up @ down + 0.01 * dense),
        (LowRank(torch.zeros(8, 2), down), dense),
        (LowRank(up, down), torch.zeros(8, 6)),
        (LowRank(up[:4], down), dense),
        (Kronecker(normal(4, 2), normal(2, 3)), dense),
    ):
        found = fitted(form, wanted)
        close(found.matrix(), wanted)
        if isinstance(found, Whole):
            assert found.delta is wanted


def test_factors_of_a_convolution_are_fitted() -> None:
    up, down = normal(6, 2, 1, 1), normal(2, 4, 3, 3)
    dense = 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(6, 4, 3, 3)
    found = fitted(LowRank(up, down), dense)
    assert isinstance(found, LowRank)
    layer, given_ = nn.Conv2d(4, 6, 3, padding=1), normal(2, 4, 5, 5)
    close(found.convolved(layer, given_), functional.conv2d(given_, dense, padding=1))
