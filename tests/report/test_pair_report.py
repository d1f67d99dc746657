"""The report on two files: counts, strengths, contest, index, verdict, text and page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from klora.__main__ import main
from klora.errors import LoraFileError, PairError, SettingsError
from klora.files import read_lora, split_layers
from klora.planning import plan_files
from klora.report import PRELIMINARY, report_files
from klora.report.compatibility import Compatibility, Verdict, verdict
from klora.report.contest import ContestSpread
from klora.report.directions import Overlap
from klora.settings import Settings
from tests.engine.lora_files import ATTENTION, BLOCK, FEED_FORWARD, write_lora
from tests.published import published

MORE = BLOCK + "attn2_to_v"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Content has the feed-forward layer and one attention layer more; style one attention layer more."""
    content = write_lora(tmp_path / "fox.safetensors", (*ATTENTION, FEED_FORWARD), seed=1)
    style = write_lora(tmp_path / "ink.safetensors", (*ATTENTION[:2], MORE, FEED_FORWARD), seed=2, rank=4)
    return content, style


def test_counts_strengths_and_shares_are_those_of_the_whole_matrices(files: tuple[Path, Path]) -> None:
    report = report_files(*files, published(), steps=10)
    assert (report.counts.shared_attention, report.counts.shared_other) == (2, 1)
    assert (report.counts.content_alone, report.counts.style_alone) == (1, 1)
    content, style = (split_layers(read_lora(file)) for file in files)
    both = content.keys() & style.keys()
    norms = [
        math.sqrt(sum(float(one[name].delta().double().pow(2).sum()) for name in both))
        for one in (content, style)
    ]
    assert report.strengths == pytest.approx(norms)
    assert report.strength_ratio == pytest.approx(norms[0] / norms[1])
    plan = plan_files(*files, published(), 10, guidance_scale=7.0)
    told = report.as_json()
    assert told["strength"]["gamma"] == plan.gamma
    assert told["shares"]["content"] == plan.content_share
    assert told["shares"]["flips"] == plan.flips
    assert plan.scores is not None
    ratios = np.log2(plan.scores.content("top-k sum") / (plan.gamma * plan.scores.style("top-k sum")))
    assert np.allclose(np.sort(report.contest.log2_ratios), np.sort(ratios))


def test_the_index_says_what_it_is_made_of_and_that_it_is_preliminary(files: tuple[Path, Path]) -> None:
    told = report_files(*files, published()).as_json()
    index = told["compatibility"]
    assert index["status"] == PRELIMINARY
    assert "not yet confirmed" in PRELIMINARY
    assert index["layers"] == pytest.approx(2 / 3, abs=1e-4)
    strength = 1 / (1 + abs(math.log10(told["strength"]["ratio"])))
    assert index["strength"] == pytest.approx(strength, abs=1e-4)
    product = 100 * index["strength"] * index["directions"] * index["layers"]
    assert index["index"] == pytest.approx(product, abs=0.05)
    assert json.loads(json.dumps(told, allow_nan=False))["compatibility"] == index


def test_no_path_is_told(files: tuple[Path, Path]) -> None:
    assert str(files[0].parent) not in json.dumps(report_files(*files, Settings()).as_json())


def test_types_without_factors_are_measured_by_their_leading_directions(tmp_path: Path) -> None:
    plain = write_lora(tmp_path / "plain.safetensors", seed=1)
    full = tmp_path / "full.safetensors"
    tensors = load_file(plain)
    save_file(
        {
            f"{name}.diff": tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
            for name in ATTENTION
        },
        full,
    )
    other = write_lora(tmp_path / "other.safetensors", seed=2)
    by_factors, by_matrix = (report_files(one, other, published()) for one in (plain, full))
    assert by_matrix.overlap.energy == pytest.approx(by_factors.overlap.energy, rel=1e-5)
    assert by_matrix.overlap.rows[0] == pytest.approx(by_factors.overlap.rows[0], rel=1e-5)


