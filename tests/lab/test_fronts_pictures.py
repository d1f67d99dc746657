"""The pictures of fronts: the batched sampler against the pipeline, transforms, effects, the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy", "matplotlib"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.errors import KloraError  # noqa: E402
from klora.files import read_lora  # noqa: E402
from klora.lab import checkpoint, model, samples, truth  # noqa: E402
from klora.lab.fronts import branches, calibration, effects, glance, methods, sampling  # noqa: E402
from klora.lab.fronts.dealing import Dealt, by_the_engine, with_content_strength  # noqa: E402
from klora.lab.fronts.store import Sampling, Store  # noqa: E402
from klora.lab.fronts.study import Files, Prepared, Study  # noqa: E402
from klora.lab.lora_files import merged  # noqa: E402
from klora.lab.pairs import Pair, all_pairs  # noqa: E402
from klora.lab.recipes import RECIPES  # noqa: E402
from klora.lab.scoring import MEASURES  # noqa: E402
from tests.lab.conftest import BEAR as CONTENT  # noqa: E402
from tests.lab.conftest import ENGRAVING as STYLE  # noqa: E402

STEPS = 3


@pytest.fixture(scope="module")
def lab(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained lab, in a folder of its own for what these tests write."""
    folder = tmp_path_factory.mktemp("fronts") / "lab"
    shutil.copytree(weights, folder)
    return folder


@pytest.fixture(scope="module")
def trained(lab: Path) -> model.Model:
    return checkpoint.model_of(lab)


@pytest.fixture
def pair(lab: Path) -> Pair:
    return Pair(CONTENT, STYLE, lab / "loras")


def files_of(pair: Pair) -> Files:
    content, style = map(read_lora, pair.files)
    return content, style


def prepared(trained: model.Model, pair: Pair, lab: Path) -> Prepared:
    return Prepared(trained, pair, Sampling(lab, 4.0, STEPS))


def _merged_picture(trained: model.Model, pair: Pair, shares: tuple[float, float], seed: int) -> torch.Tensor:
    """What the pipeline makes of the LoRAs merged with these weights."""
    content, style = pair.files
    with merged(trained.denoiser, content, shares[0]), merged(trained.denoiser, style, shares[1]):
        return samples.generate(samples.pipeline(trained), [pair.prompt], [seed], STEPS, 4.0)[0]


def _constant(names: tuple[str, ...], shares: tuple[float, float]) -> Dealt:
    table = np.broadcast_to(np.array(shares), (STEPS, len(names), 2))
    return Dealt(names, table, table)


def test_a_batch_of_shares_makes_the_pipelines_pictures(trained: model.Model, pair: Pair) -> None:
    both = branches.pair_of(trained.denoiser, *files_of(pair))
    cases = [((1.0, 1.0), 0), ((0.6, 0.9), 1), ((0.0, 0.0), 2), ((0.0, 1.3), 0)]
    wanted = [sampling.Wanted(seed, _constant(both.names, shares), 4.0) for shares, seed in cases]
    made = sampling.pictures(trained, both, pair.prompt, wanted, STEPS)
    for picture, (shares, seed) in zip(made, cases, strict=True):
        expected = _merged_picture(trained, pair, shares, seed)
        assert (picture.int() - expected.int()).abs().max() <= 1
    apart = (made[0].int() - made[1].int()).abs().float().mean()
    assert apart > 1  # the LoRAs are strong enough for the comparison to mean something


def test_passes_of_the_guidance_have_shares_of_their_own(trained: model.Model, pair: Pair) -> None:
    both = branches.pair_of(trained.denoiser, *files_of(pair))
    ones, content_alone = _constant(both.names, (1.0, 1.0)), _constant(both.names, (1.0, 0.0))
    dealt = Dealt(both.names, ones.conditional, content_alone.conditional)
    made = sampling.pictures(trained, both, pair.prompt, [sampling.Wanted(5, dealt, 4.0)], STEPS)[0]
    expected = _two_merged_forwards(trained, pair, 5)
    assert (made.int() - expected.int()).abs().max() <= 1


