"""``klora.fuse`` on tiny random pipelines of diffusers: SD1, SDXL and Flux."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import klora
from klora.errors import HostError, KloraError, LoraFileError, PairError
from klora.planning import forget_scores
from tests.pipelines.tiny import PIPELINES, STEPS, denoiser_of, flux, picture, sd1, write_lora
from tests.published import PUBLISHED, published


@pytest.fixture(params=PIPELINES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, dict[str, Any], Path, Path]:
    """A pipeline, its inputs, a content LoRA and a style LoRA."""
    pipe, inputs = PIPELINES[request.param]()
    content = write_lora(denoiser_of(pipe), tmp_path / "content.safetensors", 10, rank=4)
    style = write_lora(denoiser_of(pipe), tmp_path / "style.safetensors", 20, rank=2)
    return pipe, inputs, content, style


def _merged_by_hand(pipe: Any, inputs: dict[str, Any], lora: Path) -> np.ndarray:
    """The picture with one LoRA merged by the plain formula, independent of the engine."""
    model = denoiser_of(pipe)
    tensors = load_file(lora)
    before = {}
    for key in tensors:
        if key.endswith("lora_A.weight"):
            name = key.split(".", 1)[1].removesuffix(".lora_A.weight")
            module = model.get_submodule(name)
            before[name] = module.weight.data.clone()
            module.weight.data += tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    made = picture(pipe, inputs)
    for name, weight in before.items():
        model.get_submodule(name).weight.data.copy_(weight)
    return made


@pytest.mark.parametrize(("winner", "beta"), [("content", 0), ("style", 1e8)])
def test_the_winner_everywhere_is_the_onlywrite_lora(case: Any, winner: str, beta: float) -> None:
    pipe, inputs, content, style = case
    alone = _merged_by_hand(pipe, inputs, content if winner == "content" else style)
    with klora.fuse(pipe, content, style, published(alpha=0, beta=beta, other_layers="fuse")):
        fused = picture(pipe, inputs)
    np.testing.assert_array_equal(fused, alone)


def test_weights_are_the_same_objects_with_the_same_bits_afterwards(case: Any) -> None:
    pipe, inputs, content, style = case
    base = picture(pipe, inputs)
    parameters = dict(denoiser_of(pipe).named_parameters())
    bits = {name: one.detach().clone() for name, one in parameters.items()}
    with pytest.raises(RuntimeError, match="stop"), klora.fuse(pipe, content, style, PUBLISHED):  # noqa: PT012
        assert not np.array_equal(picture(pipe, inputs), base)
        raise RuntimeError("stop")
    after = dict(denoiser_of(pipe).named_parameters())
    assert all(after[name] is one for name, one in parameters.items())
    assert all(torch.equal(after[name], one) for name, one in bits.items())
    np.testing.assert_array_equal(picture(pipe, inputs), base)


@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "S*"}, {"clock": "published"}, {"other_layers": "both"}]
)
def test_what_ran_is_what_was_planned(case: Any, settings: dict[str, Any]) -> None:
    from klora.planning import plan_files

    pipe, inputs, content, style = case
    wanted = published(**settings)
    with klora.fuse(pipe, content, style, wanted) as fusion:
        fused = picture(pipe, inputs)
    planned = plan_files(content, style, wanted, STEPS)
    assert fusion.plan().layers == planned.layers
    assert fusion.plan().choices() == planned.choices()
    with klora.fuse(pipe, content, style, wanted):
        np.testing.assert_array_equal(picture(pipe, inputs), fused)


def test_only_flips_touch_layers(case: Any) -> None:
    pipe, inputs, content, style = case
    with klora.fuse(pipe, content, style, PUBLISHED) as fusion:
        picture(pipe, inputs, steps=12)
    plan = fusion.plan()
    assert plan.steps == 12
    assert plan.flips > 0
    assert fusion.changed == len(plan.layers) + plan.flips


def test_the_noise_clock_starts_at_pure_noise_and_ends_clean(case: Any) -> None:
    pipe, inputs, content, style = case
    seen = []
    with klora.fuse(pipe, content, style, {**PUBLISHED, "clock": "noise"}) as fusion:
        at = fusion.at
        fusion.at = lambda moment: (seen.append(moment.noise_progress), at(moment))[1]
        picture(pipe, inputs)
    assert len(seen) == STEPS
    assert seen == sorted(seen)
    assert 0 <= seen[0] < 0.25
    assert 0.5 < seen[-1] <= 1


def test_a_second_sampling_starts_from_the_beginning(case: Any) -> None:
    pipe, inputs, content, style = case
    with klora.fuse(pipe, content, style, PUBLISHED):
        first, second = picture(pipe, inputs), picture(pipe, inputs)
    np.testing.assert_array_equal(first, second)


def test_a_lora_for_another_model_is_refused(case: Any, tmp_path: Path) -> None:
    pipe, inputs, content, _ = case
    other = flux()[0] if hasattr(pipe, "unet") else sd1()[0]
    foreign = write_lora(denoiser_of(other), tmp_path / "foreign.safetensors", 5, rank=2)
    base = picture(pipe, inputs)
    with pytest.raises((LoraFileError, PairError), match="foreign"), klora.fuse(pipe, content, foreign):
        pass
    np.testing.assert_array_equal(picture(pipe, inputs), base)


def test_text_encoders_get_both(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pipe, _ = sd1()
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=32, num_hidden_layers=1, num_attention_heads=8, vocab_size=100
    )
    pipe.text_encoder = transformers.CLIPTextModel(config)
    name = next(one for one, _ in pipe.text_encoder.named_modules() if one.endswith("self_attn.q_proj"))
    files = []
    for seed in (1, 2):
        path = write_lora(pipe.unet, tmp_path / f"{seed}.safetensors", seed, rank=2)
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(2, 768, generator=generator)
        key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
        save_file(
            {**load_file(path), f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": down.T.contiguous()},
            path,
        )
        files.append((path, down.T @ down))
    before = pipe.text_encoder.get_submodule(name).weight
    expected = before.detach() + files[0][1] + files[1][1]
    with klora.fuse(pipe, files[0][0], files[1][0]):
        torch.testing.assert_close(pipe.text_encoder.get_submodule(name).weight.detach(), expected)
    assert pipe.text_encoder.get_submodule(name).weight is before


def test_compiled_and_quantised_pipelines_are_refused(tmp_path: Path) -> None:
    pipe, _ = sd1()
    content = write_lora(pipe.unet, tmp_path / "content.safetensors", 1, rank=2)
    style = write_lora(pipe.unet, tmp_path / "style.safetensors", 2, rank=2)
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(HostError, match="quantised"), klora.fuse(pipe, content, style):
        pass
    pipe, _ = sd1()
    pipe.unet._orig_mod = pipe.unet.conv_in
    with pytest.raises(KloraError, match="compiled"), klora.fuse(pipe, content, style):
        pass


def test_scores_that_depend_on_the_weights_follow_them(tmp_path: Path) -> None:
    """DoRA's dW is another where the layer's weight is, also in the same module at the same address."""
    pipe, inputs = sd1()
    model = denoiser_of(pipe)
    content = write_lora(model, tmp_path / "content.safetensors", 10, rank=4)
    style = write_lora(model, tmp_path / "style.safetensors", 20, rank=2)
    tensors = load_file(content)
    for key in [one for one in tensors if one.endswith("lora_A.weight")]:
        weight = model.get_submodule(key.split(".", 1)[1].removesuffix(".lora_A.weight")).weight
        tensors[key.replace("lora_A.weight", "lora_magnitude_vector")] = weight.detach().norm(dim=1)
    save_file(tensors, content)

    def scores() -> tuple[float, ...]:
        with klora.fuse(pipe, content, style, published()) as fusion:
            picture(pipe, inputs)
        return tuple(fusion.plan().as_json()["content_score"])

    before = scores()
    for parameter in model.parameters():
        parameter.data.mul_(1.7)
    changed = scores()
    forget_scores()
    assert changed == scores() != before