def test_a_rule_that_compares_nothing_has_a_contest_of_norms(files: tuple[Path, Path]) -> None:
    report = report_files(*files, Settings(rule="weights"))
    assert report.contest.measure == "norm"
    assert report.contest.log2_ratios.shape == (2,)
    assert report.plan.gamma is None


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    here = write_lora(tmp_path / "here.safetensors", ATTENTION[:2])
    elsewhere = write_lora(tmp_path / "elsewhere.safetensors", ATTENTION[2:])
    with pytest.raises(PairError, match="here and elsewhere share no attention layer"):
        report_files(here, elsewhere, Settings())
    with pytest.raises(SettingsError, match="steps is 0"):
        report_files(here, here, Settings(), steps=0)
    bad = write_lora(tmp_path / "bad.safetensors", bad=float("nan"))
    with pytest.raises(LoraFileError, match="NaN"):
        report_files(bad, bad, Settings())
    with pytest.raises(LoraFileError, match="NaN"):
        report_files(bad, bad, Settings(rule="weights"))


def test_the_spread_of_a_contest() -> None:
    spread = ContestSpread.of("norm", np.array([4.0, 1.0, 1.0, 0.0, 0.0]), np.array([1.0, 1.0, 4, 1, 0]), 1.0)
    assert spread.log2_ratios.tolist() == [2.0, 0.0, -2.0, -math.inf]  # both zero: no contest
    assert spread.parts() == {"content ahead": 0.25, "even": 0.25, "style ahead": 0.5}
    assert spread.quantiles["10%"] is None
    assert ContestSpread.of("norm", np.zeros(1), np.zeros(1), 1.0).quantiles["50%"] is None


def judged(strengths: tuple[float, float], excess: float = 0.0, content_share: float = 0.5) -> Verdict:
    index = Compatibility(50, 1, 1 - excess, 1)
    return verdict(("fox", "ink"), strengths, index, content_share)


@pytest.mark.parametrize(
    ("found", "sentence", "remedy"),
    [
        (judged((1, 1)), "about equally strong", "Nothing needs to be changed"),
        (judged((4, 1)), "fox is 4.0 times as strong as ink", "towards style"),
        (judged((1, 4)), "ink is 4.0 times as strong as fox", "towards content"),
        (judged((1, 1), excess=0.5), "the same directions, 50%", "set transform to NP-LoRA"),
        (judged((1, 1), content_share=0.1), "fox gets only 10%", "content (below 0)"),
        (judged((1, 1), content_share=0.9), "ink gets only 10%", "style (above 0)"),
        (judged((0, 1)), "fox changes nothing", "another version"),
    ],
)
def test_verdicts_name_the_lora_and_the_remedy(found: Verdict, sentence: str, remedy: str) -> None:
    assert sentence in found.sentence
    assert remedy in found.remedy


def test_the_index_is_the_same_whichever_is_the_content() -> None:
    total = Overlap((4.0, 9.0), (1.0, 2.0), (0.4, 0.9), (1.0, 1.0), (0.4, 0.9), 0.5)
    turned = Overlap((9.0, 4.0), (2.0, 1.0), (0.9, 0.4), (1.0, 1.0), (0.9, 0.4), 0.5)
    assert Compatibility.of(total, 3, 4).index == pytest.approx(Compatibility.of(turned, 3, 4).index)


# -- the command --------------------------------------------------------------------------------------


