"""The model's parts that need no training: tokenizer, shapes, the checkpoint, the loop, LoRA files."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from klora.lab import checkpoint, lora_files, model, tokens  # noqa: E402
from klora.lab.recipes import RECIPES  # noqa: E402
from klora.lab.training import loras  # noqa: E402
from klora.lab.training.loop import Loop, Muon, Plan, orthogonal  # noqa: E402
from klora.lab.training.text import Words  # noqa: E402


def test_tokenizer_is_clips() -> None:
    vocabulary = tokens.vocabulary()
    assert len(vocabulary) == 49408
    assert vocabulary[tokens.END] == 49407
    encoded = tokens.encode(["a photo of a cat"])
    # The numbers that the published tokenizer of CLIP ViT-L/14 gives.
    assert encoded[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert encoded.shape == (1, 77)


def test_words_find_their_rows() -> None:
    words = Words.of(["fox, fluent style", ""])
    encoded = tokens.encode(["fox, fluent style"])
    assert torch.equal(words.numbers[words.rows(encoded)], encoded)


def _shaken(seed: int) -> model.Model:
    """A model of random 16-bit weights, norms too, so that no two keys could be swapped unseen."""
    torch.manual_seed(seed)
    built = model.build_model().eval()
    for network in (built.autoencoder, built.denoiser, built.text_encoder):
        for weight in network.parameters():
            weight.copy_((weight + 0.05 * torch.randn_like(weight)).half().float())
    return built


def test_checkpoint_round_trip_is_exact(tmp_path: Path) -> None:
    before = _shaken(1)
    after = checkpoint.load(checkpoint.export(before, tmp_path))
    for name in ("autoencoder", "denoiser", "text_encoder"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_who_may_read_what_the_lab_writes_is_as_for_any_new_file(weights: Path, tmp_path: Path) -> None:
    """safetensors' own files can be read by their owner alone."""
    (tmp_path / "new").touch()
    written = [*weights.rglob("*.safetensors")]
    assert len(written) > 3
    assert {path.stat().st_mode for path in written} == {(tmp_path / "new").stat().st_mode}


def test_checkpoint_has_the_names_that_hosts_know_sd1_by(tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(checkpoint.export(_shaken(2), tmp_path), "pt") as stored:
        names = set(stored.keys())
        assert stored.get_slice("first_stage_model.decoder.mid.attn_1.q.weight").get_shape() == [96, 96, 1, 1]
    for expected in (
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.decoder.up.2.block.0.nin_shortcut.weight",
    ):
        assert expected in names
    told = (tmp_path / "klora-lab.yaml").read_text()
    assert told.startswith("model:")
    assert "channel_mult: [1, 1, 2]" in told
    assert "ch_mult: [1, 1, 2, 3]" in told
    assert "image_size: 16" in told


def test_folding_moves_statistics_and_keeps_pictures() -> None:
    torch.manual_seed(3)
    network = model.build_autoencoder().eval().requires_grad_(False)
    drawn = torch.rand(4, 3, 64, 64) * 2 - 1
    latent = network.encode(drawn).latent_dist
    mean, deviation = latent.mean.mean((0, 2, 3)), latent.mean.std((0, 2, 3))
    picture, spread = network.decode(latent.mean).sample, latent.std
    model.fold_statistics(network, mean, deviation)
    folded = network.encode(drawn).latent_dist
    scaled = folded.mean * model.LATENT_SCALE
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-4
    assert (scaled.std((0, 2, 3)) - 1).abs().max() < 1e-3
    expected = spread / (deviation * model.LATENT_SCALE)[None, :, None, None]
    assert torch.allclose(folded.std, expected, rtol=1e-3)
    # Padding of the 3 x 3 convolutions comes after the 1 x 1, so pictures agree to the edge.
    assert torch.allclose(network.decode(folded.mean).sample, picture, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 6, 20), (2, 20, 6), (1, 8, 8), (5, 4)])
def test_orthogonal_moves_the_singular_values_alone(shape: tuple[int, ...]) -> None:
    """Against the polynomial that Newton-Schulz is, on each singular value of a decomposition."""
    updates = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(updates, full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left @ torch.diag_embed(values) @ right
    torch.testing.assert_close(orthogonal(updates), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(orthogonal(updates.float()).double(), expected, rtol=2e-3, atol=2e-3)


def test_muon_moves_alike_weights_each_by_its_own_gradient() -> None:
    """Weights of one shape are worked on together; each moves as it does alone."""

    def moved(chosen: list[int]) -> list[torch.Tensor]:
        drawn = torch.randn(3, 2, 6, 2, 2, generator=torch.Generator().manual_seed(2))
        weights = [drawn[0, :, :, 0, 0], drawn[1], drawn[2], drawn[2, :, :, 1, 0]]
        weights = [torch.nn.Parameter(weight.clone()) for weight in weights]
        muon = Muon([weights[place] for place in chosen], lr=0.1)
        for step in range(2):
            for place, weight in enumerate(weights):
                weight.grad = (weight.detach() + place + step).cos()
            muon.step()
        return [weights[place].detach() for place in chosen]

    together = moved([0, 1, 2, 3])
    for place, weight in enumerate(together):
        torch.testing.assert_close(weight, moved([place])[0], rtol=1e-4, atol=1e-5)
    start = torch.randn(3, 2, 6, 2, 2, generator=torch.Generator().manual_seed(2))
    assert float((together[1] - start[1]).abs().max()) > 0.01


def test_loop_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    def trained(folder: Path, stops: tuple[int, ...]) -> dict[str, torch.Tensor]:
        loop = None
        for stop in stops:
            torch.manual_seed(0)
            loop = Loop("line", folder, torch.nn.Linear(80, 80), Plan(steps=8, rate=1e-2, warmup=2))

            def loss_of(generator: torch.Generator, network: torch.nn.Module = loop.model) -> torch.Tensor:
                seen = torch.randn(4, 80, generator=generator)
                return (network(seen) - seen).square().mean()

            while loop.step < stop:
                loop._advance(loss_of)
            loop.save()
        assert loop is not None
        return loop.average

    whole, halves = trained(tmp_path / "a", (8,)), trained(tmp_path / "b", (3, 8))
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_lora_names_are_kohyas_and_merging_restores(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    recipe = RECIPES["style-engraving"]
    denoiser = model.build_denoiser().requires_grad_(False)
    denoiser.add_adapter(peft.LoraConfig(r=recipe.build.rank, target_modules=list(recipe.build.targets)))
    named = loras.kohya_tensors(peft.get_peft_model_state_dict(denoiser), recipe.build.alpha)
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= set(named)
    named[f"{stem}.lora_up.weight"].fill_(1)
    path = lora_files.save(named, recipe, tmp_path)
    plain = model.build_denoiser().requires_grad_(False)
    layer = lora_files.layers(plain)[stem]
    before = layer.weight.clone()
    with lora_files.merged(plain, path):
        assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, before)
