"""Whole jobs on a fake AUTOMATIC1111: from the arguments of the script to the outputs of the layers."""

from __future__ import annotations

import json
import sys
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tqdm import tqdm

from klora.errors import HostError, KloraError, LoraFileError, PairError, SettingsError
from klora.hosts.common.rewriting import RewrittenLora
from klora.hosts.webui import won
from klora.hosts.webui.job import wanted_settings
from klora.settings import Settings
from tests.engine.lora_files import write_lora
from tests.jobs.fake_webui import BOTH, CONTENT_WINS, STYLE_WINS, Webui
from tests.jobs.fakes import (
    ATTENTION,
    CANONICAL,
    IN_FORWARD_ORDER,
    TEXT,
    FakeSampler,
    parsed_tag,
)
from tests.published import PUBLISHED


@pytest.mark.parametrize(("rule", "winner"), [(CONTENT_WINS, "fox"), (STYLE_WINS, "ink")])
def test_a_winner_everywhere_is_as_if_alone_in_the_unet(webui: Webui, rule: Any, winner: str) -> None:
    p = webui.generate(BOTH + "<lora:Oak:1>", rule)
    assert len(p.seen) == 5
    for output in p.seen:
        assert all(webui.is_applied(output, layer, winner, "Oak") for layer in CANONICAL)
        assert webui.is_applied(output, TEXT, "fox", "ink", "Oak")


def test_afterwards_the_pair_is_added_and_without_tags_all_is_as_at_first(webui: Webui) -> None:
    webui.generate(BOTH, PUBLISHED)
    off = webui.generate(BOTH, False)
    assert off.klora_job is None
    assert all(webui.is_applied(off.seen[0], layer, "fox", "ink") for layer in IN_FORWARD_ORDER)
    bare = webui.generate("a fox", False)
    for layer in IN_FORWARD_ORDER:
        assert torch.equal(bare.seen[-1][layer], webui.model.expected(layer))


def test_the_winners_of_the_plan_are_applied(webui: Webui) -> None:
    p = webui.generate(BOTH, PUBLISHED)
    (plan,) = p.klora_job.plans
    assert plan.steps == 5
    assert 0 < plan.content_share < 1
    host_name = {canonical: name for name, canonical in CANONICAL.items()}
    for output, letters in zip(p.seen, plan.choices(), strict=True):
        for layer, letter in zip(plan.layers, letters, strict=True):
            assert webui.is_applied(output, host_name[layer], "fox" if letter == "C" else "ink")


def test_default_settings_apply_the_plan(webui: Webui) -> None:
    """In both passes of the guidance, whatever the default says of the negative side."""
    p = webui.generate(BOTH, {}, cfg_scale=7.0)
    (plan,) = p.klora_job.plans
    assert plan.steps == 5
    assert 0 < plan.content_share < 1
    host_name = {canonical: name for name, canonical in CANONICAL.items()}
    passes = (plan.shares, plan.shares if plan.unconditional is None else plan.unconditional)
    for step, output in enumerate(p.seen):
        for at, layer in enumerate(plan.layers):
            name = host_name[layer]
            deltas = [webui.known[lora].modules[name].delta for lora in ("fox", "ink")]
            for row, shares in enumerate(passes):
                added = sum(float(share) * one for share, one in zip(shares[step, at], deltas, strict=True))
                expected = webui.model.probe[row] @ (webui.model.clean[name] + added).T
                torch.testing.assert_close(output[name][row], expected, rtol=1e-5, atol=1e-5)