@torch.no_grad()
def _two_merged_forwards(trained: model.Model, pair: Pair, seed: int) -> torch.Tensor:
    """The slow way: at each step one forward without the style and one with, on merged weights."""
    from klora.lab import tokens

    content, style = pair.files
    contexts = trained.text_encoder(tokens.encode(["", pair.prompt])).last_hidden_state
    solver = sampling.scheduler()
    solver.set_timesteps(STEPS)
    latents = (
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * solver.init_noise_sigma
    )
    for when in solver.timesteps:
        with merged(trained.denoiser, content):
            without = trained.denoiser(latents, when, contexts[:1]).sample
            with merged(trained.denoiser, style):
                guided = trained.denoiser(latents, when, contexts[1:]).sample
        latents = solver.step(without + 4 * (guided - without), when, latents).prev_sample
    drawn = trained.autoencoder.decode(latents / model.LATENT_SCALE).sample[0]
    return ((drawn / 2 + 0.5).clamp(0, 1) * 255).round().byte()


def test_adding_is_dealt_ones_and_guidance_spares_the_unconditional_pass(pair: Pair) -> None:
    dealt = by_the_engine(*files_of(pair), methods.method("weights").at(0), STEPS, 4.0)
    assert (dealt.conditional == 1).all()
    assert (dealt.unconditional == 1).all()
    spared = by_the_engine(*files_of(pair), methods.method("weights guidance=content").at(0), STEPS, 4.0)
    weighed = by_the_engine(*files_of(pair), methods.method("weights style_weight=1.3").at(0), STEPS, 4.0)
    changed = [place for place, name in enumerate(dealt.layers) if ".attn" in name]
    assert (spared.unconditional[:, changed, 1] == 0).all()
    assert (weighed.conditional[:, changed, 1] == 1.3).all()


def test_a_strength_of_the_content_counts_so_often_in_the_guided_prediction(pair: Pair) -> None:
    dealt = by_the_engine(*files_of(pair), methods.method("weights guidance=3").at(0), STEPS, 4.0)
    found = with_content_strength(dealt, 1.5, 4.0)
    changed = [place for place, name in enumerate(dealt.layers) if ".attn" in name]
    counted = found.unconditional + 4 * (found.conditional - found.unconditional)
    assert counted[:, changed, 0] == pytest.approx(1.5)
    assert counted[:, changed, 1] == pytest.approx(3)
    assert with_content_strength(dealt, 9, 4.0).unconditional[..., 0].max() == 0
    assert with_content_strength(dealt, 1, 4.0) is dealt


def test_a_studys_pictures_are_scored_once(lab: Path, pair: Pair) -> None:
    study = Study(
        Store(lab / "scores", Sampling(lab, steps=2)),
        [methods.method("weights"), methods.method("K-LoRA")],
        [pair],
        range(2),
        (-0.5, 0.0, 0.5),
    )
    assert sum(study.make(pair)) == 12
    assert not study.open_tasks(pair)
    front = study.front(study.methods[0])
    assert front.values.shape == (1, 3, len(MEASURES))
    more = Study(study.store, study.methods, [pair], range(3), study.balances)
    assert len(more.open_tasks(pair)) == 6


def test_np_lora_leaves_content_nothing_in_the_styles_row_space(
    trained: model.Model, pair: Pair, lab: Path
) -> None:
    both = branches.pair_of(trained.denoiser, *files_of(pair))
    for mu, kept in ((1_000_000, 0.0), (0.5, 1 - 0.5 / 1.5)):
        settings = methods.method(f"weights transform=NP-LoRA mu={mu}").settings
        _, changed = prepared(trained, pair, lab).transformed(settings)
        for name, branch in both.branches.items():
            first, second = branch.ranks
            if not first or not second:
                continue
            down, projected = branch.down.flatten(1), changed.branches[name].down.flatten(1)
            # An independent way to the same space: all that the style's rows span, by pseudo-inverse.
            inside = torch.linalg.pinv(down[first:]) @ down[first:]
            expected = down[:first] - (1 - kept) * down[:first] @ inside
            assert torch.allclose(projected[:first], expected, atol=1e-4)
            assert torch.equal(projected[first:], down[first:])


def test_ssr_answers_each_loras_inputs_as_it_does_alone(trained: model.Model, pair: Pair, lab: Path) -> None:
    """On what the layer is seen to be given, mixed it is nearer to each LoRA alone than added, and no mixing
    nearby is nearer still."""
    both = branches.pair_of(trained.denoiser, *files_of(pair))
    settings = methods.method("weights transform=SSR ridge=1e-9").settings
    _, changed = prepared(trained, pair, lab).transformed(settings)
    prompts = (pair.content.trigger, pair.style.trigger)
    seen = [calibration.moments_alone(trained, both, prompt, side) for side, prompt in enumerate(prompts)]
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    branch, first = both.branches[name], both.branches[name].ranks[0]

    def wrong(up: torch.Tensor) -> float:
        """Sum over both steps of |up Z - (what the LoRA of the step adds alone)|^2, by traces."""
        total = 0.0
        for side, moments in enumerate(seen):
            own = branch.up.double().clone()
            (own[:, first:] if side == 0 else own[:, :first]).zero_()
            off = up.double() - own
            total += float((off @ moments[name] @ off.T).trace())
        return total

    mixed = changed.branches[name].up
    least = wrong(mixed)
    assert least < 0.9 * wrong(branch.up)
    chance = torch.Generator().manual_seed(0)
    for _ in range(5):
        nearby = mixed + 0.05 * mixed.std() * torch.randn(mixed.shape, generator=chance)
        assert least < wrong(nearby)


