"""The table of what must hold, on the real AUTOMATIC1111, by hash of the pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from klora.files.conversion import convert
from tests.hosts.server import Answer, RefusedError, WebUI, left_half
from tests.published import PUBLISHED

CONTENT, STYLE, THIRD = ("<lora:content-sd1-a:1>", "<lora:style-sd1-a:0.8>", "<lora:third-sd1-a:0.5>")
PAIR = f"a cat {CONTENT}{STYLE}"
#: In all layers, also in those outside attention, which by default are no contest.
CONTENT_WINS = {**PUBLISHED, "alpha": 0, "beta": 0, "other_layers": "fuse"}
STYLE_WINS = {**PUBLISHED, "alpha": 0, "beta": 1e8, "other_layers": "fuse"}

#: Passes that leave their own traces in a host: K-LoRA must win and lose in each as in a plain one.
PASSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hires": {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7},
    "hires with its own checkpoint": {
        "enable_hr": True,
        "hr_scale": 2,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.7,
        "hr_checkpoint_name": "sd1-b.safetensors",
    },
    "batch 2 x 2": {"batch_size": 2, "n_iter": 2},
    "refiner": {"refiner_checkpoint": "sd1-b.safetensors", "refiner_switch_at": 0.5},
    "second order": {"sampler_name": "Heun"},
}


@pytest.fixture(autouse=True)
def _plain_options(webui: WebUI) -> Iterator[None]:
    """Each test starts from, and returns to, the SD1 checkpoint and the options that it found."""
    plain = {
        "sd_model_checkpoint": "sd1-a.safetensors",
        "lora_functional": False,
        "fp8_storage": "Disable",
        "cache_fp16_weight": False,
    }
    webui.options(**plain)
    yield
    webui.options(**plain)
    webui.call("/probe/arm", {})


@pytest.mark.parametrize("kind", PASSES)
def test_the_winner_everywhere_is_the_only_lora(webui: WebUI, kind: str) -> None:
    request = PASSES[kind]
    assert (
        webui.txt2img(PAIR, CONTENT_WINS, **request).pixels
        == webui.txt2img(f"a cat {CONTENT}", **request).pixels
    )
    assert (
        webui.txt2img(PAIR, STYLE_WINS, **request).pixels == webui.txt2img(f"a cat {STYLE}", **request).pixels
    )


def test_the_hires_pass_may_have_its_own_prompt(webui: WebUI) -> None:
    request = PASSES["hires"]
    weaker = STYLE.replace("0.8", "0.4")
    for settings, first, second in ((CONTENT_WINS, CONTENT, CONTENT), (STYLE_WINS, STYLE, weaker)):
        fused = webui.txt2img(PAIR, settings, hr_prompt=f"a dog {CONTENT}{weaker}", **request)
        alone = webui.txt2img(f"a cat {first}", hr_prompt=f"a dog {second}", **request)
        assert fused.pixels == alone.pixels
    with pytest.raises(RefusedError, match=r"found 1 .content-sd1-a.* in the hires prompt"):
        webui.txt2img(PAIR, {}, hr_prompt=f"a dog {CONTENT}", **request)


def test_the_default_rule_makes_a_picture_of_its_own_and_repeats_it(webui: WebUI) -> None:
    fused = webui.txt2img(PAIR, {})
    others = [
        webui.txt2img(prompt).pixels for prompt in (PAIR, f"a cat {CONTENT}", f"a cat {STYLE}", "a cat")
    ]
    assert fused.pixels not in others
    assert len(set(others)) == 4
    assert webui.txt2img(PAIR, {}).pixels == fused.pixels
    further_ahead = webui.txt2img(PAIR, {"head_start": 8})
    assert further_ahead.pixels != fused.pixels


def test_a_third_lora_stays_added(webui: WebUI) -> None:
    # Between the two, so that the order in which the host adds them is tested as well.
    three = f"a cat {CONTENT}{THIRD}{STYLE}"
    settings = {"content": "content-sd1-a", "style": "style-sd1-a"}
    fused = webui.txt2img(three, {**settings, **CONTENT_WINS})
    assert fused.pixels == webui.txt2img(f"a cat {CONTENT}{THIRD}").pixels
    fused = webui.txt2img(three, {**settings, **STYLE_WINS})
    assert fused.pixels == webui.txt2img(f"a cat {THIRD}{STYLE}").pixels


def test_loras_picked_in_the_accordion_need_not_be_in_the_prompt(webui: WebUI) -> None:
    picked = {"content": "content-sd1-a", "style": "style-sd1-a", "style_weight": 0.8}
    for request in ({}, PASSES["hires"]):
        assert webui.txt2img("a cat ", picked, **request).pixels == webui.txt2img(PAIR, {}, **request).pixels


@pytest.mark.parametrize(
    ("mode", "prompt"),
    [
        ("off", "a cat "),
        ("content only", f"a cat {CONTENT}"),
        ("style only", f"a cat {STYLE}"),
        ("added", PAIR),
        ("K-LoRA", None),
    ],
)
def test_each_mode_is_what_it_says(webui: WebUI, mode: str, prompt: str | None) -> None:
    for request in ({}, PASSES["hires"]):
        expected = webui.txt2img(PAIR, {}, **request) if prompt is None else webui.txt2img(prompt, **request)
        assert webui.txt2img(PAIR, {"mode": mode}, **request).pixels == expected.pixels


def _calls(webui: WebUI) -> int:
    """How often the denoiser was called since the probe was armed."""
    return len(webui.call("/probe/look")["calls"])


def _interrupted(webui: WebUI) -> None:
    webui.call("/probe/arm", {"interrupt_at": 4})
    webui.txt2img(PAIR, {}, steps=8)
    assert 0 < _calls(webui) < 8


def _skipped(webui: WebUI) -> None:
    webui.call("/probe/arm", {"skip_at": 4})
    webui.txt2img(PAIR, {}, steps=8, n_iter=2)
    assert 8 < _calls(webui) < 16


def _interrupted_from_outside(webui: WebUI) -> None:
    webui.call("/probe/arm", {})
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: webui.txt2img(PAIR, {}, steps=100))
        while _calls(webui) == 0 and not job.done():
            time.sleep(0.1)
        webui.call("/sdapi/v1/interrupt", {})
        job.result()
    assert 0 < _calls(webui) < 100


def _failed(webui: WebUI) -> None:
    webui.call("/probe/arm", {"fail_at": 4})
    with pytest.raises(RefusedError, match="ProbeError"):
        webui.txt2img(PAIR, {})


def _switched(webui: WebUI) -> None:
    webui.txt2img(PAIR, {})
    for checkpoint in ("sdxl", "sd1-b", "sd1-a"):
        webui.options(sd_model_checkpoint=f"{checkpoint}.safetensors")
        family = "sdxl" if checkpoint == "sdxl" else "sd1-a"
        webui.txt2img(f"a cat <lora:content-{family}:1><lora:style-{family}:1>", {}, steps=2)


def _repainted(webui: WebUI) -> None:
    webui.img2img(PAIR, {}, init=webui.txt2img("a cat "))


ENDS: dict[str, Callable[[WebUI], object]] = {
    "normal": lambda webui: webui.txt2img(PAIR, {}),
    "hires": lambda webui: webui.txt2img(PAIR, {}, **PASSES["hires"]),
    "img2img": _repainted,
    "interrupt": _interrupted,
    "interrupt by the API": _interrupted_from_outside,
    "skip": _skipped,
    "exception in the UNet": _failed,
    "checkpoint switch and back": _switched,
    "refiner": lambda webui: webui.txt2img(PAIR, {}, **PASSES["refiner"]),
    "functional": lambda webui: (webui.options(lora_functional=True), webui.txt2img(PAIR, {})),
}


@pytest.fixture(scope="module")
def before(webui: WebUI) -> tuple[Answer, Answer]:
    """The base picture and the picture with both LoRAs added, before K-LoRA was ever on."""
    webui.options(sd_model_checkpoint="sd1-a.safetensors")
    return webui.txt2img("a cat "), webui.txt2img(PAIR)


@pytest.mark.parametrize("end", ENDS)
def test_everything_comes_back(webui: WebUI, before: tuple[Answer, Answer], end: str) -> None:
    ENDS[end](webui)
    webui.options(lora_functional=False)
    base, added = before
    assert webui.txt2img(PAIR).pixels == added.pixels
    assert webui.txt2img("a cat ").pixels == base.pixels


def _img2img(webui: WebUI, *arguments: Any, **request: Any) -> tuple[str, ...]:
    # The host encodes the initial picture with the random state that the job before left behind, so two
    # equal jobs differ unless the jobs before them are equal too.
    webui.txt2img("a cat ", steps=1)
    return webui.img2img(*arguments, **request).pixels


@pytest.mark.parametrize(
    "request_",
    [{}, {"n_iter": 2}, {"denoising_strength": 0.3}, {"sampler_name": "DDIM"}, {"mask": True}],
    ids=str,
)
def test_img2img_and_inpainting_are_fused_too(webui: WebUI, request_: dict[str, Any]) -> None:
    start = webui.txt2img("a cat ")
    request = {**request_, "init": start}
    if request.pop("mask", False):
        request |= {"mask": left_half(start.size), "inpainting_fill": 1, "mask_blur": 0}
    only = _img2img(webui, f"a cat {CONTENT}", **request)
    assert _img2img(webui, PAIR, CONTENT_WINS, **request) == only
    assert _img2img(webui, PAIR, {}, **request) != only


def test_functional_mode(webui: WebUI) -> None:
    webui.options(lora_functional=True)
    assert webui.txt2img(PAIR, CONTENT_WINS).pixels == webui.txt2img(f"a cat {CONTENT}").pixels
    assert webui.txt2img(PAIR, STYLE_WINS).pixels == webui.txt2img(f"a cat {STYLE}").pixels
    assert webui.txt2img(PAIR, {}).pixels != webui.txt2img(PAIR).pixels


def test_fp8_storage(webui: WebUI) -> None:
    webui.options(fp8_storage="Enable")
    assert webui.txt2img(PAIR, CONTENT_WINS).pixels == webui.txt2img(f"a cat {CONTENT}").pixels
    assert webui.txt2img(PAIR, {}).pixels != webui.txt2img(PAIR).pixels


def test_sdxl(webui: WebUI) -> None:
    webui.options(sd_model_checkpoint="sdxl.safetensors")
    content, style = "<lora:content-sdxl:1>", "<lora:style-sdxl:1>"
    pair = f"a cat {content}{style}"
    assert webui.txt2img(pair, CONTENT_WINS).pixels == webui.txt2img(f"a cat {content}").pixels
    assert webui.txt2img(pair, STYLE_WINS).pixels == webui.txt2img(f"a cat {style}").pixels
    assert webui.txt2img(pair, {}).pixels != webui.txt2img(pair).pixels


# Samplers for flow models: what they make of an SD1 checkpoint is the same with any LoRA.
_FOR_FLOW = " RF"


@pytest.mark.timeout(3600)  # reForge has some seventy samplers, three pictures each
def test_every_sampler(webui: WebUI) -> None:
    wrong = []
    samplers = [one["name"] for one in webui.call("/sdapi/v1/samplers")]
    assert len(samplers) >= 15
    for sampler in samplers:
        only = webui.txt2img(f"a cat {CONTENT}", sampler_name=sampler)
        if webui.txt2img(PAIR, CONTENT_WINS, sampler_name=sampler).pixels != only.pixels:
            wrong.append(sampler)
        if sampler.endswith(_FOR_FLOW):
            continue
        if webui.txt2img(PAIR, {}, sampler_name=sampler).pixels == only.pixels:
            wrong.append(f"{sampler} (default rule)")
    assert wrong == []


@pytest.mark.parametrize("clock", ["step", "noise", "published"])
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM", "UniPC", "DPM adaptive"])
def test_every_clock_runs_with_every_kind_of_sampler(webui: WebUI, clock: str, sampler: str) -> None:
    only = webui.txt2img(f"a cat {CONTENT}", sampler_name=sampler).pixels
    assert webui.txt2img(PAIR, {"clock": clock}, sampler_name=sampler).pixels != only


@pytest.mark.parametrize(("schedule", "most"), [("S", 2), ("S*", 3)])
def test_only_what_flips_is_merged(webui: WebUI, schedule: str, most: int) -> None:
    webui.txt2img(PAIR, {**PUBLISHED, "schedule": schedule}, steps=20)
    webui.call("/probe/arm", {})
    webui.txt2img(PAIR, {**PUBLISHED, "schedule": schedule}, steps=20)
    merges = webui.call("/probe/look")["merges"]
    attention = {name: count for name, count in merges.items() if "_attn" in name}
    assert 0 < len(attention) <= 128  # a layer that keeps its winner from the picture before needs no merge
    assert max(attention.values()) <= most


@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_a_dialect_that_the_host_cannot_read_works_and_leaves_no_trace(
    webui: WebUI, models: Path, dialect: str
) -> None:
    for role in ("content", "style"):
        source = models / "loras" / f"{role}-sd1-a.safetensors"
        convert(source, models / "loras" / f"{role}-{dialect}.safetensors", dialect, overwrite=True)
    webui.call("/sdapi/v1/refresh-loras", {})
    content, style = f"<lora:content-{dialect}:1>", f"<lora:style-{dialect}:0.8>"
    unread = [webui.txt2img(f"a cat {tags}").pixels for tags in (content, style, content + style)]
    for settings in (CONTENT_WINS, STYLE_WINS, {}):
        # The scale is multiplied into the factors, so the picture may differ by a rounding.
        fused = webui.txt2img(f"a cat {content}{style}", settings)
        distance = fused.distance(webui.txt2img(PAIR, settings))
        assert distance <= 2
    for request in (PASSES["hires"], PASSES["batch 2 x 2"]):
        fused = webui.txt2img(f"a cat {content}{style}", {}, **request)
        assert fused.distance(webui.txt2img(PAIR, {}, **request)) <= 4
    again = [webui.txt2img(f"a cat {tags}").pixels for tags in (content, style, content + style)]
    assert again == unread


def _with_inner_pass(webui: WebUI, prompt: str, klora: dict[str, Any] | None, stems: str) -> str:
    webui.txt2img("a cat ", steps=1)  # the host's random state, as in `_img2img`
    scripts: dict[str, Any] = {"Inner pass": {"args": [True, stems]}}
    if klora is not None:
        scripts["K-LoRA"] = {"args": [klora]}
    return webui.txt2img(prompt, alwayson_scripts=scripts).pixels[0]


def test_the_inner_pass_of_another_extension_is_fused_if_it_lets_us(webui: WebUI) -> None:
    alone = _with_inner_pass(webui, f"a cat {CONTENT}", None, "")
    assert alone != webui.txt2img(f"a cat {CONTENT}").pixels[0]
    assert _with_inner_pass(webui, PAIR, CONTENT_WINS, "klora_script") == alone
    # Left out, the outer picture is fused all the same and the inner one gets both LoRAs, as ever.
    before = webui.txt2img(PAIR).pixels
    assert _with_inner_pass(webui, PAIR, CONTENT_WINS, "") not in (
        alone,
        _with_inner_pass(webui, PAIR, None, ""),
    )
    assert webui.txt2img(PAIR).pixels == before


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "one LoRA": (f"a cat {CONTENT}", {}, r"needs two LoRAs, found 1 \(content-sd1-a\)"),
    "no LoRA": ("a cat", {}, "needs two LoRAs, found none"),
    "missing file": (f"a cat {CONTENT}<lora:nobody:1>", {}, "nobody was not found"),
    "other base model": (f"a cat {CONTENT}<lora:style-sdxl:1>", {}, "made for SDXL, but the loaded .* SD1"),
    "unknown setting": (PAIR, {"speed": 3}, "no setting 'speed'"),
    "value out of range": (PAIR, {"alpha": -1}, "alpha is -1"),
    "NaN": (f"a cat {CONTENT}<lora:nan:1>", {}, "nan.* layer .*attn.* holds NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_job_is_refused_in_a_sentence(webui: WebUI, nan_lora: str, case: str) -> None:
    prompt, settings, sentence = REFUSED[case]
    with pytest.raises(RefusedError, match=sentence) as refused:
        webui.txt2img(prompt, settings)
    assert refused.value.status == 422
    assert webui.txt2img("a cat").pixels  # and the WebUI works on


def test_a_pair_that_shares_no_attention_layer_is_refused(webui: WebUI, models: Path) -> None:
    tensors = load_file(models / "loras" / "style-sd1-a.safetensors")
    outside = {name: tensor for name, tensor in tensors.items() if "_attn" not in name}
    assert outside
    save_file(outside, models / "loras" / "outside.safetensors")
    webui.call("/sdapi/v1/refresh-loras", {})
    pair = f"a cat {CONTENT}<lora:outside:1>"
    with pytest.raises(RefusedError, match="content-sd1-a and outside share no attention layer") as refused:
        webui.txt2img(pair, {})
    assert refused.value.status == 422
    added = webui.txt2img(pair, {"incomplete": "add normally"})
    assert added.pixels == webui.txt2img(pair).pixels


def test_add_normally_says_so(webui: WebUI) -> None:
    one = f"a cat {CONTENT}"
    answer = webui.txt2img(one, {"incomplete": "add normally"})
    assert answer.pixels == webui.txt2img(one).pixels
    assert "K-LoRA fallback" in answer.infotexts[0]


def test_the_infotext_names_pair_and_rule(webui: WebUI) -> None:
    text = webui.txt2img(PAIR, {**PUBLISHED, "beta": 0.75}).infotexts[0]
    for part in ("K-LoRA: content-sd1-a", "style-sd1-a", "K-LoRA schedule: S", "K-LoRA beta: 0.75"):
        assert part in text
    assert "K-LoRA" not in webui.txt2img(PAIR).infotexts[0]


def test_the_plan_lies_beside_the_saved_picture_and_not_among_the_results(
    webui: WebUI, data_folder: Path
) -> None:
    plain = webui.txt2img(PAIR, {}, save_images=True, n_iter=2)  # a saved job has a grid
    before = set(data_folder.rglob("*.png"))
    shown = webui.txt2img(PAIR, {"show_plan": True}, save_images=True, n_iter=2)
    assert shown.pixels == plain.pixels
    made = sorted(path.name for path in set(data_folder.rglob("*.png")) - before)
    pictures = [name for name in made if name.startswith("0") and "-plan" not in name]
    plans = [name for name in made if "-plan" in name]
    assert len(pictures) == 2
    assert plans == [pictures[0].replace(".png", "-plan.png")]  # both have the same


def test_the_plan_of_each_pair_lies_beside_its_own_picture(webui: WebUI, data_folder: Path) -> None:
    """The matrix makes one job of prompts that differ, a batch each."""
    swapped = "<klora:style-sd1-a:content-sd1-a>"
    before = set(data_folder.rglob("*.png"))
    webui.txt2img(
        f"{PAIR}|{swapped}",
        {"show_plan": True},
        save_images=True,
        script_name="prompt matrix",
        script_args=[False, False, "positive", "comma", 0],
    )
    made = [path for path in set(data_folder.rglob("*.png")) - before if path.name.startswith("0")]
    plans = [path for path in made if "-plan" in path.name]
    assert {path.name.replace("-plan", "") for path in plans} == {p.name for p in made if p not in plans}
    assert len({path.read_bytes() for path in plans}) == 2


def test_a_comparison_makes_five_pictures_and_a_grid(webui: WebUI) -> None:
    made = webui.txt2img(PAIR, {}, script_name="K-LoRA: compare", script_args=["ways"])
    alone = [webui.txt2img(f"a cat {one}") for one in (CONTENT, STYLE)]
    assert len(made.pixels) == len(made.infotexts) == 6
    assert made.pixels[1:4] == (*(one.pixels[0] for one in alone), webui.txt2img(PAIR).pixels[0])
    assert made.pixels[5] == webui.txt2img(PAIR, {}).pixels[0]


def test_prompt_matrix_counts_only_its_own_pictures(webui: WebUI) -> None:
    arguments = [False, False, "positive", "comma", 0]
    prompt = f"{PAIR}|red"
    plain = webui.txt2img(prompt, {}, script_name="Prompt matrix", script_args=arguments)
    shown = webui.txt2img(prompt, {"show_plan": True}, script_name="Prompt matrix", script_args=arguments)
    assert shown.pixels == plain.pixels


def test_routes(webui: WebUI) -> None:
    assert webui.call("/klora/v1/version")["version"]
    names = [one["name"] for one in webui.call("/klora/v1/schema")["settings"]]
    assert names[:3] == ["enabled", "content", "style"]
    plan = webui.call("/klora/v1/plan", {"content": "content-sd1-a", "style": "style-sd1-a", "steps": 5})
    assert len(plan["choices"]) == 5
    assert len(plan["layers"]) == len(plan["choices"][0]) >= 128
    with pytest.raises(RefusedError, match="no LoRA 'passwd'"):
        webui.call("/klora/v1/plan", {"content": "/etc/passwd", "style": "style-sd1-a", "steps": 5})


def test_the_pypi_client(webui: WebUI) -> None:
    webuiapi = pytest.importorskip("webuiapi", reason="pip install webuiapi to test it as a caller")
    host, port = webui.address.removeprefix("http://").split(":")
    client = webuiapi.WebUIApi(host=host, port=int(port))
    request = {"prompt": PAIR, "steps": 6, "width": 64, "height": 64, "seed": 7, "cfg_scale": 7}
    settings = {"K-LoRA": {"args": [CONTENT_WINS]}}
    result = client.txt2img(**request, sampler_name="Euler a", alwayson_scripts=settings)
    only = webui.txt2img(f"a cat {CONTENT}")
    assert result.image.convert("RGB").tobytes() == only.raw
