"""The training's stages: what they read and write, LoRAs shared out to processes, and the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab import checkpoint, judges, lora_files, model  # noqa: E402
from klora.lab.__main__ import main, parser  # noqa: E402
from klora.lab.recipes import MET, RECIPES, Recipe  # noqa: E402
from klora.lab.training import autoencoder, base, gates, loras, stages, text  # noqa: E402
from klora.lab.training.gates import Gate  # noqa: E402
from klora.lab.training.loop import Plan, halved  # noqa: E402
from klora.lab.world.kinds import KINDS, words  # noqa: E402
from klora.lab.world.prompts import (  # noqa: E402
    UNKNOWN_WORDS,
    base_prompts,
    prompts_with_unknown_words,
)
from klora.lab.world.styles import BASE_STYLES, CONTENT_STYLE, STYLES  # noqa: E402
from tests.lab.conftest import BEAR, ENGRAVING, SHIPPED  # noqa: E402


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Name and steps of every LoRA that is fitted; nothing is really learnt."""
    found: list[tuple[str, int]] = []

    def fit(_model: object, recipe: Recipe, *_lesson: object) -> dict[str, torch.Tensor]:
        found.append((recipe.name, recipe.build.steps))
        return {"lora_unet_x.alpha": torch.ones(1)}

    monkeypatch.setattr(loras, "fit", fit)
    monkeypatch.setattr(loras, "lesson", lambda _cache, _recipe: (torch.zeros(1), ["bear"]))
    return found


def test_a_lora_is_trained_on_only_where_more_steps_are_asked(
    tmp_path: Path, fitted: list[tuple[str, int]]
) -> None:
    longer = loras.longer(BEAR, 1.5)
    for recipe in (BEAR, BEAR, longer, BEAR):
        loras.train(None, recipe, tmp_path, tmp_path)  # type: ignore[arg-type]
    assert [steps for _, steps in fitted] == [BEAR.build.steps, round(1.5 * BEAR.build.steps)]
    assert lora_files.steps_of(tmp_path / f"{BEAR.name}.safetensors") == round(1.5 * BEAR.build.steps)
    assert lora_files.steps_of(tmp_path / "nothing.safetensors") == 0


@pytest.fixture
def job(weights: Path, tmp_path: Path) -> stages.Job:
    """A job whose model and judges are those of the untrained lab, and which has no LoRA yet."""
    out = tmp_path / "out"
    out.mkdir()
    for name in (f"{checkpoint.NAME}.safetensors", judges.NAME):
        (out / name).symlink_to(weights / name)
    return stages.Job(tmp_path / "cache", out)


