"""The benchmark on an untrained lab: pictures, what is kept of them, scores and reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from klora.errors import KloraError
from klora.lab import icons, pairs, truth, world
from klora.lab.__main__ import main
from klora.lab.benchmark import methods, running, validation
from klora.lab.benchmark import weights as search
from klora.lab.benchmark.making import Made, Maker, Sampling, Store, applied, attention_only
from klora.lab.benchmark.results import FIGURES, Results, evaluate
from klora.lab.benchmark.scoring import MEASURES, Scored, score_all
from klora.schedule import evenly_spaced
from tests.lab.conftest import SUBJECTS

STEPS = 3


@pytest.fixture(scope="module")
def maker(weights: Path) -> Maker:
    return Maker(Sampling(weights, STEPS))


def _pictures(maker: Maker, pair: pairs.Pair, name: str, seeds: Sequence[int] = (0,)) -> torch.Tensor:
    return maker.make(pair, methods.method(name), seeds).pictures


def test_where_content_wins_all_the_picture_is_that_of_content_alone(maker: Maker, weights: Path) -> None:
    # Two LoRAs that change the same layers: what only one of them changes would stay with it.
    pair = pairs.make_pair(SUBJECTS[1], pairs.default_styles()[0], weights / "loras")
    assert pair.content.targets == pair.style.targets
    fused = _pictures(maker, pair, "K-LoRA alpha=0 beta=0")
    alone = _pictures(maker, pair, "content only")
    assert (fused.int() - alone.int()).abs().max() <= 1  # two roundings of the same sum
    assert not torch.equal(alone, _pictures(maker, pair, "style only"))
    assert not torch.equal(alone, _pictures(maker, pair, "added 1+1"))


def test_no_lora_leaves_no_trace(maker: Maker, pair: pairs.Pair) -> None:
    before = _pictures(maker, pair, "no LoRA")
    for name in ("added 0.5+0.5", "K-LoRA S*", "random"):
        assert not torch.equal(_pictures(maker, pair, name), before)
    assert torch.equal(_pictures(maker, pair, "no LoRA"), before)


def test_a_picture_depends_on_its_own_seed_alone(maker: Maker, pair: pairs.Pair) -> None:
    several = _pictures(maker, pair, "K-LoRA S", (0, 1, 2))
    alone = _pictures(maker, pair, "K-LoRA S", (2,))
    assert (several[2].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(several[0], several[1])
    again = _pictures(maker, pair, methods.again("K-LoRA S"), (0,))
    assert (again.int() - _pictures(maker, pair, "K-LoRA S", (methods.OTHER_SEEDS,)).int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["random", "random layers", "time only, half", "time only, same share"])
def test_what_ran_is_what_the_ablation_chose(maker: Maker, pair: pairs.Pair, name: str) -> None:
    with applied(maker.pipe, pair, methods.method(name)) as fusion:
        maker.pipe(pair.prompt, num_inference_steps=STEPS)
    planned = fusion.planner.plan(evenly_spaced(STEPS))
    assert fusion.plan().shares.tolist() == planned.shares.tolist()


def test_a_pair_tosses_the_same_coin_each_time(maker: Maker, pair: pairs.Pair) -> None:
    seeds = []
    for one in (pair, pair):
        with applied(maker.pipe, one, methods.method("random")) as fusion:
            seeds.append(fusion.planner.settings.coin_seed)
    assert seeds[0] == seeds[1] > 0


def test_other_layers_count_where_both_change_them(weights: Path, pair: pairs.Pair) -> None:
    assert attention_only(pair)
    whole = pairs.recipe_of("style", "riso")
    assert not attention_only(replace(pair, content=whole, style=whole))


class Counting(Maker):
    """A maker that draws noise and counts."""

    made: list[tuple[str, tuple[int, ...]]]
    fail_after = 10**9

    def make(self, pair: pairs.Pair, method: methods.Method, seeds: Sequence[int]) -> Made:
        if len(self.made) >= self.fail_after:
            raise KeyboardInterrupt
        self.made.append((method.name, tuple(seeds)))
        drawn = [
            torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(s)) for s in seeds
        ]
        return Made(torch.stack(drawn).byte(), torch.full((len(seeds),), 0.25))


@pytest.fixture
def counting(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    sampling = Sampling(weights, STEPS)
    maker = Counting(sampling)
    maker.made = []
    monkeypatch.setitem(running._makers, sampling, maker)
    return maker


def _run(counting: Counting, folder: Path, pair: pairs.Pair, names: list[str], seeds: range) -> Store:
    return running.make_all(folder, counting.sampling, [pair], methods.methods(names), seeds)


def test_an_interrupted_run_goes_on(counting: Counting, tmp_path: Path, pair: pairs.Pair) -> None:
    names = ["truth", "content only", "style only", "K-LoRA S"]
    counting.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        _run(counting, tmp_path, pair, names, range(3))
    counting.fail_after = 10**9
    store = _run(counting, tmp_path, pair, names, range(3))
    assert [name for name, _ in counting.made] == names[1:]
    kept = store.get(pair, methods.method("content only"), [1])
    _run(counting, tmp_path, pair, names, range(5))
    assert [seeds for _, seeds in counting.made[3:]] == [(3, 4)] * 3
    after = store.get(pair, methods.method("content only"), [4, 1])
    assert torch.equal(after.pictures[1], kept.pictures[0])
    assert after.seconds.tolist() == [0.25, 0.25]


def test_methods_that_come_to_the_same_are_made_once(
    counting: Counting, tmp_path: Path, pair: pairs.Pair
) -> None:
    same = ["K-LoRA S", "K-LoRA beta=auto", "other layers both", "other layers none", "K-LoRA alpha=1.5"]
    _run(counting, tmp_path, pair, same, range(2))
    assert [name for name, _ in counting.made] == ["K-LoRA S"]


def test_a_broken_file_and_other_weights_are_made_anew(
    counting: Counting, tmp_path: Path, pair: pairs.Pair
) -> None:
    store = _run(counting, tmp_path, pair, ["content only"], range(1))
    path = store.path(pair, methods.method("content only"))
    path.write_bytes(path.read_bytes()[:200])
    _run(counting, tmp_path, pair, ["content only"], range(1))
    assert len(counting.made) == 2
    other = Store(tmp_path, replace(counting.sampling, steps=STEPS + 1))
    assert other.missing(pair, methods.method("content only"), [0]) == [0]


def test_several_processes_make_the_same(maker: Maker, tmp_path: Path, pair: pairs.Pair) -> None:
    chosen = methods.methods(["content only", "K-LoRA S"])
    store = running.make_all(tmp_path, maker.sampling, [pair], chosen, range(2), workers=2)
    for one in chosen:
        assert torch.equal(store.get(pair, one, [0, 1]).pictures, maker.make(pair, one, [0, 1]).pictures)


def _scored(subject: dict[str, float], style: dict[str, float], subjects: int = 6) -> Results:
    """Results of methods whose judges' verdicts are as given, a little different for each subject."""
    wiggle = torch.linspace(-0.02, 0.02, subjects)[:, None].expand(-1, 4)
    rows = []
    for name in subject:
        values = {key: torch.full((subjects, 4), 0.5) for key in MEASURES}
        values["subject"], values["style"] = subject[name] + wiggle, style[name] - wiggle
        values["both"] = values["subject"] * values["style"]
        values["subject_probability"], values["style_probability"] = values["subject"], values["style"]
        values["distance"] = 2 - values["subject"] - values["style"]
        rows.append(Scored(replace(methods.TABLE[name]), values))
    names = [world.DEVELOPMENT_SUBJECTS[at] for at in range(subjects)]
    style_name = pairs.default_styles()[0]
    found = [
        pairs.Pair(pairs.recipe_of("content", one), pairs.recipe_of("style", style_name), Path())
        for one in names
    ]
    return evaluate(rows, found)