def test_the_same_pair_again_is_not_scored_again(webui: Webui) -> None:
    webui.generate(BOTH, {**PUBLISHED, "other_layers": "fuse"})
    # The merges of the host ask too, so only a further scoring can ask while nothing is merged.
    scored: list[str] = []
    for network in webui.known.values():
        for module in network.modules.values():
            own = module.calc_updown
            module.calc_updown = lambda weight, own=own: scored.append("asked") or own(weight)
    p = webui.job(BOTH)
    webui.script.process(p, {**PUBLISHED, "schedule": "S*", "other_layers": "fuse"})
    webui.batch(p)
    webui.script.process_before_every_sampling(p)
    assert scored == []
    webui.known["fox"].unet_multiplier = 0.5
    webui.script.process_before_every_sampling(p)
    assert len(scored) == 2 * len(CANONICAL)


def test_positional_arguments_and_unticked_garbage(webui: Webui) -> None:
    p = webui.job("")
    values = [one.default for one in Settings.declarations()]
    assert wanted_settings([True, *values[1:]], p) == Settings(enabled=True)
    assert wanted_settings([False, "", None, "nan", {}, object()], p) is None
    assert wanted_settings([], p) is None
    assert wanted_settings([{"enabled": False, "alpha": 3}], p) is None
    with pytest.raises(SettingsError, match="alpha is nan"):
        wanted_settings([{"alpha": float("nan")}], p)
    p.klora_overrides = {"enabled": True, "balance": 0.25}
    assert wanted_settings([False, "garbage"], p) == Settings(enabled=True, balance=0.25, preset="none")


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ("a fox", {}, "needs two LoRAs, found none"),
        ("<lora:fox:1>", {}, r"needs two LoRAs, found 1 \(fox\)"),
        (BOTH, {"style": "elm"}, "LoRA elm was not found"),
        (BOTH, {"alpha": -1}, "alpha is -1"),
        (BOTH, {"colour": "red"}, "no setting 'colour'"),
        (BOTH, {"content": "fox", "style": "fox"}, "both fox"),
    ],
)
def test_what_is_wrong_stops_the_pass_with_a_sentence(
    webui: Webui, prompt: str, arguments: Any, message: str
) -> None:
    with pytest.raises(KloraError, match=message) as caught:
        webui.generate(prompt, arguments)
    assert caught.value.status_code == 422  # type: ignore[attr-defined]
    assert caught.value.detail == str(caught.value)  # type: ignore[attr-defined]


def test_a_stopped_job_leaves_the_next_alone(webui: Webui) -> None:
    with pytest.raises(PairError):
        webui.generate("<lora:fox:1>", {})
    p = webui.generate("<lora:fox:1>", False)
    assert all(webui.is_applied(p.seen[0], layer, "fox") for layer in CANONICAL)


@pytest.mark.parametrize("prompt", ["<lora:fox:1>", "<lora:fox:1><lora:elm:1>"])
def test_add_normally_makes_the_picture_and_says_so(webui: Webui, prompt: str) -> None:
    p = webui.generate(prompt, {**PUBLISHED, "incomplete": "add normally"})
    assert all(webui.is_applied(p.seen[0], layer, "fox") for layer in CANONICAL)
    assert "added normally" in p.extra_generation_params["K-LoRA fallback"]
    assert p.extra_generation_params["K-LoRA alpha"] == "1.5"
    assert len(p.comments) == 1
    assert p.klora_job.plans == []


def test_nan_stops_even_where_incomplete_pairs_are_added(webui: Webui) -> None:
    webui.known["ink"].modules[ATTENTION[2]].delta[0, 0] = float("nan")
    with pytest.raises(LoraFileError, match=r"ink: layer mid_block.*attn1\.to_q holds NaN"):
        webui.generate(BOTH, {**PUBLISHED, "incomplete": "add normally"})


def test_a_pair_without_shared_attention_can_be_added(webui: Webui) -> None:
    for layer in ATTENTION[:2]:
        del webui.known["fox"].modules[layer]
    for layer in ATTENTION[2:]:
        del webui.known["ink"].modules[layer]
    with pytest.raises(PairError, match="fox and ink share no attention layer"):
        webui.generate(BOTH, PUBLISHED)
    p = webui.generate(BOTH, {**PUBLISHED, "incomplete": "add normally"})
    assert webui.is_applied(p.seen[0], ATTENTION[2], "fox")
    assert "share no attention layer" in p.extra_generation_params["K-LoRA fallback"]