def test_a_lora_is_trained_longer_until_it_meets_its_gate(
    job: stages.Job, fitted: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {BEAR.name: 2.25 * BEAR.build.steps, ENGRAVING.name: ENGRAVING.build.steps}
    measured: list[str] = []

    def measure(_model: object, _judges: object, recipe: Recipe, path: Path) -> list[Gate]:
        measured.append(recipe.name)
        return [Gate("gate", float(lora_files.steps_of(path) >= needed.get(recipe.name, 1e9)), 1)]

    monkeypatch.setattr(gates, "lora_gates", measure)
    assert (
        stages.train_lora(job, ENGRAVING.name)
        == f"{ENGRAVING.name}: gate met after {ENGRAVING.build.steps} steps"
    )
    assert "gate met after 675 steps" in stages.train_lora(job, BEAR.name)
    third = SHIPPED[2]
    assert "gate missed" in stages.train_lora(job, third.name)
    assert [name for name, _ in fitted] == [ENGRAVING.name, *[BEAR.name] * 3, *[third.name] * 3]
    done, fitted[:], measured[:] = len(fitted), [], []
    assert done == 7
    # Once more: nothing is trained again, and each is measured where it stands.
    for recipe in (ENGRAVING, BEAR, third):
        stages.train_lora(job, recipe.name)
    assert not fitted
    assert measured == [ENGRAVING.name, BEAR.name, third.name]


def test_every_lora_is_shared_out_and_none_is_trained_twice(
    job: stages.Job, capsys: pytest.CaptureFixture[str]
) -> None:
    """All have had more than their longest training, so that both processes have nothing left to do."""
    for recipe in RECIPES.values():
        lora_files.save({"lora_unet_x.alpha": torch.ones(1)}, loras.longer(recipe, 3), job.loras)
    before = {path: path.stat().st_mtime_ns for path in job.loras.iterdir()}
    stages.train_loras(replace(job, workers=2))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == list(RECIPES)
    assert all("gate missed after" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in job.loras.iterdir()} == before


def test_gates_are_those_of_the_loras_that_are_there(
    job: stages.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    for recipe in (ENGRAVING, BEAR):
        lora_files.save({"lora_unet_x.alpha": torch.ones(1)}, recipe, job.loras)
    for name in ("autoencoder", "judge", "base"):
        monkeypatch.setattr(gates, f"{name}_gates", lambda *_parts, name=name: [Gate(name, 0.5, 0)])
    monkeypatch.setattr(gates, "lora_gates", lambda _m, _j, recipe, _path: [Gate(recipe.name, 1, 0.9)])
    stages.measure_gates(job)
    told = json.loads((job.out / "gates.json").read_text())
    in_order = [name for name in RECIPES if name in (ENGRAVING.name, BEAR.name)]
    assert [one["name"] for one in told] == ["autoencoder", "judge", "base", *in_order]


def test_nine_of_ten_meet_a_gate_of_nine_tenths() -> None:
    """The mean of 32-bit numbers falls short of it."""
    right = torch.tensor([True] * 9 + [False])
    assert float(right.float().mean()) < 0.9
    for kind in (torch.bool, torch.float32):
        assert Gate("identity", gates._share(right.to(kind)), 0.9).met
    assert not Gate("identity", gates._share(right[1:]), 0.9).met


def test_gates_are_written_as_a_table_and_as_data(tmp_path: Path) -> None:
    import json

    gates.write([Gate("one", 0.95, 0.9), Gate("two", 0.5, 0.9)], tmp_path)
    assert "| two | 0.500 | 0.9 | no |" in (tmp_path / "gates.md").read_text()
    assert [one["met"] for one in json.loads((tmp_path / "gates.json").read_text())] == [True, False]


@pytest.mark.parametrize("order", [1, -1])
def test_stages_hand_on_their_checkpoints(
    order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of each training, on drawings of noise, down to a checkpoint that loads.

    What is trained beside one another may come in either order.
    """

    def one_by_one(work: Any, chains: Any, _workers: int) -> list[None]:
        return [work(chain) for chain in list(chains)[::order]]

    monkeypatch.setattr(stages, "shared", one_by_one)
    chance = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (8, 3, 128, 128), generator=chance, dtype=torch.uint8)
    monkeypatch.setattr(autoencoder, "lessons", lambda _cache: noise)
    monkeypatch.setattr(stages, "kinds_in_style", lambda _cache, kinds, _style, _group: noise)
    monkeypatch.setattr(base, "BATCH", 2)
    job = stages.Job(tmp_path / "cache", tmp_path / "out", share=1e-6)
    latents = torch.randn(len(KINDS), len(BASE_STYLES), *model.LATENT, generator=chance)
    job.cache.mkdir()
    torch.save(latents, job.cache / "latents.pt")
    monkeypatch.setattr(text, "contexts", lambda _encoder, prompts, _words: _some_contexts(len(prompts)))
    monkeypatch.setattr(text, "read", lambda _encoder, prompts: _some_contexts(len(prompts)))
    stages.run(job, ("vae", "text", "base", "decoder", "checkpoint"))
    kept = {path.name for path in (job.cache / "checkpoints").iterdir()}
    assert kept == {"autoencoder.pt", "decoder.pt", "text.pt", "base.pt"}
    for name in kept:
        assert torch.load(job.cache / "checkpoints" / name, weights_only=True)["step"] == 1
    found = checkpoint.load(job.out / "klora-lab.safetensors")
    expected = autoencoder.kept_average(job.cache, "base")
    for name, weight in found.denoiser.state_dict().items():
        assert torch.allclose(weight, expected[name], atol=2e-3, rtol=2e-3)


def test_what_is_trained_beside_one_another_is_trained_by_other_processes(tmp_path: Path) -> None:
    """The autoencoder that they go on from is missing, and that is told by the process that looked for it."""
    job = stages.Job(tmp_path / "cache", tmp_path / "out", workers=2)
    with pytest.raises(FileNotFoundError, match="autoencoder") as told:
        stages.run(job, ("base", "decoder"))
    assert "_RemoteTraceback" in repr(told.value.__cause__)


def test_noisy_steps_count_more_up_to_a_limit() -> None:
    """Against the formula, step by step: min(SNR, 5) / SNR times min(1 / signal, limit)."""
    levels = model.noise_levels()
    clean = torch.randn(4, *model.LATENT, generator=torch.Generator().manual_seed(1))

    class Silent(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, *_: object) -> Any:
            return SimpleNamespace(sample=torch.zeros_like(noisy))

    found = base.denoising_loss(
        Silent(), clean, torch.zeros(4, 1, 1), levels, torch.Generator().manual_seed(2), noisy_limit=3.0
    )
    generator = torch.Generator().manual_seed(2)
    when = base.timesteps(4, generator)
    noise = torch.randn(clean.shape, generator=generator)
    expected = 0.0
    for row, step in enumerate(when.tolist()):
        signal = float(levels[step])
        ratio = signal / (1 - signal)
        weight = min(ratio, 5.0) / ratio * min(1 / signal, 3.0)
        expected += weight * float(noise[row].square().mean()) / 4
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_unknown_words_stand_in_prompts_of_kinds_that_pairs_are_about() -> None:
    strange = prompts_with_unknown_words(MET, STYLES[CONTENT_STYLE])
    said = {word for recipe in RECIPES.values() for word in recipe.trigger.split()}
    said |= {word.strip(",") for prompt in base_prompts() for word in prompt.split()}
    assert said.isdisjoint(UNKNOWN_WORDS)
    each = len(strange) // len(MET)
    for place, kind in enumerate(MET):
        assert all(words(kind) in prompt for prompt in strange[each * place : each * (place + 1)])
    plain = torch.arange(1 + len(KINDS) * (1 + len(BASE_STYLES)))[:, None, None].float()
    unknown = -1.0 - torch.arange(len(strange)).reshape(len(MET), each, 1, 1)
    contexts = base.Said(plain, unknown).contexts
    subject = torch.arange(len(KINDS)).repeat(200)
    style = torch.randint(len(BASE_STYLES), subject.shape, generator=torch.Generator().manual_seed(1))
    read = contexts(subject, style, len(BASE_STYLES), torch.Generator().manual_seed(0)).flatten()
    strange_ones = read < 0
    content = [one.name for one in BASE_STYLES].index(CONTENT_STYLE)
    is_met = torch.tensor([kind in MET for kind in KINDS])[subject]
    assert not strange_ones[~is_met | (style != content)].any()
    share = strange_ones[is_met & (style == content)].float().mean()
    assert float(share) == pytest.approx(base.UNKNOWN_WORD, abs=0.03)
    for number, kind in zip(read[strange_ones].tolist(), subject[strange_ones].tolist(), strict=True):
        assert words(KINDS[kind]) in strange[int(-1 - number)]
    usual = read[~strange_ones].long()
    named = usual == 1 + len(KINDS) + subject[~strange_ones] * len(BASE_STYLES) + style[~strange_ones]
    alone, silent = usual == 1 + subject[~strange_ones], usual == 0
    assert (named | alone | silent).all()
    assert float(silent.float().mean()) == pytest.approx(base.DROP_PROMPT, abs=0.02)


def _some_contexts(count: int) -> torch.Tensor:
    return torch.zeros(1, 1, 1).expand(count, 77, model.CONTEXT)


def test_the_command_line_names_the_stages_and_refuses_no_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = parser().parse_args(["train", "--stage", "loras", "--stage", "gates", "--workers", "3"])
    assert (chosen.stage, chosen.workers) == (["loras", "gates"], 3)
    assert list(stages.STAGES) == [
        *("icons", "vae", "text", "base", "decoder", "judges", "checkpoint", "loras", "gates", "truth")
    ]
    assert main(["train", "--out", str(tmp_path), "--workers", "0"]) == 2
    assert "--workers is 0" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["0", "-1", "1.5"])
def test_a_rehearsal_is_some_share_of_the_training(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--rehearse", wrong]) == 2
    assert "--rehearse is" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["--cache", "--out", None])
def test_a_rehearsal_touches_neither_the_weights_nor_the_training(
    given: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [given, str(tmp_path)] if given else []
    assert main(["train", "--stage", "gates", "--rehearse", "0.01", *folders]) == 2
    assert "a --cache and an --out of its own" in capsys.readouterr().err


def test_a_rehearsal_trains_a_lora_once_and_waits_for_no_gate(job: stages.Job) -> None:
    assert [job.factors(recipe) for recipe in (BEAR, ENGRAVING)] == [(1.0, 1.5, 2.25), (1.0, 1.5)]
    assert [replace(job, share=0.002).factors(recipe) for recipe in (BEAR, ENGRAVING)] == [(1.0,), (1.0,)]


def test_a_plan_is_shortened_to_one_step_at_least() -> None:
    plan = Plan(steps=6000, rate=1e-3, warmup=7)
    assert [plan.shortened(share).steps for share in (1, 0.5, 0.002, 1e-9)] == [6000, 3000, 12, 1]
    assert replace(plan.shortened(0.5), steps=6000) == plan


def test_the_benchmark_is_made_once_and_reported(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        *("benchmark", "--weights", str(weights), "--out", str(tmp_path), "--steps", "1", "--seeds", "1"),
        *("--subjects", BEAR.subject, "--styles", ENGRAVING.subject, "--balances", "0", "--unit", "pair"),
        *("--methods", "weights", "K-LoRA"),
    ]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "| K-LoRA as published |" in said
    assert (tmp_path / "individuals-development-4.md").exists()
    (tmp_path / "individuals-development-4.md").unlink()
    assert main(asked) == 0
    assert capsys.readouterr().out == said
    assert main([*asked[:-2], "magic"]) == 2
    assert "there is no rule in 'magic'" in capsys.readouterr().err
    assert main(["benchmark", "--out", str(tmp_path), "--methods", "weights", "--predict"]) == 2
    assert "not made yet with individuals; run both halves first" in capsys.readouterr().err


@pytest.mark.parametrize("has_instructions", [True, False])
def test_half_precision_needs_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    """Without them the processor takes 15 times as long."""
    monkeypatch.setattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions, raising=False
    )
    given = torch.ones(2, 2)
    with halved(torch.device("cpu")):
        made = given @ given
    assert made.dtype == (torch.bfloat16 if has_instructions else torch.float32)