GOOD = {"truth": 0.97, "content only": 0.9, "style only": 0.05, "added 1+1": 0.5, "K-LoRA S": 0.6}
STYLED = {"truth": 0.97, "content only": 0.04, "style only": 0.9, "added 1+1": 0.6, "K-LoRA S": 0.5}


def test_scores_that_rank_the_known_cases_are_trusted() -> None:
    found = validation.checks(_scored(GOOD, STYLED))
    assert len(found) == 8
    assert all(one.holds for one in found)


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"truth": (0.3, 0.3)}, "truth has the highest harmonic mean"),
        ({"content only": (0.55, 0.04)}, "content only has the best subject, but for noise"),
        ({"content only": (0.9, 0.8)}, "content only has a poor style"),
        ({"style only": (0.05, 0.3)}, "style only has the best style, but for noise"),
        ({"style only": (0.6, 0.9)}, "style only has a poor subject"),
    ],
)
def test_scores_that_rank_a_known_case_wrongly_are_not(
    changes: dict[str, tuple[float, float]], claim: str
) -> None:
    subject = {**GOOD, **{name: pair[0] for name, pair in changes.items()}}
    style = {**STYLED, **{name: pair[1] for name, pair in changes.items()}}
    assert claim in [one.claim for one in validation.checks(_scored(subject, style)) if not one.holds]


def test_differences_are_from_the_reference_and_noise_is_the_widest() -> None:
    again = methods.again("K-LoRA S")
    results = _scored({**GOOD, again: 0.6}, {**STYLED, again: 0.5})
    assert results.reference == "added 1+1"
    fused = results.row("K-LoRA S")
    assert fused is not None
    assert fused.differences["subject"].value == pytest.approx(0.1)
    assert results.noise["K-LoRA S"]["harmonic_mean"].value == pytest.approx(0)
    assert results.margin("subject") == pytest.approx(0, abs=1e-6)