def test_effects_are_the_norms_of_what_the_loras_add(trained: model.Model, pair: Pair) -> None:
    both = branches.pair_of(trained.denoiser, *files_of(pair))
    found = calibration.effects(trained, both, pair.prompt, 2)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    seen: list[torch.Tensor] = []
    layer = dict(trained.denoiser.named_modules())[name]
    handle = layer.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].clone()))
    calibration.effects(trained, both, pair.prompt, 1)
    handle.remove()
    for side, file in enumerate(files_of(pair)):
        down, up = branches.factors(file)["lora_unet_" + name.replace(".", "_")]
        slow = (seen[0] @ down.T @ up.T).norm()
        assert found.norms[0, both.names.index(name), side] == pytest.approx(float(slow), rel=1e-3)


def test_by_effect_the_larger_effect_wins(trained: model.Model, pair: Pair) -> None:
    both = branches.pair_of(trained.denoiser, *files_of(pair))
    norms = np.ones((STEPS, len(both.names), 2))
    norms[:, ::2, 0], norms[:, 1::2, 1] = 100, 100
    deal = effects.by_effect(calibration.Effects(both.names, norms))
    dealt = deal(*files_of(pair), methods.method("K-LoRA contest=effect").at(0), STEPS, 4.0).ordered(
        both.names
    )
    for place, name in enumerate(both.names):
        if ".attn" in name and all(both.branches[name].ranks):
            winner = place % 2
            assert dealt.conditional[:, place].tolist() == [[1 - winner, winner]] * STEPS


def test_a_spread_meets_all_styles_alike(lab: Path) -> None:
    for recipe in RECIPES.values():
        if recipe.half == "test":
            (lab / "loras" / f"{recipe.name}.safetensors").touch()
    every = all_pairs("individuals", "test", lab / "loras")
    some = all_pairs("individuals", "test", lab / "loras", spread=2)
    assert (len(every), len(some)) == (48, 32)
    met = [pair.style.subject for pair in some]
    assert sorted(met.count(style) for style in set(met)) == [10, 11, 11]
    assert len({pair.name for pair in some}) == 32
    with pytest.raises(KloraError, match="train --stage loras"):
        all_pairs("strangers", "development", lab / "loras")


def test_a_glance_has_the_truth_each_alone_and_the_methods(lab: Path, pair: Pair) -> None:
    rewritten = "weights transform=NP-LoRA mu=1000000"
    shown = {
        "added": (methods.method("weights"), 0.0),
        "rewritten": (methods.method(rewritten), 0.0),
        "fused": (methods.method("K-LoRA"), 0.0),
    }
    found = glance.row(Sampling(lab, steps=STEPS), pair, shown, seed=1)
    assert list(found) == [glance.TRUE, glance.CONTENT_ALONE, glance.STYLE_ALONE, *shown]
    assert torch.equal(found[glance.TRUE], truth.drawings(lab / truth.NAME)[CONTENT.name, STYLE.subject])
    for label, shares in (
        (glance.CONTENT_ALONE, (1.0, 0.0)),
        (glance.STYLE_ALONE, (0.0, 1.0)),
        ("added", (1.0, 1.0)),
    ):
        expected = _merged_picture(checkpoint.model_of(lab), pair, shares, 1)
        assert (found[label].int() - expected.int()).abs().max() <= 1
    alone = prepared(checkpoint.model_of(lab), pair, lab)
    expected = glance.made(alone, {"rewritten": shown["rewritten"]}, 1)["rewritten"]
    assert (found["rewritten"].int() - expected.int()).abs().max() <= 1
    assert not torch.equal(found["rewritten"], found["added"])


def test_a_glance_says_the_prompt_that_is_asked_for(lab: Path, pair: Pair) -> None:
    usual, other = (
        glance.row(Sampling(lab, steps=1), pair, {}, 0, prompt)[glance.CONTENT_ALONE]
        for prompt in (None, "a fox")
    )
    assert not torch.equal(usual, other)