def test_a_pair_that_the_host_holds_rewritten_is_not_added(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged: list[str] = []
    monkeypatch.setattr(
        "klora.hosts.webui.job.rewritten_loras", lambda *_: {"fox": RewrittenLora({}, "NP-LoRA 01")}
    )
    monkeypatch.setattr(
        "klora.hosts.a1111.host.exchange", lambda _, network, __: exchanged.append(network.name)
    )
    settings = {**PUBLISHED, "incomplete": "add normally", "transform": "NP-LoRA"}
    webui.generate(BOTH, settings)
    assert exchanged == ["fox"]
    for layer in ATTENTION[:2]:
        del webui.known["fox"].modules[layer]
    for layer in ATTENTION[2:]:
        del webui.known["ink"].modules[layer]
    with pytest.raises(HostError, match=r"share no attention layer.*rewritten: set Rewrite the pair to none"):
        webui.generate(BOTH, settings)


def test_a_pair_for_another_checkpoint_is_added_as_it_is(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    def for_another(_model: object, _path: str, name: str) -> None:
        raise PairError(f"LoRA {name} is made for SDXL, but the loaded checkpoint is SD1.")

    monkeypatch.setattr("klora.hosts.webui.job.check_base_model", for_another)
    monkeypatch.setattr("klora.hosts.webui.job.rewritten_loras", lambda *_: pytest.fail("rewritten"))
    p = webui.generate(BOTH, {"incomplete": "add normally", "transform": "NP-LoRA"})
    assert "LoRA fox is made for SDXL" in p.extra_generation_params["K-LoRA fallback"]
    assert all(webui.is_applied(p.seen[0], layer, "fox", "ink") for layer in CANONICAL)


def test_loras_picked_in_the_accordion_are_loaded(webui: Webui) -> None:
    picks = {"content": "fox", "style": "Ink Wash", "style_weight": 0.5, **STYLE_WINS}
    p = webui.generate("a fox", picks)
    assert p.prompts == ["a fox<lora:fox:1><lora:ink:0.5>"] * 2
    assert all(webui.is_applied(p.seen[0], layer, "ink") for layer in CANONICAL)


@pytest.mark.parametrize(
    ("mode", "left"),
    [("added", ["fox", "ink"]), ("content only", ["fox"]), ("style only", ["ink"]), ("off", [])],
)
def test_modes(webui: Webui, mode: str, left: list[str]) -> None:
    p = webui.generate(BOTH, {"mode": mode})
    assert all(webui.is_applied(output, layer, *left) for output in p.seen for layer in IN_FORWARD_ORDER)
    assert p.klora_job.plans == []


def test_the_hires_pass_has_a_plan_of_its_own(webui: Webui) -> None:
    tags = {
        "lora": [
            parsed_tag(["ink", "1"]),
            parsed_tag(["fox", "1"]),
        ]
    }
    p = webui.generate(BOTH, CONTENT_WINS, enable_hr=True, hr_extra_network_data=tags)
    assert webui.is_applied(p.seen[-1], ATTENTION[0], "fox")
    p.is_hr_pass, p.sampler = True, FakeSampler(webui.model)
    webui.activate(["ink", "fox"])
    webui.script.after_extra_networks_activate(p)
    # There ink stands first, so it is the content.
    assert all(webui.is_applied(output, ATTENTION[0], "ink") for output in webui.sample(p))
    assert len(p.klora_job.plans) == 2


def test_a_hires_prompt_that_lacks_a_lora_is_named(webui: Webui) -> None:
    tags = {"lora": [parsed_tag(["fox", "1"])]}
    with pytest.raises(PairError, match=r"found 1 \(fox\).*in the hires prompt\.$"):
        webui.generate(BOTH, {}, enable_hr=True, hr_extra_network_data=tags)


def test_img2img_with_one_sampler_for_all_batches(webui: Webui) -> None:
    p = webui.generate(BOTH, CONTENT_WINS)
    webui.batch(p)
    webui.sample(p)
    assert p.sampler.launched == 2
    assert len(p.seen) == 10
    assert all(webui.is_applied(output, ATTENTION[0], "fox") for output in p.seen)
    assert [plan.steps for plan in p.klora_job.plans] == [5, 5]


def test_an_exception_in_the_unet_leaves_nothing(webui: Webui) -> None:
    webui.networks.fail_in = ATTENTION[3]
    functions = webui.networks.network_apply_weights, webui.networks.network_forward
    with pytest.raises(RuntimeError, match="out of memory"):
        webui.generate(BOTH, PUBLISHED)
    webui.networks.fail_in = None
    assert (webui.networks.network_apply_weights, webui.networks.network_forward) == functions
    added = webui.generate(BOTH, False)
    assert all(webui.is_applied(added.seen[0], layer, "fox", "ink") for layer in IN_FORWARD_ORDER)


def test_the_infotext_outlives_a_copy_that_begins_within_the_job(webui: Webui) -> None:
    """As ADetailer's does, after it has repainted the last picture of a batch."""
    p = webui.generate(BOTH, PUBLISHED)
    told = dict(p.extra_generation_params)
    webui.script.process(copy(p), PUBLISHED)
    assert p.extra_generation_params == told != {}


def test_infotext_is_written_and_that_of_a_former_cell_removed(webui: Webui) -> None:
    p = webui.generate(BOTH, {**PUBLISHED, "alpha": 2})
    written = p.extra_generation_params
    assert written["K-LoRA"].startswith("fox (")
    assert written["K-LoRA alpha"] == "2"
    webui.script.process(p, False)
    webui.script.before_process_batch(p, False)
    assert not any(key.startswith("K-LoRA") for key in written)


def test_progress_is_told_and_taken_back(webui: Webui) -> None:
    told: list[str] = []

    class State(SimpleNamespace):
        def __setattr__(self, name: str, value: Any) -> None:
            told.append(value)
            super().__setattr__(name, value)

    sys.modules["modules.shared"].state = State(textinfo="before")  # type: ignore[attr-defined]
    told.clear()
    webui.generate(BOTH, {**PUBLISHED, "other_layers": "fuse"})
    assert told[0] == f"K-LoRA: scoring layer 1 of {len(CANONICAL)}"
    assert len(told) == len(CANONICAL) + 1
    assert told[-1] == "before"


def test_progress_is_taken_back_from_a_scoring_that_fails(webui: Webui) -> None:
    """Although the job keeps its error, and with it where it was raised."""
    module = webui.known["fox"].modules[ATTENTION[2]]
    module.delta = module.delta[:, :2]
    before = len(getattr(tqdm, "_instances", ()))
    with pytest.raises(LoraFileError, match="does not fit") as kept:
        webui.generate(BOTH, dict(PUBLISHED))
    assert sys.modules["modules.shared"].state.textinfo == "before"
    assert len(getattr(tqdm, "_instances", ())) == before
    assert kept.value.__traceback__ is not None


def test_nothing_is_put_among_the_pictures_and_the_plan_lies_beside_the_saved_one(
    webui: Webui, tmp_path: Path
) -> None:
    picture = SimpleNamespace(already_saved_as=str(tmp_path / "00001-7.png"))
    for show, text in ((False, "hidden"), (True, "shown")):
        p = webui.generate(BOTH, {**PUBLISHED, "show_plan": show})
        processed = SimpleNamespace(images=[picture], infotexts=[text])
        webui.script.postprocess(p, processed)
        assert (processed.images, processed.infotexts) == ([picture], [text])
        assert (tmp_path / "00001-7-plan.png").exists() == show
        assert len(json.loads(won.answer(text))) == show


def _job_of_batches(webui: Webui, folder: Path, prompts: list[str], has_infotexts: bool = True) -> list[str]:
    """The infotexts of a job with a grid and these prompts, a batch of two each, whose pictures are saved."""
    p = webui.generate(prompts[0], {**PUBLISHED, "show_plan": True})
    for p.iteration, prompt in enumerate(prompts[1:], 1):
        p.prompts = [prompt, prompt]
        webui.batch(p)
        webui.sample(p)
    infotexts = [f"{folder.name} {number}" for number in range(2 * len(prompts))]
    pictures = [
        SimpleNamespace(
            already_saved_as=str(folder / f"{number}.png"), info={"parameters": text} if has_infotexts else {}
        )
        for number, text in enumerate(infotexts)
    ]
    grid = SimpleNamespace(already_saved_as=None, info={"parameters": infotexts[0]})
    processed = SimpleNamespace(
        images=[grid, *pictures], infotexts=[infotexts[0], *infotexts], index_of_first_image=1
    )
    webui.script.postprocess(p, processed)
    return infotexts


@pytest.mark.parametrize("has_infotexts", [True, False])
def test_each_picture_tells_the_plan_of_its_own_batch(
    webui: Webui, tmp_path: Path, has_infotexts: bool
) -> None:
    prompts = ["<klora:fox:ink>", "<klora:ink:fox>", "<klora:ink:fox>"]
    infotexts = _job_of_batches(webui, tmp_path, prompts, has_infotexts)
    pairs = [plan["loras"] for text in infotexts for plan in json.loads(won.answer(text))]
    assert pairs == [["fox", "ink"]] * 2 + [["ink", "fox"]] * 4
    drawn = ["0-plan.png", "2-plan.png"] if has_infotexts else ["0-plan.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == drawn


def test_pictures_with_one_plan_are_all_remembered_and_the_plan_is_drawn_once(
    webui: Webui, tmp_path: Path
) -> None:
    infotexts = _job_of_batches(webui, tmp_path, ["<klora:fox:ink>"] * won.MOST_KEPT)
    assert len(infotexts) > won.MOST_KEPT
    assert [len(json.loads(won.answer(text))) for text in infotexts] == [1] * len(infotexts)
    assert [path.name for path in tmp_path.iterdir()] == ["0-plan.png"]


def test_of_many_plans_the_last_are_remembered(
    webui: Webui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(won, "MOST_KEPT", 3)
    infotexts = _job_of_batches(webui, tmp_path, ["<klora:fox:ink>", "<klora:ink:fox>"] * 2)
    assert [len(json.loads(won.answer(text))) for text in infotexts] == [0] * 2 + [1] * 6


def test_the_mark_of_a_comparison_is_no_setting(webui: Webui) -> None:
    settings = [Settings(enabled=True).values[one.name] for one in Settings.offered()]
    p = webui.generate(BOTH, *settings, "")
    assert p.extra_generation_params["K-LoRA"].startswith("fox")


@pytest.mark.parametrize("originals", [None, SimpleNamespace()], ids=["none", "a stub, as on reForge"])
def test_a_host_that_is_not_known_is_said_so(webui: Webui, originals: object) -> None:
    webui.networks.originals = originals
    with pytest.raises(KloraError, match="does not know this WebUI"):
        webui.generate(BOTH, {})


def test_a_lora_for_another_base_model_is_named(webui: Webui, tmp_path: Path) -> None:
    block = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    file = write_lora(tmp_path / "ink.safetensors", (block,), size=(640, 2048))
    webui.known["ink"].network_on_disk.filename = str(file)
    with pytest.raises(PairError, match="ink is made for SDXL, but the loaded checkpoint is SD1"):
        webui.generate(BOTH, {})