def test_the_search_finds_the_peak_even_outside_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = (1.4, 0.3)
    tried: list[int] = []

    def surface(_folder: Any, _sampling: Any, _pairs: Any, grid: Any, seeds: Any, _workers: int) -> Results:
        tried.append(len(seeds))
        score = {one: 0.9 - (one[0] - peak[0]) ** 2 - (one[1] - peak[1]) ** 2 for one in grid}
        wanted = [methods.method(search.name_of(one)) for one in grid]
        values = [
            Scored(one, {key: torch.full((1, 1), score[one.weights]) for key in MEASURES})  # type: ignore[index]
            for one in wanted
        ]
        return evaluate(values, [pairs.Pair(*_recipes(), Path())])

    monkeypatch.setattr(search, "_try", surface)
    found = search.find(Path(), Sampling(Path()), [pairs.Pair(*_recipes(), Path())], range(4), 1)
    assert (found["content"], found["style"]) == pytest.approx(peak)
    assert tried[0] == search.COARSE_SEEDS
    assert set(tried[1:]) == {4}


def _recipes() -> tuple[Any, Any]:
    return pairs.recipe_of("content", SUBJECTS[0]), pairs.recipe_of("style", pairs.default_styles()[0])


def test_the_command_writes_table_data_and_sheet(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["truth", "content only", "style only", "added 1+1", methods.again("added 1+1"), "K-LoRA S"]
    arguments = [
        "benchmark",
        "--weights",
        str(weights),
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--seeds",
        "2",
    ]
    arguments += ["--subjects", *SUBJECTS, "--styles", pairs.default_styles()[0]]
    table = tmp_path / "docs" / "table.md"
    assert main([*arguments, "--table", str(table), "--methods", *names]) in (0, 1)  # untrained judges
    text = table.read_text()
    assert text in capsys.readouterr().out + "\n"
    assert all(f"| {name} |" in text for name in names)
    told = json.loads((tmp_path / "development.json").read_text())
    assert [one["name"] for one in told["methods"]] == names
    assert set(told["methods"][0]["figures"]) == set(FIGURES)
    assert told["noise"]["added 1+1"]["subject"]["value"] is not None
    from PIL import Image

    with Image.open(tmp_path / "development.png") as sheet:
        assert sheet.width > 2 * 64 * len(names)
        assert sheet.height > 2 * 64 * len(SUBJECTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--half", "test", "--find-weights", "--subjects", world.TEST_SUBJECTS[0]], "is not in"),
        (["--subjects", world.TEST_SUBJECTS[0]], "halves are never mixed"),
        (["--subjects", "dragonfruit"], "the lab has no content LoRA dragonfruit"),
        (["--seeds", "0"], "at least 1"),
        (["--subjects", *SUBJECTS, "--methods", "magic"], "there is no method"),
    ],
)
def test_bad_input_is_one_sentence(
    weights: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "--weights", str(weights), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_weights_are_never_searched_on_the_test_half(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(pairs.HALVES, "test", SUBJECTS)
    assert main(["benchmark", "--weights", str(weights), "--half", "test", "--find-weights"]) == 2
    assert "development half only" in capsys.readouterr().err


def test_scores_of_the_truth_are_those_of_the_drawing_through_the_autoencoder(
    maker: Maker, tmp_path: Path, pair: pairs.Pair
) -> None:
    found = score_all(Store(tmp_path, maker.sampling), [pair], methods.methods(["truth"]), [0, 1, 2])
    values = found[0].values
    assert all(values[name].shape == (1, 3) for name in MEASURES)
    assert torch.equal(values["distance"][0], values["distance"][0, :1].expand(3))


def test_the_shipped_drawings_are_those_of_the_world() -> None:
    kept = truth.drawings()
    assert {subject for subject, _ in kept} == set(world.HELD_OUT_SUBJECTS)
    assert {style for _, style in kept} == {one.name for one in truth.styles()}
    with pytest.raises(KloraError, match=r"klora\.lab truth"):
        truth.drawing("nobody", world.CONTENT_STYLE)


def test_the_shipped_drawings_are_up_to_date() -> None:
    for module in ("resvg_py", "scipy"):
        pytest.importorskip(module)
    cache = icons.default_cache()
    if not (cache / "icons").exists():
        pytest.skip("the icon sets are not downloaded")
    for subject in (world.DEVELOPMENT_SUBJECTS[0], world.TEST_SUBJECTS[-1]):
        for style in truth.styles():
            drawn = torch.from_numpy(world.draw(cache, subject, style)).permute(2, 0, 1)
            assert torch.equal(truth.drawing(subject, style.name), drawn)