def test_the_command_prints_text_json_and_writes_a_page(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert main(["report", *map(str, files), "--html", str(page), "--balance", "0.3"]) == 0
    text = capsys.readouterr().out
    for word in ("fox: lora rank 2", "ink: lora rank 4", "chance", "preliminary", "verdict", "remedy"):
        assert word in text
    html = page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in html
    assert "http" not in html.replace("http-equiv", "")
    assert main(["report", *map(str, files), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content"]["name"] == "fox"


def test_names_are_no_markup_in_the_page(tmp_path: Path) -> None:
    evil = write_lora(tmp_path / "<img src=x>.safetensors", seed=1)
    page = tmp_path / "report.html"
    assert (
        main(["report", str(evil), str(write_lora(tmp_path / "ink.safetensors")), "--html", str(page)]) == 0
    )
    assert "<img src=x>" not in page.read_text(encoding="utf-8")
    assert "&lt;img src=x&gt;" in page.read_text(encoding="utf-8")


def test_every_pair_of_a_folder_the_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fox = write_lora(tmp_path / "fox.safetensors", seed=1)
    write_lora(tmp_path / "ink.safetensors", seed=2)
    tensors = load_file(fox)
    save_file({name: 30 * one for name, one in tensors.items()}, tmp_path / "twin.safetensors")
    sdxl = BLOCK.replace("down_blocks_0", "down_blocks_1") + "attn2_to_k"
    write_lora(tmp_path / "xl.safetensors", (sdxl,), size=(640, 2048))
    write_lora(tmp_path / "sd1.safetensors", (BLOCK + "attn2_to_k",), size=(320, 768))
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    assert main(["report", str(tmp_path), "--json"]) == 2  # one of the files cannot be read
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    order = [(pair["first"], pair["second"]) for pair in told["pairs"]]
    indices = [pair["compatibility"]["index"] for pair in told["pairs"]]
    assert order[0] == ("fox", "ink")  # as strong as each other, and by chance in other directions
    assert indices == sorted(indices, reverse=True)
    assert told["pairs"][order.index(("fox", "twin"))]["beyond_chance"] > 0.9
    assert any("sd1 is made for SD1 and xl for SDXL" in one for one in told["left_out"])
    assert "web page" in captured.err
    assert main(["report", str(tmp_path)]) == 2
    assert "fox + ink" in capsys.readouterr().out


def test_fewer_than_two_files_are_no_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single, empty = tmp_path / "single", tmp_path / "empty"
    single.mkdir()
    empty.mkdir()
    one = write_lora(single / "fox.safetensors")
    few = "1 LoRA file was named; a report needs two or more."
    none = f"there is no LoRA file (.safetensors) in {empty}."
    missing = "nodir: there is no such file; check the name and the folder."
    for named, told in (
        ((one,), few),
        ((single,), few),
        ((empty,), none),
        ((empty, one), none),
        ((tmp_path / "nodir",), missing),
        ((tmp_path / "nodir", one), missing),
    ):
        assert main(["report", *map(str, named)]) == 2
        assert capsys.readouterr() == ("", f"klora: {told}\n")


def test_a_table_has_a_largest_number_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted before any is read; also where folders and files are named together."""
    folder, other = tmp_path / "folder", tmp_path / "other.safetensors"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.safetensors").write_bytes(b"<html>")
    other.write_bytes(b"<html>")
    assert main(["report", str(folder)]) == 2
    assert "fewer than two files can be read" in capsys.readouterr().err
    assert main(["report", str(folder), str(other)]) == 2
    told = "klora: 101 files have 5050 pairs; name at most 100 files.\n"
    assert capsys.readouterr() == ("", told)


def test_the_published_pair_overlaps_as_chance_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Two LoRAs that come with the package, which strangers trained: rows at chance, as is known of them."""
    from klora.example_pair import CONTENT, STYLE

    content, style = (split_layers(read_lora(file)) for file in (CONTENT, STYLE))
    report = report_files(CONTENT, STYLE, Settings(rule="weights"))
    overlap = report.overlap
    assert overlap.share(overlap.rows) == pytest.approx(overlap.share(overlap.rows_by_chance), rel=0.2)
    assert report.counts.shared_attention == sum(".attn" in name for name in content.keys() & style.keys())
    assert torch.isfinite(torch.tensor(report.strengths)).all()
